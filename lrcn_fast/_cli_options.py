"""Options and helpers that several commands share."""

import contextlib
import enum
import sys
from typing import Annotated, Any

import typer

__all__ = ["Device", "DeviceName", "Json", "check_device", "progress"]


class DeviceName(str, enum.Enum):
    """Where to run."""

    CPU = "cpu"
    CUDA = "cuda"


Device = Annotated[DeviceName, typer.Option("--device", help="Where to run.")]
Json = Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")]


def check_device(device: DeviceName) -> None:
    """Refuse a device that is not there."""
    import torch

    if device is DeviceName.CUDA and not torch.cuda.is_available():
        raise typer.BadParameter("--device must be cpu without an NVIDIA GPU, got cuda")


def progress(total: int, unit: str = "photos") -> Any:
    """A bar on stderr if that is a terminal and stdout is not; ``with`` it for ``advance(n)``."""
    if total < 2 or not sys.stderr.isatty() or sys.stdout.isatty():
        return contextlib.nullcontext(lambda n: None)
    from rich.console import Console
    from rich.progress import Progress

    @contextlib.contextmanager
    def bar() -> Any:
        with Progress(console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task(unit, total=total)
            yield lambda n: shown.advance(task, n)

    return bar()

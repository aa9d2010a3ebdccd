"""Options and helpers that several commands share."""

import contextlib
import enum
import json
import math
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

__all__ = [
    "Beams",
    "Crops",
    "Device",
    "DeviceName",
    "Dtype",
    "DtypeName",
    "FlowModel",
    "FlowWeight",
    "Json",
    "LengthPenalty",
    "NewTokens",
    "check_device",
    "check_flow",
    "check_nbest",
    "print_captions",
    "progress",
]


class DeviceName(str, enum.Enum):
    """Where to run."""

    CPU = "cpu"
    CUDA = "cuda"


class DtypeName(str, enum.Enum):
    """How the decoder's weights are held."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


class CropsName(str, enum.Enum):
    """Which parts of a frame are seen."""

    CENTRE = "centre"
    MIRROR = "mirror"
    TEN = "ten"


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"must be a finite number, got {value}")
    return value


Device = Annotated[DeviceName, typer.Option("--device", help="Where to run.")]
Json = Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")]


Beams = Annotated[
    int | None,
    typer.Option(
        "--num-beams", "--beam", min=1, max=1024, help="Beam width; 1 is greedy. Default: the model's."
    ),
]
LengthPenalty = Annotated[
    float | None,
    typer.Option(
        "--length-penalty", callback=_finite, help="Above 0 favours long captions. Default: the model's."
    ),
]
NewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens", min=1, help="Longest caption, end marker included. Default: the model's."
    ),
]
Dtype = Annotated[DtypeName, typer.Option("--dtype", help="Weights of the decoder.")]
Crops = Annotated[
    CropsName | None,
    typer.Option(
        "--crops", help="mirror: the centre and its mirror image; ten: corners too. Default: centre."
    ),
]
FlowModel = Annotated[
    str | None, typer.Option("--flow-model", help="A second recogniser, that reads optical flow.")
]
FlowWeight = Annotated[
    float | None,
    typer.Option("--flow-weight", min=0, max=1, help="Its share; the paper has 0.5 and 0.667. Default: 0.5."),
]


def check_device(device: DeviceName) -> None:
    """Refuse a device that is not there."""
    import torch

    if device is DeviceName.CUDA and not torch.cuda.is_available():
        raise typer.BadParameter("--device must be cpu without an NVIDIA GPU, got cuda")


def check_flow(flow_model: str | None, flow_weight: float | None) -> None:
    """Refuse a weight of nothing."""
    if flow_weight is not None and flow_model is None:
        raise typer.BadParameter("--flow-weight goes with --flow-model")


def check_nbest(num_return_sequences: int, num_beams: int | None) -> None:
    """Refuse more results than there are beams."""
    if num_beams is not None and num_return_sequences > num_beams:
        raise typer.BadParameter(f"--nbest must be at most --beam = {num_beams}, got {num_return_sequences}")


def print_captions(
    name: str, captions: Sequence[Any], as_json: bool, *, key: str = "image", plural: str = "captions"
) -> None:
    """Print what was said of one thing: a line each, with scores if several, or one JSON object."""
    if as_json:
        found = [
            {"text": c.text, "score": c.score, "token_logprobs": list(c.token_logprobs)} for c in captions
        ]
        print(json.dumps({key: name, plural: found}), flush=True)
        return
    for c in captions:
        print(f"{name}\t{c.text}" if len(captions) == 1 else f"{name}\t{c.score:.3f}\t{c.text}", flush=True)


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

"""What a run tells people: progress bars on a terminal, a JSON-lines log and TensorBoard events."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["Reporter"]


class Reporter:
    """Writes for the main process only; silent on stderr unless it is a terminal.

    Args:
        out: Folder of ``log.jsonl`` and ``tensorboard/``.
        enabled: Whether this process reports.
        progress: Show bars and one line per evaluation; None: if stderr is a terminal.
    """

    def __init__(self, out: Path, enabled: bool, progress: bool | None = None) -> None:
        self._log = out / "log.jsonl" if enabled else None
        self._show = enabled and (sys.stderr.isatty() if progress is None else progress)
        self._board: Any = None
        self._bars: Any = None
        if enabled:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError("training needs tensorboard: pip install 'lrcn_fast[train]'") from error
            # Opened by the first entry: a run that fails before leaves no events.
            self._open = partial(SummaryWriter, str(out / "tensorboard"))

    @contextlib.contextmanager
    def bar(self, title: str, total: int, start: int = 0) -> Iterator[Callable[[int, int], None]]:
        """Yield ``advance(done, total)`` for a progress bar on stderr."""
        if not self._show:
            yield lambda done, of: None
            return
        # One display for nested bars: older versions of rich refuse a second.
        outermost = self._bars is None
        if outermost:
            self._bars = _make_bars()
            self._bars.start()
        bars = self._bars
        task = bars.add_task(title, total=total, completed=start)
        try:
            yield lambda done, of: bars.update(task, completed=done, total=of)
        finally:
            bars.remove_task(task)
            if outermost:
                bars.stop()
                self._bars = None

    def log(self, entry: dict[str, Any]) -> None:
        """Append one evaluation to the log, to TensorBoard and, on a terminal, to stderr."""
        if self._log is None:
            return
        with open(self._log, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self._board is None:
            self._board = self._open()
        for name, value in entry.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{entry['phase']}/{name}", value, entry["step"])
        self._board.flush()
        if self._show:
            shown = {
                k: v
                for k, v in entry.items()
                if k in ("train_loss", "validation_loss", "bleu_4", "cider_d", "accuracy")
            }
            values = "  ".join(f"{k} {v:.4f}" for k, v in shown.items())
            print(f"{entry['phase']} step {entry['step']}  {values}", file=sys.stderr)

    def rewrite(self, entries: list[dict[str, Any]]) -> None:
        """Start the log anew from a checkpoint's history: later lines of a killed run will come again."""
        if self._log is not None:
            self._log.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")

    def close(self) -> None:
        """Flush and close the event file."""
        if self._board is not None:
            self._board.close()


def _make_bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)

"""``lrcn-fast demo``: photos that ship with scikit-image, captioned, timed and drawn.

The decoder is timed against the same beam search in eager PyTorch (``lrcn_fast.reference_decoder``), on the
same features. Their tokens are compared: in float32 a difference is an error, with smaller weights it is
shown.
"""

import importlib.util
import json
import statistics
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lrcn_fast import reference_decoder

if TYPE_CHECKING:
    from lrcn_fast.models import Captioner

__all__ = ["demo_photos", "run_demo"]

# In the wheel of scikit-image (skimage/data), so nothing is downloaded.
PHOTOS = ("coffee.png", "chelsea.png", "astronaut.png", "rocket.jpg", "camera.png", "motorcycle_left.png")

# Repetitions whose median is shown; the demo is a look, benchmarks/ is the measurement.
REPEATS = 5


@dataclass
class Row:
    """One line of the demo."""

    photo: str
    caption: str
    score: float
    encoder_ms: float
    decoder_ms: float
    pytorch_ms: float
    identical: bool


def demo_photos() -> list[Path]:
    """Photos inside the installed scikit-image.

    Raises:
        ImportError: it is not installed, or holds none of them.
    """
    spec = importlib.util.find_spec("skimage")
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    found = [Path(folder) / "data" / name for folder in folders for name in PHOTOS]
    found = [path for path in found if path.is_file()]
    if not found:
        raise ImportError("the demo needs the photos of scikit-image: pip install 'lrcn_fast[demo]'")
    return found


def run_demo(
    model: "Captioner", out: Path, *, exact: bool, as_json: bool = False, **search: Any
) -> list[Row]:
    """Caption the photos, print a table (or JSON lines) and write the gallery.

    Args:
        model: Prepared, on the CPU.
        out: PNG to write.
        exact: Whether the decoder computes in float32, so that tokens must be identical.
        as_json: JSON lines on stdout instead of the table.
        **search: Options of ``CaptionDecoder.generate``; the model's own where missing or None.

    Raises:
        RuntimeError: float32 decoding and the search in PyTorch found different tokens.
    """
    paths = demo_photos()
    unk = model.vocabulary.unk_id
    options: dict[str, Any] = {
        **model.generation.options(**search),
        "suppress_tokens": () if unk is None else (unk,),
    }
    rows = []
    for path in paths:
        image = model.encoder.preprocess(path)[None]
        features, encoder_ms = _timed(partial(model.encode, image))
        static = model.condition(features)
        native, decoder_ms = _timed(partial(model.decoder.generate, static, **options))
        eager, pytorch_ms = _timed(partial(reference_decoder.generate, model.decoder, static, **options))
        best = model.to_captions(native)[0][0]
        identical = torch.equal(native.sequences, eager.sequences)
        if exact and not identical:
            raise RuntimeError(
                f"demo: tokens of {path.stem} must be those of the search in PyTorch, got {best.text!r} and "
                f"{model.to_captions(eager)[0][0].text!r}"
            )
        rows.append(Row(path.stem, best.text, best.score, encoder_ms, decoder_ms, pytorch_ms, identical))
    _draw(rows, paths, out)
    if as_json:
        for row in rows:
            print(json.dumps({**row.__dict__, "gallery": str(out)}))
    else:
        _table(rows, out)
    return rows


@torch.no_grad()
def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Result, and the median of a few runs in milliseconds after one that warms up."""
    result = run()
    samples = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        samples.append(1e3 * (time.perf_counter() - start))
    return result, statistics.median(samples)


def _table(rows: list[Row], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=None, show_lines=False)
    table.add_column("photo")
    table.add_column("caption", overflow="fold")
    for name in ("score", "encoder ms", "decoder ms", "same search in\nPyTorch ms", "ratio", "tokens"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.photo, row.caption, f"{row.score:.2f}", f"{row.encoder_ms:.1f}", f"{row.decoder_ms:.2f}",
            f"{row.pytorch_ms:.1f}", f"{row.pytorch_ms / row.decoder_ms:.1f}x",
            "identical" if row.identical else "differ",
        )  # fmt: skip
    # Wide enough for every column where stdout is a file or a pipe.
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table)
    threads = torch.get_num_threads()
    console.print(f"medians of {REPEATS} runs, one photo at a time, {threads} threads; gallery: {out}")


def _draw(rows: list[Row], paths: list[Path], out: Path) -> None:
    """Photos with captions, and bars of the three times."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("the demo needs matplotlib: pip install 'lrcn_fast[demo]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from lrcn_fast._files import atomic_path
    from lrcn_fast.models import load_image

    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure = plt.figure(figsize=(4.2 * columns, 3.4 * lines + 2.6), layout="constrained")
    grid = figure.add_gridspec(lines + 1, columns, height_ratios=[3.2] * lines + [2.6])
    for i, (row, path) in enumerate(zip(rows, paths, strict=True)):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        axes.imshow(load_image(path))
        axes.set_title(textwrap.fill(row.caption, 44), fontsize=11)
        axes.axis("off")
    axes = figure.add_subplot(grid[lines, :])
    positions = range(len(rows))
    bars = (
        ("encoder", [r.encoder_ms for r in rows], "#9aa5b1"),
        ("decoder", [r.decoder_ms for r in rows], "#1f77b4"),
        ("same search in PyTorch", [r.pytorch_ms for r in rows], "#ff7f0e"),
    )
    for k, (name, values, colour) in enumerate(bars):
        drawn = axes.barh([p + (k - 1) * 0.27 for p in positions], values, 0.25, label=name, color=colour)
        axes.bar_label(drawn, fmt="%.1f", fontsize=8, padding=2)
    axes.set_yticks(list(positions), [r.photo for r in rows])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per photo, median")
    axes.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)

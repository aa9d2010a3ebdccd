"""What ``lrcn-fast recognize`` draws: labels on frames, an annotated video, a timeline of probabilities."""

import contextlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lrcn_fast._files import atomic_path

__all__ = ["AnnotatedVideo", "annotated_video", "draw_labels", "draw_timeline"]

Frame = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]

# Smaller frames are enlarged by a whole factor, so that the labels can be read.
_READABLE = 240


def draw_labels(frame: Frame, labels: Sequence[tuple[str, float]], note: str = "") -> Frame:
    """Return a larger or equal copy of a frame with the classes, their probabilities as bars, and a note.

    Args:
        frame: RGB [H, W, 3].
        labels: (class, probability), best first.
        note: A line above them, such as the time.
    """
    from PIL import Image, ImageDraw, ImageFont

    factor = max(1, -(-_READABLE // min(frame.shape[:2])))
    image = Image.fromarray(frame).resize(
        (frame.shape[1] * factor, frame.shape[0] * factor), Image.Resampling.BICUBIC
    )
    size = max(11, image.height // 24)
    line = round(1.35 * size)
    lines = len(labels) + bool(note)
    top = image.height - lines * line - size // 2
    panel = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(panel)
    draw.rectangle((0, top - size // 3, image.width, image.height), fill=(0, 0, 0, 150))
    font = ImageFont.load_default(size)
    if note:
        draw.text((size // 2, top), note, (220, 220, 220, 255), font)
        top += line
    for rank, (label, probability) in enumerate(labels):
        colour = (80, 180, 255, 150) if rank == 0 else (160, 160, 160, 110)
        draw.rectangle((0, top, round(probability * image.width), top + line - 3), fill=colour)
        draw.text((size // 2, top), f"{100 * probability:3.0f} %  {label}", (255, 255, 255, 255), font)
        top += line
    return np.asarray(Image.alpha_composite(image.convert("RGBA"), panel).convert("RGB"))


class AnnotatedVideo:
    """Writes frames of one size to a video file; made by :func:`annotated_video`."""

    def __init__(self, container: Any, fps: float) -> None:
        self._container = container
        self._rate = Fraction(fps).limit_denominator(1001)
        self._stream: Any = None
        self._count = 0

    def add(self, frame: Frame) -> None:
        """Append a frame [H, W, 3]; odd sides lose a row or column, which the codec cannot store."""
        import av

        if self._stream is None:
            self._stream = self._container.add_stream(self._container.default_video_codec, rate=self._rate)
            self._stream.height, self._stream.width = (side // 2 * 2 for side in frame.shape[:2])
            self._stream.pix_fmt = "yuv420p"
        frame = np.ascontiguousarray(frame[: self._stream.height, : self._stream.width])
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture.pts, picture.time_base = self._count, 1 / self._rate
        self._count += 1
        self._container.mux(self._stream.encode(picture))

    def finish(self) -> None:
        """Write what the encoder still holds."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())


@contextlib.contextmanager
def annotated_video(path: Path, fps: float) -> Iterator[AnnotatedVideo]:
    """Open a video for writing; the file appears, whole, when the block ends without an exception.

    Args:
        path: Its suffix chooses the format: .mp4, .mkv, .webm, ...
        fps: Frames a second.

    Raises:
        ImportError: PyAV is missing.
        ValueError: The suffix belongs to no video format.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("--annotate needs PyAV: pip install 'lrcn_fast[video]'") from error
    with atomic_path(path) as temporary:
        named = temporary.with_suffix(path.suffix)  # FFmpeg takes the format from the name
        try:
            try:
                container = av.open(str(named), "w")
            except (ValueError, OSError):
                raise ValueError(f"--annotate: {path} must end in .mp4, .mkv or .webm") from None
            with container:
                video = AnnotatedVideo(container, fps)
                yield video
                video.finish()
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)


def draw_timeline(
    path: Path,
    probabilities: Probabilities,
    classes: Sequence[str],
    fps: float,
    thumbnails: Sequence[tuple[int, Frame]] = (),
    top_k: int = 3,
    title: str = "",
) -> None:
    """Draw the classes' probabilities over time, under a strip of frames, as a PNG.

    Args:
        path: The file to write.
        probabilities: One row a frame, [N, C].
        classes: C names.
        fps: Frames a second.
        thumbnails: (number, RGB frame) in ascending order.
        top_k: Classes in colour: those with the highest means.
        title: Above it all.

    Raises:
        ImportError: Matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("--timeline needs matplotlib: pip install 'lrcn_fast[video]'") from error
    seconds = (np.arange(len(probabilities)) + 0.5) / fps
    order = probabilities.mean(0).argsort(kind="stable")[::-1]
    figure = Figure(figsize=(10, 4.6 if thumbnails else 3.4), layout="constrained")
    rows = figure.subplots(2, 1, height_ratios=(1, 2.6), squeeze=False)[:, 0] if thumbnails else None
    axes = figure.subplots() if rows is None else rows[1]
    if rows is not None:
        strip = rows[0]
        height = 90
        pictures = []
        for _, frame in thumbnails:
            picture = _scaled(frame, height)
            pictures.append(np.pad(picture, ((0, 0), (1, 1), (0, 0)), constant_values=255))
        strip.imshow(np.concatenate(pictures, 1), aspect="equal")
        at = np.cumsum([0, *(p.shape[1] for p in pictures)])
        centres = (at[:-1] + at[1:]) / 2
        strip.set_xticks(centres, [f"{(number + 0.5) / fps:.1f} s" for number, _ in thumbnails], fontsize=8)
        strip.set_yticks([])
        strip.spines[:].set_visible(False)
        strip.tick_params(length=0)
    for rank in range(len(order) - 1, -1, -1):
        column = probabilities[:, order[rank]]
        if rank < top_k:
            mean = float(column.mean())
            axes.plot(seconds, column, linewidth=2, label=f"{classes[order[rank]]} ({mean:.2f})", zorder=3)
        else:
            axes.plot(seconds, column, linewidth=0.8, color="#c0c4c8")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], names[::-1], title="mean over all frames", fontsize=9, title_fontsize=9,
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False,
    )  # fmt: skip
    axes.set_xlim(0, len(probabilities) / fps)
    axes.set_ylim(0, 1)
    axes.set_xlabel("seconds")
    axes.set_ylabel("probability")
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _scaled(frame: Frame, height: int) -> Frame:
    from PIL import Image

    width = max(1, round(frame.shape[1] * height / frame.shape[0]))
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))

"""Videos as numbered RGB frames, whatever they come from, and the samplers that choose among the frames.

Frames are numbered as the decoder yields them, from 0: a count is exact because it is counted, not read
from the header (an AVI of 110 packets may hold 108 frames, and often does). :meth:`Video.frames` reaches
any of them exactly; iterating streams them and holds one at a time.

Different decoders may disagree about a damaged or variable-rate file, so :attr:`Video.backend` names the
decoder and its version, and :meth:`Video.key`, the key for caches, contains it.
"""

import abc
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Video", "clip_indices", "open_video", "sliding_indices", "uniform_indices"]

Frame = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
VIDEO_SUFFIXES = (
    ".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".ogv",
    ".gif",
)  # fmt: skip


class Video(abc.ABC):
    """A video made by :func:`open_video`. Not for several threads at once: let each open its own.

    Attributes:
        name: What error messages call it: its path, or "video of 1234 bytes".
        height: Rows of a frame, upright (a rotation in the file is applied).
        width: Columns of a frame.
        fps: Frames a second; the average where the rate varies.
        backend: Decoder and version, e.g. "pyav 18.1.0, libavcodec 62.28.102".
    """

    name: str
    height: int
    width: int
    fps: float
    backend: str

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the exact number of frames; the first call decodes a compressed video once."""

    @abc.abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Yield every frame [H, W, 3] in order, from the first, holding one in memory."""

    @abc.abstractmethod
    def _read(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield the frames of ascending, distinct, valid indices."""

    @abc.abstractmethod
    def _content(self) -> Iterator[bytes]:
        """Yield the bytes that the frames are made from."""

    def frames(self, indices: Any) -> Frame:
        """Return frames by number, in any order, also repeated.

        Args:
            indices: Numbers 0 <= i < len(video); any shape S, e.g. [n] or [clips, 16].

        Returns:
            RGB frames [*S, H, W, 3] uint8.

        Raises:
            IndexError: A number is out of range.
            ValueError: `indices` are not integers, or the file is damaged; the message names it.
        """
        wanted = np.asarray(indices)
        if wanted.size and not np.issubdtype(wanted.dtype, np.integer):
            raise ValueError(f"Video.frames: indices must be integers, got {wanted.dtype}")
        wanted = wanted.astype(np.int64)
        count = len(self)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= count):
            raise IndexError(
                f"Video.frames: indices must be 0 to {count - 1} for {self.name}, got {wanted.min()} to "
                f"{wanted.max()}"
            )
        distinct, inverse = np.unique(wanted, return_inverse=True)
        out = np.empty((wanted.size, self.height, self.width, 3), np.uint8)
        rows: list[list[int]] = [[] for _ in distinct]
        for row, number in enumerate(inverse.ravel().tolist()):
            rows[number].append(row)
        for places, frame in zip(rows, self._read(distinct.tolist()), strict=True):
            out[places] = frame
        return out.reshape(*wanted.shape, *out.shape[1:])

    def key(self, tag: str = "") -> bytes:
        """Return a key for caches of what is computed from the frames.

        Args:
            tag: Names what is computed, with everything it depends on.

        Returns:
            SHA-256 of the content (not of its name or time), the decoder with its version, and the tag.
        """
        digest = hashlib.sha256()
        for part in self._content():
            digest.update(part)
        digest.update(f"\0{self.backend}\0{tag}".encode())
        return digest.digest()

    def close(self) -> None:  # noqa: B027 (not all sources hold something open)
        """Let go of the file. :meth:`frames` opens it again where needed."""

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Video {self.name}: {self.width} x {self.height}, {self.fps:g} fps, {self.backend}>"


def open_video(source: Any, *, backend: str = "auto", fps: float = 30.0) -> Video:
    """Open a video.

    Args:
        source: One of: path of a video file; path of a folder of frames (photos of one size, in natural order
            of their names: 2.jpg before 10.jpg); bytes of a video file; uint8 array [N, H, W, 3].
        backend: Decoder of files and bytes: "pyav", whose wheel contains FFmpeg; "torchcodec", which needs
            FFmpeg's libraries on the system; "auto", PyAV where it is installed, else torchcodec.
        fps: Frames a second of folders and arrays, which do not say; files do.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ImportError: No decoder is installed.
        ValueError: Not a video, an empty or a truncated one; the message names the file. Damage far inside
            a file is found, and raised, where it is read.

    Example:
        >>> with open_video(np.zeros((20, 4, 6, 3), np.uint8)) as video:
        ...     video.frames(clip_indices(len(video))).shape
        (3, 16, 4, 6, 3)
    """
    from lrcn_fast.data import _video_sources

    if backend not in ("auto", "pyav", "torchcodec"):
        raise ValueError(f'open_video: backend must be "auto", "pyav" or "torchcodec", got {backend!r}')
    if not fps > 0:
        raise ValueError(f"open_video: fps must be above 0, got {fps}")
    if isinstance(source, np.ndarray):
        return _video_sources.ArrayVideo(source, fps)
    if isinstance(source, (bytes, bytearray, memoryview)):
        content = bytes(source)
        return _video_sources.decoder(backend)(content, f"video of {len(content)} bytes")
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            "open_video: source must be a path, bytes or a uint8 array [N, H, W, 3], got "
            f"{type(source).__name__}"
        )
    path = Path(source)
    if path.is_dir():
        return _video_sources.FolderVideo(path, fps)
    if not path.exists():
        raise FileNotFoundError(f"open_video: {path} must be a video or a folder of frames, got no such file")
    return _video_sources.decoder(backend)(path, str(path))


def natural_key(name: str) -> tuple[Any, ...]:
    """Sort key that puts "2.jpg" before "10.jpg"."""
    parts = re.split(r"(\d+)", name)
    return tuple((int(part), part) if part.isdigit() else (0, part) for part in parts)


def clip_indices(num_frames: int, clip_length: int = 16, stride: int = 8) -> Indices:
    """Return the clips of the paper's test protocol (Donahue et al., TPAMI 2017, section 4).

    Clips start at 0, stride, 2 stride, ... below `num_frames`; a start whose clip would run past the end is
    replaced by the last `clip_length` frames, so with 16 and 8 that last clip is counted for one start
    (`num_frames` divisible by 8) or two. A video shorter than a clip, for which the paper has no rule, is
    one clip that holds its last frame until the end.

    Args:
        num_frames: Length of the video, at least 1.
        clip_length: Frames of a clip.
        stride: Frames from one start to the next.

    Returns:
        Frame numbers [clips, clip_length] int64.

    Raises:
        ValueError: An argument is below 1.

    Example:
        >>> clip_indices(33)[:, 0]
        array([ 0,  8, 16, 17, 17])
    """
    _check_positive("clip_indices", num_frames=num_frames, clip_length=clip_length, stride=stride)
    steps = np.arange(clip_length, dtype=np.int64)
    if num_frames < clip_length:
        return np.minimum(steps, num_frames - 1)[None]
    starts = np.minimum(np.arange(0, num_frames, stride, dtype=np.int64), num_frames - clip_length)
    return starts[:, None] + steps


def uniform_indices(num_frames: int, n: int) -> Indices:
    """Return `n` frames spread evenly: the middle frame of each of `n` equal parts of the video.

    Args:
        num_frames: Length of the video, at least 1.
        n: How many; above `num_frames`, frames repeat.

    Returns:
        Ascending frame numbers [n] int64.

    Raises:
        ValueError: An argument is below 1.

    Example:
        >>> uniform_indices(100, 4)
        array([12, 37, 62, 87])
    """
    _check_positive("uniform_indices", num_frames=num_frames, n=n)
    return (2 * np.arange(n, dtype=np.int64) + 1) * num_frames // (2 * n)


def sliding_indices(num_frames: int, window: int, step: int = 1) -> Indices:
    """Return every whole window: starts 0, step, 2 step, ..., as far as the window fits.

    Unlike :func:`clip_indices` nothing is done for the frames left over at the end; a video shorter than
    the window is, as there, one window that holds its last frame.

    Args:
        num_frames: Length of the video, at least 1.
        window: Frames of a window.
        step: Frames from one start to the next.

    Returns:
        Frame numbers [windows, window] int64.

    Raises:
        ValueError: An argument is below 1.

    Example:
        >>> sliding_indices(10, 4, 3)
        array([[0, 1, 2, 3],
               [3, 4, 5, 6],
               [6, 7, 8, 9]])
    """
    _check_positive("sliding_indices", num_frames=num_frames, window=window, step=step)
    starts = np.arange(0, max(1, num_frames - window + 1), step, dtype=np.int64)
    windows: Indices = np.minimum(starts[:, None] + np.arange(window, dtype=np.int64), num_frames - 1)
    return windows


def _check_positive(function: str, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{function}: {name} must be at least 1, got {value}")

"""The kinds of :class:`~lrcn_fast.data.video.Video`: arrays, folders of frames, PyAV and torchcodec."""

import contextlib
import importlib.util
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from lrcn_fast._files import one_line
from lrcn_fast.data.video import FRAME_SUFFIXES, Frame, Video, natural_key

_NEED_VIDEO = "open_video: video files need PyAV: pip install 'lrcn_fast[video]'"


class ArrayVideo(Video):
    """Frames in memory."""

    def __init__(self, frames: Frame, fps: float) -> None:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
            raise ValueError(
                "open_video: an array must be uint8 [N, H, W, 3] with at least one frame, got "
                f"{frames.dtype} {list(frames.shape)}"
            )
        self._frames = frames
        self.name = f"array of {len(frames)} frames"
        self.height, self.width = frames.shape[1:3]
        self.fps = float(fps)
        self.backend = "array"

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._frames)

    def _read(self, indices: Sequence[int]) -> Iterator[Frame]:
        return (self._frames[index] for index in indices)

    def _content(self) -> Iterator[bytes]:
        yield str(self._frames.shape).encode()
        for frame in self._frames:
            yield frame.tobytes()


class FolderVideo(Video):
    """Photos of one size in a folder, by name in natural order."""

    def __init__(self, folder: Path, fps: float) -> None:
        try:
            import PIL
        except ImportError as error:
            raise ImportError("open_video: folders of frames need Pillow: pip install pillow") from error
        self._files = sorted(
            (p for p in folder.iterdir() if p.suffix.lower() in FRAME_SUFFIXES and p.is_file()),
            key=lambda p: natural_key(p.name),
        )
        if not self._files:
            raise ValueError(f"open_video: {folder} must hold frames ({', '.join(FRAME_SUFFIXES)}), got none")
        self.name = str(folder)
        self.fps = float(fps)
        self.backend = f"pillow {PIL.__version__}"
        self.height = self.width = 0
        self.height, self.width = self._load(self._files[0]).shape[:2]

    def _load(self, path: Path) -> Frame:
        from lrcn_fast.models.preprocess import load_image

        frame: Frame = np.asarray(load_image(path))
        if self.height and frame.shape[:2] != (self.height, self.width):
            raise ValueError(
                f"open_video: {path} must be {self.width} x {self.height} as the frames before it, got "
                f"{frame.shape[1]} x {frame.shape[0]}"
            )
        return frame

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Frame]:
        return map(self._load, self._files)

    def _read(self, indices: Sequence[int]) -> Iterator[Frame]:
        return (self._load(self._files[index]) for index in indices)

    def _content(self) -> Iterator[bytes]:
        for path in self._files:
            content = path.read_bytes()
            yield len(content).to_bytes(8, "little")
            yield content


class _FileVideo(Video):
    """What the decoders of files share: where the bytes are, and what to say of bad ones."""

    def __init__(self, source: Path | bytes, name: str) -> None:
        self._source = source
        self.name = name
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if not size:
            raise self._bad("an empty file")
        self._size = size

    def _bad(self, got: str) -> ValueError:
        return ValueError(f"open_video: {self.name} must be a whole video file, got {got}")

    def _content(self) -> Iterator[bytes]:
        if isinstance(self._source, bytes):
            yield self._source
            return
        with open(self._source, "rb") as file:
            while part := file.read(1 << 20):
                yield part


@dataclass(frozen=True)
class _Index:
    """What the counting pass learnt, one entry per frame in the order of decoding."""

    times: list[int | None]
    checksums: list[int]
    keyframes: list[int]
    """Ascending frame numbers where decoding can start; the first is 0."""


class PyavVideo(_FileVideo):
    """FFmpeg through PyAV.

    Counting decodes the file once and keeps, per frame, its time stamp and a checksum. Random access seeks
    to the keyframe before the frame and decodes from there; containers lie about keyframes and decoders
    about frames after a seek, so each frame handed out is compared with the checksum of the counting pass,
    and a file in which seeking gave anything else is decoded from its start instead.
    """

    def __init__(self, source: Path | bytes, name: str) -> None:
        try:
            import av
        except ImportError as error:
            raise ImportError(_NEED_VIDEO) from error
        self._av = av
        super().__init__(source, name)
        version = ".".join(map(str, av.library_versions["libavcodec"]))
        self.backend = f"pyav {av.__version__}, libavcodec {version}"
        self._converter = av.video.reformatter.VideoReformatter()
        self._index_: _Index | None = None
        self._seekable = True
        self._container: Any = None
        self._decoding: Iterator[Any] = iter(())
        self._next = 0  # number of the frame that _decoding yields next
        self.height = self.width = 0
        with self._open() as container:
            stream = container.streams.video[0]
            self._check_length(container, stream)
            first = next(self._decode(container), None)
            if first is None:
                raise self._bad("no frame that can be decoded")
            self.height, self.width = self._rgb(first).shape[:2]
            self.fps = float(stream.average_rate or stream.guessed_rate or 0)

    # ---- the file ----

    def _open(self) -> Any:
        source = io.BytesIO(self._source) if isinstance(self._source, bytes) else str(self._source)
        try:
            container = self._av.open(source)
        except (self._av.FFmpegError, ValueError, OSError) as error:
            raise self._bad(f"something else, or a part of one ({one_line(error)})") from None
        if not container.streams.video:
            container.close()
            raise self._bad("a file without a video stream")
        return container

    def _check_length(self, container: Any, stream: Any) -> None:
        """Compare the container's own table of packets with the size of the file."""
        ends = [entry.pos + entry.size for entry in stream.index_entries]
        if "mp4" in container.format.name and ends and max(ends) > self._size:
            raise self._bad(f"a truncated one: {self._size} of at least {max(ends)} bytes")

    def _decode(self, container: Any, whole: bool = False) -> Iterator[Any]:
        """Yield the frames from where the container is; `whole`: from the start, all must be there."""
        stream = container.streams.video[0]
        packets = 0
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise self._bad("a truncated or damaged one")
                packets += packet.size > 0
                yield from packet.decode()
        except (self._av.FFmpegError, OSError) as error:
            raise self._bad(f"a damaged one ({one_line(error)})") from None
        # Other containers may hold more packets than their edit list shows.
        if whole and container.format.name == "avi" and packets < stream.frames:
            raise self._bad(f"a truncated one: {packets} of {stream.frames} frames")

    def _rgb(self, frame: Any) -> Frame:
        pixels: Any = self._converter.reformat(frame, format="rgb24").to_ndarray()
        if frame.rotation:
            pixels = np.rot90(pixels, round(frame.rotation / 90))
        if self.height and pixels.shape[:2] != (self.height, self.width):
            raise self._bad(
                f"a frame of {pixels.shape[1]} x {pixels.shape[0]} after frames of "
                f"{self.width} x {self.height}"
            )
        return cast(Frame, np.ascontiguousarray(pixels))

    # ---- counting and streaming ----

    def __iter__(self) -> Iterator[Frame]:
        with self._open() as container:
            for frame in self._decode(container, whole=True):
                yield self._rgb(frame)

    def _index(self) -> _Index:
        if self._index_ is None:
            times, checksums, keyframes = [], [], []
            with self._open() as container:
                for number, frame in enumerate(self._decode(container, whole=True)):
                    times.append(frame.pts)
                    checksums.append(_checksum(frame))
                    if frame.key_frame or not number:
                        keyframes.append(number)
            self._index_ = _Index(times, checksums, keyframes)
            self._seekable = None not in times and len(set(times)) == len(times)
        return self._index_

    def __len__(self) -> int:
        return len(self._index().times)

    # ---- random access ----

    def _read(self, indices: Sequence[int]) -> Iterator[Frame]:
        for number in indices:
            frame = self._reach(number)
            if frame is None:  # seeking in this file is not exact
                self._seekable = False
                self._start(0)
                frame = self._reach(number)
            if frame is None:
                raise self._bad(f"one whose frame {number} differs from one reading to the next")
            yield self._rgb(frame)

    def _reach(self, number: int) -> Any:
        """Return a frame, or None if what came is not the frame that was counted."""
        index = self._index()
        keyframe = index.keyframes[np.searchsorted(index.keyframes, number, side="right") - 1]
        if self._container is None or number < self._next or (self._seekable and keyframe > self._next):
            if not self._start(keyframe if self._seekable else 0):
                return None
        for frame in self._decoding:
            self._next += 1
            if self._next > number:
                return frame if _checksum(frame) == index.checksums[number] else None
        return None

    def _start(self, keyframe: int) -> bool:
        """Make `keyframe` the next frame to decode; False if it cannot be found."""
        if keyframe == 0:
            self.close()
            self._container = self._open()
            self._decoding, self._next = self._decode(self._container), 0
            return True
        if self._container is None:
            self._container = self._open()
        time = self._index().times[keyframe]
        try:
            self._container.seek(time, stream=self._container.streams.video[0])
        except self._av.FFmpegError:
            return False
        self._decoding = self._decode(self._container)
        for frame in self._decoding:
            if frame.pts == time:
                self._decoding, self._next = _chain(frame, self._decoding), keyframe
                return True
        return False

    def close(self) -> None:
        """Let go of the file."""
        if self._container is not None:
            self._decoding = iter(())
            self._container.close()
            self._container = None


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _checksum(frame: Any) -> int:
    """CRC of every fourth row of a decoded frame's first plane, without the padding of its rows."""
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    used = max(1, frame.width * min(8, frame.format.bits_per_pixel) // 8)
    return zlib.crc32(rows[: frame.height : 4, :used].tobytes())


class TorchcodecVideo(_FileVideo):
    """FFmpeg through torchcodec, in its exact mode.

    Its count is that of the packets, which in AVI and MPEG-TS need not be the frames that come out of them:
    reaching for one that does not is the ValueError of a damaged file. PyAV has no such files.
    """

    def __init__(self, source: Path | bytes, name: str) -> None:
        try:
            import torchcodec
            from torchcodec.decoders import VideoDecoder
        except ImportError:
            raise ImportError(
                'open_video: backend "torchcodec" is missing: pip install torchcodec, or use "pyav": '
                "pip install 'lrcn_fast[video]'"
            ) from None
        super().__init__(source, name)
        try:
            self._decoder = VideoDecoder(
                source if isinstance(source, bytes) else str(source),
                dimension_order="NHWC",
                seek_mode="exact",
            )
            facts = self._decoder.metadata
            self.height, self.width = self._decoder[0].shape[:2]
        except (RuntimeError, ValueError, IndexError) as error:
            if "libtorchcodec" in str(error):  # a page about each version of FFmpeg that it looked for
                raise ImportError(
                    'open_video: backend "torchcodec" needs FFmpeg\'s shared libraries, which it did not '
                    "find; \"pyav\" brings its own: pip install 'lrcn_fast[video]'"
                ) from None
            raise self._bad(f"something else, or a part of one ({one_line(error)})") from None
        self.fps = float(facts.average_fps or 0)
        self.backend = f"torchcodec {torchcodec.__version__}, libavcodec {_torchcodec_ffmpeg(torchcodec)}"

    def __len__(self) -> int:
        return len(self._decoder)

    def __iter__(self) -> Iterator[Frame]:
        return self._read(range(len(self)))

    def _read(self, indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            try:
                frame: Frame = self._decoder[index].numpy()
            except (RuntimeError, IndexError) as error:
                raise self._bad(f"one whose frame {index} cannot be decoded ({one_line(error)})") from None
            yield frame


def _torchcodec_ffmpeg(torchcodec: Any) -> str:
    with contextlib.suppress(Exception):  # not a documented function
        versions = torchcodec._core.ops.get_ffmpeg_library_versions()
        return ".".join(map(str, versions["libavcodec"]))
    return "unknown"


def decoder(backend: str) -> Callable[[Path | bytes, str], Video]:
    """Return the class that decodes files: the named one, or for "auto" PyAV, else torchcodec."""
    if backend == "auto":
        names = ("av", "torchcodec")
        backend = next((name for name in names if importlib.util.find_spec(name) is not None), "av")
    return TorchcodecVideo if backend == "torchcodec" else PyavVideo

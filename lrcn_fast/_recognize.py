"""``lrcn-fast recognize``: which action a video shows, whole files or frame by frame as they come."""

import contextlib
import glob
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lrcn_fast._photos import Problems
from lrcn_fast._video_out import annotated_video, draw_labels, draw_timeline
from lrcn_fast.data.flow import flow_images, flow_video, optical_flow
from lrcn_fast.data.video import (
    FRAME_SUFFIXES,
    VIDEO_SUFFIXES,
    Frame,
    Video,
    natural_key,
    open_video,
    uniform_indices,
)

if TYPE_CHECKING:
    from lrcn_fast.models import ActivityRecognizer

__all__ = ["Outputs", "Streams", "expand_videos", "recognize_files", "recognize_stream", "recognize_video"]

Probabilities = npt.NDArray[np.float32]

# Frames whose predictions a line of --stream averages, and whose latencies: the paper's clip length.
WINDOW = 16
THUMBNAILS = 8


@dataclass(frozen=True)
class Streams:
    """The models, and how they are put together.

    Attributes:
        rgb: Reads frames; None without.
        flow: Reads flow pictures of the same video; None without. One of the two is there.
        flow_weight: Share w of the flow model: p = (1 - w) p_rgb + w p_flow, late fusion as in the paper,
            which reports 1/2 and 2/3.
        flow_method: As in :func:`lrcn_fast.data.optical_flow`.
        cache: Folder of flow pictures; None computes them anew and removes them.
        crops: "centre", "mirror" or "ten", for whole files.
    """

    rgb: "ActivityRecognizer | None"
    flow: "ActivityRecognizer | None" = None
    flow_weight: float = 0.5
    flow_method: str = "dis"
    cache: Path | None = None
    crops: str = "centre"

    def __post_init__(self) -> None:
        for option, model, kind in (("--model", self.rgb, "rgb"), ("--flow-model", self.flow, "flow")):
            if model is not None and model.stream_kind != kind:
                raise ValueError(f"{option} must be a model that reads {kind}, got {model.stream_kind}")
        if self.cache is not None and self.flow is None:
            raise ValueError("--cache must come with a model that reads flow, got only one of frames")
        if self.flow is not None and self.rgb is not None and self.flow.classes != self.rgb.classes:
            raise ValueError(
                "--flow-model must have the classes of --model, got "
                f"{len(self.flow.classes)} and {len(self.rgb.classes)} of other names or order"
            )

    @classmethod
    def of(
        cls,
        model: "ActivityRecognizer",
        flow_model: "ActivityRecognizer | None",
        *,
        flow_weight: float | None,
        crops: str | None,
        cache: Path | None,
        flow_method: str = "dis",
    ) -> "Streams":
        """From the options of a command: ``model`` alone may be one of flow; None is the default."""
        alone = flow_model is None and model.stream_kind == "flow"
        return cls(
            None if alone else model,
            model if alone else flow_model,
            flow_weight=0.5 if flow_weight is None else flow_weight,
            flow_method=flow_method,
            cache=cache,
            crops=crops or "centre",
        )

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""
        model = self.rgb or self.flow
        assert model is not None
        classes: Sequence[str] = model.classes
        return classes

    def fuse(self, rgb: Probabilities, flow: Probabilities) -> Probabilities:
        """Weigh the two models' probabilities."""
        weight = np.float32(self.flow_weight)
        return (1 - weight) * rgb + weight * flow


@dataclass(frozen=True)
class Outputs:
    """What is printed and written.

    Attributes:
        top_k: Classes per video.
        as_json: JSON lines instead of text.
        annotate: Video to write.
        timeline: Picture to write.
    """

    top_k: int = 1
    as_json: bool = False
    annotate: Path | None = None
    timeline: Path | None = None

    def best(self, probabilities: Probabilities, classes: Sequence[str]) -> list[tuple[str, float]]:
        """The first (class, probability), ties in the order of the classes."""
        order = np.argsort(-probabilities, kind="stable")[: self.top_k]
        return [(classes[i], float(probabilities[i])) for i in order]


def expand_videos(inputs: Sequence[str], problems: Problems) -> list[str]:
    """Turn the command's arguments into videos, in order.

    A folder stands for the videos directly in it, by name; a folder with frames and no videos is a video.

    Args:
        inputs: Paths, folders or glob patterns.
        problems: Gets a line for whatever holds no video. A missing file is reported when it is read.
    """
    videos: list[str] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            entries = sorted((p for p in path.iterdir() if p.is_file()), key=lambda p: natural_key(p.name))
            found = [str(p) for p in entries if p.suffix.lower() in VIDEO_SUFFIXES]
            if not found and any(p.suffix.lower() in FRAME_SUFFIXES for p in entries):
                found = [text]
            if not found:
                problems.add(f"{text}: must hold videos ({', '.join(VIDEO_SUFFIXES)}) or frames, got neither")
        elif not path.exists() and glob.has_magic(text):
            found = sorted(glob.glob(text, recursive=True), key=natural_key)
            if not found:
                problems.add(f"{text}: must match files, got none")
        else:
            found = [text]
        videos += found
    return videos


# --- whole files --------------------------------------------------------------------------------


def recognize_files(
    videos: Sequence[str], streams: Streams, outputs: Outputs, problems: Problems, advance: Any
) -> None:
    """Recognise each video, print the result, and draw what is asked for (with one video).

    Args:
        videos: Paths.
        streams: The models.
        outputs: What to print and write.
        problems: Gets a line for each video that cannot be read.
        advance: Called with 1 after each.
    """
    for name in videos:
        try:
            with open_video(name) as video:
                probabilities, frames = recognize_video(video, streams)
                _print_result(name, len(video), probabilities, streams, outputs)
                _draw_file(video, frames, streams, outputs)
        except (ValueError, OSError) as error:
            problems.add(error)
        advance(1)


def recognize_video(video: Video, streams: Streams) -> tuple[Probabilities, Probabilities]:
    """Return the probabilities of a video [C], and of each of its frames [N, C]."""
    found = None if streams.rgb is None else streams.rgb.recognize(video, crops=streams.crops)
    if streams.flow is None:
        assert found is not None
        return found.probabilities, found.frame_probabilities
    if len(video) < 2:
        raise ValueError(f"{video.name} must have at least 2 frames for optical flow, got 1")
    with contextlib.ExitStack() as stack:
        cache = streams.cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pictures = flow_video(video, cache, streams.flow_method)
        motion = streams.flow.recognize(pictures, crops=streams.crops)
    # Flow k leads to frame k + 1; the first frame has none.
    if found is None:
        return motion.probabilities, np.concatenate(
            (motion.frame_probabilities[:1], motion.frame_probabilities)
        )
    frames = found.frame_probabilities.copy()
    frames[1:] = streams.fuse(frames[1:], motion.frame_probabilities)
    return streams.fuse(found.probabilities, motion.probabilities), frames


def _print_result(
    name: str, frames: int, probabilities: Probabilities, streams: Streams, outputs: Outputs
) -> None:
    best = outputs.best(probabilities, streams.classes)
    if outputs.as_json:
        print(json.dumps({"video": name, "frames": frames, "classes": _records(best)}), flush=True)
        return
    for label, probability in best:
        print(f"{name}\t{probability:.3f}\t{label}", flush=True)


def _records(best: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"label": label, "probability": probability} for label, probability in best]


def _draw_file(video: Video, frames: Probabilities, streams: Streams, outputs: Outputs) -> None:
    fps = video.fps or 30.0
    if outputs.annotate is not None:
        with annotated_video(outputs.annotate, fps) as out:
            for number, frame in enumerate(video):
                best = outputs.best(frames[number], streams.classes)
                out.add(draw_labels(frame, best, f"{number / fps:.2f} s"))
    if outputs.timeline is not None:
        at = np.unique(uniform_indices(len(video), THUMBNAILS)).tolist()
        thumbnails = list(zip(at, video.frames(at), strict=True))
        name = Path(video.name).name
        draw_timeline(outputs.timeline, frames, streams.classes, fps, thumbnails, max(3, outputs.top_k), name)


# --- frame by frame -----------------------------------------------------------------------------


def recognize_stream(source: str, streams: Streams, outputs: Outputs, max_frames: int | None) -> None:
    """Recognise frame by frame, the LSTM's state kept from each to the next.

    Prints a line a second of video: time, the mean probability of the last 16 frames, class, and the latency
    of a frame (from pixels to probabilities; median of the last 16). JSON has a line a frame. A line for
    the whole follows. Nothing is held but the probabilities, so videos may be endless; Ctrl-C ends a
    camera's.

    Args:
        source: A video, or the number of a camera.
        streams: The models.
        outputs: What to print and write.
        max_frames: Where to stop; None goes to the end.

    Raises:
        ValueError: The source cannot be read.
    """
    camera = source.isdecimal() and not Path(source).exists()
    rows: list[Probabilities] = []
    latencies: list[float] = []
    thumbnails = _Thumbnails()
    with contextlib.ExitStack() as stack:
        frames, fps = stack.enter_context(_camera(int(source)) if camera else _file(source))
        out = stack.enter_context(annotated_video(outputs.annotate, fps)) if outputs.annotate else None
        recent: deque[Probabilities] = deque(maxlen=WINDOW)
        step = _Step(streams)
        shown = -1
        with contextlib.suppress(KeyboardInterrupt) if camera else contextlib.nullcontext():
            for number, frame in enumerate(frames):
                if number == max_frames:
                    break
                start = time.perf_counter()
                found = step(frame)
                if found is None:
                    if out is not None:
                        out.add(frame)
                    continue
                rows.append(found)
                latencies.append(1e3 * (time.perf_counter() - start))
                recent.append(rows[-1])
                best = outputs.best(np.mean(recent, 0), streams.classes)
                if outputs.timeline is not None:
                    thumbnails.add(number, frame)
                if out is not None:
                    out.add(draw_labels(frame, best, f"{number / fps:.2f} s"))
                if outputs.as_json:
                    record = {"frame": number, "seconds": number / fps, "latency_ms": latencies[-1]}
                    print(json.dumps(record | {"classes": _records(best)}), flush=True)
                elif int(number / fps) > shown:
                    shown = int(number / fps)
                    _print_line(f"{number / fps:.1f} s", best, latencies[-WINDOW:])
    if not rows:
        least = "frames" if streams.rgb is not None else "at least 2 frames for optical flow"
        raise ValueError(f"{source} must have {least}, got too few")
    probabilities = np.stack(rows)
    best = outputs.best(probabilities.mean(0), streams.classes)
    if outputs.as_json:
        facts = {"video": source, "frames": len(rows), "latency_ms": statistics.median(latencies)}
        print(json.dumps(facts | {"classes": _records(best)}), flush=True)
    else:
        _print_line(f"{len(rows)} frames", best, latencies)
    if outputs.timeline is not None:
        draw_timeline(
            outputs.timeline,
            probabilities,
            streams.classes,
            fps,
            thumbnails.frames,
            max(3, outputs.top_k),
            source,
        )


def _print_line(when: str, best: Sequence[tuple[str, float]], latencies: Sequence[float]) -> None:
    found = "\t".join(f"{probability:.3f}\t{label}" for label, probability in best)
    print(f"{when}\t{found}\t{statistics.median(latencies):.1f} ms", flush=True)


class _Step:
    """One frame after another -> their probabilities [C]; None for the first where only flow is read."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._rgb = streams.rgb.stream() if streams.rgb is not None else None
        self._flow = streams.flow.stream() if streams.flow is not None else None
        self._before: Frame | None = None

    def __call__(self, frame: Frame) -> Probabilities | None:
        found: Probabilities | None = None if self._rgb is None else self._rgb.push(frame)
        if self._flow is None:
            return found
        before, self._before = self._before, frame
        if before is None:  # no flow leads to the first frame
            return found
        motion = flow_images(optical_flow((before, frame), self._streams.flow_method))[0]
        moved: Probabilities = self._flow.push(motion)
        return moved if found is None else self._streams.fuse(found, moved)


class _Thumbnails:
    """At most 2 x THUMBNAILS frames, evenly spread however long the video turns out to be."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, Frame]] = []
        self._every = 1

    def add(self, number: int, frame: Frame) -> None:
        if number % self._every == 0:
            self._kept.append((number, frame))
        if len(self._kept) == 2 * THUMBNAILS:
            self._kept = self._kept[::2]
            self._every *= 2

    @property
    def frames(self) -> list[tuple[int, Frame]]:
        """THUMBNAILS of them, or fewer."""
        return [self._kept[i] for i in np.unique(uniform_indices(len(self._kept), THUMBNAILS))]


@contextlib.contextmanager
def _file(source: str) -> Iterator[tuple[Iterator[Frame], float]]:
    with open_video(source) as video:
        yield iter(video), video.fps or 30.0


@contextlib.contextmanager
def _camera(number: int) -> Iterator[tuple[Iterator[Frame], float]]:
    try:
        from cv2 import CAP_PROP_FPS, VideoCapture
        from cv2.utils import logging
    except ImportError as error:
        raise ImportError("cameras need OpenCV: pip install 'lrcn_fast[video]'") from error
    # A camera that is not there is one line here, not a page of OpenCV's.
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    capture = VideoCapture(number)
    try:
        if not capture.isOpened():
            raise ValueError(f"--stream: {number} must be a camera that can be opened, got none")
        yield _captured(capture), capture.get(CAP_PROP_FPS) or 30.0
    finally:
        capture.release()


def _captured(capture: Any) -> Iterator[Frame]:
    while True:
        ok, frame = capture.read()
        if not ok:
            return
        yield np.ascontiguousarray(frame[..., ::-1])

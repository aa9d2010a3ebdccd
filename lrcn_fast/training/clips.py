"""Clips for training: which frames of which videos each step sees, as a pure function of seed and step."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lrcn_fast.data import FeatureCache, Video, VideoItem, flow_video, open_video, uniform_indices
from lrcn_fast.models.clip_views import View, clip_frames
from lrcn_fast.models.recognizer import ActivityRecognizer

__all__ = ["Clip", "ClipStream", "FrameModel", "VideoFeatures", "VideoReader"]


class FrameModel(Protocol):
    """What is asked of a model whose CNN sees the frames of videos."""

    encoder: Any
    stream_kind: str

    @property
    def preprocessing(self) -> Any:
        """From a frame to the CNN's image."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""


@dataclass(frozen=True)
class Clip:
    """One training clip.

    Attributes:
        video: Position in the data set.
        frames: Numbers of its frames. [T].
        view: Crop and mirroring of all of them.
    """

    video: int
    frames: npt.NDArray[np.int64]
    view: View


class ClipStream:
    """An endless, randomly addressable sequence of batches; an epoch draws one clip from every video, but for
    those, others each time, that would not fill a batch.

    Args:
        lengths: Frames of each video.
        model: How it samples clips.
        batch_size: Clips of a global batch.
        seed: Seed of the phase, as integers.
        mirror: Mirror half of the clips.
        crop: Crop anywhere; else the centre.
        jitter: See ``RecognitionPhase``.
        rank: This process.
        world: Processes.

    Raises:
        ValueError: no video, or fewer clips in a batch than processes.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        model: ActivityRecognizer,
        batch_size: int,
        seed: tuple[int, ...],
        *,
        mirror: bool,
        crop: bool,
        jitter: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not lengths:
            raise ValueError("train: the data must hold at least one video, got none")
        self._lengths, self._model, self._seed = lengths, model, seed
        self._mirror, self._crop, self._jitter = mirror, crop, jitter
        self._rank, self._world = rank, world
        self._size = min(batch_size, len(lengths))
        if self._size < world:
            raise ValueError(
                f"train: batch_size must give each of {world} processes a clip, got {self._size} clips"
            )
        self.batches_per_epoch = len(lengths) // self._size
        self._order = lru_cache(maxsize=2)(self._make_order)

    def _make_order(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng((*self._seed, epoch)).permutation(len(self._lengths))

    @property
    def size(self) -> int:
        """Clips of a global batch."""
        return self._size

    def __getitem__(self, n: int) -> list[Clip]:
        """Return this process's share of batch n, counted over epochs."""
        epoch, at = divmod(n, self.batches_per_epoch)
        videos = self._order(epoch)[at * self._size : (at + 1) * self._size]
        # Another stream of random numbers than that of the orders.
        rng = np.random.default_rng((*self._seed, n, 1))
        clips = [self._draw(int(video), rng) for video in videos]
        return clips[self._rank :: self._world]

    def _draw(self, video: int, rng: np.random.Generator) -> Clip:
        model, N = self._model, self._lengths[video]
        T = model.clip_length
        if model.sampling == "uniform":
            places = uniform_indices(N, T * self._jitter).reshape(T, self._jitter)
            frames = places[np.arange(T), rng.integers(self._jitter, size=T)]
        else:
            # The release never starts at the first frame: int(u (n - 16) + 2), counted from 1.
            first = int(model.caffe_release and N > T)
            start = first + int(rng.random() * (max(N - T, 0) + 1 - first))
            frames = np.minimum(start + np.arange(T), N - 1)
        mirror = self._mirror and bool(rng.random() < 0.5)
        x, y = (float(v) for v in rng.random(2))
        if not self._crop:
            x = y = 0.5
        return Clip(video, frames, View(x, y, mirror, warp=model.caffe_release and self._crop and not mirror))


class VideoReader:
    """Opens the videos of a set as the model reads them: frames, or flow pictures kept on disk.

    Args:
        model: Whose stream is read.
        items: The videos.
        folder: Of the flow pictures.
        flow_method: As ``lrcn_fast.data.optical_flow``.

    Attributes:
        lengths: Frames of each video.
        keys: What identifies the content of each.
    """

    def __init__(self, model: FrameModel, items: Sequence[VideoItem], folder: Path, flow_method: str) -> None:
        self._model, self._items = model, items
        self._folder, self._flow_method = folder, flow_method
        self.lengths: list[int] = []
        self.keys: list[bytes] = []
        for i in range(len(items)):
            with self.open(i) as video:
                # The folder of flow pictures is named by a hash of all that they are made from.
                flow = model.stream_kind == "flow"
                self.keys.append(Path(video.name).name.encode() if flow else video.key())
                self.lengths.append(_count(self.keys[i], video))

    def __len__(self) -> int:
        return len(self._items)

    def open(self, index: int) -> Video:
        """Open video ``index``."""
        video = open_video(self._items[index].path)
        if self._model.stream_kind == "rgb":
            return video
        with video:
            return flow_video(video, self._folder, self._flow_method)

    def pixels(self, clips: Sequence[Clip]) -> Tensor:
        """Prepare clips for the CNN. [B, T, 3, S, S]."""
        model = self._model
        preprocessing, flow = model.preprocessing, model.stream_kind == "flow"

        def read(clip: Clip) -> Tensor:
            with self.open(clip.video) as video:
                frames = video.frames(clip.frames)
            return clip_frames(preprocessing, frames, clip.view, flow=flow)

        with ThreadPoolExecutor(4) as pool:
            return torch.stack(list(pool.map(read, clips)))


class VideoFeatures:
    """CNN features of chosen frames of every video, plain and mirrored, kept in memory and on disk.

    Args:
        model: Whose CNN is used, in evaluation mode.
        reader: The videos.
        numbers: Frames of each video that are wanted. [n] each.
        cache: Folder on disk.
        mirror: Compute the mirrored frames too.
        batch_size: Frames per forward pass.
        negate_flow: Whether mirrored flow is negated, as it should be; the release does not in tests.
        progress: Called with (videos done, videos).
    """

    def __init__(
        self,
        model: FrameModel,
        reader: VideoReader,
        numbers: Sequence[npt.NDArray[np.int64]],
        cache: Path,
        *,
        mirror: bool,
        batch_size: int,
        negate_flow: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        encoder = model.encoder
        store = FeatureCache(cache, encoder.fingerprint(), int(encoder.feature_dim))
        self._numbers = numbers
        self._features: list[Tensor] = []
        for i in range(len(reader)):
            with reader.open(i) as video:
                parts = [
                    self._compute(
                        model,
                        video,
                        reader.keys[i],
                        numbers[i],
                        View(mirror=flipped),
                        store,
                        batch_size,
                        negate_flow=negate_flow,
                    )
                    for flipped in ((False, True) if mirror else (False,))
                ]
            self._features.append(torch.stack(parts))
            if progress is not None:
                progress(i + 1, len(reader))

    @staticmethod
    @torch.no_grad()
    def _compute(
        model: FrameModel,
        video: Video,
        key: bytes,
        numbers: npt.NDArray[np.int64],
        view: View,
        store: FeatureCache,
        batch_size: int,
        *,
        negate_flow: bool,
    ) -> Tensor:
        what = [model.preprocessing.config(), dataclasses.asdict(view), model.stream_kind]
        flow = model.stream_kind == "flow"
        if flow and view.mirror and not negate_flow:
            what.append("not negated")
        base = hashlib.sha256(key + json.dumps(what).encode()).digest()
        keys = [hashlib.sha256(base + int(n).to_bytes(8, "little")).digest() for n in numbers]
        features, found = store.get(keys)
        todo = np.flatnonzero(~found)
        training = model.encoder.training
        model.encoder.eval()
        for at in range(0, len(todo), batch_size):
            some = todo[at : at + batch_size]
            frames = video.frames(numbers[some])
            images = clip_frames(model.preprocessing, frames, view, flow=flow and negate_flow)
            features[some] = model.encoder(images.to(model.device)).float().cpu().numpy()
        model.encoder.train(training)
        store.put([keys[n] for n in todo], features[todo])
        return torch.from_numpy(features)

    def clips(self, clips: Sequence[Clip]) -> Tensor:
        """Features of clips whose frames are among those computed. [B, T, C]."""
        rows = [np.searchsorted(self._numbers[c.video], c.frames) for c in clips]
        return torch.stack(
            [self._features[c.video][int(c.view.mirror), r] for c, r in zip(clips, rows, strict=True)]
        )

    def video(self, index: int) -> Tensor:
        """Features of all computed frames of a video: plain, and mirrored if asked for. [views, n, C]."""
        return self._features[index]

    def all(self) -> Tensor:
        """Features of all computed frames of all videos, not mirrored. [sum n, C]."""
        return torch.cat([x[0] for x in self._features])


# Counting decodes a whole video: once per process is enough.
_COUNTS: dict[bytes, int] = {}


def _count(key: bytes, video: Video) -> int:
    if key not in _COUNTS:
        _COUNTS[key] = len(video)
    return _COUNTS[key]

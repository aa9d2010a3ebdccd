"""What a video describer is trained on: clips as the model takes them, and what people said of them."""

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrcn_fast.data import (
    CaptionSet,
    CrfSet,
    VideoItem,
    kitchen_clips,
    read_crf_clips,
    read_video_captions,
    uniform_indices,
)
from lrcn_fast.models.describer import VideoDescriber
from lrcn_fast.training.clips import VideoFeatures, VideoReader
from lrcn_fast.training.describing_config import FRAMES, DescribingConfig
from lrcn_fast.training.tasks import Context

__all__ = ["Clips", "read_clips"]


class Clips(abc.ABC):
    """The clips of one part of the data that have a sentence.

    Attributes:
        ids: Their names.
        sentences: What people said of each; at least one.
    """

    ids: list[str]
    sentences: list[list[str]]

    def references(self) -> dict[str, list[str]]:
        """{id: sentences}, as ``caption_metrics`` takes it."""
        return dict(zip(self.ids, self.sentences, strict=True))

    def prepare(self, model: VideoDescriber, context: Context, mirror: bool) -> None:  # noqa: B027
        """Compute what ``inputs`` needs of the model.

        Args:
            model: Whose CNN sees the frames.
            context: Where the run is.
            mirror: Whether ``inputs`` will be asked for mirrored clips.
        """

    @abc.abstractmethod
    def inputs(self, which: Sequence[int], mirrored: Sequence[bool] | None = None) -> list[Any]:
        """Return clips by position as ``VideoDescriber`` takes them, some of them mirrored."""


class CrfClips(Clips):
    """Outputs of a CRF."""

    def __init__(self, clips: CrfSet) -> None:
        self.clips = [clip for clip in clips if clip.sentences]
        self.ids = [clip.id for clip in self.clips]
        self.sentences = [list(clip.sentences) for clip in self.clips]
        if not self.clips:
            raise ValueError(f"train: clips of {clips.name} must have sentences, got none")

    def inputs(self, which: Sequence[int], mirrored: Sequence[bool] | None = None) -> list[Any]:
        """See ``Clips.inputs``; nothing can be mirrored."""
        return [self.clips[i] for i in which]


class VideoClips(Clips):
    """Videos, of whose frames CNN features are computed once and kept on disk.

    Args:
        items: Sentences, with the video as ``image``.
        cache: Folder on disk.
        batch_size: Frames that the CNN sees at a time.
    """

    def __init__(self, items: CaptionSet, cache: Path, batch_size: int) -> None:
        self._items, self._cache, self._batch_size = items, cache, batch_size
        self.ids = [item.id for item in items]
        self.sentences = [list(item.captions) for item in items]
        self._features: VideoFeatures | None = None
        self._mirror = False

    def prepare(self, model: VideoDescriber, context: Context, mirror: bool) -> None:
        """See ``Clips.prepare``."""
        if self._features is not None and self._mirror >= mirror:
            return
        items = [VideoItem(item.id, item.image, 0) for item in self._items if item.image is not None]
        # The first process computes and writes, the others read what it wrote.
        with context.main_first():
            reader = VideoReader(model, items, self._cache, "dis")
            with context.report.bar("features", len(reader)) as advance:
                self._features = VideoFeatures(
                    model,
                    reader,
                    [uniform_indices(n, model.num_frames) for n in reader.lengths],
                    self._cache,
                    mirror=mirror,
                    batch_size=self._batch_size,
                    progress=advance,
                )
        self._mirror = mirror

    def inputs(self, which: Sequence[int], mirrored: Sequence[bool] | None = None) -> list[Any]:
        """CNN features [num_frames, C] of each."""
        assert self._features is not None
        flipped = [False] * len(which) if mirrored is None else mirrored
        return [self._features.video(i)[int(m)] for i, m in zip(which, flipped, strict=True)]


def read_clips(
    config: DescribingConfig, context: Context
) -> tuple[Clips, Clips | None, dict[str, tuple[str, ...]]]:
    """Read the data.

    Returns:
        A tuple:

        - **train**: Clips to train on.
        - **validation**: Clips for scheduled evaluation; None if the configuration asks for none.
        - **nodes**: Those of the CRF with their labels; none for videos.

    Raises:
        ValueError: unreadable data, a split that is not there, or clips without sentences.
    """
    data = config.data
    if config.model.architecture not in FRAMES:
        if data.clips is None:
            clips = kitchen_clips(data.kitchen_clips, seed=data.kitchen_seed)
        else:
            clips = read_crf_clips(data.clips)
        nodes, there, name = clips.nodes, set(clips.splits), clips.name

        def make(splits: list[str]) -> Clips:
            return CrfClips(clips.split(*splits))
    else:
        sets = [read_video_captions(path, data.videos, names=data.names) for path in data.captions]
        everything = sets[0]
        for more in sets[1:]:
            everything = everything + more
        folder = Path(data.cache or context.out) / "features"
        nodes, there, name = {}, set(everything.splits), everything.name

        def make(splits: list[str]) -> Clips:
            return VideoClips(everything.split(*splits), folder, config.encode_batch)

    for key, asked in (("train_splits", data.train_splits), ("validation_splits", data.validation_splits)):
        for split in asked:
            if split not in there:
                known = ", ".join(map(repr, sorted(there)))
                hint = "; '' is what has no split" if "" in there else ""
                raise ValueError(f"train: data.{key} must be among {known} of {name}{hint}, got {split!r}")
    return make(data.train_splits), make(data.validation_splits) if data.validation_splits else None, nodes

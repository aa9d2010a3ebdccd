"""Batches: which captions of which photos each step sees, as a pure function of seed and step.

Nothing here keeps a position. Batch n of a phase is computed from (seed, phase, epoch of n), so a
resumed run reads exactly the batches that an uninterrupted one would, and every process of a
distributed run takes its share of the same global batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lrcn_fast.data import CaptionItem, CaptionSet, Vocabulary, photo_names, read_captions
from lrcn_fast.models.captioner import pad_captions
from lrcn_fast.training.captioning_config import CaptioningConfig, DataConfig, TextConfig

__all__ = ["Batch", "BatchStream", "CaptionData", "build_vocabulary", "read_splits", "read_text"]


@dataclass(frozen=True)
class Batch:
    """One process's share of a step.

    Attributes:
        tokens: Target words, padded. [B, L] int64, CPU.
        lengths: Words per caption, <EOS> included. [B] int64, CPU.
        photos: Distinct photos of the share, as positions in the data set; empty for text.
        photo_of: Which of ``photos`` each caption describes. [B] int64, CPU.
        total_words: Words of the whole global batch, over which the loss is a mean.
        seed: For random views and crops of this batch.
    """

    tokens: Tensor
    lengths: Tensor
    photos: list[int]
    photo_of: Tensor
    total_words: int
    seed: tuple[int, ...]


@dataclass(frozen=True)
class CaptionData:
    """Word ids of captions, by photo. Text without photos is one group per sentence."""

    groups: list[list[list[int]]]
    has_photos: bool

    @classmethod
    def from_items(
        cls, items: Sequence[CaptionItem], vocabulary: Vocabulary, max_words: int
    ) -> "CaptionData":
        """Encode the captions of photos."""
        return cls([[vocabulary.encode_target(c, max_words) for c in item.captions] for item in items], True)

    @classmethod
    def from_text(cls, sentences: Sequence[str], vocabulary: Vocabulary, max_words: int) -> "CaptionData":
        """Encode sentences that stand alone."""
        return cls([[vocabulary.encode_target(s, max_words)] for s in sentences], False)


class BatchStream:
    """An endless, randomly addressable sequence of batches.

    The photos' captions are shuffled, cut into groups of ``captions_per_image`` that share a photo, and
    the groups shuffled again, anew for each epoch. Groups left over at the end of an epoch are dropped.

    Args:
        data: What to draw from.
        batch_size: Captions of a global batch; a batch holds whole groups.
        captions_per_image: Group size; 0: all captions of the photo.
        seed: Seed of the phase, as integers.
        pad_id: Fills ``tokens``.
        rank: This process.
        world: Processes.

    Raises:
        ValueError: fewer groups in a batch than processes.
    """

    def __init__(
        self,
        data: CaptionData,
        batch_size: int,
        captions_per_image: int,
        seed: tuple[int, ...],
        pad_id: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._data, self._k, self._seed, self._pad_id = data, captions_per_image, seed, pad_id
        self._rank, self._world = rank, world
        captions = sum(len(g) for g in data.groups)
        if captions == 0:
            raise ValueError("train: the data must hold at least one caption, got none")
        k = captions_per_image
        groups = len(data.groups) if k == 0 else sum(-(-len(g) // k) for g in data.groups)
        per_group = k if k else captions / len(data.groups)
        self._groups_per_batch = min(max(1, round(batch_size / per_group)), groups)
        if self._groups_per_batch < world:
            raise ValueError(
                f"train: batch_size must give each of {world} processes a photo, got {batch_size} captions, "
                f"{self._groups_per_batch} photos"
            )
        self.batches_per_epoch = groups // self._groups_per_batch
        self._order = lru_cache(maxsize=2)(self._make_order)

    def _make_order(self, epoch: int) -> list[tuple[int, list[int]]]:
        rng = np.random.default_rng((*self._seed, epoch))
        pieces = []
        for photo, captions in enumerate(self._data.groups):
            ids = rng.permutation(len(captions)).tolist() if len(captions) > 1 else [0]
            k = self._k or len(ids)
            pieces += [(photo, ids[i : i + k]) for i in range(0, len(ids), k)]
        return [pieces[i] for i in rng.permutation(len(pieces))]

    def __getitem__(self, n: int) -> Batch:
        """Return batch n, counted over epochs."""
        epoch, at = divmod(n, self.batches_per_epoch)
        size = self._groups_per_batch
        pieces = self._order(epoch)[at * size : (at + 1) * size]
        total = sum(len(self._data.groups[photo][j]) for photo, ids in pieces for j in ids)
        photos: list[int] = []
        slot: dict[int, int] = {}
        captions, photo_of = [], []
        for photo, ids in pieces[self._rank :: self._world]:
            if photo not in slot:
                slot[photo] = len(photos)
                photos.append(photo)
            for j in ids:
                captions.append(self._data.groups[photo][j])
                photo_of.append(slot[photo])
        tokens, lengths = pad_captions(captions, self._pad_id)
        return Batch(
            tokens,
            lengths,
            photos if self._data.has_photos else [],
            torch.tensor(photo_of, dtype=torch.int64),
            total,
            (*self._seed, n, self._rank),
        )


def read_splits(config: DataConfig, seed: int) -> tuple[CaptionSet, CaptionSet | None, set[str]]:
    """Read the data set and cut it.

    Returns:
        A tuple:

        - **train**: Photos to train on.
        - **validation**: Photos for scheduled evaluation, or None if the configuration asks for none.
        - **held_out**: Names of all photos that are not trained on, to keep their captions out of text.
    """
    sets = [read_captions(path, images=config.images, format=config.format) for path in config.captions]
    everything = sets[0]
    for more in sets[1:]:
        everything = everything + more
    if config.validation_splits:
        train = everything.split(*config.train_splits)
        validation = everything.split(*config.validation_splits)
    elif config.validation_fraction > 0:
        train = everything.split(*config.train_splits)
        merged = CaptionSet((replace(item, split="train") for item in train), everything.name)
        cut = merged.hold_out(config.validation_fraction, name="validation", seed=seed)
        train, validation = cut.split("train"), cut.split("validation")
    else:
        train, validation = everything.split(*config.train_splits), None
    trained = {item.id for item in train}
    held_out = photo_names(item for item in everything if item.id not in trained)
    return train, validation, held_out


def read_text(source: TextConfig, held_out: set[str], seed: int) -> list[str]:
    """Sentences of a text source, without those of held-out photos."""
    captions = read_captions(source.path, format=source.format)
    if source.exclude == "held_out":
        captions = captions.exclude(held_out)
    sentences: list[str] = captions.captions()
    if source.limit and source.limit < len(sentences):
        chosen = np.random.default_rng(seed).permutation(len(sentences))[: source.limit]
        sentences = [sentences[i] for i in sorted(chosen.tolist())]
    return sentences


def build_vocabulary(config: CaptioningConfig, train: CaptionSet, held_out: set[str]) -> Vocabulary:
    """Count the training captions and the configured text."""
    sentences = train.captions()
    for source in config.data.vocabulary_text:
        sentences += read_text(source, held_out, config.seed)
    return Vocabulary.from_captions(sentences, min_count=config.data.min_count)

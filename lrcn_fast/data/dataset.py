"""Captions as torch data sets, for training loops of your own.

Example::

    photos = read_captions("flickr8k").split("train")
    vocabulary = Vocabulary.from_captions(photos.captions())
    data = CaptionDataset(photos, vocabulary, features=extract_features(encoder, [p.image for p in photos]))
    sampler = EpochBatchSampler(len(data), 64, seed=0)
    for epoch in range(10):
        sampler.set_position(epoch)
        for batch in DataLoader(data, batch_sampler=sampler, collate_fn=data.collate):
            log_p = decoder.log_likelihood(batch.tokens, batch.features, batch.lengths)
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lrcn_fast.data.captions import CaptionSet
from lrcn_fast.data.sequences import Window, unaligned
from lrcn_fast.data.vocabulary import Vocabulary

try:
    import torch
    from torch import Tensor
    from torch.utils.data import Dataset, Sampler
except ImportError as error:
    raise ImportError("lrcn_fast.data.dataset needs torch: pip install 'lrcn_fast[torch]'") from error


class Draw(NamedTuple):
    """What :class:`EpochBatchSampler` yields: which item, and the seed of its random view."""

    item: int
    seed: int


class CaptionExample(NamedTuple):
    """One caption.

    Attributes:
        tokens: target words, EOS last unless the caption was cut. [L] int64.
        photo: index of the photo in the caption set.
        visual: features [F] or pixels [3, S, S]; None for text.
    """

    tokens: Tensor
    photo: int
    visual: Tensor | None


class CaptionBatch(NamedTuple):
    """A batch of captions.

    Attributes:
        tokens: target words, padded with pad_id. [B, L] int64.
        lengths: words per caption, EOS included. [B] int64.
        features: features [B, F] or pixels [B, 3, S, S]; None for text.
        photos: indices of the photos in the caption set. [B] int64.
    """

    tokens: Tensor
    lengths: Tensor
    features: Tensor | None
    photos: Tensor


class CaptionDataset(Dataset[CaptionExample]):
    """One item per caption, in the order of the photos.

    Args:
        photos: photos and captions.
        vocabulary: turns captions into indices.
        features: features of the photos [photos, F].
        transform: instead of ``features``: from a photo's file and a torch.Generator to pixels [3, S, S],
            for example ``encoder.train_transform``. With neither, items are text only.
        max_words: longest target, EOS included (20 in the paper's release).

    Raises:
        ValueError: both or mismatched features, or a photo without a file.
    """

    def __init__(
        self,
        photos: CaptionSet,
        vocabulary: Vocabulary,
        *,
        features: Tensor | None = None,
        transform: Callable[[str, torch.Generator], Tensor] | None = None,
        max_words: int = 20,
    ) -> None:
        if features is not None and transform is not None:
            raise ValueError("CaptionDataset: features and transform must not both be given, got both")
        if features is not None and (features.dim() != 2 or len(features) != len(photos)):
            raise ValueError(
                f"CaptionDataset: features must be [photos, F] = [{len(photos)}, F], "
                f"got {list(features.shape)}"
            )
        bare = [photo.id for photo in photos if photo.image is None]
        if transform is not None and bare:
            raise ValueError(f"CaptionDataset: photos must have files, got none for {bare[0]!r}")
        self.photos, self.vocabulary, self.features, self.transform = photos, vocabulary, features, transform
        self._items = [
            (number, torch.tensor(vocabulary.encode_target(caption, max_words)))
            for number, photo in enumerate(photos)
            for caption in photo.captions
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, draw: int | Draw) -> CaptionExample:
        """Return a caption; a :class:`Draw` seeds the random view, a plain index takes seed 0."""
        index, seed = draw if isinstance(draw, tuple) else (draw, 0)
        photo, tokens = self._items[index]
        visual = None
        if self.features is not None:
            visual = self.features[photo]
        elif self.transform is not None:
            visual = self.transform(str(self.photos[photo].image), torch.Generator().manual_seed(seed))
        return CaptionExample(tokens, photo, visual)

    def collate(self, examples: Sequence[CaptionExample]) -> CaptionBatch:
        """Pad and stack; the ``collate_fn`` of a DataLoader."""
        tokens = torch.nn.utils.rnn.pad_sequence(
            [example.tokens for example in examples], batch_first=True, padding_value=self.vocabulary.pad_id
        )
        visuals = [example.visual for example in examples if example.visual is not None]
        return CaptionBatch(
            tokens,
            torch.tensor([len(example.tokens) for example in examples]),
            torch.stack(visuals) if visuals else None,
            torch.tensor([example.photo for example in examples]),
        )


class EpochBatchSampler(Sampler[list[Draw]]):
    """Shuffled batches that depend on (seed, epoch) and nothing else.

    Batch n of an epoch is the same whether the epoch was run from its start or resumed at n, and the
    processes of a distributed run take disjoint parts of the same global order. The last, smaller batch is
    kept; with several processes, items are dropped at the end so that all have equally many batches of
    equal size.

    Args:
        size: items of the data set.
        batch_size: items per batch and process.
        seed: another seed gives other orders.
        shuffle: False keeps the items in order.
        rank: this process.
        world_size: processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"EpochBatchSampler: batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"EpochBatchSampler: rank must be in [0, world_size = {world_size}), got {rank}")
        if size < world_size:
            raise ValueError(
                f"EpochBatchSampler: size must be at least world_size = {world_size}, got {size}"
            )
        self._size, self._batch_size, self._seed, self._shuffle = size, batch_size, seed, shuffle
        self._rank, self._world = rank, world_size
        self._epoch = self._start = 0

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Choose the epoch that the next iteration runs, and its first batch (to resume within an epoch)."""
        if epoch < 0 or not 0 <= batch <= self.batches:
            raise ValueError(
                f"EpochBatchSampler.set_position: epoch must not be negative and batch be in "
                f"[0, {self.batches}], got {epoch} and {batch}"
            )
        self._epoch, self._start = epoch, batch

    @property
    def batches(self) -> int:
        """Batches of a whole epoch."""
        return -(-(self._size // self._world) // self._batch_size)

    def __len__(self) -> int:
        return self.batches - self._start

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = np.random.default_rng((self._seed, self._epoch))
        order = rng.permutation(self._size) if self._shuffle else np.arange(self._size)
        seeds = rng.integers(0, 2**62, self._size)
        share = slice(self._rank, self._size // self._world * self._world, self._world)
        draws = [Draw(int(index), int(seeds[index])) for index in order[share]]
        for batch in range(self._start, self.batches):
            yield draws[batch * self._batch_size : (batch + 1) * self._batch_size]


def language_model_windows(
    captions: Sequence[str],
    vocabulary: Vocabulary,
    *,
    streams: int,
    steps: int,
    seed: int = 0,
    epoch: int = 0,
) -> Iterator[Window]:
    """Lay shuffled captions back to back for a language model with carried state.

    See :func:`lrcn_fast.data.sequences.unaligned`; ``window.cont`` goes to ``nn.LSTM(..., cont=)``.

    Args:
        captions: text.
        vocabulary: turns it into indices.
        streams: columns N.
        steps: rows T of a window.
        seed: with ``epoch``, determines the order.
        epoch: see ``seed``.

    Yields:
        Windows of arrays [steps, streams].
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(captions))
    ids = [vocabulary.encode(captions[index]) for index in order]
    return unaligned(ids, streams=streams, steps=steps, bos_id=vocabulary.bos_id, eos_id=vocabulary.eos_id)

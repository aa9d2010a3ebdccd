"""Photos for training: preprocessed batches read ahead by threads, and CNN features computed once.

Random views are seeded per photo and view (cached features) or per batch and photo (fine-tuning), never
by the order in which threads happen to run.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrcn_fast.data import CaptionItem
from lrcn_fast.models.captioner import Captioner

__all__ = ["PhotoReader", "require_photos", "view_features"]


def require_photos(items: Sequence[CaptionItem]) -> list[Path]:
    """Files of the photos.

    Raises:
        ValueError: a photo without a file.
    """
    for item in items:
        if item.image is None:
            raise ValueError(
                f"train: data.images must be the folder of the photos, got no file for {item.id!r}"
            )
    return [item.image for item in items if item.image is not None]


class PhotoReader:
    """Decodes and preprocesses photos in threads; Pillow releases the interpreter lock while it works.

    Args:
        model: Whose preprocessing is used.
        paths: Photo files.
        crop_area: Smallest part of the area a random crop keeps.
        threads: Readers; default: the CPUs, at most 8.
    """

    def __init__(
        self, model: Captioner, paths: Sequence[Path], crop_area: float = 0.6, threads: int = 0
    ) -> None:
        self._preprocessing = model.encoder.preprocessing
        self._paths = paths
        self._area = (crop_area, 1.0)
        self._pool = ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1))

    def submit(self, photos: Sequence[int], seeds: Sequence[tuple[int, ...] | None]) -> "Future[Tensor]":
        """Start reading a batch; a seed asks for a random view, None for the plain one. [B, 3, S, S]."""
        parts = [self._pool.submit(self._read, i, seed) for i, seed in zip(photos, seeds, strict=True)]
        gathered: Future[Tensor] = Future()

        def gather() -> Tensor:
            return torch.stack([part.result() for part in parts])

        gathered.result = gather  # type: ignore[method-assign, assignment]
        return gathered

    def _read(self, index: int, seed: tuple[int, ...] | None) -> Tensor:
        if seed is None:
            return torch.from_numpy(self._preprocessing(self._paths[index]))
        uniform = np.random.default_rng(seed).random
        return torch.from_numpy(self._preprocessing.augment(self._paths[index], uniform, scale=self._area))

    def ahead(
        self, batches: Iterator[tuple[Sequence[int], Sequence[tuple[int, ...] | None]]], depth: int = 3
    ) -> Iterator[Tensor]:
        """Yield the batches in order while the next ``depth`` are being read."""
        waiting: list[Future[Tensor]] = []
        for photos, seeds in batches:
            waiting.append(self.submit(photos, seeds))
            if len(waiting) > depth:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)


@torch.no_grad()
def view_features(
    model: Captioner,
    items: Sequence[CaptionItem],
    *,
    views: int = 1,
    crop_area: float = 0.6,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """CNN features of every photo: the plain view, then ``views - 1`` random ones.

    Returns:
        [N, views, C] float32, on the CPU.
    """
    paths = require_photos(items)
    reader = PhotoReader(model, paths, crop_area)
    jobs = [(i, None if v == 0 else (seed, i, v)) for i in range(len(paths)) for v in range(views)]
    parts = []
    training = model.encoder.training
    model.encoder.eval()
    try:
        chunks = (jobs[at : at + batch_size] for at in range(0, len(jobs), batch_size))
        for images in reader.ahead(([i for i, _ in chunk], [s for _, s in chunk]) for chunk in chunks):
            parts.append(model.encode(images.to(model.device)).float().cpu())
            if progress is not None:
                progress(sum(map(len, parts)), len(jobs))
    finally:
        reader.close()
        model.encoder.train(training)
    return torch.cat(parts).reshape(len(paths), views, -1)

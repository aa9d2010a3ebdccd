"""Photos for training: preprocessed batches read ahead by threads, and CNN features computed once.

Random views are seeded per photo and view (cached features) or per batch and photo (a CNN that runs in
training), never by the order in which threads happen to run.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrcn_fast.data import CaptionItem, FeatureCache, extract_features
from lrcn_fast.models.captioner import Captioner

__all__ = ["PhotoReader", "require_photos", "view_features"]

Seed = tuple[int, ...]


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
    """

    def __init__(self, model: Captioner, paths: Sequence[Path], crop_area: float) -> None:
        self._preprocessing = model.encoder.preprocessing
        self._paths = paths
        self._area = (crop_area, 1.0)
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))

    def _read(self, index: int, seed: Seed | None) -> Tensor:
        return _view(self._preprocessing, self._area, seed, self._paths[index])

    def ahead(
        self, batches: Iterable[tuple[Sequence[int], Sequence[Seed | None]]], depth: int = 3
    ) -> Iterator[Tensor]:
        """Yield batches [B, 3, S, S] in order while the next ``depth`` are being read.

        Args:
            batches: Photos of each batch by position, and for each the seed of a random view, or None for
                the plain one.
            depth: Batches in flight.
        """
        waiting: list[list[Future[Tensor]]] = []
        for photos, seeds in batches:
            waiting.append([self._pool.submit(self._read, i, s) for i, s in zip(photos, seeds, strict=True)])
            if len(waiting) > depth:
                yield torch.stack([part.result() for part in waiting.pop(0)])
        while waiting:
            yield torch.stack([part.result() for part in waiting.pop(0)])

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)


def _view(preprocessing: Any, area: tuple[float, float], seed: Seed | None, path: Path) -> Tensor:
    if seed is None:
        return torch.from_numpy(preprocessing(path))
    uniform = np.random.default_rng(seed).random
    return torch.from_numpy(preprocessing.augment(path, uniform, scale=area))


def _named_view(preprocessing: Any, area: tuple[float, float], seed: Seed, path: Any) -> Tensor:
    digest = hashlib.sha256(Path(path).name.encode()).digest()
    return _view(preprocessing, area, (*seed, int.from_bytes(digest[:8], "little")), path)


def view_features(
    model: Captioner,
    items: Sequence[CaptionItem],
    *,
    views: int = 1,
    crop_area: float = 0.6,
    seed: int = 0,
    batch_size: int = 32,
    cache: FeatureCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """CNN features of every photo: the plain view, then ``views - 1`` random crops, half of them mirrored.

    Args:
        model: Whose CNN is used.
        items: N photos.
        views: Views per photo.
        crop_area: Smallest part of the area a random crop keeps.
        seed: Chooses the crops, together with each photo's file name.
        batch_size: Photos per forward pass.
        cache: Where features are kept on disk.
        progress: Called with (views done, views of all photos).

    Returns:
        [N, views, C] float32, on the CPU.
    """
    paths = require_photos(items)
    parts = []
    for v in range(views):
        preprocess, tag = None, ""
        if v > 0:
            preprocess = partial(_named_view, model.encoder.preprocessing, (crop_area, 1.0), (seed, v))
            tag = f"random view {v}, seed {seed}, area {crop_area}"

        def advance(done: int, of: int, before: int = v * len(paths)) -> None:
            if progress is not None:
                progress(before + done, views * of)

        parts.append(
            extract_features(
                model.encoder,
                paths,
                cache=cache,
                preprocess=preprocess,
                tag=tag,
                batch_size=batch_size,
                progress=advance,
            )
        )
    return torch.stack(parts, dim=1)

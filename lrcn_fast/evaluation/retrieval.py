"""Finding the photo of a caption and the caption of a photo from log p(caption | photo)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def normalize_log_likelihood(log_likelihood: Any) -> npt.NDArray[np.float64]:
    """Subtract log of the mean over photos of p(caption | photo) from every column.

    This removes how likely a caption is for any photo, which otherwise decides which caption a photo gets
    (the paper's section 5, and its release). It changes no ranking of photos for a caption.

    Args:
        log_likelihood: log p(s | i) [images, captions].

    Returns:
        log p(s | i) - log mean_i' p(s | i') [images, captions].
    """
    scores = _matrix(log_likelihood)
    top = scores.max(axis=0, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        mean = top + np.log(np.mean(np.exp(scores - top), axis=0, keepdims=True))
    # A caption impossible for every photo stays impossible.
    return scores - np.where(np.isfinite(mean), mean, 0.0)


def retrieval_metrics(
    log_likelihood: Any,
    caption_image: Sequence[int] | None = None,
    *,
    normalize: bool = True,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, dict[str, float]]:
    """Recall at k and median rank, in both directions.

    The rank of a query is that of its first correct item. Ties count against it: every wrong item with the
    same score stands before the correct one, so a model that cannot tell items apart gets no recall for it.

    Args:
        log_likelihood: log p(caption | photo) [images, captions]: an array, a tensor or nested lists.
        caption_image: index of the photo each caption belongs to [captions]; a photo may have several
            captions. Default: as many captions per photo, in the order of the photos.
        normalize: apply :func:`normalize_log_likelihood` before captions are ranked for a photo.
        ks: the k of the recalls.

    Returns:
        {"image_to_caption": scores, "caption_to_image": scores}, where scores are r1, r5, r10 (``r<k>``,
        fractions of the queries) and median_rank (1 is best).

    Raises:
        ValueError: not a matrix, NaN, a photo without captions, or an index out of range.
    """
    scores = _matrix(log_likelihood)
    images, captions = scores.shape
    if caption_image is None:
        if captions % images:
            raise ValueError(
                f"retrieval_metrics: log_likelihood [images, captions] must have a multiple of {images} "
                f"captions where caption_image is not given, got {captions}"
            )
        owner = np.repeat(np.arange(images), captions // images)
    else:
        owner = np.asarray(caption_image)
        if owner.shape != (captions,) or not np.issubdtype(owner.dtype, np.integer):
            raise ValueError(
                f"retrieval_metrics: caption_image must be [captions] = [{captions}] integers, got "
                f"{list(owner.shape)} of {owner.dtype}"
            )
        if owner.min() < 0 or owner.max() >= images:
            raise ValueError(
                f"retrieval_metrics: caption_image must be in [0, images) = [0, {images}), got "
                f"{owner.min()}..{owner.max()}"
            )
    bare = np.setdiff1d(np.arange(images), owner)
    if bare.size:
        raise ValueError(f"retrieval_metrics: every image must have a caption, got none for image {bare[0]}")
    if any(k < 1 for k in ks):
        raise ValueError(f"retrieval_metrics: ks must be at least 1, got {list(ks)}")

    correct = owner[None, :] == np.arange(images)[:, None]  # [images, captions]
    ranked = normalize_log_likelihood(scores) if normalize else scores
    ranks = {
        "image_to_caption": _ranks(ranked, correct),
        "caption_to_image": _ranks(scores.T, correct.T),
    }
    return {
        direction: {
            **{f"r{k}": float(np.mean(rank < k)) for k in ks},
            "median_rank": float(np.median(rank) + 1),
        }
        for direction, rank in ranks.items()
    }


def _ranks(scores: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the 0-based rank of each row's best correct item, behind all wrong ones that score as much."""
    best = np.where(correct, scores, -np.inf).max(axis=1, keepdims=True)
    return np.asarray(((scores >= best) & ~correct).sum(axis=1), np.int64)


def _matrix(log_likelihood: Any) -> npt.NDArray[np.float64]:
    if hasattr(log_likelihood, "detach"):
        log_likelihood = log_likelihood.detach().cpu()
        log_likelihood = log_likelihood.double().numpy()
    try:
        scores = np.asarray(log_likelihood, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"retrieval_metrics: log_likelihood must be numbers [images, captions], got {error}"
        ) from None
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(
            f"retrieval_metrics: log_likelihood must be [images, captions], neither 0, "
            f"got {list(scores.shape)}"
        )
    if np.isnan(scores).any():
        raise ValueError(
            f"retrieval_metrics: log_likelihood must not be NaN, "
            f"got {int(np.isnan(scores).sum())} NaN entries"
        )
    return scores

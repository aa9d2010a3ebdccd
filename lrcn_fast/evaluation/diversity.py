"""How varied a set of generated captions is, and how much of it was seen in training."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from lrcn_fast.data.vocabulary import tokenize


def diversity_metrics(
    captions: Iterable[str],
    *,
    training_captions: Iterable[str] | None = None,
    vocabulary_size: int | None = None,
) -> dict[str, float]:
    """Describe generated captions without looking at references.

    Words are those of :func:`lrcn_fast.data.tokenize`. The paper reports that a third of its sentences
    occur verbatim in training, and that greedy decoding uses 42 % of the words people use (V4 section 5).

    Args:
        captions: generated captions, one per photo.
        training_captions: captions of the training set, for the novelty.
        vocabulary_size: words the model could emit, for the share in use.

    Returns:
        mean_length (words per caption), vocabulary (distinct words), distinct_1 and distinct_2 (distinct
        n-grams over all n-grams), unique (distinct captions over captions), vocabulary_share where the size
        is given, and novel (share of captions that are no training caption, word for word) where the
        training captions are.

    Raises:
        ValueError: no captions.
    """
    cut = [tuple(tokenize(caption)) for caption in _listed("captions", captions)]
    if not cut:
        raise ValueError("diversity_metrics: captions must have at least one caption, got none")
    words = Counter(word for caption in cut for word in caption)
    result = {
        "mean_length": sum(map(len, cut)) / len(cut),
        "vocabulary": float(len(words)),
        "distinct_1": _distinct([(word,) for caption in cut for word in caption]),
        "distinct_2": _distinct([pair for caption in cut for pair in pairwise(caption)]),
        "unique": len(set(cut)) / len(cut),
    }
    if vocabulary_size is not None:
        if vocabulary_size < 1:
            raise ValueError(f"diversity_metrics: vocabulary_size must be at least 1, got {vocabulary_size}")
        result["vocabulary_share"] = len(words) / vocabulary_size
    if training_captions is not None:
        seen = {tuple(tokenize(caption)) for caption in _listed("training_captions", training_captions)}
        result["novel"] = sum(caption not in seen for caption in cut) / len(cut)
    return result


def _listed(name: str, captions: Iterable[str]) -> Iterable[str]:
    if isinstance(captions, str):
        raise ValueError(f"diversity_metrics: {name} must be a list of str, got one str")
    return captions


def _distinct(ngrams: Sequence[tuple[str, ...]]) -> float:
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0

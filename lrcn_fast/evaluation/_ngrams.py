"""BLEU, ROUGE-L and CIDEr-D over token lists, with the conventions of the COCO caption evaluation."""

import math
from collections import Counter
from collections.abc import Sequence

ORDERS = 4
"""Longest n-gram counted."""

Tokens = Sequence[str]
NGrams = tuple[Counter[tuple[str, ...]], ...]  # one counter per order 1..ORDERS


def count_ngrams(tokens: Tokens) -> NGrams:
    """Return the n-gram counts of one sentence, orders 1 to 4."""
    words = tuple(tokens)
    return tuple(
        Counter(zip(*(words[offset:] for offset in range(order)), strict=False))
        for order in range(1, ORDERS + 1)
    )


class BleuReferences:
    """What BLEU needs of one photo's references: clipped counts and lengths."""

    def __init__(self, references: Sequence[NGrams], lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)
        clip: NGrams = tuple(Counter() for _ in range(ORDERS))
        for counts in references:
            for most, found in zip(clip, counts, strict=True):
                for ngram, count in found.items():
                    if count > most[ngram]:
                        most[ngram] = count
        self.clip = clip


class Bleu:
    """Corpus BLEU-1..4 (Papineni et al. 2002): totals over all photos, closest reference length, brevity
    penalty.

    A photo's reference length is the one closest to its candidate's, the shorter of two equally close ones.
    Zero counts are floored at 1e-15 (numerator) and 1e-9 (denominator) as in the evaluation code whose
    numbers captioning papers quote, so BLEU-4 without a single matching 4-gram is tiny rather than 0.
    """

    def __init__(self) -> None:
        self.matched = [0] * ORDERS
        self.possible = [0] * ORDERS
        self.candidate_length = 0
        self.reference_length = 0

    def add(self, candidate: NGrams, length: int, references: BleuReferences) -> None:
        """Add one photo: n-gram counts and number of tokens of its candidate."""
        self.candidate_length += length
        self.reference_length += min(references.lengths, key=lambda other: (abs(other - length), other))
        for k in range(ORDERS):
            clip = references.clip[k]
            self.matched[k] += sum(min(count, clip[ngram]) for ngram, count in candidate[k].items())
            self.possible[k] += max(0, length - k)

    def scores(self) -> list[float]:
        """Return [BLEU-1, ..., BLEU-4]."""
        ratio = (self.candidate_length + 1e-15) / (self.reference_length + 1e-9)
        brevity = 1.0 if ratio >= 1 else math.exp(1 - 1 / ratio)
        product, scores = 1.0, []
        for k in range(ORDERS):
            product *= (self.matched[k] + 1e-15) / (self.possible[k] + 1e-9)
            scores.append(brevity * product ** (1 / (k + 1)))
        return scores


def common_subsequence(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence, one bit per token of ``b`` (Hyyrö 2004)."""
    where: dict[str, int] = {}
    for position, token in enumerate(b):
        where[token] = where.get(token, 0) | 1 << position
    full = (1 << len(b)) - 1
    row = full
    for token in a:
        hits = row & where.get(token, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(b) - row.bit_count()


def rouge_l(candidate: Tokens, references: Sequence[Tokens], beta: float = 1.2) -> float:
    """ROUGE-L F-score of one photo (Lin 2004): best precision and best recall over the references, then F."""
    precision = recall = 0.0
    for reference in references:
        common = common_subsequence(candidate, reference)
        if common:
            precision = max(precision, common / len(candidate))
            recall = max(recall, common / len(reference))
    if not precision:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


class CiderD:
    """CIDEr-D (Vedantam et al. 2015), with document frequencies from the evaluated references.

    For one candidate c and reference r, with tf-idf vectors g_n over the n-grams of order n::

        sim_n(c, r) = exp(-(l_c - l_r)^2 / (2 sigma^2)) * sum min(g_n(c), g_n(r)) * g_n(r) / (|g_n(c)|
        |g_n(r)|)

    with idf(w) = log(photos) - log(max(1, photos whose references contain w)), and the score is 10 times
    the mean over orders and references. The lengths l are numbers of bigrams, and nothing is stemmed, as in
    the evaluation code whose numbers captioning papers quote. With a single photo every idf is log 1, so
    the score is 0.

    Args:
        references: per photo, the n-gram counts of its references.
        sigma: width of the length penalty.
    """

    def __init__(self, references: Sequence[Sequence[NGrams]], sigma: float = 6.0) -> None:
        self.sigma = sigma
        frequency: Counter[tuple[str, ...]] = Counter()
        for photo in references:
            frequency.update({ngram for counts in photo for order in counts for ngram in order})
        self._unseen = math.log(len(references))
        self._idf = {ngram: self._unseen - math.log(count) for ngram, count in frequency.items()}
        self._vectors = [[self._vector(counts) for counts in photo] for photo in references]

    def _vector(self, counts: NGrams) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        """Return tf-idf weights and norm per order, and the number of bigrams."""
        weights = [
            {ngram: count * self._idf.get(ngram, self._unseen) for ngram, count in order.items()}
            for order in counts
        ]
        norms = [math.sqrt(sum(value * value for value in order.values())) for order in weights]
        return weights, norms, sum(counts[1].values())

    def score(self, photo: int, candidate: NGrams) -> float:
        """Return the score of a candidate for the photo of that index."""
        weights, norms, length = self._vector(candidate)
        total = 0.0
        for other_weights, other_norms, other_length in self._vectors[photo]:
            penalty = math.exp(-((length - other_length) ** 2) / (2 * self.sigma**2))
            for k in range(ORDERS):
                norm = norms[k] * other_norms[k]
                if norm:
                    reference = other_weights[k]
                    dot = sum(
                        min(value, reference[ngram]) * reference[ngram]
                        for ngram, value in weights[k].items()
                        if ngram in reference
                    )
                    total += penalty * dot / norm
        return 10.0 * total / (ORDERS * len(self._vectors[photo]))

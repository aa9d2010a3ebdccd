"""Scores of generated captions against what people wrote."""

from collections.abc import Mapping, Sequence

from lrcn_fast.evaluation import _java
from lrcn_fast.evaluation._ngrams import Bleu, BleuReferences, CiderD, count_ngrams, rouge_l
from lrcn_fast.evaluation.ptb import ptb_tokenize


class CaptionScorer:
    """The references of a set of photos, tokenised and counted once, to score many sets of candidates.

    Args:
        references: {id: captions people wrote}, at least one each.
        tokenize: cut text as the COCO evaluation does (:func:`~lrcn_fast.evaluation.ptb.ptb_tokenize`).
            False takes text that is tokenised already: tokens with spaces between.

    Raises:
        ValueError: no photo, or a photo without captions.
    """

    def __init__(self, references: Mapping[str, Sequence[str]], *, tokenize: bool = True) -> None:
        _check_mapping("references", references)
        if not references:
            raise ValueError("caption_metrics: references must have at least one photo, got none")
        for key, captions in references.items():
            if isinstance(captions, str) or not captions or not all(isinstance(c, str) for c in captions):
                raise ValueError(
                    f"caption_metrics: references of {key!r} must be a list of one or more str, "
                    f"got {captions!r}"
                )
        self.tokenize = tokenize
        self.ids = tuple(references)
        self._references = [[self._cut(caption) for caption in references[key]] for key in self.ids]
        counts = [[count_ngrams(tokens) for tokens in photo] for photo in self._references]
        self._bleu = [
            BleuReferences(ngrams, [len(tokens) for tokens in photo])
            for ngrams, photo in zip(counts, self._references, strict=True)
        ]
        self._cider = CiderD(counts)

    def _cut(self, text: str) -> list[str]:
        return ptb_tokenize(text) if self.tokenize else text.split()

    def _candidates(self, candidates: Mapping[str, str]) -> list[list[str]]:
        """Return the tokens of the candidates in the order of the references."""
        _check_mapping("candidates", candidates)
        for key, value in candidates.items():
            if not isinstance(value, str):
                raise ValueError(f"caption_metrics: candidates[{key!r}] must be a str, got {value!r}")
        missing = [key for key in self.ids if key not in candidates]
        extra = sorted(map(str, candidates.keys() - set(self.ids)))
        if missing or extra:
            first = f"missing {missing[0]!r}" if missing else f"unknown {extra[0]!r}"
            raise ValueError(
                f"caption_metrics: candidates must have the ids of the references = {len(self.ids)}, got "
                f"{len(missing)} missing and {len(extra)} unknown (first: {first})"
            )
        return [self._cut(candidates[key]) for key in self.ids]

    def score(self, candidates: Mapping[str, str], *, extra: Sequence[str] = ()) -> dict[str, float]:
        """Score one caption per photo.

        Args:
            candidates: {id: caption}, with exactly the ids of the references. An empty caption is allowed
                and matches nothing.
            extra: "meteor" and "spice", which need the ``eval`` extra and Java.

        Returns:
            bleu_1, bleu_2, bleu_3, bleu_4, rouge_l, cider_d, and what ``extra`` names. All are fractions
            except cider_d, which goes to 10.

        Raises:
            ValueError: ids that differ from the references', or an unknown name in ``extra``.
            ImportError: the ``eval`` extra is not installed.
            RuntimeError: Java is missing, or failed.
        """
        unknown = [name for name in extra if name not in _java.SCORERS]
        if unknown:
            raise ValueError(f"caption_metrics: extra must name meteor or spice, got {unknown[0]!r}")
        cut = self._candidates(candidates)
        counts = [count_ngrams(tokens) for tokens in cut]
        bleu = Bleu()
        for ngrams, tokens, photo in zip(counts, cut, self._bleu, strict=True):
            bleu.add(ngrams, len(tokens), photo)
        result = {f"bleu_{order}": value for order, value in enumerate(bleu.scores(), 1)}
        result["rouge_l"] = _mean([rouge_l(c, r) for c, r in zip(cut, self._references, strict=True)])
        result["cider_d"] = _mean([self._cider.score(n, ngrams) for n, ngrams in enumerate(counts)])
        for name in extra:
            joined = [[" ".join(tokens) for tokens in photo] for photo in self._references]
            result[name] = _java.SCORERS[name](joined, [" ".join(tokens) for tokens in cut])
        return result

    def cider_d(self, candidates: Mapping[str, str]) -> dict[str, float]:
        """Return CIDEr-D of each photo; their mean is the ``cider_d`` of :meth:`score`."""
        cut = self._candidates(candidates)
        return {key: self._cider.score(n, count_ngrams(cut[n])) for n, key in enumerate(self.ids)}


def caption_metrics(
    references: Mapping[str, Sequence[str]],
    candidates: Mapping[str, str],
    *,
    tokenize: bool = True,
    extra: Sequence[str] = (),
) -> dict[str, float]:
    """Score captions as the COCO evaluation does: BLEU-1..4, ROUGE-L and CIDEr-D, in Python.

    BLEU uses corpus totals and the closest reference length; CIDEr-D takes its document frequencies from
    these references (so sets of different photos are not comparable, and a single photo scores 0). Use
    :class:`CaptionScorer` to score several sets of candidates against the same references.

    Args:
        references: {id: captions people wrote}.
        candidates: {id: caption}, the same ids.
        tokenize: cut text with :func:`~lrcn_fast.evaluation.ptb.ptb_tokenize`; False takes tokens with
            spaces between.
        extra: "meteor" and "spice", which need ``pip install 'lrcn_fast[eval]'`` and Java.

    Returns:
        bleu_1, bleu_2, bleu_3, bleu_4, rouge_l, cider_d, and what ``extra`` names.

    Raises:
        ValueError: empty references, or ids that differ.
        ImportError: ``extra`` without the ``eval`` extra.
        RuntimeError: ``extra`` without a working Java.

    Example:
        >>> references = {"1": ["A dog runs.", "The dog is running."], "2": ["Two cats."]}
        >>> scores = caption_metrics(references, {"1": "a dog is running", "2": "two cats"})
        >>> round(scores["bleu_1"], 3)
        1.0
    """
    return CaptionScorer(references, tokenize=tokenize).score(candidates, extra=extra)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _check_mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"caption_metrics: {name} must be a mapping by photo id, got {type(value).__name__}")

"""Captions as text with their scores, for the torch models and the torch-free runtime alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Caption", "make_captions"]


@dataclass(frozen=True)
class Caption:
    """One generated sentence.

    Attributes:
        text: The sentence as the paper's release prints it: a capital first, "." at its end, or "..." where
            no end marker was reached.
        score: Sum of ``token_logprobs`` divided by their number to the power ``length_penalty``.
        token_logprobs: Log-probability of every word, and of the end marker where it was reached.
    """

    text: str
    score: float
    token_logprobs: tuple[float, ...]


def make_captions(
    decode: Callable[[Sequence[int]], str], sequences: Any, lengths: Any, scores: Any, token_logprobs: Any
) -> list[list[Caption]]:
    """Turn the result of a search into text, leaving out hypotheses that do not exist (score -inf).

    Args:
        decode: Tokens to text, such as ``Vocabulary.decode``.
        sequences: Tokens, a tensor or an array. [B, n, L].
        lengths: Tokens of each. [B, n].
        scores: Best first. [B, n].
        token_logprobs: Of each token. [B, n, L].

    Returns:
        Captions of each image, best first.
    """
    sequences, lengths, scores, token_logprobs = (
        values.tolist() for values in (sequences, lengths, scores, token_logprobs)
    )
    return [
        [
            Caption(decode(tokens[:n]), score, tuple(logprobs[:n]))
            for tokens, n, score, logprobs in zip(*image, strict=True)
            if n > 0 or score > -math.inf
        ]
        for image in zip(sequences, lengths, scores, token_logprobs, strict=True)
    ]

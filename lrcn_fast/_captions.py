"""Captions as text with their scores and how to search for them, with torch and without alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lrcn_fast.decoding._checks import check_integer

__all__ = ["Caption", "Generation", "make_captions"]


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


@dataclass(frozen=True)
class Generation:
    """How a captioner searches unless a call says otherwise; stored with the model.

    The best width and length penalty depend on the model, so they are chosen with it, on photos it was not
    trained on. See ``GenerationConfig`` for what they mean.
    """

    num_beams: int = 5
    length_penalty: float = 0.0
    max_new_tokens: int = 20

    def options(self, num_return_sequences: int = 1, **given: Any) -> dict[str, Any]:
        """Options of a search: those given (not None), then the model's own.

        A beam is at least ``num_return_sequences`` wide, and ``compat="caffe"``, which has no length penalty,
        gets none, unless those given say otherwise.
        """
        check_integer("generate", "num_return_sequences", num_return_sequences, 1)
        own = asdict(self)
        if not given.get("do_sample"):
            own["num_beams"] = max(self.num_beams, num_return_sequences)
        if given.get("compat") == "caffe":
            own["length_penalty"] = 0.0
        given = {name: value for name, value in given.items() if value is not None}
        return {**own, "num_return_sequences": num_return_sequences, **given}


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

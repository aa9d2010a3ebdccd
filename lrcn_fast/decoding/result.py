"""What a search returns."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["DecodeResult"]


@dataclass(frozen=True, eq=False)
class DecodeResult:
    """Captions of B images, n for each, best first.

    Beam search may find fewer than n different captions; the rest then has length 0, tokens ``pad_id`` and
    score ``-inf``. A caption that reached no end of sentence has none in ``sequences``.

    Args:
        sequences: Generated tokens, without begin of sentence, with end of sentence, then padding. The
            words of ``prefix_ids`` come first. [B, n, L] int64.
        lengths: Tokens of each caption, end of sentence and prefix included. [B, n] int64.
        scores: ``token_logprobs.sum(-1) / lengths**length_penalty``. [B, n] float32.
        token_logprobs: Log-probability of each token; 0 for prefix words and after the end. In beam search
            as the search saw it, so ``repetition_penalty`` included. In greedy search and sampling the
            model's own, at temperature 1 and before any rule, so that captions drawn with any setting can
            be compared. [B, n, L] float32.
    """

    sequences: Tensor
    lengths: Tensor
    scores: Tensor
    token_logprobs: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.sequences.shape)
        if len(shape) != 3:
            raise ValueError(f"DecodeResult: sequences must be [B, n, L], got {list(shape)}")
        for name, wanted in (("lengths", shape[:2]), ("scores", shape[:2]), ("token_logprobs", shape)):
            got = tuple(getattr(self, name).shape)
            if got != wanted:
                raise ValueError(f"DecodeResult: {name} must have shape {list(wanted)}, got {list(got)}")

    def __len__(self) -> int:
        """The number of images."""
        return self.sequences.shape[0]

    def tokens(self, image: int, rank: int = 0) -> list[int]:
        """The tokens of one caption, without padding."""
        length = int(self.lengths[image, rank])
        return [int(token) for token in self.sequences[image, rank, :length].tolist()]

    def texts(self, decode: Callable[[list[int]], str]) -> list[list[str]]:
        """All captions as text: ``decode`` is called with the tokens of each.

        Args:
            decode: Tokens to text, such as the ``decode`` method of a vocabulary.

        Returns:
            One list per image, best first. Captions that were not found (score ``-inf``) are left out.
        """
        return [
            [
                decode(self.tokens(image, rank))
                for rank in range(self.sequences.shape[1])
                if self.scores[image, rank] > -torch.inf
            ]
            for image in range(len(self))
        ]

    def to(self, device: torch.device | str) -> "DecodeResult":
        """The same result on another device."""
        return DecodeResult(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def __repr__(self) -> str:
        B, n, L = self.sequences.shape
        lines = [f"DecodeResult({B} images x {n} captions, L={L}, {self.sequences.device})"]
        shown = [(image, rank) for image in range(B) for rank in range(n)][:4]
        for image, rank in shown:
            words = " ".join(str(token) for token in self.tokens(image, rank))
            lines.append(f"  [{image}, {rank}] {self.scores[image, rank]:8.4f}  {words}")
        if B * n > len(shown):
            lines.append("  ...")
        return "\n".join(lines)

    @classmethod
    def cat(cls, results: Iterable["DecodeResult"]) -> "DecodeResult":
        """Join the results of several batches. They must agree in n and L."""
        parts: list[DecodeResult] = list(results)
        if not parts:
            raise ValueError("DecodeResult.cat: results must hold at least one result, got none")
        return cls(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)})

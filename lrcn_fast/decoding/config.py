"""The settings of one search, checked once, before anything runs.

Without torch, because ``lrcn_fast.CaptionDecoder`` and ``lrcn_fast.runtime.Decoder`` share it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lrcn_fast.decoding._checks import check_flag, check_integer, check_number, check_tokens, shown

__all__ = ["COMPAT_PRESETS", "MAX_BEAMS", "GenerationConfig"]

MAX_BEAMS = 1024
"""The widest beam. Wider is an error, not a slow search."""

COMPAT_PRESETS: tuple[str, ...] = ("hf", "caffe")
"""Rule sets of :attr:`GenerationConfig.compat` that work."""

_STOPPING = (False, True, "never")
_PLANNED_PRESETS = ("ruotianluo", "im2txt", "sgrvinod", "neuraltalk2", "ctranslate2", "fairseq")


@dataclass(frozen=True)
class GenerationConfig:
    """The arguments of :meth:`lrcn_fast.CaptionDecoder.generate`, validated.

    Three searches share them: sampling when ``do_sample``, greedy when ``num_beams`` is 1, else beam search.
    Words are changed or banned in this order, Hugging Face's: ``repetition_penalty``,
    ``no_repeat_ngram_size``, ``min_new_tokens``, ``suppress_tokens``; for sampling then ``temperature``,
    ``top_k``, ``top_p``. The first four act on logits in greedy search and sampling, on log-probabilities
    in beam search. The begin-of-sentence token never counts as a word of the sentence; the words of
    ``prefix_ids`` do.

    Args:
        num_beams: Hypotheses kept per image, 1 to 1024; 1 is greedy. Not used when sampling.
        num_return_sequences: Captions returned per image, best first. At most ``num_beams``, but any number
            of draws when sampling.
        max_new_tokens: The most tokens generated after the prefix, end of sentence included.
        min_new_tokens: The end of sentence is banned before this many tokens are generated.
        length_penalty: Scores are the sum of log-probabilities divided by ``lengths**length_penalty``, so
            that positive values favour long captions. 0 is the plain sum.
        early_stopping: When a sentence stops. ``False``: when its best live hypothesis, scored at its present
            length, is no better than the worst of ``num_beams`` finished ones. ``True``: also as soon as
            ``num_beams`` have finished. ``"never"``: only when no live hypothesis can still win.
        do_sample: Draw from the model's distribution instead of searching.
        temperature: Sampling only. Divides the logits; with ``compat="caffe"`` it multiplies them, as there.
        top_k: Sampling only. Draw from the likeliest ``top_k`` tokens; 0 is all.
        top_p: Sampling only. Draw from the smallest set of likeliest tokens with this much probability.
        no_repeat_ngram_size: No n-gram of this size appears twice; 0 is no limit.
        repetition_penalty: Tokens used before have their score divided by it where positive, multiplied where
            negative (Keskar et al. 2019, "CTRL", section 4.1). 1 is off.
        suppress_tokens: Tokens that are never generated.
        prefix_ids: Tokens that every caption starts with. [P] or [B, P].
        num_beam_groups: Groups of diverse beam search (Vijayakumar et al. 2018), a divisor of ``num_beams``.
            Only 1 so far.
        diversity_penalty: What a word costs that an earlier group has taken, at least 0; 0 with one group.
        compat: Whose rules finished hypotheses follow. ``"hf"``: a pool of finished hypotheses beside the
            beam, as in Hugging Face transformers. ``"caffe"``: finished hypotheses keep their place in the
            beam, as in the release of LRCN.
        generator: Source of the random numbers when sampling; its kind is the engine's.

    Raises:
        ValueError: A value is out of range, or two of them contradict each other.
        NotImplementedError: A value that is valid, and not supported yet.
    """

    num_beams: int = 5
    num_return_sequences: int = 1
    max_new_tokens: int = 20
    min_new_tokens: int = 0
    length_penalty: float = 0.0
    early_stopping: bool | Literal["never"] = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    suppress_tokens: Sequence[int] = ()
    prefix_ids: Any = field(default=None, compare=False)
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    compat: str = "hf"
    generator: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name, low, high in _INTEGERS:
            self._set(name, check_integer("generate", name, getattr(self, name), low, high))
        for name, above, at_most in _NUMBERS:
            self._set(name, check_number("generate", name, getattr(self, name), above, at_most))
        check_flag("generate", "do_sample", self.do_sample)
        if not (isinstance(self.early_stopping, (bool, str)) and self.early_stopping in _STOPPING):
            raise ValueError(
                f'generate: early_stopping must be True, False or "never", got {shown(self.early_stopping)}'
            )
        self._set("suppress_tokens", check_tokens(self.suppress_tokens))
        if self.prefix_ids is not None:
            self._set("prefix_ids", _prefix(self.prefix_ids))
        self._check_preset()
        self._check_together()
        self._check_groups()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_preset(self) -> None:
        if isinstance(self.compat, str) and self.compat in _PLANNED_PRESETS:
            raise NotImplementedError(
                "generate: compat must be one of the presets that work so far, "
                f"{', '.join(COMPAT_PRESETS)}, "
                f"got {self.compat!r}"
            )
        if not isinstance(self.compat, str) or self.compat not in COMPAT_PRESETS:
            raise ValueError(
                f"generate: compat must be one of {', '.join((*COMPAT_PRESETS, *_PLANNED_PRESETS))}, "
                f"got {shown(self.compat)}"
            )

    def _check_together(self) -> None:
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"generate: num_return_sequences must be at most num_beams = {self.num_beams}, "
                f"got {self.num_return_sequences}"
            )
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"generate: min_new_tokens must be at most max_new_tokens = {self.max_new_tokens}, "
                f"got {self.min_new_tokens}"
            )
        if self.compat == "caffe" and self.length_penalty != 0.0:
            raise ValueError(
                'generate: length_penalty must be 0 with compat="caffe", which has none, '
                f"got {self.length_penalty}"
            )
        if self.compat == "caffe" and self.early_stopping is not False:
            raise ValueError(
                'generate: early_stopping must be False with compat="caffe", which stops when the whole beam '
                f"has finished, got {self.early_stopping!r}"
            )

    def _check_groups(self) -> None:
        groups, beams = self.num_beam_groups, self.num_beams
        if self.diversity_penalty < 0:
            raise ValueError(f"generate: diversity_penalty must be at least 0, got {self.diversity_penalty}")
        if groups == 1:
            if self.diversity_penalty > 0:
                raise ValueError(
                    "generate: diversity_penalty must be 0 with num_beam_groups = 1, "
                    f"got {self.diversity_penalty}"
                )
            return
        if self.do_sample:
            raise ValueError(f"generate: num_beam_groups must be 1 with do_sample=True, got {groups}")
        if beams % groups != 0:
            raise ValueError(f"generate: num_beam_groups must divide num_beams = {beams}, got {groups}")
        raise NotImplementedError(
            f"generate: num_beam_groups must be 1 (diverse beam search is not supported), got {groups}"
        )

    @property
    def logit_scale(self) -> float:
        """The factor on the logits in sampling: 1 / temperature, or temperature for ``compat="caffe"``."""
        return self.temperature if self.compat == "caffe" else 1.0 / self.temperature

    def check_vocabulary(self, vocab_size: int, eos_id: int) -> None:
        """Check tokens against a vocabulary.

        Raises:
            ValueError: A token outside of it, a prefix that ends the sentence, or no word left to start with.
        """
        banned = set(self.suppress_tokens)
        if banned and max(banned) >= vocab_size:
            raise ValueError(
                f"generate: suppress_tokens must be token ids in 0..{vocab_size - 1}, got {max(banned)}"
            )
        if self.min_new_tokens > 0:
            banned.add(eos_id)
        if len(banned) == vocab_size:
            reason = " (min_new_tokens bans the end of sentence)" if self.min_new_tokens > 0 else ""
            raise ValueError(
                "generate: suppress_tokens must leave a word to start with, "
                f"got all {vocab_size} banned{reason}"
            )
        prefix = self.prefix_ids
        if prefix is not None and prefix.size > 0:
            low, high = int(prefix.min()), int(prefix.max())
            if low < 0 or high >= vocab_size:
                raise ValueError(
                    f"generate: prefix_ids must be token ids in 0..{vocab_size - 1}, "
                    f"got {low if low < 0 else high}"
                )
            if (prefix == eos_id).any():
                raise ValueError(
                    f"generate: prefix_ids must not hold the end of sentence, got eos_id = {eos_id}"
                )

    def prefix(self, B: int) -> npt.NDArray[np.int64]:
        """The first words of each of B images: a new array [B, P].

        Raises:
            ValueError: ``prefix_ids`` has another number of rows.
        """
        prefix = np.empty(0, np.int64) if self.prefix_ids is None else self.prefix_ids
        if prefix.ndim == 2 and prefix.shape[0] != B:
            raise ValueError(
                f"generate: prefix_ids must be [P] or [B, P] with B = {B}, got {list(prefix.shape)}"
            )
        return np.array(np.broadcast_to(prefix, (B, prefix.shape[-1])), order="C")


_INTEGERS = (  # name, least, most
    ("num_beams", 1, MAX_BEAMS),
    ("num_return_sequences", 1, None),
    ("max_new_tokens", 1, None),
    ("min_new_tokens", 0, None),
    ("top_k", 0, None),
    ("no_repeat_ngram_size", 0, None),
    ("num_beam_groups", 1, None),
)
_NUMBERS = (  # name, above, at most
    ("length_penalty", -math.inf, math.inf),
    ("temperature", 0.0, math.inf),
    ("top_p", 0.0, 1.0),
    ("repetition_penalty", 0.0, math.inf),
    ("diversity_penalty", -math.inf, math.inf),
)


def _prefix(value: Any) -> npt.NDArray[np.int64]:
    try:
        prefix = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(
            f"generate: prefix_ids must be token ids [P] or [B, P], got {shown(value)}"
        ) from None
    if prefix.ndim not in (1, 2):
        raise ValueError(f"generate: prefix_ids must be [P] or [B, P], got shape {list(prefix.shape)}")
    if prefix.size > 0 and prefix.dtype.kind not in "iu":  # an empty list has numpy's default dtype
        raise ValueError(f"generate: prefix_ids must have an integer dtype, got {prefix.dtype}")
    return prefix.astype(np.int64)

"""The settings of one search, checked once, before anything runs."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["COMPAT_PRESETS", "MAX_BEAMS", "GenerationConfig"]

MAX_BEAMS = 1024
"""The widest beam. Wider is an error, not a slow search."""

COMPAT_PRESETS: tuple[str, ...] = ("hf", "caffe")
"""Rule sets of :attr:`GenerationConfig.compat` that work."""

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
        num_beam_groups: Only 1 so far.
        diversity_penalty: Only 0 so far.
        compat: Whose rules finished hypotheses follow. ``"hf"``: a pool of finished hypotheses beside the
            beam, as in Hugging Face transformers. ``"caffe"``: finished hypotheses keep their place in the
            beam, as in the release of LRCN.
        generator: Source of the random numbers when sampling.

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
    prefix_ids: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = field(default=None, compare=False)
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    compat: str = "hf"
    generator: torch.Generator | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        self._set("num_beams", _integer("num_beams", self.num_beams, 1, MAX_BEAMS))
        self._set("num_return_sequences", _integer("num_return_sequences", self.num_return_sequences, 1))
        self._set("max_new_tokens", _integer("max_new_tokens", self.max_new_tokens, 1))
        self._set("min_new_tokens", _integer("min_new_tokens", self.min_new_tokens, 0))
        self._set("top_k", _integer("top_k", self.top_k, 0))
        self._set("no_repeat_ngram_size", _integer("no_repeat_ngram_size", self.no_repeat_ngram_size, 0))
        self._set("num_beam_groups", _integer("num_beam_groups", self.num_beam_groups, 1))
        self._set("length_penalty", _number("length_penalty", self.length_penalty))
        self._set("temperature", _number("temperature", self.temperature, above=0.0))
        self._set("top_p", _number("top_p", self.top_p, above=0.0, at_most=1.0))
        self._set("repetition_penalty", _number("repetition_penalty", self.repetition_penalty, above=0.0))
        self._set("diversity_penalty", _number("diversity_penalty", self.diversity_penalty))
        if not isinstance(self.do_sample, bool):
            raise ValueError(f"generate: do_sample must be True or False, got {self.do_sample!r}")
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise ValueError(
                f'generate: early_stopping must be True, False or "never", got {self.early_stopping!r}'
            )
        self._set("suppress_tokens", _tokens(self.suppress_tokens))
        if self.prefix_ids is not None:
            self._set("prefix_ids", _prefix(self.prefix_ids))
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise ValueError(f"generate: generator must be a torch.Generator, got {self.generator!r}")
        self._check_together()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_together(self) -> None:
        if self.compat in _PLANNED_PRESETS:
            raise NotImplementedError(
                "generate: compat must be one of the presets that work so far, "
                f"{', '.join(COMPAT_PRESETS)}, "
                f"got {self.compat!r}"
            )
        if self.compat not in COMPAT_PRESETS:
            raise ValueError(
                f"generate: compat must be one of {', '.join((*COMPAT_PRESETS, *_PLANNED_PRESETS))}, "
                f"got {self.compat!r}"
            )
        if self.num_beam_groups != 1:
            raise NotImplementedError(
                "generate: num_beam_groups must be 1 (diverse beam search is not supported), "
                f"got {self.num_beam_groups}"
            )
        if self.diversity_penalty != 0.0:
            raise NotImplementedError(
                "generate: diversity_penalty must be 0 (diverse beam search is not supported), "
                f"got {self.diversity_penalty}"
            )
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
        if isinstance(self.prefix_ids, Tensor) and self.prefix_ids.numel() > 0:
            low, high = int(self.prefix_ids.min()), int(self.prefix_ids.max())
            if low < 0 or high >= vocab_size:
                raise ValueError(
                    f"generate: prefix_ids must be token ids in 0..{vocab_size - 1}, "
                    f"got {low if low < 0 else high}"
                )
            if (self.prefix_ids == eos_id).any():
                raise ValueError(
                    f"generate: prefix_ids must not hold the end of sentence, got eos_id = {eos_id}"
                )


def _integer(name: str, value: object, low: int, high: int | None = None) -> int:
    wanted = f"an integer of at least {low}" if high is None else f"an integer in {low}..{high}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"generate: {name} must be {wanted}, got {value!r}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"generate: {name} must be {wanted}, got {number}")
    return number


def _number(name: str, value: object, above: float = -math.inf, at_most: float = math.inf) -> float:
    wanted = "a finite number"
    if above > -math.inf:
        wanted += f" above {above:g}"
    if at_most < math.inf:
        wanted += f" and at most {at_most:g}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"generate: {name} must be {wanted}, got {value!r}") from None
    if not math.isfinite(number) or number <= above or number > at_most:
        raise ValueError(f"generate: {name} must be {wanted}, got {number}")
    return number


def _tokens(value: object) -> tuple[int, ...]:
    if isinstance(value, Tensor):
        value = value.tolist()
    try:
        tokens = tuple(sorted({operator.index(token) for token in value}))  # type: ignore[attr-defined]
    except TypeError:
        raise ValueError(
            f"generate: suppress_tokens must be a sequence of token ids, got {value!r}"
        ) from None
    if tokens and tokens[0] < 0:
        raise ValueError(f"generate: suppress_tokens must be token ids of at least 0, got {tokens[0]}")
    return tokens


def _prefix(value: Any) -> Tensor:
    try:
        prefix = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"generate: prefix_ids must be token ids [P] or [B, P], got {value!r}") from None
    if prefix.ndim not in (1, 2):
        raise ValueError(f"generate: prefix_ids must be [P] or [B, P], got shape {list(prefix.shape)}")
    if prefix.numel() == 0:  # an empty list has torch's default dtype
        prefix = prefix.to(torch.int64)
    if prefix.is_floating_point() or prefix.is_complex() or prefix.dtype == torch.bool:
        raise ValueError(f"generate: prefix_ids must have an integer dtype, got {prefix.dtype}")
    return prefix.to(torch.int64)

r"""Greedy search, beam search and sampling in plain PyTorch: the definition of what decoding returns.

Batched over images and beams, for any model that can be stepped, on any device. Native decoding is compared
with this file, and it is what runs where there is no native decoder.

Notation: B images, K beams, V words, P prefix words, g words generated so far.

Beam search, Hugging Face's rules (``compat="hf"``), for one image:

1. Each of the K live hypotheses continues with each word that is not banned. The best 2K continuations are
   ordered by sum of log-probabilities (in float32, left to right), then parent, then word: a total order, so
   results never depend on how a sort breaks ties.
2. Those of the first K that end (end of sentence, or g = ``max_new_tokens``) enter a pool, scored
   :math:`\sum \log p / (P + g)^{length\_penalty}` with g after the step. The pool keeps its best K, the
   earlier one first when scores are equal.
3. A hypothesis whose every continuation is banned enters the pool as it is, before the others of that step.
4. The first K continuations that do not end are the new live hypotheses.
5. The image is done when nothing is live; when the pool is full and ``early_stopping`` is True; or when the
   best live sum, scored at length P + g (at P + ``max_new_tokens`` for ``"never"`` with a positive
   ``length_penalty``), is no better than the worst of a full pool.

``compat="caffe"`` (Donahue et al. 2015, released ``captioner.py``): a finished hypothesis keeps its place
among the K with its sum and competes with the continuations of the others. Done when all K have finished.

Sampling draws word v when u falls in its share of the cumulative weights, words in ascending order, weights
:math:`\exp(z_v - \max z)` in float64 with :math:`z` the float32 logits times ``logit_scale``. Before that
``top_k`` keeps the words with z no less than the k-th largest, ties included, and ``top_p`` keeps the head of
the order (z descending, word ascending) before which less than ``top_p`` of the weight has accumulated.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lrcn_fast.decoding import DecodeResult, GenerationConfig

__all__ = ["State", "StepFunction", "process_scores", "search"]

State = tuple[Tensor, ...]
"""Whatever a model carries from word to word; the first dimension of each tensor is the row."""

StepFunction = Callable[[Tensor, State], tuple[Tensor, State]]
"""``step(tokens [R], state) -> (logits [R, V], state)``: one word forward on R rows."""

_MINUS_INF = float("-inf")


@dataclass
class _Hypotheses:
    """K hypotheses of each image, as arrays. Slots without one have ``total`` -inf."""

    total: Tensor  # sum of log-probabilities [B, K], float32
    tokens: Tensor  # [B, K, L], the first `length` are valid
    logprobs: Tensor  # [B, K, L]
    length: Tensor  # prefix included [B, K]

    def take(self, index: Tensor) -> "_Hypotheses":
        """Gather slots. index: [B, any] -> hypotheses [B, any]."""
        deep = index.unsqueeze(-1).expand(-1, -1, self.tokens.shape[2])
        return _Hypotheses(
            self.total.gather(1, index),
            self.tokens.gather(1, deep),
            self.logprobs.gather(1, deep),
            self.length.gather(1, index),
        )

    def cat(self, other: "_Hypotheses") -> "_Hypotheses":
        return _Hypotheses(
            torch.cat([self.total, other.total], 1),
            torch.cat([self.tokens, other.tokens], 1),
            torch.cat([self.logprobs, other.logprobs], 1),
            torch.cat([self.length, other.length], 1),
        )

    def masked(self, keep: Tensor) -> "_Hypotheses":
        """The same with the slots outside ``keep`` empty."""
        total = self.total.masked_fill(~keep, _MINUS_INF)
        return _Hypotheses(total, self.tokens, self.logprobs, self.length)

    def append(self, at: int, tokens: Tensor, logprobs: Tensor, where: Tensor | None = None) -> None:
        """Write one more token [B, K] into column ``at``, in place."""
        if where is None:
            self.tokens[:, :, at] = tokens
            self.logprobs[:, :, at] = logprobs
            self.length += 1
        else:
            self.tokens[:, :, at] = torch.where(where, tokens, self.tokens[:, :, at])
            self.logprobs[:, :, at] = torch.where(where, logprobs, self.logprobs[:, :, at])
            self.length += where

    def score(self, length_penalty: float) -> Tensor:
        """Length-normalised sums [B, K]."""
        # A slot without a hypothesis may have length 0, and 0**-1 is inf: -inf / inf would be NaN.
        return self.total / (self.length.clamp(min=1).double() ** length_penalty).float()

    def result(self, config: GenerationConfig, pad_id: int) -> DecodeResult:
        """The first ``num_return_sequences`` slots, padded."""
        found = self.total > _MINUS_INF
        length = self.length * found
        beyond = torch.arange(self.tokens.shape[2], device=length.device) >= length.unsqueeze(-1)
        n = config.num_return_sequences
        return DecodeResult(
            sequences=self.tokens.masked_fill(beyond, pad_id)[:, :n].contiguous(),
            lengths=length[:, :n].contiguous(),
            scores=self.score(config.length_penalty)[:, :n].contiguous(),
            token_logprobs=self.logprobs.masked_fill(beyond, 0.0)[:, :n].contiguous(),
        )


@torch.no_grad()
def search(
    logits: Tensor,
    state: State,
    step: StepFunction,
    config: GenerationConfig,
    *,
    eos_id: int,
    pad_id: int = 0,
    prefix: Tensor | None = None,
    uniforms: Tensor | None = None,
) -> DecodeResult:
    """Decode a batch by the rules at the top of this file.

    Args:
        logits: The model's output after begin of sentence and prefix, one row per image. [B, V].
        state: The model's state there, one row per image.
        step: Advances any number of rows by one word each.
        config: What to search for. Its ``prefix_ids`` and ``generator`` are not used here.
        eos_id: The word that ends a sentence.
        pad_id: What fills ``sequences`` after the end.
        prefix: Words already fed, for the rules on repeats and for the result. [B, P].
        uniforms: Numbers in [0, 1) that sampling consumes. [B, num_return_sequences, max_new_tokens] float64.

    Returns:
        ``num_return_sequences`` captions per image with L = P + ``max_new_tokens``.
    """
    B = logits.shape[0]
    if prefix is None:
        prefix = torch.empty(B, 0, dtype=torch.int64, device=logits.device)
    rules = _Rules(config, eos_id, pad_id, prefix.shape[1])
    if config.do_sample:
        if uniforms is None:
            raise ValueError("search: uniforms must be given when config.do_sample is True, got None")
        return _word_by_word(logits, state, step, rules, prefix, config.num_return_sequences, uniforms)
    if config.num_beams == 1:
        return _word_by_word(logits, state, step, rules, prefix, 1, None)
    if config.compat == "caffe":
        return _beam_in_slot(logits, state, step, rules, prefix)
    return _beam_with_pool(logits, state, step, rules, prefix)


@dataclass(frozen=True)
class _Rules:
    config: GenerationConfig
    eos_id: int
    pad_id: int
    prefix_length: int

    def start(self, prefix: Tensor, slots: int) -> _Hypotheses:
        """The prefix in slot 0 of each image, the other slots empty."""
        B, P = prefix.shape
        L = P + self.config.max_new_tokens
        tokens = torch.zeros(B, slots, L, dtype=torch.int64, device=prefix.device)
        tokens[:, :, :P] = prefix.unsqueeze(1)
        total = torch.full((B, slots), _MINUS_INF, device=prefix.device)
        total[:, :1] = 0.0
        length = torch.full((B, slots), P, dtype=torch.int64, device=prefix.device)
        return _Hypotheses(total, tokens, torch.zeros(B, slots, L, device=prefix.device), length)


def process_scores(
    scores: Tensor, history: Tensor, generated: int, config: GenerationConfig, eos_id: int
) -> Tensor:
    """Apply the rules on words in Hugging Face's order. Banned words get ``-inf``.

    Args:
        scores: Logits or log-probabilities. [R, V].
        history: Prefix and generated words of each row. [R, t].
        generated: How many words of ``history`` were generated.
        config: The rules.
        eos_id: The word that ends a sentence.

    Returns:
        New scores [R, V].
    """
    scores = scores.clone()
    t = history.shape[1]
    penalty, n = config.repetition_penalty, config.no_repeat_ngram_size
    if penalty != 1.0 and t > 0:
        used = scores.gather(1, history)
        scores.scatter_(1, history, torch.where(used < 0, used * penalty, used / penalty))
    if 0 < n <= t:
        windows = history.unfold(1, n, 1)  # every n-gram so far [R, t-n+1, n]
        repeats = (windows[..., :-1] == history[:, None, t - n + 1 :]).all(-1)
        V = scores.shape[1]
        banned = torch.zeros(scores.shape[0], V + 1, dtype=torch.bool, device=scores.device)
        # Column V takes what is not banned: scatter must not write False over True.
        banned.scatter_(1, torch.where(repeats, windows[..., -1], V), True)
        scores.masked_fill_(banned[:, :V], _MINUS_INF)
    if generated < config.min_new_tokens:
        scores[:, eos_id] = _MINUS_INF
    if config.suppress_tokens:
        scores[:, list(config.suppress_tokens)] = _MINUS_INF
    return scores


def _top(scores: Tensor, k: int) -> Tensor:
    """The k best words of each row, lower words first among equals; in ascending order. [R, V] -> [R, k]."""
    values, words = scores.topk(k)
    # topk breaks ties as it likes. If one crosses the k-th place it may have kept the wrong words.
    last = values[:, -1:]
    if ((scores >= last) & (last > _MINUS_INF)).sum(1).gt(k).any():
        words = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return words.sort(dim=1).values


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row, the earlier first among equals."""
    values, index = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :k], index[:, :k]


def _log_softmax(logits: Tensor) -> Tensor:
    """Float32 log-probabilities, whatever the model computes in."""
    return logits.float().log_softmax(-1) if logits.dtype != torch.float64 else logits.log_softmax(-1).float()


def _continuations(
    logits: Tensor, live: _Hypotheses, at: int, width: int, rules: _Rules
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``width`` best words after each hypothesis, words ascending: log-probabilities, words, sums.

    All [B, K, width], so that a stable sort of the flattened sums is the total order.
    """
    B, K = live.total.shape
    history = live.tokens[:, :, :at].flatten(0, 1)
    generated = at - rules.prefix_length
    logprobs = process_scores(_log_softmax(logits), history, generated, rules.config, rules.eos_id)
    words = _top(logprobs, min(width, logits.shape[1]))
    shape = B, K, words.shape[1]
    logprobs, words = logprobs.gather(1, words).view(shape), words.view(shape)
    return logprobs, words, live.total.unsqueeze(-1) + logprobs


def _advance(
    step: StepFunction, words: Tensor, parents: Tensor, rows: int, state: State
) -> tuple[Tensor, State]:
    """Feed words [B, K] to the states of their parents, ``rows`` of which belong to each image."""
    first = torch.arange(parents.shape[0], device=parents.device).unsqueeze(1) * rows
    index = (parents + first).flatten()
    return step(words.flatten(), tuple(s.index_select(0, index) for s in state))


def _beam_with_pool(
    logits: Tensor, state: State, step: StepFunction, rules: _Rules, prefix: Tensor
) -> DecodeResult:
    config, K, P = rules.config, rules.config.num_beams, rules.prefix_length
    live = rules.start(prefix, 1)  # one row per image until the first words are chosen
    pool = rules.start(prefix, K)
    pool = pool.masked(torch.zeros_like(pool.total, dtype=torch.bool))
    done = torch.zeros(prefix.shape[0], 1, dtype=torch.bool, device=prefix.device)
    last = P + config.max_new_tokens - 1

    for at in range(P, last + 1):
        rows = live.total.shape[1]
        logprobs, words, totals = _continuations(logits, live, at, 2 * K, rules)
        stuck = (logprobs.amax(-1) == _MINUS_INF) & ~done
        pool = pool.cat(live.masked(stuck))

        totals, index = _best(totals.flatten(1), 2 * K)
        parents = index // words.shape[2]
        words, logprobs = words.flatten(1).gather(1, index), logprobs.flatten(1).gather(1, index)
        live = live.take(parents)
        live.total = totals
        live.append(at, words, logprobs)

        ends = (words == rules.eos_id) | (at == last)
        in_top = torch.arange(words.shape[1], device=words.device) < K
        pool = pool.cat(live.masked(ends & in_top & ~done))
        _, order = _best(pool.score(config.length_penalty), K)
        pool = pool.take(order)

        # The first K that go on, in their order: a stable sort of "does not go on".
        _, order = _best((~ends & (totals > _MINUS_INF)).float(), K)
        live = live.masked(~ends).take(order)
        parents, words = parents.gather(1, order), words.gather(1, order)

        bound = last + 1 if config.early_stopping == "never" and config.length_penalty > 0 else at + 1
        worst = pool.score(config.length_penalty)[:, K - 1 :]  # -inf while the pool is not full
        done |= live.total[:, :1] / float(bound) ** config.length_penalty <= worst
        done |= live.total[:, :1] == _MINUS_INF
        if config.early_stopping is True:
            done |= worst > _MINUS_INF
        if done.all():
            break
        live = live.masked(~done)
        logits, state = _advance(step, words, parents, rows, state)
    return pool.result(config, rules.pad_id)


def _beam_in_slot(
    logits: Tensor, state: State, step: StepFunction, rules: _Rules, prefix: Tensor
) -> DecodeResult:
    config, K, P = rules.config, rules.config.num_beams, rules.prefix_length
    beam = rules.start(prefix, 1)
    finished = torch.zeros_like(beam.total, dtype=torch.bool)

    for at in range(P, P + config.max_new_tokens):
        rows = beam.total.shape[1]
        logprobs, words, totals = _continuations(logits, beam, at, K, rules)
        # What has finished, or cannot go on, is its own only continuation.
        finished |= logprobs.amax(-1) == _MINUS_INF
        totals = totals.masked_fill(finished.unsqueeze(-1), _MINUS_INF)
        totals[:, :, 0] = torch.where(finished, beam.total, totals[:, :, 0])

        totals, index = _best(totals.flatten(1), K)
        parents = index // words.shape[2]
        words, logprobs = words.flatten(1).gather(1, index), logprobs.flatten(1).gather(1, index)
        finished = finished.gather(1, parents)
        beam = beam.take(parents)
        beam.total = totals
        beam.append(at, words, logprobs, where=~finished)
        finished |= (words == rules.eos_id) | (totals == _MINUS_INF)
        if finished.all():
            break
        logits, state = _advance(step, words, parents, rows, state)
    return _fill(beam, K, rules, prefix).result(config, rules.pad_id)


def _fill(beam: _Hypotheses, K: int, rules: _Rules, prefix: Tensor) -> _Hypotheses:
    """Append empty slots up to K: fewer hypotheses than beams exist when the vocabulary is small."""
    missing = K - beam.total.shape[1]
    if missing <= 0:
        return beam
    empty = rules.start(prefix, missing)
    return beam.cat(empty.masked(torch.zeros_like(empty.total, dtype=torch.bool)))


def _word_by_word(
    logits: Tensor,
    state: State,
    step: StepFunction,
    rules: _Rules,
    prefix: Tensor,
    n: int,
    uniforms: Tensor | None,
) -> DecodeResult:
    """Greedy search, or n draws per image when ``uniforms`` are given."""
    config, P = rules.config, rules.prefix_length
    B = logits.shape[0]
    rows = rules.start(prefix, n)
    rows.total.zero_()
    finished = torch.zeros_like(rows.total, dtype=torch.bool)
    parents = torch.arange(n, device=prefix.device).expand(B, n)
    first = torch.zeros_like(parents)
    logits = logits.repeat_interleave(n, dim=0)  # [B*n, V]

    for at in range(P, P + config.max_new_tokens):
        history = rows.tokens[:, :, :at].flatten(0, 1)
        scores = process_scores(logits.float(), history, at - P, config, rules.eos_id)
        if uniforms is None:
            words = scores.eq(scores.amax(-1, keepdim=True)).int().argmax(-1)  # the lowest of equals
        else:
            words = _draw(scores, config, uniforms[:, :, at - P].flatten())
        logprobs = _log_softmax(logits).gather(1, words.unsqueeze(1)).view(B, n)
        finished |= scores.amax(-1).view(B, n) == _MINUS_INF  # no word is left to choose
        words = words.view(B, n)
        rows.append(at, words, logprobs, where=~finished)
        rows.total += logprobs.masked_fill(finished, 0.0)
        finished |= words == rules.eos_id
        if finished.all() or at == P + config.max_new_tokens - 1:
            break
        if at == P:
            logits, state = _advance(step, words, first, 1, state)
        else:
            logits, state = _advance(step, words, parents, n, state)
    _, order = _best(rows.score(config.length_penalty), n)
    return rows.take(order).result(config, rules.pad_id)


def _draw(logits: Tensor, config: GenerationConfig, uniforms: Tensor) -> Tensor:
    """One word per row, from float32 logits with banned words at -inf. [R, V], [R] -> [R]."""
    scaled = (logits * config.logit_scale).clamp(max=torch.finfo(torch.float32).max)
    V = scaled.shape[1]
    weights = (scaled.double() - scaled.amax(-1, keepdim=True).double()).exp()
    if 0 < config.top_k < V:
        smallest = scaled.topk(config.top_k, dim=1).values[:, -1:]
        weights = weights.masked_fill(scaled < smallest, 0.0)
    if config.top_p < 1.0:
        order = scaled.sort(dim=1, descending=True, stable=True).indices
        ordered = weights.gather(1, order)
        before = F.pad(ordered.cumsum(1)[:, :-1], (1, 0))
        ordered[before / ordered.sum(1, keepdim=True) >= config.top_p] = 0.0
        weights = torch.zeros_like(weights).scatter(1, order, ordered)
    below = weights.cumsum(1)
    target = uniforms.to(below.device, torch.float64).unsqueeze(1) * below[:, -1:]
    # The first that exceeds the target. The product may round up to the whole: then the last of any weight.
    return ((below > target) | (below == below[:, -1:])).int().argmax(-1)

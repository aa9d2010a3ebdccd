"""The plain PyTorch search against exhaustive search, and the rules one by one."""

import itertools
import math

import pytest
import torch

from lrcn_fast.decoding import DecodeResult, GenerationConfig
from lrcn_fast.reference_search import search

EOS = 0


class TableModel:
    """A model whose logits depend on the last two words: table [V+1, V+1, V], index V = nothing yet."""

    def __init__(self, vocab: int, images: int = 1, seed: int = 0, scale: float = 2.0, table=None):
        generator = torch.Generator().manual_seed(seed)
        shape = (images, vocab + 1, vocab + 1, vocab)
        self.table = torch.randn(shape, generator=generator) * scale if table is None else table
        self.vocab = vocab

    def first(self):
        images, V = self.table.shape[0], self.vocab
        image = torch.arange(images)
        last = torch.full((images,), V)
        return self.table[image, last, last], (image, last)

    def step(self, tokens, state):
        image, last = state
        return self.table[image, last, tokens], (image, tokens)

    def search(self, prefix=None, uniforms=None, pad_id=0, **options) -> DecodeResult:
        logits, state = self.first()
        if prefix is not None:
            prefix = torch.as_tensor(prefix).expand(self.table.shape[0], -1)
            for tokens in prefix.unbind(1):
                logits, state = self.step(tokens, state)
        config = GenerationConfig(**options)
        return search(
            logits, state, self.step, config, eos_id=EOS, pad_id=pad_id, prefix=prefix, uniforms=uniforms
        )

    def log_probs(self, image: int, words) -> list[float]:
        """The model's log-probability of each word of one sentence, in float64."""
        logprobs = self.table[image].double().log_softmax(-1)
        before = (self.vocab, self.vocab, *words)
        return [float(logprobs[before[t], before[t + 1], word]) for t, word in enumerate(words)]


def exhaustive(
    model: TableModel, image: int, max_new: int, length_penalty=0.0, min_new=0, suppress=(), ngram=0
):
    """Every sentence the rules allow, best first: (score, words)."""
    found = []

    def allowed(words):
        for t, word in enumerate(words):
            if word in suppress or (word == EOS and t < min_new):
                return False
        if ngram:
            grams = [tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]
            return len(set(grams)) == len(grams)
        return True

    for length in range(1, max_new + 1):
        for words in itertools.product(range(model.vocab), repeat=length):
            ended = words[-1] == EOS
            if EOS in words[:-1] or not allowed(words):
                continue
            stuck = not any(allowed((*words, word)) for word in range(model.vocab))
            if ended or length == max_new or stuck:
                found.append((sum(model.log_probs(image, words)) / length**length_penalty, words))
    return sorted(found, key=lambda item: (-item[0], item[1]))


def words_of(result: DecodeResult, image: int, rank: int = 0) -> tuple[int, ...]:
    return tuple(result.tokens(image, rank))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"length_penalty": 1.0},
        {"length_penalty": -0.7},
        {"min_new_tokens": 2},
        {"suppress_tokens": (1,)},
        {"suppress_tokens": (EOS,)},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 3, "length_penalty": 0.5},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "plain",
)
@pytest.mark.parametrize("seed", range(3))
def test_wide_beam_finds_what_exhaustive_search_finds(options, seed):
    V, L = 4, 4
    model = TableModel(V, images=2, seed=seed)
    result = model.search(
        num_beams=V**L, num_return_sequences=5, max_new_tokens=L, early_stopping="never", pad_id=-1, **options
    )
    for image in range(2):
        expected = exhaustive(
            model,
            image,
            L,
            options.get("length_penalty", 0.0),
            options.get("min_new_tokens", 0),
            options.get("suppress_tokens", ()),
            options.get("no_repeat_ngram_size", 0),
        )
        for rank, (score, words) in enumerate(expected[:5]):
            assert words_of(result, image, rank) == words
            assert result.scores[image, rank].item() == pytest.approx(score, rel=1e-5)
            logprobs = result.token_logprobs[image, rank, : len(words)].tolist()
            assert logprobs == pytest.approx(model.log_probs(image, words), rel=1e-5, abs=1e-6)
            assert math.fsum(logprobs) / len(words) ** options.get("length_penalty", 0.0) == pytest.approx(
                score, rel=1e-5
            )
        for rank in range(len(expected), 5):
            assert result.lengths[image, rank] == 0
            assert result.scores[image, rank] == -math.inf

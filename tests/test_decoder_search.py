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


def caffe_beam(model: TableModel, image: int, K: int, max_new: int):
    """The release's beam search, one image, with lists: [(sum, words)], best first."""
    beam = [(0.0, ())]
    while not all(words and (words[-1] == EOS or len(words) == max_new) for _, words in beam):
        grown = []
        for total, words in beam:
            if words and words[-1] == EOS:
                grown.append((total, words))
                continue
            for word in range(model.vocab):
                grown.append((sum(model.log_probs(image, (*words, word))), (*words, word)))
        beam = sorted(grown, key=lambda item: -item[0])[:K]
    return beam


@pytest.mark.parametrize("K", [2, 3, 5, 9])
def test_caffe_beam_keeps_finished_sentences_in_their_place(K):
    differs = 0
    for seed in range(8):
        model = TableModel(6, images=2, seed=seed)
        options = {"num_beams": K, "num_return_sequences": K, "max_new_tokens": 7}
        result = model.search(compat="caffe", **options)
        differs += not torch.equal(result.sequences, model.search(compat="hf", **options).sequences)
        for image in range(2):
            for rank, (score, words) in enumerate(caffe_beam(model, image, K, 7)):
                assert words_of(result, image, rank) == words
                assert result.scores[image, rank].item() == pytest.approx(score, rel=1e-5)
    assert differs > 0  # or the test would not tell the presets apart


@pytest.mark.parametrize("compat", ["hf", "caffe"])
def test_equal_scores_are_ordered_by_parent_then_word(compat):
    V = 4
    model = TableModel(V, table=torch.zeros(1, V + 1, V + 1, V))
    result = model.search(num_beams=6, num_return_sequences=6, max_new_tokens=2, compat=compat)
    # Step 1: words 0 to 3, of which 0 ends. Step 2: words 0 to 3 after 1, then 0 after 2. One word of
    # -log 4 beats two, and of equals the earlier stays.
    expected = [(0,), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]
    assert [words_of(result, 0, rank) for rank in range(6)] == expected
    greedy = model.search(num_beams=1, max_new_tokens=3, suppress_tokens=(0, 1))
    assert words_of(greedy, 0) == (2, 2, 2)


@pytest.mark.parametrize("compat", ["hf", "caffe"])
def test_a_beam_wider_than_the_vocabulary(compat):
    model = TableModel(2, images=3)
    result = model.search(num_beams=50, num_return_sequences=50, max_new_tokens=3, compat=compat, pad_id=9)
    for image in range(3):
        found = [words_of(result, image, rank) for rank in range(50)]
        assert set(found[:5]) <= {(0,), (1, 0), (1, 1, 0), (1, 1, 1)} | {()}
        assert len(set(found[:4])) == 4  # each once
        assert (result.lengths[image, 4:] == 0).all()
        assert (result.scores[image, 4:] == -math.inf).all()
        assert (result.sequences[image, 4:] == 9).all()
        assert (result.token_logprobs[image, 4:] == 0).all()


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "compat": "caffe"}])
def test_nothing_ends(options):
    model = TableModel(5, images=2)
    result = model.search(max_new_tokens=6, suppress_tokens=(EOS,), **options)
    assert (result.lengths == 6).all()
    assert (result.sequences != EOS).all()


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "compat": "caffe"}])
def test_a_sentence_with_no_word_left_stops_unfinished(options):
    model = TableModel(4, images=2)
    result = model.search(max_new_tokens=9, suppress_tokens=(EOS,), no_repeat_ngram_size=1, **options)
    for image in range(2):
        assert sorted(words_of(result, image)) == [1, 2, 3]
        assert result.scores[image, 0] == pytest.approx(sum(model.log_probs(image, words_of(result, image))))


def test_search_stops_when_nothing_can_win_any_more():
    # One word that ends with certainty: the other hypotheses need no second step.
    V, calls = 5, []
    table = torch.zeros(1, V + 1, V + 1, V)
    table[..., EOS] = 30.0
    model = TableModel(V, table=table)

    def step(tokens, state):
        calls.append(len(tokens))
        return model.step(tokens, state)

    logits, state = model.first()
    config = GenerationConfig(num_beams=2, max_new_tokens=50)
    search(logits, state, step, config, eos_id=EOS)
    assert len(calls) <= 3


@pytest.mark.parametrize("seed", range(4))
def test_greedy_search_matches_the_table(seed):
    model = TableModel(7, seed=seed)
    result = model.search(num_beams=1, max_new_tokens=8)
    words = words_of(result, 0)
    for t, word in enumerate(words):
        best = max(range(7), key=lambda w: model.log_probs(0, (*words[:t], w))[-1])
        assert word == best
    assert result.token_logprobs[0, 0, : len(words)].tolist() == pytest.approx(
        model.log_probs(0, words), rel=1e-5
    )


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [1, 2, 3]),  # 2 and 3 are equal: both stay
        ({"top_p": 0.45}, [1, 2]),
        ({"top_k": 1}, [1]),
        ({"top_p": 1e-6}, [1]),
        ({"suppress_tokens": (1,)}, [0, 2, 3]),
    ],
    ids=str,
)
def test_draws_walk_the_cumulative_distribution_in_word_order(options, kept):
    table = torch.tensor([0.1, 0.4, 0.25, 0.25]).log().expand(1, 5, 5, 4)
    model = TableModel(4, table=table)
    p = torch.tensor([0.1, 0.4, 0.25, 0.25], dtype=torch.float64)
    edges = (p[kept] / p[kept].sum()).cumsum(0)
    u = [0.0, 1 - 2**-53, *(edges[:-1] - 1e-6).tolist(), *(edges[:-1] + 1e-6).tolist()]
    u = torch.tensor(u, dtype=torch.float64)
    result = model.search(
        do_sample=True,
        num_return_sequences=len(u),
        max_new_tokens=1,
        uniforms=u.view(1, -1, 1),
        **options,
    )
    expected = [kept[int((edges <= x).sum().clamp(max=len(kept) - 1))] for x in u]
    assert sorted(result.sequences.flatten().tolist()) == sorted(expected)
    # Likeliest first, by the model's own probabilities.
    assert (result.scores.diff() <= 0).all()
    torch.testing.assert_close(
        result.scores[0].double(), p[result.sequences[0, :, 0]].log(), rtol=1e-5, atol=0
    )

"""int8 decoding: the words that a search chooses among are scored with the projection in float32."""

import pytest
import torch
from conftest import int8_activations, rounds_bfloat16
from test_ops_decoder import BOS, FAMILIES, RULES, SAMPLING, Model, assert_same, config, run

from lrcn_fast import ops
from lrcn_fast.runtime import Decoder, LayerWeights

# Against float64 with the same rounded activations. Log-probabilities, 6 seeds of each: measured 6e-4, 0.011
# where an activation is so near the middle of two steps that float32 takes the other one, 0.014 in a large
# vocabulary (the terms of the words that are no candidates). The projection rounded to int8 alone is off by
# 0.07 to 0.11.
ATOL = 0.02


def on_grid(w):
    """The nearest weights that int8 keeps as they are: one step per row."""
    step = w.abs().amax(1, keepdim=True) / 127
    return (w / step).round() * step


class GridModel(Model):
    """A model of which int8 rounds the projection alone, and its activations as int8 has them."""

    def __init__(self, **options):
        super().__init__(**options)
        for layer, E in enumerate([self.embedding.shape[1], *self.hidden[:-1]]):
            x, static, h = self.w_ih[layer][:, :E], self.w_ih[layer][:, E:], self.w_hh[layer]
            # Above layer 0, whose input term is a float32 table, x and h share their rows' steps. What
            # meets an image once is bfloat16.
            x, h = (
                on_grid(torch.cat([x, h], 1)).split([E, h.shape[1]], 1)
                if layer
                else (x.bfloat16(), on_grid(h))
            )
            self.w_ih[layer] = torch.cat([x, static.bfloat16()], 1).float()
            self.w_hh[layer] = h

    def taken(self, x):
        return int8_activations(x)

    def taken_once(self, features):
        return features.bfloat16().to(features) if rounds_bfloat16() else features


def compare(model, B, *, prefix=None, uniforms=None, feed_bos=True, **options):
    features = model.features(B)
    common = dict(prefix=prefix, uniforms=uniforms, feed_bos=feed_bos)
    actual = run(model, model.pack(torch.int8), features, B, **common, **options)
    expected = model.reference(B, features, config(**options), **common)
    assert_same(actual, expected, ATOL)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "wide-vocabulary"])
def test_every_family_where_every_word_is_a_candidate(family):
    model = GridModel(**FAMILIES[family])
    compare(model, 3, num_beams=15, num_return_sequences=4, max_new_tokens=8)
    if model.image_first:
        compare(model, 3, num_beams=15, max_new_tokens=8, feed_bos=False)


@pytest.mark.parametrize("rules", RULES)
def test_every_rule_where_every_word_is_a_candidate(rules):
    options = {"max_new_tokens": 9, **RULES[rules], "num_beams": 15}
    model = GridModel(hidden=(9, 8), F=4, static_layer=1)
    compare(model, 4, **options)
    compare(model, 4, prefix=torch.tensor([[2, 3], [4, 2], [7, 7], [9, 22]]), **options)


@pytest.mark.parametrize("K", [5, 40, 1024])
@pytest.mark.parametrize("compat", ["hf", "caffe"])
def test_more_beams_than_words(K, compat):
    model = GridModel(V=3, hidden=(4,), F=2, static_layer=0, seed=1)
    compare(model, 2, num_beams=K, num_return_sequences=min(K, 20), max_new_tokens=3, compat=compat)


def exact_logprobs(model, features, sequences, lengths):
    """Log-probability of given words in float64, 0 past the end. [B, n, L]."""
    out = torch.zeros(sequences.shape, dtype=torch.float64)
    for b, n in torch.cartesian_prod(*map(torch.arange, lengths.shape)).tolist():
        state = tuple(torch.zeros(1, H, dtype=torch.float64) for H in model.hidden for _ in range(2))
        word = BOS
        for t in range(int(lengths[b, n])):
            logits, state = model._layers(
                model.embedding[[word]].double(), state, features[b : b + 1].double()
            )
            word = int(sequences[b, n, t])
            out[b, n, t] = logits.log_softmax(1)[0, word]
    return out


SEARCHES = {
    "greedy": dict(num_beams=1),
    "greedy-rules": dict(num_beams=1, repetition_penalty=1.4, min_new_tokens=6),
    "beam": dict(num_beams=5, num_return_sequences=5),
    "no-unknown-word": dict(num_beams=5, suppress_tokens=range(2, 300)),
    **{f"sample-{name}": dict(do_sample=True, num_return_sequences=8, **v) for name, v in SAMPLING.items()},
}


@pytest.mark.parametrize("search", SEARCHES)
def test_log_probabilities_of_a_large_vocabulary(search):
    model = GridModel(V=600, hidden=(20, 40), F=5, static_layer=1)
    features, options = model.features(4), SEARCHES[search]
    uniforms = None
    if options.get("do_sample"):
        uniforms = torch.rand(4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sequences, lengths, _, logprobs = run(
        model, model.pack(torch.int8), features, 4, max_new_tokens=8, uniforms=uniforms, **options
    )
    if "repetition_penalty" in options and not options.get("do_sample"):
        assert (lengths >= 6).all()
    expected = exact_logprobs(model, features, sequences, lengths)
    torch.testing.assert_close(logprobs.double(), expected, rtol=0, atol=ATOL)


def test_candidates_are_ranked_by_their_exact_scores():
    B, K = 100, 10
    model = GridModel(V=600, hidden=(40,), F=5, static_layer=0, scale=0.2, bias=False)
    features, state = model.features(B), tuple(torch.zeros(B, 40, dtype=torch.float64) for _ in range(2))
    logits, (h, _) = model._layers(model.embedding[[BOS] * B].double(), state, features.double())
    rounded = ops.linear(h.float(), ops.linear_pack(model.projection, dtype=torch.int8), None, 600)
    expected = logits.topk(K).indices
    assert (rounded.topk(K).indices != expected).any(1).sum() >= 10  # else there is nothing to rank
    options = dict(num_beams=K, num_return_sequences=K, max_new_tokens=1)
    found = run(model, model.pack(torch.int8), features, B, **options)
    assert torch.equal(found[0][..., 0], expected)


def test_a_photo_gets_the_same_bits_in_any_batch_and_with_any_number_of_threads():
    model = Model(V=1500, hidden=(100, 120), F=6, static_layer=1, seed=6, scale=0.8)
    packed, features, before = model.pack(torch.int8), model.features(30), torch.get_num_threads()
    uniforms = torch.rand(30, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def both(rows):
        beam = run(model, packed, features[rows], len(rows), num_return_sequences=5, max_new_tokens=8)
        sampling = dict(do_sample=True, num_return_sequences=3, max_new_tokens=8)
        return (*beam, *run(model, packed, features[rows], len(rows), uniforms=uniforms[rows], **sampling))

    together = both(list(range(30)))
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for rows in (list(range(30)), [29], [3, 2, 1]):
                for whole, part in zip(together, both(rows), strict=True):
                    assert torch.equal(whole[rows], part)
    finally:
        torch.set_num_threads(before)


def test_the_runtime_gives_the_same_bits():
    model = Model(hidden=(9, 8), F=4, static_layer=1, V=60)
    features = model.features(3)
    layers = [
        LayerWeights(w_ih.numpy(), w_hh.numpy(), bias.numpy())
        for w_ih, w_hh, bias in zip(model.w_ih, model.w_hh, model.bias, strict=True)
    ]
    decoder = Decoder(
        model.embedding.numpy(),
        layers,
        model.projection.numpy(),
        model.projection_bias.numpy(),
        static_layer=1,
        bos_id=BOS,
        dtype="int8",
    )
    expected = run(model, model.pack(torch.int8), features, 3, num_return_sequences=3)
    found = decoder.generate(features.numpy(), num_return_sequences=3)
    assert torch.equal(torch.from_numpy(found.sequences), expected[0])
    assert torch.equal(torch.from_numpy(found.token_logprobs), expected[3])


def test_errors():
    model = Model(hidden=(5,), F=2, static_layer=0)
    features = model.features(2)
    with pytest.raises(ValueError, match="must leave a word to start with, but all 23 tokens are banned"):
        run(model, model.pack(torch.int8), features, 2, suppress_tokens=range(23))
    model.projection *= 3e38 / model.projection.abs().max()
    for options in (dict(), dict(num_beams=1)):
        with pytest.raises(ValueError, match="the model's scores must be finite"):
            run(model, model.pack(torch.int8), features, 2, **options)

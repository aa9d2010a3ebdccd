"""CaptionDecoder: every way an image can enter, against the same model put together from torch.nn."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrcn_fast import CaptionDecoder, DecodeResult, reference
from lrcn_fast import nn as fast_nn

V, E, H, FEATURES = 11, 6, 8, 5

# float32 logits against the same model in float64: |error| <= EPS_PER_STEP * steps * eps * (1 + |logit|).
# Worst of 40 seeds of MODELS over 12 steps: 0.36.
EPS_PER_STEP = 1


def lstm(inputs, hidden=H, **options):
    return nn.LSTM(inputs, hidden, **options)


def make(name, seed=0, dtype=torch.float32, **options):
    """A small decoder, weights at trained-network scale. Returns it and its feature size (None: no image)."""
    torch.manual_seed(seed)
    F_ = FEATURES
    layers, kwargs, size = {
        "1u": lambda: ([lstm(E + F_)], {"static_layer": 0}, F_),
        "2u": lambda: ([lstm(E + F_), lstm(H)], {"static_layer": 0}, F_),
        "2f": lambda: ([lstm(E), lstm(H + F_)], {"static_layer": 1}, F_),
        "2f-no-bias": lambda: (
            [lstm(E, bias=False), lstm(H + F_, bias=False)],
            {"static_layer": 1},
            F_,
        ),
        "image-first": lambda: ([lstm(E)], {"image_first": True}, E),
        "image-only": lambda: ([lstm(E)], {"image_first": True, "feed_bos": False}, E),
        "stacked-3": lambda: ([lstm(E, num_layers=3)], {}, None),
        "stacked-static": lambda: ([lstm(E + F_, num_layers=2)], {"static_layer": 0}, F_),
        "cells": lambda: ([nn.LSTMCell(E, H), nn.LSTMCell(H + F_, H)], {"static_layer": 1}, F_),
        "ours": lambda: ([fast_nn.LSTM(E, H), fast_nn.LSTMCell(H + F_, H)], {"static_layer": 1}, F_),
        "uneven": lambda: ([lstm(E, 7), lstm(7 + F_, 9), lstm(9, H)], {"static_layer": 1}, F_),
    }[name]()
    decoder = CaptionDecoder(nn.Embedding(V, E), layers, nn.Linear(H, V), **{**kwargs, **options})
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(std=0.5 if parameter.ndim == 2 else 0.2)
    return decoder.to(dtype).eval(), size


MODELS = [
    "1u", "2u", "2f", "2f-no-bias", "image-first", "image-only", "stacked-3", "stacked-static", "cells",
    "ours", "uneven",
]  # fmt: skip


def make_inputs(size, B=3, L=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(B * 100 + L)
    tokens = torch.randint(1, V, (B, L), generator=generator)
    features = (
        None if size is None else torch.randn(B, size, generator=generator, dtype=torch.float64).to(dtype)
    )
    return tokens, features


def expected_logits(decoder, tokens, features):
    """The definition, step by step with torch.lstm_cell, the image copied to every step."""
    B, L = tokens.shape
    inputs = []
    if decoder.image_first:
        inputs.append(features)
    if decoder.feed_bos:
        inputs.append(decoder.embedding(torch.full((B,), decoder.bos_id)))
    inputs += [decoder.embedding(tokens[:, t]) for t in range(L - 1)]
    cells = []
    for module in decoder.layers:
        names = [f"_l{k}" for k in range(module.num_layers)] if hasattr(module, "num_layers") else [""]
        cells += [[getattr(module, f"{p}{n}", None) for p in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                  for n in names]  # fmt: skip
    states = [(inputs[0].new_zeros(B, c[1].shape[1]),) * 2 for c in cells]
    logits = []
    for x in inputs:
        for layer, cell in enumerate(cells):
            if layer == decoder.static_layer:
                x = torch.cat([x, features], 1)
            states[layer] = torch.lstm_cell(x, states[layer], *cell)
            x = states[layer][0]
        logits.append(decoder.projection(x))
    return torch.stack(logits[-L:], 1)


@pytest.mark.parametrize("name", MODELS)
def test_logits_match_torch(name):
    decoder, size = make(name)
    tokens, features = make_inputs(size)
    actual = decoder(tokens, features)
    double, _ = make(name, dtype=torch.float64)
    double.load_state_dict(decoder.state_dict())
    expected = expected_logits(double, tokens, None if features is None else features.double())
    assert actual.shape == (3, 5, V)
    bound = EPS_PER_STEP * tokens.shape[1] * torch.finfo(torch.float32).eps
    torch.testing.assert_close(actual.double(), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_match_torch(name):
    decoder, size = make(name, dtype=torch.float64)
    tokens, features = make_inputs(size, dtype=torch.float64)
    wanted = list(decoder.parameters())
    if features is not None:
        wanted.append(features.requires_grad_())
    weights = torch.randn(3, 5, V, dtype=torch.float64)
    actual = torch.autograd.grad((decoder(tokens, features) * weights).sum(), wanted)
    expected = torch.autograd.grad((expected_logits(decoder, tokens, features) * weights).sum(), wanted)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("B", "L"), [(0, 4), (2, 0), (1, 1)])
def test_edge_sizes(B, L):
    decoder, size = make("2f")
    tokens, features = make_inputs(size, B, L)
    assert decoder(tokens, features).shape == (B, L, V)
    lengths = torch.full((B,), L)
    assert decoder.log_likelihood(tokens, features, lengths).shape == (B,)
    assert decoder.generate(features, max_new_tokens=4).sequences.shape == (B, 1, 4)


@pytest.mark.parametrize("name", MODELS)
def test_log_likelihood_sums_up_to_the_length(name):
    decoder, size = make(name, dtype=torch.float64)
    tokens, features = make_inputs(size, dtype=torch.float64)
    lengths = torch.tensor([5, 0, 3])
    actual = decoder.log_likelihood(tokens, features, lengths)
    logprobs = expected_logits(decoder, tokens, features).log_softmax(-1)
    expected = [sum(logprobs[b, t, tokens[b, t]].item() for t in range(lengths[b])) for b in range(3)]
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    padded = tokens.clone()
    padded[1:, 3:] = -100  # not read
    torch.testing.assert_close(decoder.log_likelihood(padded, features, lengths), actual, rtol=0, atol=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_beams", [1, 4])
def test_scores_are_the_models_log_likelihood(name, num_beams):
    decoder, size = make(name)
    _, features = make_inputs(size)
    options = {"num_beams": num_beams, "num_return_sequences": num_beams, "max_new_tokens": 6}
    if features is None:
        options["batch_size"] = 3
    result = decoder.generate(features, **options)
    for rank in range(num_beams):
        expected = decoder.log_likelihood(result.sequences[:, rank], features, result.lengths[:, rank])
        torch.testing.assert_close(result.scores[:, rank], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.token_logprobs.sum(-1), result.scores, rtol=1e-6, atol=1e-6)
    assert (result.scores.diff(dim=1) <= 0).all()


def test_greedy_takes_the_likeliest_word_each_time():
    decoder, size = make("2f", eos_id=3)
    _, features = make_inputs(size)
    result = decoder.generate(features, num_beams=1, max_new_tokens=7)
    words = result.sequences[:, 0]
    likeliest = decoder(words, features).argmax(-1)
    for image in range(3):
        length = result.lengths[image, 0]
        assert words[image, :length].tolist() == likeliest[image, :length].tolist()


def test_dropout_between_the_layers_of_one_module():
    decoder = CaptionDecoder(nn.Embedding(V, E), nn.LSTM(E, H, num_layers=2, dropout=0.5), nn.Linear(H, V))
    tokens, _ = make_inputs(None)
    decoder.eval()
    torch.testing.assert_close(decoder(tokens), decoder(tokens), rtol=0, atol=0)
    decoder.train()
    assert not torch.equal(decoder(tokens), decoder(tokens))
    torch.manual_seed(1)
    first = decoder(tokens)
    torch.manual_seed(1)
    torch.testing.assert_close(decoder(tokens), first, rtol=0, atol=0)


def test_parameters_are_shared():
    embedding, cells, projection = nn.Embedding(V, E), [lstm(E + FEATURES)], nn.Linear(H, V)
    decoder = CaptionDecoder(embedding, cells, projection, static_layer=0)
    assert decoder.layers[0].weight_ih_l0 is cells[0].weight_ih_l0
    assert decoder.embedding.weight is embedding.weight
    assert decoder.feature_dim == FEATURES
    assert decoder.vocab_size == V


def test_samples_repeat_with_their_generator_and_come_likeliest_first():
    decoder, size = make("2f")
    _, features = make_inputs(size)

    def draw(seed):
        return decoder.generate(
            features,
            do_sample=True,
            num_return_sequences=20,
            max_new_tokens=5,
            temperature=1.5,
            generator=torch.Generator().manual_seed(seed),
        )

    result, again, other = draw(0), draw(0), draw(1)
    assert torch.equal(result.sequences, again.sequences)
    assert not torch.equal(result.sequences, other.sequences)
    assert (result.scores.diff(dim=1) <= 0).all()
    for rank in (0, 7, 19):  # scored at temperature 1
        expected = decoder.log_likelihood(result.sequences[:, rank], features, result.lengths[:, rank])
        torch.testing.assert_close(result.scores[:, rank], expected, rtol=1e-5, atol=1e-5)


def test_sample_frequencies_follow_the_model():
    decoder, size = make("2f")
    _, features = make_inputs(size, B=1)
    n = 20_000
    for options, logits_of in (
        ({"temperature": 2.0}, lambda x: x / 2),
        ({"temperature": 2.0, "compat": "caffe"}, lambda x: x * 2),
        ({"top_k": 3}, lambda x: x.masked_fill(x < x.topk(3).values[..., -1:], -torch.inf)),
    ):
        result = decoder.generate(
            features, do_sample=True, num_return_sequences=n, max_new_tokens=1, **options
        )
        counts = result.sequences.flatten().bincount(minlength=V) / n
        probabilities = logits_of(decoder(torch.zeros(1, 1, dtype=torch.int64), features)).softmax(-1)[0, 0]
        # 5 standard deviations of a binomial share
        assert ((counts - probabilities).abs() <= 5 * (probabilities / n).sqrt() + 1e-9).all()


def test_prefix_is_returned_and_counted_but_not_scored():
    decoder, size = make("2f")
    _, features = make_inputs(size)
    prefix = torch.tensor([[3, 4], [5, 6], [7, 8]])
    result = decoder.generate(features, prefix_ids=prefix, max_new_tokens=4, length_penalty=1.0, num_beams=3)
    assert result.sequences.shape == (3, 1, 6)
    assert torch.equal(result.sequences[:, 0, :2], prefix)
    assert (result.token_logprobs[:, 0, :2] == 0).all()
    assert (result.lengths > 2).all()
    torch.testing.assert_close(result.scores, result.token_logprobs.sum(-1) / result.lengths)
    sums = decoder.log_likelihood(result.sequences[:, 0], features, result.lengths[:, 0])
    sums -= decoder.log_likelihood(prefix, features, torch.full((3,), 2))
    torch.testing.assert_close(result.token_logprobs.sum(-1)[:, 0], sums, rtol=1e-5, atol=1e-5)
    same = decoder.generate(
        features[:1], prefix_ids=[3, 4], max_new_tokens=4, length_penalty=1.0, num_beams=3
    )
    assert torch.equal(same.sequences, result.sequences[:1])


@pytest.mark.parametrize(
    ("layers", "options", "error", "message"),
    [
        ([nn.GRU(E, H)], {}, ValueError, r"layers\[0\] must be an LSTM, RNN or cell module, got GRU"),
        ([nn.Linear(E, H)], {}, ValueError, r"layers\[0\] must be an LSTM, RNN or cell module, got Linear"),
        ([], {}, ValueError, "layers must hold at least one recurrent layer, got none"),
        ([lstm(E, bidirectional=True)], {}, NotImplementedError, "must have bidirectional=False"),
        ([lstm(E, proj_size=3)], {}, NotImplementedError, "must have proj_size=0, got proj_size=3"),
        ([lstm(E + 1)], {}, ValueError, "layer 0 must take the 6 outputs of the embedding .* got 7"),
        ([lstm(E), lstm(H + 1)], {}, ValueError, "layer 1 must take the 8 outputs of layer 0 .* got 9"),
        ([lstm(E)], {"static_layer": 0}, ValueError, "layer 0 must take more than 6 inputs, .* got 6"),
        ([lstm(E)], {"static_layer": 1}, ValueError, r"static_layer must be None or in 0\.\.0"),
        ([lstm(E, 9)], {}, ValueError, "projection must take the H = 9 outputs .* 8"),
        ([lstm(E)], {"feed_bos": False}, ValueError, "feed_bos must be True unless image_first=True"),
        ([lstm(E)], {"eos_id": 11}, ValueError, r"eos_id must be in 0\.\.10, got 11"),
        ([lstm(E)], {"pad_id": 2**63}, ValueError, "pad_id must be an integer of 64 bits"),
        ([lstm(E)], {"image_first": 1}, ValueError, "image_first must be True or False, got 1"),
        ([lstm(E)], {"bos_id": -1}, ValueError, r"bos_id must be in 0\.\.10, got -1"),
        (
            [lstm(E + 2)], {"static_layer": 0, "image_first": True}, ValueError,
            "static_layer must be None with image_first=True, got 0",
        ),
    ],
)  # fmt: skip
def test_constructor_errors(layers, options, error, message):
    with pytest.raises(error, match=message):
        CaptionDecoder(nn.Embedding(V, E), layers, nn.Linear(H, V), **options)


def test_projection_must_fit_the_embedding():
    with pytest.raises(ValueError, match="word of the embedding = 11, got out_features = 12"):
        CaptionDecoder(nn.Embedding(V, E), [lstm(E)], nn.Linear(H, V + 1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_beams": 0}, ValueError, r"num_beams must be an integer in 1\.\.1024, got 0"),
        ({"num_beams": 1025}, ValueError, r"num_beams must be an integer in 1\.\.1024, got 1025"),
        ({"num_beams": 2.0}, ValueError, r"num_beams must be an integer in 1\.\.1024, got 2\.0"),
        ({"num_return_sequences": 6}, ValueError, "sequences must be at most num_beams = 5, got 6"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be an integer of at least 1, got 0"),
        ({"min_new_tokens": 21}, ValueError, "min_new_tokens must be at most max_new_tokens = 20, got 21"),
        ({"early_stopping": "always"}, ValueError, 'must be True, False or "never", got .always.'),
        ({"length_penalty": float("nan")}, ValueError, "length_penalty must be a finite number, got nan"),
        ({"temperature": 0.0}, ValueError, r"temperature must be a finite number above 0, got 0\.0"),
        ({"top_p": 1.5}, ValueError, r"top_p must be a finite number above 0 and at most 1, got 1\.5"),
        ({"top_k": -1}, ValueError, "top_k must be an integer of at least 0, got -1"),
        ({"repetition_penalty": 0}, ValueError, "repetition_penalty must be a finite number above 0"),
        ({"suppress_tokens": [V]}, ValueError, r"suppress_tokens must be token ids in 0\.\.10, got 11"),
        ({"suppress_tokens": [-1]}, ValueError, "suppress_tokens must be token ids of at least 0, got -1"),
        ({"suppress_tokens": 3}, ValueError, "suppress_tokens must be a sequence of token ids, got 3"),
        ({"suppress_tokens": range(V)}, ValueError, "must leave a word to start with, got all 11"),
        (
            {"suppress_tokens": range(1, V), "min_new_tokens": 1}, ValueError,
            r"got all 11 banned \(min_new_tokens bans the end of sentence\)",
        ),
        ({"prefix_ids": [[1], [2]]}, ValueError, r"or \[B, P\] with B = 3, got \[2, 1\]"),
        ({"prefix_ids": [11]}, ValueError, r"prefix_ids must be token ids in 0\.\.10, got 11"),
        ({"prefix_ids": [1, 0]}, ValueError, "prefix_ids must not hold the end of sentence, got eos_id = 0"),
        ({"prefix_ids": [0.5]}, ValueError, "prefix_ids must have an integer dtype, got float64"),
        ({"prefix_ids": [[1, 2], [3]]}, ValueError, r"or \[B, P\], got \[\[1, 2\], \[3\]\]$"),
        ({"num_beam_groups": 5}, NotImplementedError, "num_beam_groups must be 1 .* got 5"),
        ({"num_beam_groups": 3}, ValueError, "num_beam_groups must divide num_beams = 5, got 3"),
        ({"num_beam_groups": 6}, ValueError, "num_beam_groups must divide num_beams = 5, got 6"),
        ({"num_beam_groups": 2, "num_beams": 1}, ValueError, "must divide num_beams = 1, got 2"),
        ({"num_beam_groups": 5, "do_sample": True}, ValueError, "must be 1 with do_sample=True, got 5"),
        ({"num_beam_groups": 5, "diversity_penalty": -0.5}, ValueError, r"must be at least 0, got -0\.5"),
        ({"diversity_penalty": 0.5}, ValueError, r"must be 0 with num_beam_groups = 1, got 0\.5"),
        ({"top_k": 10**20}, ValueError, rf"top_k must be an integer in 0\.\.2147483647, got {10**20}"),
        ({"no_repeat_ngram_size": 10**20}, ValueError, r"size must be an integer in 0\.\.2147483647"),
        ({"length_penalty": "1"}, ValueError, "length_penalty must be a finite number, got '1'"),
        ({"length_penalty": 10**400}, ValueError, "length_penalty must be a finite number, got 1000"),
        ({"suppress_tokens": [True]}, ValueError, r"must be a sequence of token ids, got \[True\]"),
        ({"compat": None}, ValueError, "compat must be one of hf, caffe, .* got None"),
        ({"compat": "fairseq"}, NotImplementedError, "presets that work so far, hf, caffe, got 'fairseq'"),
        ({"compat": "tf"}, ValueError, "compat must be one of hf, caffe, .* got 'tf'"),
        ({"compat": "caffe", "length_penalty": 1}, ValueError, 'penalty must be 0 with compat="caffe"'),
        ({"compat": "caffe", "early_stopping": True}, ValueError, 'must be False with compat="caffe"'),
        ({"batch_size": 2}, ValueError, "batch_size must be None or B = 3, got 2"),
        ({"generator": 3}, ValueError, "generator must be a torch.Generator, got 3"),
    ],
)  # fmt: skip
def test_generate_errors(options, error, message):
    decoder, size = make("2f")
    _, features = make_inputs(size)
    with pytest.raises(error, match=f"generate: .*{message}" if not message.startswith("got") else message):
        decoder.generate(features, **options)


def test_feature_errors():
    decoder, size = make("2f")
    tokens, features = make_inputs(size)
    with pytest.raises(ValueError, match=r"generate: features must be \[B, F\] = \[B, 5\], got None"):
        decoder.generate()
    with pytest.raises(ValueError, match=r"generate: features must be \[B, F\] = \[B, 5\], got \[3, 4\]"):
        decoder.generate(features[:, 1:])
    with pytest.raises(ValueError, match=r"have the dtype of the model, torch\.float32, got .*64"):
        decoder.generate(features.double())
    for value in (float("nan"), float("inf")):
        bad = features.clone()
        bad[1, 2] = value
        with pytest.raises(ValueError, match="features must be finite, got NaN or infinity in image 1"):
            decoder.generate(bad)
    with pytest.raises(ValueError, match="CaptionDecoder: features must have B = 3 rows, got 2"):
        decoder(tokens, features[:2])
    with pytest.raises(ValueError, match=r"CaptionDecoder: tokens must be integers \[B, L\]"):
        decoder(tokens.float(), features)
    with pytest.raises(ValueError, match=r"log_likelihood: lengths must be in 0\.\.L = 5, got 1\.\.6"):
        decoder.log_likelihood(tokens, features, torch.tensor([1, 6, 2]))
    with pytest.raises(ValueError, match=r"log_likelihood: lengths must be integers \[B\] = \[3\]"):
        decoder.log_likelihood(tokens, features, torch.tensor([1, 2]))
    language_model, _ = make("stacked-3")
    with pytest.raises(ValueError, match=r"features must be None .* got a tensor of shape \[3, 5\]"):
        language_model.generate(features)
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 0, got -1"):
        language_model.generate(batch_size=-1)


@pytest.mark.parametrize("training", [False, True])
def test_compiles_in_one_graph(training):
    decoder, size = make("2f")
    fast_nn.replace_lstm(decoder)  # Dynamo refuses torch.nn.LSTM
    tokens, features = make_inputs(size)
    decoder.train(training)
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    loss = F.cross_entropy(compiled(tokens, features).flatten(0, 1), tokens.flatten())
    expected = F.cross_entropy(decoder(tokens, features).flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in decoder.parameters())


# What leaves a trace, and what only the rules catch.
WRITES = {
    "in place": lambda d: torch.no_grad()(d.projection.bias.neg_)(),
    "replaced": lambda d: setattr(d.projection, "bias", nn.Parameter(-d.projection.bias.detach())),
    "load_state_dict": lambda d: d.load_state_dict({k: -v for k, v in d.state_dict().items()}),
    "load into a part": lambda d: d.embedding.load_state_dict({"weight": torch.ones(V, E)}),
    "data, then eval": lambda d: (d.embedding.weight.data.neg_(), d.eval()),
    "data, then a training step": lambda d: (
        d.train(), d(*make_inputs(FEATURES)), d.embedding.weight.data.neg_(), d.eval()
    ),
    "data, then prepare": lambda d: (d.embedding.weight.data.neg_(), d.prepare()),
}  # fmt: skip


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("prepared", [False, True])
def test_a_pack_is_never_stale(write, prepared):
    decoder, size = make("2f")
    _, features = make_inputs(size)
    if prepared:
        decoder.prepare()
    before = decoder.generate(features)
    write(decoder)
    after = decoder.generate(features)
    assert not torch.equal(before.scores, after.scores)
    torch.testing.assert_close(after.scores, reference.generate(decoder, features).scores)


def test_packs_in_training_mode():
    decoder, size = make("2f")
    tokens, features = make_inputs(size)
    decoder.train()
    decoder.generate(features)
    decoder.embedding.weight.data.neg_()  # leaves no trace: nothing may have been kept
    expected = reference.generate(decoder, features).scores
    torch.testing.assert_close(decoder.generate(features).scores, expected)
    decoder.prepare()
    pack = decoder._packed()
    assert decoder._packed() is pack  # asked for, so kept
    decoder(tokens, features)
    decoder.embedding.weight.data.neg_()
    expected = reference.generate(decoder, features).scores
    torch.testing.assert_close(decoder.generate(features).scores, expected)


def test_a_pack_is_kept_and_not_copied():
    decoder, size = make("2f")
    _, features = make_inputs(size)
    assert decoder.prepare() is decoder
    pack = decoder._packed()
    result = decoder.generate(features)
    assert decoder._packed() is pack
    for other in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):
        assert other._pack is None
        assert torch.equal(other.generate(features).scores, result.scores)
    assert decoder._packed() is pack


@pytest.mark.parametrize(("dtype", "per_word"), [("bfloat16", 0.01), ("int8", 0.04)])
def test_rounded_weights(dtype, per_word):
    decoder, size = make("2f")
    tokens, features = make_inputs(size)
    logits = decoder(tokens, features)
    exact = decoder.generate(features)
    rounded = decoder.prepare(dtype).generate(features)
    # log p of a word against the exact model; worst of 160 models of this size: 0.0032 and 0.0133
    expected = decoder.log_likelihood(rounded.sequences[:, 0], features, rounded.lengths[:, 0])
    error = (rounded.scores[:, 0] - expected).abs() / rounded.lengths[:, 0]
    assert (error <= per_word).all()
    assert (error > 0).any()
    assert torch.equal(decoder(tokens, features), logits)  # not what training sees
    decoder.train()  # drops the pack, not the choice
    assert torch.equal(decoder.generate(features).scores, rounded.scores)
    assert torch.equal(decoder.eval().prepare().generate(features).scores, exact.scores)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_parameter_dtypes(dtype):
    decoder, size = make("2f")
    _, features = make_inputs(size)
    decoder.to(dtype)
    result = decoder.generate(features.to(dtype))
    same = copy.deepcopy(decoder).float().generate(features.to(dtype).float())
    assert torch.equal(result.sequences, same.sequences)
    torch.testing.assert_close(result.scores, same.scores)
    assert result.scores.dtype == torch.float32


def test_prepare_errors():
    decoder, size = make("2f")
    with pytest.raises(ValueError, match="prepare: dtype must be float32, bfloat16 or int8, got 'fp8'"):
        decoder.prepare("fp8")
    decoder.double()
    assert decoder.prepare() is decoder
    with pytest.raises(
        NotImplementedError, match=r"must be float32 for a torch\.float64 model on cpu, .* got int8"
    ):
        decoder.prepare("int8")
    decoder.float().prepare("int8")
    _, features = make_inputs(size)
    decoder.double()
    with pytest.raises(
        NotImplementedError, match=r"must be float32 for a torch\.float64 model on cpu, .* got int8"
    ):
        decoder.generate(features.double())


def test_log_likelihood_of_a_half_precision_model_is_float32():
    decoder, size = make("2f")
    tokens, features = make_inputs(size)
    actual = decoder.bfloat16().log_likelihood(tokens, features.bfloat16(), torch.tensor([5, 0, 3]))
    assert actual.dtype == torch.float32


@pytest.mark.needs_cuda
@pytest.mark.parametrize("options", [{}, {"num_beams": 1}, {"compat": "caffe"}, {"do_sample": True}], ids=str)
def test_generate_on_cuda(options):
    decoder, size = make("2f")
    _, features = make_inputs(size)
    options = {**options, "prefix_ids": [3], "no_repeat_ngram_size": 2, "suppress_tokens": (5,)}
    expected = decoder.generate(features, generator=torch.Generator().manual_seed(0), **options)
    actual = decoder.cuda().generate(features.cuda(), generator=torch.Generator().manual_seed(0), **options)
    assert actual.sequences.is_cuda
    assert torch.equal(actual.sequences.cpu(), expected.sequences)
    torch.testing.assert_close(actual.scores.cpu(), expected.scores, rtol=1e-4, atol=1e-4)
    with pytest.raises(NotImplementedError, match="must be float32 or bfloat16 on CUDA, got int8"):
        decoder.prepare("int8")


def test_result_helpers():
    result = DecodeResult(
        torch.tensor([[[3, 4, 0], [5, 0, 0]], [[6, 7, 8], [0, 0, 0]]]),
        torch.tensor([[3, 2], [3, 0]]),
        torch.tensor([[-1.0, -2.0], [-0.5, -torch.inf]]),
        torch.zeros(2, 2, 3),
    )
    assert len(result) == 2
    assert result.tokens(0, 1) == [5, 0]
    words = "end a b the man rides one small horse".split()
    texts = result.texts(lambda ids: " ".join(words[i] for i in ids))
    assert texts == [["the man end", "rides end"], ["one small horse"]]
    assert repr(result).splitlines() == [
        "DecodeResult(2 images x 2 captions, L=3, cpu)",
        "  [0, 0]  -1.0000  3 4 0",
        "  [0, 1]  -2.0000  5 0",
        "  [1, 0]  -0.5000  6 7 8",
        "  [1, 1]     -inf  ",
    ]
    both = DecodeResult.cat([result, result.to("cpu")])
    assert both.sequences.shape == (4, 2, 3)
    with pytest.raises(ValueError, match=r"DecodeResult: lengths must have shape \[2, 2\], got \[2\]"):
        DecodeResult(result.sequences, result.lengths[0], result.scores, result.token_logprobs)
    with pytest.raises(ValueError, match="results must hold at least one result, got none"):
        DecodeResult.cat([])

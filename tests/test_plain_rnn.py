"""Plain recurrent layers, the paper's baseline: decoder, captioner and recipes against numpy in float64."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from synthetic_photos import photo, tiny_config, write_data_set
from torch import nn

from lrcn_fast import CaptionDecoder, reference
from lrcn_fast.export import export_captioner
from lrcn_fast.models import Captioner
from lrcn_fast.models.captioner import pad_captions
from lrcn_fast.training import load_config, parse_config, train

V, E, H, F = 7, 5, 6, 4

# float32 against float64: |error| <= ERROR * steps * eps * (1 + |value|). Worst of 40 seeds: 0.5.
ERROR = 1.5


def make(name, seed=0, dtype=torch.float64):
    """A small decoder with weights at trained-network scale. Returns it and its feature size."""
    torch.manual_seed(seed)
    layers, options, size = {
        "1u": lambda: ([nn.RNN(E + F, H)], {"static_layer": 0}, F),
        "2u": lambda: ([nn.RNN(E + F, H), nn.RNN(H, H)], {"static_layer": 0}, F),
        "2f": lambda: ([nn.RNN(E, H), nn.RNN(H + F, H)], {"static_layer": 1}, F),
        "stacked": lambda: ([nn.RNN(E + F, H, num_layers=2)], {"static_layer": 0}, F),
        "cells": lambda: ([nn.RNNCell(E, 8), nn.RNNCell(8 + F, H)], {"static_layer": 1}, F),
        "no-bias": lambda: ([nn.RNN(E, H, bias=False)], {"image_first": True}, E),
        "language": lambda: ([nn.RNN(E, H)], {}, None),
    }[name]()
    decoder = CaptionDecoder(nn.Embedding(V, E), layers, nn.Linear(H, V), **options)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(std=0.7)
    return decoder.to(dtype).eval(), size


MODELS = ["1u", "2u", "2f", "stacked", "cells", "no-bias", "language"]


def images(size, B=3):
    generator = torch.Generator().manual_seed(B)
    return None if size is None else torch.randn(B, size, generator=generator, dtype=torch.float64)


def numpy_logits(decoder, words, image):
    """The definition, for one caption: logits before each word and after the last. [L + 1, V]."""
    value = {k: v.detach().double().numpy() for k, v in decoder.state_dict().items()}
    layers = [k.split("weight_hh") for k in value if "weight_hh" in k]  # prefix and suffix, bottom up
    table, out = value["embedding.weight"], value["projection.weight"]
    inputs = [table[w] for w in [decoder.bos_id, *words]]
    if decoder.image_first:
        inputs.insert(0, image)
    states, logits = {}, []
    for x in inputs:
        for number, (module, suffix) in enumerate(layers):
            w_ih, w_hh = (value[f"{module}{p}{suffix}"] for p in ("weight_ih", "weight_hh"))
            if number == decoder.static_layer:
                x = np.concatenate([x, image])
            a = w_ih @ x + w_hh @ states.get(number, np.zeros(len(w_hh)))
            for p in ("bias_ih", "bias_hh"):
                a = a + value.get(f"{module}{p}{suffix}", 0)
            x = states[number] = np.tanh(a)
        logits.append(out @ x + value["projection.bias"])
    return np.stack(logits[int(decoder.image_first) :])


def numpy_logprobs(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def caption_logprob(decoder, words, image):
    """Log-probability of all of ``words``."""
    logprobs = numpy_logprobs(numpy_logits(decoder, words[:-1], image))
    return sum(logprobs[t, w] for t, w in enumerate(words))


# ---- the recurrence and the decoder -----------------------------------------------------------


@pytest.mark.parametrize(("T", "B"), [(5, 3), (1, 1), (0, 2), (4, 0)])
def test_recurrence_is_that_of_torch(T, B):
    torch.manual_seed(T)
    peer = nn.RNN(E, H, dtype=torch.float64)
    x, h0 = torch.randn(T, B, E, dtype=torch.float64), torch.randn(B, H, dtype=torch.float64)
    xg = nn.functional.linear(x, peer.weight_ih_l0, peer.bias_ih_l0 + peer.bias_hh_l0)
    actual = reference.rnn(xg, peer.weight_hh_l0, h0)
    assert actual.shape == (T, B, H)
    if T and B:  # torch.nn.RNN refuses nothing to do
        torch.testing.assert_close(actual, peer(x, h0[None])[0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MODELS)
def test_logits_match_numpy(name, dtype):
    decoder, size = make(name, dtype=dtype)
    tokens, features = torch.tensor([[1, 2, 3, 0], [4, 4, 1, 5], [6, 0, 0, 0]]), images(size)
    with torch.no_grad():
        actual = decoder(tokens, None if features is None else features.to(dtype)).double()
    rows = [None] * 3 if features is None else features.numpy()
    expected = np.stack([
        numpy_logits(decoder, words[:-1], row) for words, row in zip(tokens.tolist(), rows, strict=True)
    ])  # fmt: skip
    bound = ERROR * 5 * torch.finfo(dtype).eps
    np.testing.assert_allclose(actual.numpy(), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("name", ["2f", "cells", "no-bias"])
def test_gradients_match_numpy_differences(name):
    decoder, size = make(name)
    features, words = images(size, 1), [3, 1, 0]
    loss = -decoder.log_likelihood(torch.tensor([words]), features, torch.tensor([3])).sum()
    for parameter, gradient in zip(
        decoder.parameters(), torch.autograd.grad(loss, list(decoder.parameters())), strict=True
    ):
        flat, at = parameter.data.view(-1), int(gradient.abs().argmax())
        before, values = flat[at].item(), []
        for step in (1e-5, -1e-5):
            flat[at] = before + step
            values.append(-caption_logprob(decoder, words, features[0].numpy()))
        flat[at] = before
        # Central differences: step^2 and eps / step, 1e-10 and 1e-11 of values near 1.
        assert gradient.view(-1)[at].item() == pytest.approx(
            (values[0] - values[1]) / 2e-5, rel=1e-7, abs=1e-8
        )


@pytest.mark.parametrize("name", ["2f", "stacked", "no-bias", "language"])
def test_beams_find_the_best_caption_there_is(name):
    decoder, size = make(name)
    features = images(size, 2)
    rows = [None] if features is None else features.numpy()
    # All captions of up to 3 words: K = V^2 loses none of them.
    found = decoder.generate(features, num_beams=V * V, num_return_sequences=3, max_new_tokens=3)
    for i, row in enumerate(rows):
        every = [w for n in (1, 2, 3) for w in itertools.product(range(V), repeat=n)
                 if 0 not in w[:-1] and (w[-1] == 0 or n == 3)]  # fmt: skip
        scores = {w: caption_logprob(decoder, w, row) for w in every}
        best = sorted(scores, key=scores.__getitem__, reverse=True)[:3]
        lengths = found.lengths[i].tolist()
        assert [tuple(s[:n]) for s, n in zip(found.sequences[i].tolist(), lengths, strict=True)] == best
        np.testing.assert_allclose(found.scores[i].numpy(), [scores[w] for w in best], rtol=1e-6)


def test_greedy_and_sampling():
    decoder, size = make("2f")
    features = images(size, 2)
    found = decoder.generate(features, num_beams=1, max_new_tokens=6)
    for i, row in enumerate(features.numpy()):
        words = []
        while len(words) < 6 and words[-1:] != [0]:
            words.append(int(numpy_logits(decoder, words, row)[-1].argmax()))
        assert found.sequences[i, 0, : len(words)].tolist() == words
        assert int(found.lengths[i, 0]) == len(words)
    drawn = decoder.generate(
        features[:1], do_sample=True, num_return_sequences=4000, max_new_tokens=1,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    p = np.exp(numpy_logprobs(numpy_logits(decoder, [], features[0].numpy()))[-1])
    shares = np.bincount(drawn.sequences.flatten().numpy(), minlength=V) / 4000
    # 5 standard deviations of a binomial share.
    assert (np.abs(shares - p) <= 5 * np.sqrt(p * (1 - p) / 4000)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MODELS)
def test_every_pair_scores_as_numpy_says(name, dtype):
    decoder, size = make(name, dtype=dtype)
    captions, features = [[1, 2, 0], [1, 2], [1, 3, 3, 6, 0], [0], []], images(size)
    actual = decoder.pairwise_log_likelihood(
        captions, None if features is None else features.to(dtype), batch_size=3
    )
    rows = [None] if features is None else features.numpy()
    expected = [[caption_logprob(decoder, c, row) if c else 0.0 for c in captions] for row in rows]
    bound = ERROR * 6 * torch.finfo(dtype).eps
    np.testing.assert_allclose(actual.double().numpy(), expected, rtol=bound, atol=bound)


def test_dropout_between_stacked_layers_acts_in_training_only():
    torch.manual_seed(0)
    layers = nn.RNN(E, H, num_layers=2, dropout=0.5)
    decoder = CaptionDecoder(nn.Embedding(V, E), layers, nn.Linear(H, V))
    tokens = torch.tensor([[1, 2, 3]])
    assert not torch.equal(decoder(tokens), decoder(tokens))
    decoder.eval()
    assert torch.equal(decoder(tokens), decoder(tokens))


def test_cells_compile_in_one_graph():
    decoder, size = make("cells", dtype=torch.float32)
    tokens, features = torch.tensor([[1, 2, 0]] * 3), images(size).float()
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens, features), decoder(tokens, features))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    decoder, size = make("2f", dtype=torch.float32)
    tokens, features = torch.tensor([[1, 2, 0]] * 3), images(size).float()
    expected = decoder(tokens, features)
    with torch.autocast("cpu", dtype=dtype):
        mixed = decoder(tokens, features)
    decoder, features = decoder.to(dtype), features.to(dtype)
    for actual in (mixed, decoder(tokens, features)):
        assert actual.dtype == dtype
        # Logits near 2 after 3 steps; worst of 20 seeds: 4 eps.
        torch.testing.assert_close(actual.float(), expected, rtol=0, atol=10 * torch.finfo(dtype).eps)
    assert decoder.generate(features, num_beams=2, max_new_tokens=4).scores.isfinite().all()


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ([nn.GRU(E, H)], ValueError, r"layers\[0\] must be an LSTM, RNN or cell module, got GRU"),
        (
            [nn.RNN(E, H, nonlinearity="relu")],
            NotImplementedError,
            "must have nonlinearity='tanh', got nonlinearity='relu'",
        ),
        ([nn.RNN(E, H, bidirectional=True)], NotImplementedError, "must have bidirectional=False"),
        ([nn.RNN(E, H), nn.LSTM(H, H)], NotImplementedError, "layers must be all LSTM or all plain .* both"),
        ([nn.RNN(E, H), nn.RNN(H + 1, H)], ValueError, "layer 1 must take the 6 outputs of layer 0 .* got 7"),
    ],
    ids=["gru", "relu", "bidirectional", "both", "sizes"],
)
def test_other_layers_are_refused(layers, error, message):
    with pytest.raises(error, match=f"CaptionDecoder: .*{message}"):
        CaptionDecoder(nn.Embedding(V, E), layers, nn.Linear(H, V))


# ---- the captioner ----------------------------------------------------------------------------


def make_captioner(variant="2f", **options):
    torch.manual_seed(0)
    words = ["a", "red", "blue", "square", "stripe"]
    options = {"embed_dim": E, "hidden_size": H, "init_scale": 0.7, "encoder_weights": None, **options}
    return Captioner("timm/test_resnet", variant, words, unit="rnn", **options).eval()


@pytest.mark.parametrize("variant", ["1u", "2u", "2f"])
def test_captioner_forward_and_loss_match_numpy(variant):
    model = make_captioner(variant, feature_projection=F)
    captions = [[2, 3, 4, 0], [5, 0], [1, 1, 0]]
    tokens, lengths = pad_captions(captions, 6)
    features = torch.randn(3, model.encoder.feature_dim, generator=torch.Generator().manual_seed(0))
    for given in (features, None):
        static = torch.zeros(3, F) if given is None else model.condition(given)
        rows = static.detach().double().numpy()
        with torch.no_grad():
            actual, loss = model(given, tokens, lengths), model.loss(given, tokens, lengths)
        expected = [numpy_logits(model.decoder, c[:-1], row) for c, row in zip(captions, rows, strict=True)]
        bound = ERROR * 4 * torch.finfo(torch.float32).eps
        np.testing.assert_allclose(actual.numpy(), np.concatenate(expected), rtol=bound, atol=bound)
        total = sum(caption_logprob(model.decoder, c, row) for c, row in zip(captions, rows, strict=True))
        assert loss.item() == pytest.approx(-total / 9, rel=1e-6)


def test_parameters_are_a_quarter_of_an_lstms_layers():
    lstm = Captioner("timm/test_resnet", "2f", ["a"], encoder_weights=None, embed_dim=E, hidden_size=H)
    rnn = make_captioner()
    count = [sum(p.numel() for p in m.decoder.layers.parameters()) for m in (rnn, lstm)]
    assert 4 * count[0] == count[1]
    assert all((p == 0).all() for n, p in rnn.decoder.named_parameters() if "bias" in n)
    assert max(p.abs().max() for p in rnn.decoder.parameters()) <= 0.7


def test_bundles_remember_the_unit(tmp_path):
    model, pictures = make_captioner(), [photo("red", "square"), photo("blue", "stripe")]
    model.save_pretrained(tmp_path)
    again = Captioner.from_pretrained(tmp_path)
    assert again.unit == "rnn"
    for options in ({"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 2}):
        assert again.caption(pictures, **options) == model.caption(pictures, **options)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config["model"].pop("unit") == "rnn"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"weights\.safetensors"):  # without the key: an LSTM
        Captioner.from_pretrained(tmp_path)


def test_what_has_no_kernels_says_so(tmp_path):
    model = make_captioner()
    assert model.prepare("float32") is model
    for dtype in ("bfloat16", "int8"):
        with pytest.raises(
            NotImplementedError, match=r"prepare: dtype must be float32 .* plain recurrent layers"
        ):
            model.prepare(dtype)
    with pytest.raises(NotImplementedError, match="export_captioner: unit must be 'lstm', got 'rnn'"):
        export_captioner(model, tmp_path / "runtime")
    assert not (tmp_path / "runtime").exists()


# ---- training and recipes ---------------------------------------------------------------------


def test_training_lowers_the_loss_and_keeps_the_unit(tmp_path):
    captions = write_data_set(tmp_path / "shapes")
    values = tiny_config(captions)
    values["model"]["unit"] = "rnn"
    values["phases"] = [{**values["phases"][1], "steps": 60, "evaluate_every": 20, "ema": 0.0}]
    values["phases"][0]["optimizer"] = {"lr": 0.01}
    summary = train(parse_config(values), tmp_path / "run", device="cpu", progress=False)
    losses = [entry["train_loss"] for entry in summary["history"]]
    assert losses[-1] < 0.7 * losses[0]
    model = Captioner.from_pretrained(tmp_path / "run" / "model")
    assert model.unit == "rnn"
    assert model.caption([photo("red", "square")], num_beams=2)[0][0].text
    values["model"].update(unit="lstm", init_from=str(tmp_path / "run" / "model"))
    with pytest.raises(ValueError, match=r"model\.unit must be that of init_from = 'rnn', got 'lstm'"):
        train(parse_config(values), tmp_path / "other", device="cpu", progress=False)


def test_recipes_differ_from_the_lstms_in_the_unit_alone():
    for rnn, lstm in (
        ("flickr8k_small_2f_rnn", "flickr8k_small_2f"),
        ("coco_caffenet_2f_rnn", "coco_caffenet_2f"),
    ):
        ours, theirs = load_config(rnn), load_config(lstm)
        assert (ours.model.unit, theirs.model.unit) == ("rnn", "lstm")
        theirs.model = dataclasses.replace(theirs.model, unit="rnn")
        if rnn.startswith("coco"):
            theirs.phases = [p for p in theirs.phases if p.name == "frozen"]  # the paper's rows
        assert ours == theirs

"""What a CaptionDecoder takes: modules whose parameters say all they compute, whole numbers, valid tokens."""

import warnings

import pytest
import torch
from torch import nn

from lrcn_fast import CaptionDecoder

V, E, H, F = 11, 6, 8, 5


def make(embedding=None, layers=None, projection=None, **options):
    torch.manual_seed(0)
    return CaptionDecoder(
        embedding or nn.Embedding(V, E),
        layers or [nn.LSTM(E, H), nn.LSTM(H + F, H)],
        projection or nn.Linear(H, V),
        **{"static_layer": 1, **options},
    ).eval()


class Louder(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Scaled(nn.Embedding):
    def forward(self, words):
        return 2 * super().forward(words)


class Skipping(nn.LSTM):
    def forward(self, x, hx=None):
        return x, hx


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still what many checkpoints use
        return nn.utils.weight_norm(nn.LSTM(E, H), "weight_hh_l0")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"projection": Louder(H, V)}, "projection must compute what Linear does, .* got Louder"),
        ({"embedding": Scaled(V, E)}, "embedding must compute what Embedding does, .* got Scaled"),
        ({"layers": [Skipping(E, H), nn.LSTM(H + F, H)]}, r"layers\[0\] must compute what LSTM does"),
        ({"layers": [old_weight_norm(), nn.LSTM(H + F, H)]}, r"layers\[0\] must have no forward hooks"),
    ],
    ids=["projection", "embedding", "layer", "weight_norm"],
)  # fmt: skip
def test_modules_that_compute_more_are_refused(arguments, name):
    with pytest.raises(NotImplementedError, match=f"CaptionDecoder: {name}"):
        make(**arguments)


def test_hooks_of_later_are_refused_by_generate():
    decoder, features = make(), torch.randn(2, F)
    handle = decoder.projection.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(NotImplementedError, match="projection must have no forward hooks"):
        decoder.generate(features)
    handle.remove()
    assert decoder.generate(features).sequences.shape == (2, 1, 20)


def test_parametrizations_are_followed():
    decoder, features = make(), torch.randn(2, F)
    nn.utils.parametrizations.weight_norm(decoder.projection)
    nn.utils.parametrizations.weight_norm(decoder.layers[0], "weight_hh_l0")
    for _ in range(2):
        found = decoder.generate(features, num_beams=3, max_new_tokens=6)
        with torch.no_grad():
            sums = decoder.log_likelihood(found.sequences[:, 0], features, found.lengths[:, 0])
        torch.testing.assert_close(found.scores[:, 0], sums, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            decoder.projection.parametrizations.weight.original0.mul_(1.5)
            decoder.layers[0].parametrizations.weight_hh_l0.original0.mul_(1.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding": nn.Linear(V, E)}, "embedding must be an Embedding module, got Linear"),
        ({"projection": nn.Identity()}, "projection must be a Linear module, got Identity"),
        ({"layers": 3}, r"layers\[0\] must be an LSTM, RNN or cell module, got 3"),
        ({"layers": "x"}, r"layers\[0\] must be an LSTM, RNN or cell module, got 'x'"),
        ({"static_layer": "0"}, r"static_layer must be None or in 0\.\.1, got '0'"),
        ({"static_layer": True}, r"static_layer must be None or in 0\.\.1, got True"),
        ({"eos_id": 1.5}, r"eos_id must be an integer, got 1\.5"),
        ({"bos_id": True}, "bos_id must be an integer, got True"),
        ({"pad_id": None}, "pad_id must be an integer, got None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_things_are_value_errors(arguments, message):
    with pytest.raises(ValueError, match=f"CaptionDecoder: {message}"):
        make(**arguments)


def test_tokens_and_features_are_checked():
    decoder, features = make(), torch.randn(2, F)
    tokens = torch.tensor([[1, 2, 3], [4, 5, 0]])
    for bad, message in (
        (tokens + V, r"tokens must be in 0\.\.V-1 = 0\.\.10, got 11\.\.16"),
        (tokens - 2, r"tokens must be in 0\.\.V-1 = 0\.\.10, got -2\.\.3"),
        (tokens > 2, r"tokens must be integers \[B, L\], got torch.bool \[2, 3\]"),
        ([[1]], r"tokens must be integers \[B, L\], got list"),
    ):
        with pytest.raises(ValueError, match=f"CaptionDecoder: {message}"):
            decoder(bad, features)
    for bad, message in (
        (features.double(), r"dtype of the model, torch\.float32, got torch\.float64"),
        (features.tolist(), r"features must be \[B, F\] = \[B, 5\], got list"),
        (features.to("meta"), "features must be on the device of the model, cpu, got meta"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder(tokens, bad)
        with pytest.raises(ValueError, match=f"log_likelihood.*{message}|{message}"):
            decoder.log_likelihood(tokens, bad, torch.tensor([3, 2]))
    for lengths in ([3, 2], torch.tensor([True, False])):
        with pytest.raises(ValueError, match=r"log_likelihood: lengths must be integers \[B\] = \[2\]"):
            decoder.log_likelihood(tokens, features, lengths)


def test_every_integer_type_of_tokens_is_the_same():
    decoder, features = make(), torch.randn(2, F)
    tokens, lengths = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2])
    expected = decoder.log_likelihood(tokens, features, lengths)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(decoder.log_likelihood(tokens.to(dtype), features, lengths.int()), expected)

"""Beam search of the paper's LRCN_2f: the native decoder against the same search in eager PyTorch.

V=8801, E=H=1000, F=1000, 5 beams, 20 words; end of sentence is banned, so that every variant runs every
step. Eager int8 is torch's dynamic quantisation of every Linear of the model (see peers.py); the gates of a
layer are two of them, and its term of the image is computed once, in float32, as in the other eager
variants. Float32 variants must return the baseline's words before anything is timed; rounded weights may
choose other words, and their names say how many are the same. Packing is not timed, the image features are
given.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import harness
import peers
import torch
from torch import Tensor, nn

from lrcn_fast import CaptionDecoder, DecodeResult, reference, reference_search
from lrcn_fast.decoding import GenerationConfig

V, E, H, F = 8801, 1000, 1000, 1000
K, WORDS = 5, 20


def make_decoder() -> CaptionDecoder:
    """Random weights, projection scaled so that the words are as unequal as a trained model's."""
    torch.manual_seed(0)
    layers = [nn.LSTM(E, H), nn.LSTM(H + F, H)]
    decoder = CaptionDecoder(nn.Embedding(V, E), layers, nn.Linear(H, V), static_layer=1)
    with torch.no_grad():
        for layer in layers:
            layer.weight_ih_l0.mul_(2)
            layer.weight_hh_l0.mul_(2)
        decoder.projection.weight.normal_(std=0.3)
    return decoder.eval()


class QuantisedSteps(nn.Module):
    """The decoder word by word, every matrix a Linear, which torch can quantise."""

    def __init__(self, decoder: CaptionDecoder) -> None:
        super().__init__()
        self.embedding, self.projection = decoder.embedding, decoder.projection
        first, second = decoder.layers
        self.inputs = nn.ModuleList([_linear(first.weight_ih_l0), _linear(second.weight_ih_l0[:, :H])])
        self.recurrences = nn.ModuleList(
            [_linear(layer.weight_hh_l0, layer.bias_ih_l0 + layer.bias_hh_l0) for layer in (first, second)]
        )
        self.image = second.weight_ih_l0[:, H:].detach().T
        self.bos_id, self.eos_id = decoder.bos_id, decoder.eos_id

    def forward(self, tokens: Tensor, state: reference_search.State) -> tuple[Tensor, reference_search.State]:
        """One word forward: a step function of the search.

        Args:
            tokens: The words. [R].
            state: h and c of both layers, and the image's term of the second. [R, H], and [R, 4H].
        """
        x, new = self.embedding(tokens), []
        for layer, (w_x, w_h) in enumerate(zip(self.inputs, self.recurrences, strict=True)):
            h, c = state[2 * layer : 2 * layer + 2]
            gates = w_x(x) + w_h(h)
            if layer == 1:
                gates += state[-1]
            i, f, g, o = gates.chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            x = o.sigmoid() * c.tanh()
            new += [x, c]
        return self.projection(x), (*new, state[-1])

    @torch.no_grad()
    def generate(self, features: Tensor, **options: Any) -> DecodeResult:
        """As CaptionDecoder.generate."""
        zeros = torch.zeros(len(features), H)
        bos = torch.full((len(features),), self.bos_id)
        logits, state = self(bos, (zeros,) * 4 + (features @ self.image,))
        return reference.search(logits, state, self, GenerationConfig(**options), eos_id=self.eos_id)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


def measure() -> Iterator[tuple[dict[str, Any], harness.Variants, harness.Check]]:
    decoder = make_decoder()
    low = copy.deepcopy(decoder).bfloat16()
    small = peers.torch_int8(QuantisedSteps(decoder))
    native = {p: copy.deepcopy(decoder).prepare(p) for p in ("float32", "bfloat16", "int8")}
    for B in (1, 8):
        features = torch.randn(B, F, generator=torch.Generator().manual_seed(B))
        options = {"num_beams": K, "max_new_tokens": WORDS, "suppress_tokens": (decoder.eos_id,)}
        variants: dict[str, Callable[[], DecodeResult]] = {
            "eager float32": functools.partial(reference.generate, decoder, features, **options)
        }
        if not harness.forced_isa():
            variants["eager bfloat16"] = functools.partial(
                reference.generate, low, features.bfloat16(), **options
            )
            variants["eager int8"] = functools.partial(small.generate, features, **options)
        for precision, model in native.items():
            variants[f"native {precision}"] = functools.partial(model.generate, features, **options)

        expected = variants["eager float32"]().sequences
        timed: harness.Variants = {}
        for name, run in variants.items():
            share = (run().sequences == expected).float().mean().item()
            label = name if name.endswith("float32") else f"{name}, {share:.0%} of the words"
            timed[label] = lambda name=name, run=run: (name, run())
        yield {"images": B}, timed, check


def check(actual: tuple[str, DecodeResult], expected: tuple[str, DecodeResult]) -> None:
    """The words of float32 variants are equal; every variant ran every step."""
    name, result = actual
    assert (result.lengths == WORDS).all(), name
    if name.endswith("float32"):
        assert torch.equal(result.sequences, expected[1].sequences), name
        torch.testing.assert_close(result.scores, expected[1].scores, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    harness.main(__file__, "decode", measure, case_seconds=20)

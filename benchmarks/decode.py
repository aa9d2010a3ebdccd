"""Beam search of the paper's LRCN_2f: the native decoder against the same search in eager PyTorch.

V=8801, E=H=1000, F=1000, 5 beams, 20 words; end of sentence is banned, so that every variant runs every step.
Float32 variants must return the baseline's words before anything is timed; rounded weights may choose other
words, and their names say how many are the same. Packing is not timed, the image features are given.
"""

import copy
from collections.abc import Iterator
from typing import Any

import harness
import torch
from torch import nn

from lrcn_fast import CaptionDecoder, DecodeResult, reference

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


def measure() -> Iterator[tuple[dict[str, Any], harness.Variants, Any]]:
    decoder = make_decoder()
    variants = {
        "eager float32": decoder,
        "native float32": copy.deepcopy(decoder).prepare(),
        "eager bfloat16": copy.deepcopy(decoder).bfloat16(),
        "native bfloat16": copy.deepcopy(decoder).prepare("bfloat16"),
        "native int8": copy.deepcopy(decoder).prepare("int8"),
    }

    for B in (1, 8):
        features = torch.randn(B, F, generator=torch.Generator().manual_seed(B))
        options: dict[str, Any] = {
            "num_beams": K,
            "max_new_tokens": WORDS,
            "suppress_tokens": (decoder.eos_id,),
        }

        def run(
            name: str, features: torch.Tensor = features, options: dict[str, Any] = options
        ) -> DecodeResult:
            model = variants[name]
            features = features.to(model.projection.weight.dtype)
            if name.startswith("eager"):
                return reference.generate(model, features, **options)
            return model.generate(features, **options)

        expected = run("eager float32").sequences
        timed: harness.Variants = {}
        for name in variants:
            share = (run(name).sequences == expected).float().mean().item()
            label = name if name.endswith("float32") else f"{name}, {share:.0%} of the words"
            timed[label] = lambda name=name: (name, run(name))
        yield {"images": B, "threads": torch.get_num_threads()}, timed, check


def check(actual: tuple[str, DecodeResult], expected: tuple[str, DecodeResult]) -> None:
    """The words of float32 variants are equal; every variant ran every step."""
    name, result = actual
    assert (result.lengths == WORDS).all(), name
    if name.endswith("float32"):
        assert torch.equal(result.sequences, expected[1].sequences), name
        torch.testing.assert_close(result.scores, expected[1].scores, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    harness.main(__file__, "decode", measure)

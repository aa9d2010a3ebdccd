"""Beam search of the paper's LRCN_2f on a GPU: lrcn_fast against the same search in eager PyTorch.

V=8801, E=H=1000, F=1000, 5 beams, 20 words; end of sentence is banned, so that every variant runs every step.
Float32 variants must return the baseline's words before anything is timed. The image features are given.
"""

import copy
from collections.abc import Iterator
from typing import Any

import harness
import torch
from decode import WORDS, F, K, check, make_decoder

from lrcn_fast import DecodeResult, reference


def measure() -> Iterator[tuple[dict[str, Any], harness.Variants, Any]]:
    torch.backends.cuda.matmul.allow_tf32 = False  # the same words
    models = {"float32": make_decoder().cuda()}
    models["bfloat16"] = copy.deepcopy(models["float32"]).bfloat16()

    def run(name: str, features: torch.Tensor) -> tuple[str, DecodeResult]:
        kind, dtype = name.split()
        model = models[dtype]
        options: dict[str, Any] = {
            "num_beams": K,
            "max_new_tokens": WORDS,
            "suppress_tokens": (model.eos_id,),
        }
        features = features.to(model.projection.weight.dtype)
        if kind == "eager":
            return name, reference.generate(model, features, **options)
        return name, model.generate(features, **options)

    for B in (1, 8, 64):
        features = torch.randn(B, F, generator=torch.Generator().manual_seed(B)).cuda()
        names = [f"{kind} {dtype}" for dtype in models for kind in ("eager", "lrcn_fast")]
        variants: harness.Variants = {
            name: lambda name=name, features=features: run(name, features) for name in names
        }
        yield {"images": B}, variants, check


if __name__ == "__main__":
    harness.main(__file__, "gpu-decode", measure, gpu=True)

"""Decoding with a :class:`lrcn_fast.CaptionDecoder` in eager PyTorch: no kernel of this package runs.

The same search as ``CaptionDecoder.generate``, batched over images and beams, on any device and in any
dtype. It is what native decoding is compared with and timed against, and what runs where there is no native
decoder.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lrcn_fast.decoding import DecodeResult, GenerationConfig
from lrcn_fast.reference_search import State, search

if TYPE_CHECKING:
    from lrcn_fast.decoder import CaptionDecoder

__all__ = ["generate", "search_eagerly"]


def generate(
    decoder: "CaptionDecoder",
    features: Tensor | None = None,
    *,
    batch_size: int | None = None,
    **options: Any,
) -> DecodeResult:
    """What :meth:`lrcn_fast.CaptionDecoder.generate` returns, in eager PyTorch. The same arguments."""
    config = GenerationConfig(**options)
    prefix, uniforms = decoder._search_inputs(features, config, batch_size)
    return search_eagerly(decoder, features, config, prefix, uniforms)


@torch.no_grad()
def search_eagerly(
    decoder: "CaptionDecoder",
    features: Tensor | None,
    config: GenerationConfig,
    prefix: Tensor,
    uniforms: Tensor | None,
) -> DecodeResult:
    """Run a validated search. prefix [B, P]; uniforms [B, n, max_new_tokens] when sampling."""
    model = _Stepper(decoder)
    state = model.start(features, prefix.shape[0])
    inputs: list[Tensor] = []
    if decoder.image_first:
        assert features is not None
        inputs.append(features)
    if decoder.feed_bos:
        inputs.append(decoder.embedding(prefix.new_full((prefix.shape[0],), decoder.bos_id)))
    inputs += [decoder.embedding(words) for words in prefix.unbind(1)]
    for x in inputs:
        h, state = model.advance(x, state)
    return search(
        decoder.projection(h),
        state,
        model.step,
        config,
        eos_id=decoder.eos_id,
        pad_id=decoder.pad_id,
        prefix=prefix,
        uniforms=uniforms,
    )


class _Stepper:
    """One word at a time through the layers.

    State: h and c of each layer (its h twice where it is a plain layer), then the gate term of the static
    input, if there is one.
    """

    def __init__(self, decoder: "CaptionDecoder") -> None:
        self.decoder = decoder
        self.layers = [(w, w.bias) for w in decoder._weights()]

    def start(self, features: Tensor | None, B: int) -> State:
        state: list[Tensor] = []
        static: list[Tensor] = []
        for weights, bias in self.layers:
            zeros = weights.w_hh.new_zeros(B, weights.w_hh.shape[1])
            state += [zeros, zeros]
            if weights.w_static is not None:
                assert features is not None
                static.append(F.linear(features, weights.w_static, bias))  # [B, 4H], once per image
        return (*state, *static)

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x: input of layer 0 [R, E] -> output of the last layer [R, H]."""
        new: list[Tensor] = []
        for layer, (weights, bias) in enumerate(self.layers):
            h, c = state[2 * layer : 2 * layer + 2]
            if weights.w_static is None:
                gates = F.linear(x, weights.w_x, bias)
            else:
                gates = torch.addmm(state[-1], x, weights.w_x.T)
            gates = torch.addmm(gates, h, weights.w_hh.T)
            if weights.is_lstm:
                i, f, g, o = gates.chunk(4, dim=-1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                x = o.sigmoid() * c.tanh()
            else:
                x = c = gates.tanh()
            new += [x, c]
        return x, (*new, *state[len(new) :])

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        h, state = self.advance(self.decoder.embedding(tokens), state)
        logits: Tensor = self.decoder.projection(h)
        return logits, state

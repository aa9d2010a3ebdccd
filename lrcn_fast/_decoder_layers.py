"""The LSTM layers of a caption decoder, whatever modules hold them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["LayerWeights", "Layout"]


class LayerWeights(NamedTuple):
    """One layer's parameters, gates i, f, g, o. I: what the layer below hands up, F: the static input."""

    w_ih: Tensor  # [4H, I], or [4H, I + F] of the layer that sees the features at every step
    w_hh: Tensor  # [4H, H]
    b_ih: Tensor | None  # [4H]
    b_hh: Tensor | None  # [4H]
    static_size: int  # F, 0 for the other layers

    @property
    def w_x(self) -> Tensor:
        """The columns of what the layer below hands up. [4H, I]."""
        return self.w_ih[:, : self.w_ih.shape[1] - self.static_size]

    @property
    def w_static(self) -> Tensor | None:
        """The columns of the features. [4H, F]."""
        return self.w_ih[:, -self.static_size :] if self.static_size else None

    def float(self) -> "LayerWeights":
        """The same in float32."""
        return LayerWeights(*(None if t is None else t.float() for t in self.tensors), self.static_size)  # type: ignore

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The parameters themselves."""
        return self.w_ih, self.w_hh, self.b_ih, self.b_hh

    @property
    def bias(self) -> Tensor | None:
        """Both biases in one [4H]."""
        return None if self.b_ih is None or self.b_hh is None else self.b_ih + self.b_hh


@dataclass(frozen=True)
class Layout:
    """Where each layer's parameters live, found once and checked.

    Parameters are looked up by name at every use, so that replacing one in its module is seen here.
    """

    places: tuple[tuple[int, str], ...]  # per layer: index into the modules, suffix of the parameter names
    dropout: tuple[float, ...]  # per layer, on its output in training
    hidden: tuple[int, ...]
    static_layer: int | None
    static_size: int  # F; 0 without a static layer

    @staticmethod
    def of(modules: Sequence[torch.nn.Module], embed_dim: int, static_layer: int | None) -> "Layout":
        """Check that the modules are a stack of LSTM layers on top of an embedding.

        Raises:
            ValueError: A module is no LSTM, or its sizes do not fit what is below.
            NotImplementedError: An LSTM with an option that decoding does not support.
        """
        places: list[tuple[int, str]] = []
        dropout: list[float] = []
        for index, module in enumerate(modules):
            _check_supported(index, module)
            if hasattr(module, "weight_ih_l0"):
                count = int(getattr(module, "num_layers", 1))
                places += [(index, f"_l{k}") for k in range(count)]
                dropout += [float(getattr(module, "dropout", 0.0))] * (count - 1) + [0.0]
            else:
                places.append((index, ""))
                dropout.append(0.0)
        if not places:
            raise ValueError("CaptionDecoder: layers must hold at least one LSTM layer, got none")
        if static_layer is not None and not 0 <= static_layer < len(places):
            raise ValueError(
                f"CaptionDecoder: static_layer must be None or in 0..{len(places) - 1}, got {static_layer}"
            )
        below, hidden, static_size = embed_dim, [], 0
        for layer, (index, suffix) in enumerate(places):
            rows, width = getattr(modules[index], f"weight_ih{suffix}").shape
            if layer == static_layer:
                static_size = width - below
                if static_size <= 0:
                    raise ValueError(
                        f"CaptionDecoder: layer {layer} must take more than {below} inputs, because it is "
                        f"static_layer and its last columns belong to the features, got {width}"
                    )
            elif width != below:
                source = "the embedding" if layer == 0 else f"layer {layer - 1}"
                raise ValueError(
                    f"CaptionDecoder: layer {layer} must take the {below} outputs of {source} as input, "
                    f"got {width}"
                )
            below = rows // 4
            hidden.append(below)
        return Layout(tuple(places), tuple(dropout), tuple(hidden), static_layer, static_size)

    def weights(self, modules: Sequence[torch.nn.Module]) -> Iterator[LayerWeights]:
        """The parameters as they are now, bottom up."""
        for layer, (index, suffix) in enumerate(self.places):
            module = modules[index]
            yield LayerWeights(
                getattr(module, f"weight_ih{suffix}"),
                getattr(module, f"weight_hh{suffix}"),
                getattr(module, f"bias_ih{suffix}", None),
                getattr(module, f"bias_hh{suffix}", None),
                self.static_size if layer == self.static_layer else 0,
            )


def _check_supported(index: int, module: torch.nn.Module) -> None:
    # By their parameters, not their classes: torch.nn.LSTM, lrcn_fast.nn.LSTM and both cells share names and
    # shapes, and a GRU or a plain RNN has 3 or 1 times H rows instead of 4.
    w_hh: Any = getattr(module, "weight_hh_l0", getattr(module, "weight_hh", None))
    hidden = getattr(module, "hidden_size", None)
    if not isinstance(w_hh, Tensor) or w_hh.ndim != 2 or hidden is None or w_hh.shape[0] != 4 * hidden:
        raise ValueError(
            f"CaptionDecoder: layers[{index}] must be an LSTM or LSTMCell module, got {type(module).__name__}"
        )
    for option, off, words in (
        ("bidirectional", False, "bidirectional=False, because words are predicted left to right"),
        ("proj_size", 0, "proj_size=0"),
        ("layer_norm", False, "layer_norm=False"),
        ("recurrent_dropout", 0.0, "recurrent_dropout=0"),
    ):
        value = getattr(module, option, off)
        if value != off:
            raise NotImplementedError(
                f"CaptionDecoder: layers[{index}] must have {words}, got {option}={value!r}"
            )
    zoneout = getattr(module, "zoneout", 0.0)
    if zoneout not in (0.0, (0.0, 0.0)):
        raise NotImplementedError(
            f"CaptionDecoder: layers[{index}] must have zoneout=0, got zoneout={zoneout!r}"
        )

"""The recurrent layers of a caption decoder, whatever modules hold them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrcn_fast import ops, reference
from lrcn_fast.decoding._checks import check_layout
from lrcn_fast.nn import LSTM, LSTMCell

__all__ = ["LAYER_KINDS", "LayerWeights", "Layout", "check_plain", "layer_modules"]

LSTM_KINDS = (torch.nn.LSTM, torch.nn.LSTMCell, LSTM, LSTMCell)
RNN_KINDS = (torch.nn.RNN, torch.nn.RNNCell)
LAYER_KINDS = (*LSTM_KINDS, *RNN_KINDS)


class LayerWeights(NamedTuple):
    """One layer's parameters, gates i, f, g, o. I: what the layer below hands up, F: the static input.

    A plain recurrent layer has H rows where an LSTM has 4H: all of "its gates" below is its one tanh.
    """

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

    @property
    def is_lstm(self) -> bool:
        """Whether this is an LSTM layer, not a plain recurrent one."""
        return self.w_hh.shape[0] != self.w_hh.shape[1]

    def run(
        self,
        xg: Tensor,
        state: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        packed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The recurrence over some steps.

        Args:
            xg: The gates' input terms. [T, B, 4H].
            state: h and c before the first step, zeros if None. [B, H] each.
            lengths: Steps of each row; results past them are not to be read. [B].
            packed: ``ops.lstm_pack`` of an LSTM's recurrent weight.

        Returns:
            h and c after every step [T, B, H]; a plain layer has no c, so its h stands there too.
        """
        # Under autocast the GEMMs before this return half precision, and the recurrence follows them.
        w_hh = self.w_hh.to(xg.dtype)
        h0, c0 = state or (xg.new_zeros(xg.shape[1], w_hh.shape[1]),) * 2
        if self.is_lstm:
            return ops.lstm(xg, w_hh, h0, c0, lengths=lengths, packed=packed)
        h = reference.rnn(xg, w_hh, h0)
        return h, h


@dataclass(frozen=True)
class Layout:
    """Where each layer's parameters live, found once and checked.

    Parameters are looked up by name at every use, so that replacing one in its module is seen here.
    """

    places: tuple[tuple[int, str], ...]  # per layer: index into the modules, suffix of the parameter names
    dropout: tuple[float, ...]  # per layer, on its output in training
    hidden: tuple[int, ...]
    unit: str  # "lstm" or "rnn", of all layers
    static_layer: int | None
    static_size: int  # F; 0 without a static layer

    @staticmethod
    def of(
        modules: Sequence[torch.nn.Module],
        embed_dim: int,
        static_layer: int | None,
        image_first: bool,
        feed_bos: bool,
    ) -> "Layout":
        """Check that the modules, layers or cells, are a stack on top of an embedding.

        Raises:
            ValueError: A module's sizes do not fit what is below, or options contradict each other.
            NotImplementedError: A layer with an option that decoding does not support, or layers of both
                kinds.
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
            raise ValueError("CaptionDecoder: layers must hold at least one recurrent layer, got none")
        units = {"lstm" if isinstance(module, LSTM_KINDS) else "rnn" for module in modules}
        if len(units) > 1:
            raise NotImplementedError(
                "CaptionDecoder: layers must be all LSTM or all plain recurrent layers, got both"
            )
        unit = units.pop()
        check_layout("CaptionDecoder", len(places), static_layer, image_first, feed_bos)
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
            below = rows // 4 if unit == "lstm" else rows
            hidden.append(below)
        return Layout(tuple(places), tuple(dropout), tuple(hidden), unit, static_layer, static_size)

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


def layer_modules(layers: Any) -> list[torch.nn.Module]:
    """The argument ``layers`` of a decoder, a module or several, as a list.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(layers, torch.nn.Module) and not isinstance(layers, Iterable):
        return [layers]
    modules = list(layers) if isinstance(layers, Iterable) else [layers]
    for index, module in enumerate(modules):
        if not isinstance(module, torch.nn.Module):
            raise ValueError(
                f"CaptionDecoder: layers[{index}] must be an LSTM, RNN or cell module, got {module!r}"
            )
    return modules


def check_plain(name: str, module: object, what: str, *kinds: type[torch.nn.Module]) -> None:
    """Check that a module is of a kind, and that its parameters say all that it computes.

    Decoding reads the parameters and never calls the module. ``torch.nn.utils.parametrizations`` are fine:
    their weights are computed where they are read.

    Raises:
        ValueError: Another kind of module.
        NotImplementedError: A class with its own ``forward``, or forward hooks.
    """
    got = type(module).__name__
    kind = next((k for k in kinds if isinstance(module, k)), None)
    if kind is None or not isinstance(module, torch.nn.Module):
        raise ValueError(f"CaptionDecoder: {name} must be {what} module, got {got}")
    if type(module).forward is not kind.forward:
        raise NotImplementedError(
            f"CaptionDecoder: {name} must compute what {kind.__name__} does, because decoding only reads its "
            f"parameters, got {got} with a forward of its own"
        )
    if module._forward_hooks or module._forward_pre_hooks:
        raise NotImplementedError(
            f"CaptionDecoder: {name} must have no forward hooks, because decoding only reads its parameters, "
            f"got {got} with hooks (pruning and torch.nn.utils.weight_norm are hooks: remove them, or use "
            "torch.nn.utils.parametrizations)"
        )


def _check_supported(index: int, module: torch.nn.Module) -> None:
    for option, off, words in (
        ("bidirectional", False, "bidirectional=False, because words are predicted left to right"),
        ("proj_size", 0, "proj_size=0"),
        ("layer_norm", False, "layer_norm=False"),
        ("recurrent_dropout", 0.0, "recurrent_dropout=0"),
        ("nonlinearity", "tanh", "nonlinearity='tanh'"),
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

"""Multi-layer LSTM as a module."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

from lrcn_fast import ops, reference
from lrcn_fast.nn._checks import (
    check_flags,
    check_hx,
    check_like_weights,
    check_probability,
    check_sizes,
    check_state,
    compute_dtype,
    in_func_transform,
)
from lrcn_fast.nn._lengths import Last, check_lengths
from lrcn_fast.nn._module import RecurrentModule, Weights

State = tuple[Tensor, Tensor]


class LSTM(RecurrentModule):
    r"""Multi-layer LSTM, a replacement for :class:`torch.nn.LSTM`.

    Same constructor, same parameters (names, order, initial values for a given seed), same results; not a
    subclass. For each layer and direction

    .. math::
        z_t &= W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh} \\
        c_t &= \sigma(z_f) \odot c_{t-1} + \sigma(z_i) \odot \tanh(z_g) \\
        h_t &= \sigma(z_o) \odot \tanh(c_t)

    with the gates of z in the order i, f, g, o. With a projection, h is multiplied by :math:`W_{hr}`.
    Beyond torch.nn.LSTM: per-row ``lengths`` and reset markers ``cont`` in :meth:`forward`, packed inference
    weights in :meth:`prepare`, and three variants of the cell. Those three are computed step by step in
    PyTorch (:func:`lrcn_fast.reference.lstm`): right and differentiable on every device, not yet fused. So is
    the plain cell under the transforms of ``torch.func`` (grad, vmap, jvp), which custom operators lack.

    **layer_norm** (Ba et al. 2016, the LSTM of the supplement), over each whole vector [4H] or [H]:

    .. math::
        z_t &= \mathrm{LN}(W_{ih} x_t) + \mathrm{LN}(W_{hh} h_{t-1}) + b_{ih} + b_{hh} \\
        h_t &= \sigma(z_o) \odot \tanh(\mathrm{LN}(c_t))

    with parameters ``ln_ih_weight_l0``, ``ln_ih_bias_l0``, ``ln_hh_weight_l0``, ``ln_hh_bias_l0``,
    ``ln_c_weight_l0``, ``ln_c_bias_l0`` for layer 0, ones and zeros at first.

    **zoneout** (Krueger et al. 2017, section 3), with h', c' the values without it:

    .. math::
        c_t &= k^c_t \odot c_{t-1} + (1 - k^c_t) \odot c'_t \\
        h_t &= k^h_t \odot h_{t-1} + (1 - k^h_t) \odot h'_t

    In training k is 1 with the given probability and else 0, for each element and step; in eval mode it is
    the probability itself. h' reads c', not the kept c.

    **recurrent_dropout** (Semeniuta et al. 2016, section 3) drops elements of the candidate
    :math:`\tanh(z_g)`, anew at each step, and scales the others by 1/(1-p). Eval mode drops nothing.

    Each layer and direction draws its masks from torch's default generator, in the order zoneout of h,
    zoneout of c, recurrent dropout.

    Inference is fastest in eval mode under ``torch.inference_mode()`` or ``torch.no_grad()``, float32, on the
    CPU: the weights are then packed once for the kernels, see :meth:`prepare`.

    Args:
        input_size: Size of each input, I.
        hidden_size: Size of the cell, H.
        num_layers: Layers, L.
        bias: Whether to add ``bias_ih`` and ``bias_hh``.
        batch_first: Input and output are [B, T, ...] instead of [T, B, ...]. Nothing else changes layout, but
            ``cont``, which follows the input.
        dropout: Probability of dropout on the output of each layer but the last, in training.
        bidirectional: Run a second LSTM from each row's end, and concatenate (directions D = 2).
        proj_size: Size of h, P, if not 0. Less than H.
        device: Where to make the parameters.
        dtype: Their type.
        layer_norm: Normalise, as above.
        zoneout: Probability to keep an element of the old state: a number, or a pair for h and c.
        recurrent_dropout: Probability to drop an element of the candidate.
        recompute: For training with less memory: keep the input of each layer for the backward pass, not its
            gates and cells (5H or more numbers per row and step), and compute them once more there. The
            results and gradients are the same bit for bit; a training step is about a third longer.

    Raises:
        ValueError: An argument is of the wrong type or out of range.

    Example:
        >>> lstm = LSTM(10, 20, num_layers=2)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10), lengths=torch.tensor([5, 0, 2]))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check_sizes("LSTM", input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        check_flags(
            "LSTM",
            bias=bias,
            batch_first=batch_first,
            bidirectional=bool(bidirectional),
            layer_norm=layer_norm,
            recompute=recompute,
        )
        if not isinstance(proj_size, int) or not 0 <= proj_size < hidden_size:
            raise ValueError(
                f"LSTM: proj_size must be an int, 0 to hidden_size - 1 = {hidden_size - 1}, got {proj_size!r}"
            )
        pair = zoneout if isinstance(zoneout, (tuple, list)) else (zoneout, zoneout)
        if len(pair) != 2:
            raise ValueError(f"LSTM: zoneout must be a number or a pair (hidden, cell), got {zoneout!r}")
        self.mode = "LSTM"
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bool(bidirectional)
        self.dropout = check_probability("LSTM", "dropout", dropout)
        self.proj_size = proj_size
        self.layer_norm, self.recompute = layer_norm, recompute
        self.zoneout = tuple(check_probability("LSTM", "zoneout", p) for p in pair)
        self.recurrent_dropout = check_probability("LSTM", "recurrent_dropout", recurrent_dropout)
        if self.dropout > 0 and num_layers == 1:
            warnings.warn(
                f"LSTM: dropout = {dropout} does nothing with num_layers = 1: it acts between layers",
                stacklevel=2,
            )

        D, H, P = 1 + self.bidirectional, hidden_size, proj_size or hidden_size

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self._suffixes = []
        for layer in range(num_layers):
            for suffix in (f"_l{layer}", f"_l{layer}_reverse")[:D]:
                names: tuple[str | None, ...] = ("weight_ih" + suffix, "weight_hh" + suffix)
                names += ("bias_ih" + suffix, "bias_hh" + suffix) if bias else (None, None)
                names += ("weight_hr" + suffix if proj_size else None,)
                shapes = ((4 * H, D * P if layer else input_size), (4 * H, P), (4 * H,), (4 * H,), (P, H))
                for name, shape in zip(names, shapes, strict=True):
                    if name is not None:
                        self.register_parameter(name, parameter(*shape))
                self._names.append(names)
                self._suffixes.append(suffix)
        if layer_norm:  # after torch's parameters, which keep their places in parameters()
            for suffix in self._suffixes:
                for norm, size in (("ih", 4 * H), ("hh", 4 * H), ("c", H)):
                    for what in ("weight", "bias"):
                        self.register_parameter(f"ln_{norm}_{what}{suffix}", parameter(size))
        self.reset_parameters()

    @classmethod
    def from_torch(cls, torch_lstm: nn.LSTM) -> "LSTM":
        """Make an LSTM that shares the parameters, hooks and mode of a :class:`torch.nn.LSTM`.

        Raises:
            ValueError: ``torch_lstm`` is something else, or its weights are not plain parameters.
        """
        if not isinstance(torch_lstm, nn.LSTM):
            raise ValueError(
                f"from_torch: torch_lstm must be a torch.nn.LSTM, got {type(torch_lstm).__name__}"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch has warned of the useless dropout
            new = cls(
                torch_lstm.input_size,
                torch_lstm.hidden_size,
                torch_lstm.num_layers,
                torch_lstm.bias,
                torch_lstm.batch_first,
                torch_lstm.dropout,
                torch_lstm.bidirectional,
                torch_lstm.proj_size,
                device="meta",
            )
        new._share_parameters(torch_lstm)
        return new

    def reset_parameters(self) -> None:
        """Draw torch.nn.LSTM's parameters as it does; layer normalisation starts as the identity."""
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if name.startswith("ln_"):
                nn.init.constant_(parameter, 1.0 if "_weight_" in name else 0.0)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters torch.nn.LSTM has too, one list per layer and direction."""
        return [[getattr(self, name) for name in names if name is not None] for names in self._names]

    def flatten_parameters(self) -> None:
        """Do nothing: the parameters need no particular place in memory. Kept for torch.nn's callers."""

    def extra_repr(self) -> str:
        """Sizes, and what differs from the defaults."""
        text = f"{self.input_size}, {self.hidden_size}"
        defaults: dict[str, Any] = {
            "proj_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "layer_norm": False,
            "zoneout": (0.0, 0.0),
            "recurrent_dropout": 0.0,
            "recompute": False,
        }
        for name, default in defaults.items():
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        cont: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, State]:
        """Run the sequences.

        Args:
            input: [T, B, I], or [B, T, I] with ``batch_first``; [T, I] for one sequence; or a PackedSequence.
            hx: ``(h_0, c_0)``, zeros if None. [L*D, B, P] and [L*D, B, H], without B for one sequence.
            lengths: Steps of each row, 0..T, int64, on the input's device; checked on the CPU, clamped
                elsewhere. What lies beyond, NaN included, reaches neither outputs nor gradients. [B].
            cont: 0 where a new sequence starts in the middle of a row: that step begins from zeros, in every
                layer, and no gradient passes; anything else counts as 1. Laid out as the input. [T, B] or
                [B, T].

        Returns:
            A tuple:

            - **output**: h of the last layer, 0 past a row's length. [T, B, D*P], laid out as the input.
            - **(h_n, c_n)**: State after each row's own last step, hx for a row of length 0.
              [L*D, B, P] and [L*D, B, H].

        Raises:
            ValueError: A shape, dtype, device or length is wrong, or ``lengths`` comes with a PackedSequence.
            NotImplementedError: ``cont`` with a bidirectional LSTM or a PackedSequence.
        """
        if cont is not None and self.bidirectional:
            raise NotImplementedError("LSTM: cont must be None with bidirectional=True, got a tensor")
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError(
                    "LSTM: lengths must be None with a PackedSequence, which has its own, got a tensor"
                )
            if cont is not None:
                raise NotImplementedError(
                    "LSTM: cont must be None with a PackedSequence, got a tensor; pad and use lengths"
                )
            return self._forward_packed(input, hx)

        if not isinstance(input, Tensor) or input.dim() not in (2, 3) or input.shape[-1] != self.input_size:
            layout = "[B, T, I]" if self.batch_first else "[T, B, I]"
            got = list(input.shape) if isinstance(input, Tensor) else type(input).__name__
            raise ValueError(f"LSTM: input must be {layout} or [T, I], I = {self.input_size}, got {got}")
        batched = input.dim() == 3
        batch_first = batched and self.batch_first
        x = input.unsqueeze(1) if not batched else input.transpose(0, 1) if batch_first else input
        T, B, _ = x.shape
        if T == 0:
            raise ValueError(f"LSTM: input must have at least one step, got {list(input.shape)}")
        weight = self._weight("weight_hh_l0")
        hx = self._check_inputs(weight, x, B, hx, batched)
        if lengths is not None:
            lengths = check_lengths(lengths, x, batched)
        if cont is not None:
            if cont.shape != input.shape[:-1]:
                raise ValueError(
                    f"LSTM: cont must be laid out as input = {list(input.shape[:-1])}, got {list(cont.shape)}"
                )
            if cont.device != x.device:
                raise ValueError(
                    f"LSTM: cont must be on the device of the input, {x.device}, got {cont.device}"
                )
            cont = cont.unsqueeze(1) if not batched else cont.transpose(0, 1) if batch_first else cont

        if self._reads_packs(weight, input, *(hx or ())):
            y, h_n, c_n = self._run_packed(
                input if batch_first else x,
                *(hx or (None, None)),
                batch_first=batch_first,
                lengths=lengths,
                cont=cont,
            )
        else:
            if lengths is not None and not self._is_native(x):
                # Once here: the layers above read zeros there. 0 * NaN would reach the gradient of weight_ih.
                inside = torch.arange(T, device=x.device).unsqueeze(1) < lengths  # [T, B]
                x = torch.where(inside.unsqueeze(-1), x, 0)
            y, h_n, c_n = self._run(x, *self._states(x, B, hx), Last(T, lengths), lengths=lengths, cont=cont)
            y = y.transpose(0, 1) if batch_first else y
        if not batched:
            return y.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
        return y, (h_n, c_n)

    def _forward_packed(self, input: PackedSequence, hx: State | None) -> tuple[PackedSequence, State]:
        """Run the rows as they are where a layer is native, else pad them, with lengths, and pack again."""
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if data.dim() != 2 or data.shape[1] != self.input_size:
            raise ValueError(
                f"LSTM: input.data must be [N, I], I = {self.input_size}, got {list(data.shape)}"
            )
        T, B = batch_sizes.shape[0], int(batch_sizes[0])
        weight = self._weight("weight_hh_l0")
        hx = self._check_inputs(weight, data, B, hx, batched=True)
        if hx is not None and sorted_indices is not None:
            hx = hx[0].index_select(1, sorted_indices), hx[1].index_select(1, sorted_indices)
        if self._reads_packs(weight, data, *(hx or ())):
            start = self._zeros(data, len(self._names), B) if hx is None else hx
            y, h_n, c_n = self._run_packed(data, *start, batch_sizes=batch_sizes)
        else:
            states = self._states(data, B, hx)
            place, lengths = reference.packed_places(batch_sizes)
            if self._is_native(data):
                last = (batch_sizes.cumsum(0) - batch_sizes)[lengths - 1] + torch.arange(B)
                y, h_n, c_n = self._run(data, *states, Last(T, rows=last), batch_sizes=batch_sizes)
            else:
                place, lengths = place.to(data.device), lengths.to(data.device)
                x = data.new_zeros(T * B, self.input_size).index_copy(0, place, data).view(T, B, -1)
                y, h_n, c_n = self._run(x, *states, Last(T, lengths), lengths=lengths)
                y = y.flatten(0, 1).index_select(0, place)
        if unsorted_indices is not None:
            h_n, c_n = h_n.index_select(1, unsorted_indices), c_n.index_select(1, unsorted_indices)
        return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), (h_n, c_n)

    def _check_inputs(
        self, weight: Tensor, x: Tensor, B: int, hx: State | None, batched: bool
    ) -> State | None:
        """Check that the input and hx fit the weights; return hx as [L*D, B, P] and [L*D, B, H]."""
        check_like_weights("LSTM", "input", x, weight)
        if hx is None:
            return None
        hx = check_hx("LSTM", hx)
        LD, P, H = len(self._names), self.proj_size or self.hidden_size, self.hidden_size
        if batched:
            check_state("LSTM", "hx[0]", hx[0], "[L*D, B, P]", (LD, B, P), weight)
            check_state("LSTM", "hx[1]", hx[1], "[L*D, B, H]", (LD, B, H), weight)
            return hx
        check_state("LSTM", "hx[0]", hx[0], "[L*D, P]", (LD, P), weight)
        check_state("LSTM", "hx[1]", hx[1], "[L*D, H]", (LD, H), weight)
        return hx[0].unsqueeze(1), hx[1].unsqueeze(1)

    def _zeros(self, x: Tensor, *sizes: int) -> State:
        """Zeros of the weights' dtype to start from: h [*sizes, P] and c [*sizes, H]."""
        dtype = self._weight("weight_hh_l0").dtype
        c = x.new_zeros(*sizes, self.hidden_size, dtype=dtype)
        return (x.new_zeros(*sizes, self.proj_size, dtype=dtype) if self.proj_size else c), c

    def _states(self, x: Tensor, B: int, hx: State | None) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """h0 [B, P] and c0 [B, H] of every layer and direction."""
        if hx is not None:
            return hx[0].unbind(0), hx[1].unbind(0)
        h, c = self._zeros(x, B)
        return (h,) * len(self._names), (c,) * len(self._names)

    def _run(
        self, x: Tensor, h0: Sequence[Tensor], c0: Sequence[Tensor], last: Last, **masks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run all layers, time-major: x [T, B, I] to y [T, B, D*P], h_n [L*D, B, P] and c_n [L*D, B, H]."""
        D = 1 + self.bidirectional
        h_n: list[Tensor] = []
        c_n: list[Tensor] = []
        # torch.func has no hooks for what autograd saves, which checkpoint works by.
        recompute = self.recompute and torch.is_grad_enabled() and not in_func_transform()
        for layer in range(self.num_layers):
            if layer:
                x = F.dropout(x, self.dropout, self.training)
            arguments = layer, x, h0, c0, masks
            if recompute:
                states = checkpoint(self._run_layer, *arguments, use_reentrant=False)
            else:
                states = self._run_layer(*arguments)
            for i, (h, c) in enumerate(states, layer * D):
                h_n.append(last(h, h0[i], i % D == 1))
                c_n.append(last(c, c0[i], i % D == 1))
            x = torch.cat([h for h, _ in states], dim=-1) if D == 2 else states[0][0]
        return x, torch.stack(h_n), torch.stack(c_n)

    def _run_layer(
        self,
        layer: int,
        x: Tensor,
        h0: Sequence[Tensor],
        c0: Sequence[Tensor],
        masks: dict[str, Tensor | None],
    ) -> list[State]:
        """Run the directions of one layer: x [T, B, I] to h [T, B, P] and c [T, B, H] of each."""
        D = 1 + self.bidirectional
        first = layer * D
        if D == 2 and x.is_cuda and not self._is_custom() and not in_func_transform():
            return self._run_side_by_side(first, x, h0, c0, masks["lengths"])
        return [
            self._run_direction(i, x, h0[i], c0[i], reverse=i > first, **masks)
            for i in range(first, first + D)
        ]

    def _run_side_by_side(
        self, first: int, x: Tensor, h0: Sequence[Tensor], c0: Sequence[Tensor], lengths: Tensor | None
    ) -> list[State]:
        """Both directions of a layer, the first of which is `first`, in one call: see lstm_bidirectional."""
        xg, states, weights = [], [], []
        for i in (first, first + 1):
            w, state = self._weights(i), (h0[i], c0[i])
            dtype = compute_dtype(w.hh)
            if dtype is not None:
                w, x, state = w.to(dtype), x.to(dtype), (state[0].to(dtype), state[1].to(dtype))
            xg.append(F.linear(x, w.ih, w.bias))
            states.append(state)
            weights.append(w)
        h, c = ops.lstm_bidirectional(
            xg,
            [w.hh for w in weights],
            [h for h, _ in states],
            [c for _, c in states],
            w_hr=[w.hr for w in weights if w.hr is not None],
            lengths=lengths,
        )
        return [(h[0], c[0]), (h[1], c[1])]

    def _run_direction(self, index: int, x: Tensor, h0: Tensor, c0: Tensor, **options: Any) -> State:
        if not self._is_custom():
            return super()._run_direction(index, x, h0, c0, **options)
        w = self._weights(index)
        dtype = compute_dtype(w.hh)
        if dtype is None:
            return self._run_custom(index, w, x, h0, c0, **options)
        with torch.autocast(x.device.type, enabled=False):
            return self._run_custom(index, w.to(dtype), x.to(dtype), h0.to(dtype), c0.to(dtype), **options)

    def _run_custom(
        self,
        index: int,
        w: Weights,
        x: Tensor,
        h0: Tensor,
        c0: Tensor,
        **options: Any,
    ) -> State:
        """The cells of reference.lstm, with masks drawn here."""
        xg = F.linear(x, w.ih)
        norms = _Norms(None, None)
        if self.layer_norm:
            suffix = self._suffixes[index]
            ih, hh, c = (
                (
                    getattr(self, f"ln_{n}_weight{suffix}").to(x.dtype),
                    getattr(self, f"ln_{n}_bias{suffix}").to(x.dtype),
                )
                for n in ("ih", "hh", "c")
            )
            xg = F.layer_norm(xg, xg.shape[-1:], *ih, reference.LAYER_NORM_EPS)
            norms = _Norms(hh, c)
        bias = w.bias
        if bias is not None:
            xg = xg + bias

        def keep(p: float, size: int) -> Tensor | float:
            if not self.training or p == 0.0:
                return p
            return torch.rand(*x.shape[:2], size, device=x.device) < p

        keep_h, keep_c = keep(self.zoneout[0], h0.shape[-1]), keep(self.zoneout[1], c0.shape[-1])
        dropout_g = None
        if self.training and self.recurrent_dropout > 0:
            dropout_g = F.dropout(x.new_ones(*x.shape[:2], self.hidden_size), self.recurrent_dropout)
        return reference.lstm(
            xg,
            w.hh,
            h0,
            c0,
            w_hr=w.hr,
            ln_hh=norms.hh,
            ln_c=norms.c,
            keep_h=keep_h,
            keep_c=keep_c,
            dropout_g=dropout_g,
            **options,
        )

    def _is_custom(self) -> bool:
        return self.layer_norm or self.recurrent_dropout > 0 or any(self.zoneout)


class _Norms(NamedTuple):
    """Weights and biases of the layer normalisations inside the recurrence."""

    hh: State | None
    c: State | None

"""LSTM layers on the CPU as one operator: one with all its gradients, and for inference all of them.

Notation used for shapes:
    T  time steps    B  batch    I  input size    H  hidden size    P  size of h: H, or the projection's
    N  steps of all sequences together, the rows of a PackedSequence
    L  layers    D  directions
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lrcn_fast import reference
from lrcn_fast._packed_sizes import lstm_layer_bytes
from lrcn_fast.ops import cont_bytes, second_derivative

__all__ = ["lstm_cell_packed", "lstm_layer", "lstm_layer_pack", "lstm_packed"]


def lstm_layer(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    *,
    w_hr: Tensor | None = None,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    cont: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run ``ops.lstm(F.linear(x, w_ih, bias), w_hh, h0, c0, ...)`` in one call, on the CPU.

    Rows past a sequence's length cost nothing, forward or backward: they are neither projected nor summed
    into a gradient.

    Args:
        x: Input. [T, B, I], or [N, I] with ``batch_sizes``.
        w_ih: Input weight. [4H, I].
        w_hh: Recurrent weight. [4H, P].
        bias: Sum of both biases. [4H].
        h0: State before the first step. [B, P].
        c0: Cell before the first step. [B, H].
        w_hr: Projection of h. [P, H].
        lengths: As in :func:`lrcn_fast.ops.lstm`. [B].
        batch_sizes: Those of a PackedSequence whose data is x: sequences by falling length, and how many have
            a step t. Not together with lengths or cont. [T] int64.
        cont: As in :func:`lrcn_fast.ops.lstm`. [T, B].
        reverse: Run from each row's own last step to step 0.

    Returns:
        A tuple:

        - **h**: Hidden state after every step. [T, B, P] or [N, P].
        - **c**: Cell state after every step. [T, B, H] or [N, H].

    Dtypes and derivatives are those of :func:`lrcn_fast.ops.lstm`.

    Raises:
        ValueError: If a shape, dtype, device or length is wrong.
    """
    save_gates = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, w_ih, w_hh, bias, w_hr, h0, c0)
    )
    h, c, _ = torch.ops.lrcn_fast.lstm_layer.default(
        x.contiguous(),
        w_ih.contiguous(),
        w_hh.contiguous(),
        None if bias is None else bias.contiguous(),
        None if w_hr is None else w_hr.contiguous(),
        h0.contiguous(),
        c0.contiguous(),
        None if lengths is None else lengths.contiguous(),
        None if batch_sizes is None else batch_sizes.contiguous(),
        None if cont is None else cont_bytes(cont),
        reverse,
        save_gates,
    )
    return h, c


def lstm_layer_pack(
    w_ih: Tensor,
    w_hh: Tensor,
    w_hr: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Pack the weights of one direction of one layer for :func:`lstm_packed` and :func:`lstm_cell_packed`.

    The layout depends on the machine's instruction set: make it again, do not store it.

    Args:
        w_ih: Input weight, float32. [4H, I].
        w_hh: Recurrent weight, float32. [4H, P].
        w_hr: Projection of h, float32. [P, H].
        bias: Sum of both biases, float32. [4H].
        dtype: What the weights are rounded to: torch.float32, bfloat16, or int8 with one scale per row.

    Returns:
        The packed weights, uint8. [bytes].

    Raises:
        ValueError: If a shape or dtype is wrong, or int8 is asked for a weight that is not finite.
    """
    packed: Tensor = torch.ops.lrcn_fast.lstm_layer_pack(
        w_ih.contiguous(),
        w_hh.contiguous(),
        None if w_hr is None else w_hr.contiguous(),
        None if bias is None else bias.contiguous(),
        dtype,
    )
    return packed


def lstm_packed(
    x: Tensor,
    packed: Sequence[Tensor],
    h0: Tensor | None,
    c0: Tensor | None,
    *,
    hidden_size: int,
    proj_size: int = 0,
    bidirectional: bool = False,
    batch_first: bool = False,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    cont: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run all layers and directions of an LSTM with packed weights: inference on the CPU, float32.

    Args:
        x: Input. [T, B, I]; [B, T, I] with ``batch_first``; [N, I] with ``batch_sizes``.
        packed: :func:`lstm_layer_pack` of layer 0, its reverse, layer 1, ...
        h0: State before the first step. [L*D, B, P]. None with c0, and not with ``batch_sizes``: zeros.
        c0: Cell before the first step. [L*D, B, H].
        hidden_size: H.
        proj_size: P with a projection, else 0.
        bidirectional: Whether there are two directions.
        batch_first: Where the batch is in x and y.
        lengths: As in :func:`lrcn_fast.ops.lstm`. [B].
        batch_sizes: As in :func:`lstm_layer`. [T] int64.
        cont: As in :func:`lrcn_fast.ops.lstm`, [T, B] whatever the layout of x.

    Returns:
        A tuple:

        - **y**: h of the last layer, 0 past a row's length. [T, B, D*P], laid out as x.
        - **h_n**: h after each row's last step. [L*D, B, P].
        - **c_n**: The cell after it. [L*D, B, H].

    Raises:
        ValueError: If a shape, dtype, device or length is wrong.
    """
    y, h_n, c_n = torch.ops.lrcn_fast.lstm_packed.default(
        x.contiguous(),
        packed,
        None if h0 is None else h0.contiguous(),
        None if c0 is None else c0.contiguous(),
        None if lengths is None else lengths.contiguous(),
        None if batch_sizes is None else batch_sizes.contiguous(),
        None if cont is None else cont_bytes(cont),
        hidden_size,
        proj_size,
        bidirectional,
        batch_first,
    )
    return y, h_n, c_n


def lstm_cell_packed(x: Tensor, packed: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor]:
    """Take one step of one layer with packed weights: inference on the CPU, float32.

    Bit for bit :func:`lstm_packed` of one step, in fewer arguments, which a small step spends its time on.

    Args:
        x: Input. [B, I].
        packed: :func:`lstm_layer_pack` without a projection.
        h0: State before the step. [B, H].
        c0: Cell before the step. [B, H].

    Returns:
        A tuple:

        - **h**: State after the step. [B, H].
        - **c**: Cell after the step. [B, H].

    Raises:
        ValueError: If a shape, dtype or device is wrong.
    """
    h, c = torch.ops.lrcn_fast.lstm_cell_packed.default(
        x.contiguous(), packed, h0.contiguous(), c0.contiguous()
    )
    return h, c


@torch.library.register_fake("lrcn_fast::lstm_layer")
def _(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None,
    w_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    cont: Tensor | None,
    reverse: bool,
    save_gates: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, H = x.shape[:-1], c0.shape[1]
    gates = x.new_empty(*rows, 4 * H) if save_gates else x.new_empty(0)
    return x.new_empty(*rows, h0.shape[1]), x.new_empty(*rows, H), gates


@torch.library.register_fake("lrcn_fast::lstm_layer_pack")
def _(w_ih: Tensor, w_hh: Tensor, w_hr: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    (rows, P), I = w_hh.shape, w_ih.shape[1]  # noqa: E741
    return w_hh.new_empty(lstm_layer_bytes(I, rows // 4, P, w_hr is not None, dtype), dtype=torch.uint8)


@torch.library.register_fake("lrcn_fast::lstm_packed")
def _(
    x: Tensor,
    packed: list[Tensor],
    h0: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    cont: Tensor | None,
    hidden_size: int,
    proj_size: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    B = c0.shape[1] if c0 is not None else x.shape[0 if batch_first else 1]
    LD, P = len(packed), proj_size or hidden_size
    y = x.new_empty(*x.shape[:-1], (1 + bidirectional) * P)
    return y, x.new_empty(LD, B, P), x.new_empty(LD, B, hidden_size)


@torch.library.register_fake("lrcn_fast::lstm_cell_packed")
def _(x: Tensor, packed: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor]:
    return h0.new_empty(h0.shape), c0.new_empty(c0.shape)


@torch.library.register_fake("lrcn_fast::lstm_layer_backward")
def _(
    d_h: Tensor | None,
    d_c: Tensor | None,
    d_gates: Tensor | None,
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    w_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    cont: Tensor | None,
    h: Tensor,
    c: Tensor,
    gates: Tensor,
    reverse: bool,
    need_d_x: bool,
    need_d_h0: bool,
) -> tuple[Tensor, ...]:
    d_x = x.new_empty(x.shape if need_d_x else 0)
    d_w_hr = x.new_empty(0 if w_hr is None else w_hr.shape)
    d_weights = (w_ih.new_empty(w_ih.shape), w_hh.new_empty(w_hh.shape), x.new_empty(w_ih.shape[0]), d_w_hr)
    return d_x, *d_weights, h0.new_empty(h0.shape if need_d_h0 else 0), c0.new_empty(c0.shape)


# ---- gradients, as in ops.py -----------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w_ih, w_hh, bias, w_hr, h0, c0, lengths, batch_sizes, cont, reverse, save_gates = inputs
    ctx.set_materialize_grads(False)
    ctx.reverse, ctx.save_gates, ctx.has_bias = reverse, save_gates, bias is not None
    ctx.save_for_backward(x, w_ih, w_hh, w_hr, h0, c0, lengths, batch_sizes, cont, *output)


def _backward(
    ctx: Any, d_h: Tensor | None, d_c: Tensor | None, d_gates: Tensor | None
) -> tuple[Tensor | None, ...]:
    if not ctx.save_gates:
        raise RuntimeError("lstm_layer: save_gates must be True where a gradient is needed, got False")
    d_x, d_w_ih, d_w_hh, d_bias, d_w_hr, d_h0, d_c0 = torch.ops.lrcn_fast.lstm_layer_backward.default(
        *(None if d is None else d.contiguous() for d in (d_h, d_c, d_gates)),
        *ctx.saved_tensors,
        ctx.reverse,
        ctx.needs_input_grad[0],
        ctx.needs_input_grad[5],
    )
    return (
        d_x if ctx.needs_input_grad[0] else None,
        d_w_ih,
        d_w_hh,
        d_bias if ctx.has_bias else None,
        d_w_hr if ctx.needs_input_grad[4] else None,
        d_h0 if ctx.needs_input_grad[5] else None,
        d_c0,
        *(None,) * 5,
    )


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, reverse, _, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.reverse = reverse
    ctx.save_for_backward(*tensors)


def _backward_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    needs, reverse = ctx.needs_input_grad, ctx.reverse
    found = second_derivative(reference.lstm_layer_backward, ctx.saved_tensors, needs, reverse, grads)
    return (*found, None, None, None)


torch.library.register_autograd("lrcn_fast::lstm_layer", _backward, setup_context=_setup)
torch.library.register_autograd(
    "lrcn_fast::lstm_layer_backward", _backward_backward, setup_context=_backward_setup
)

"""Functional interface to the kernels. Stateless, differentiable, compilable.

Notation used for shapes in this package:
    T  time steps    B  batch    I  input size    H  hidden size    V  vocabulary
    P  size of h: H, or the projection's    N  outputs    K  inputs
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import lrcn_fast._library  # noqa: F401  (registers the operators)
from lrcn_fast import reference
from lrcn_fast._packed_sizes import HEADER_BYTES, linear_bytes, lstm_bytes

__all__ = ["linear", "linear_pack", "lstm", "lstm_bidirectional", "lstm_pack"]


def lstm(
    xg: Tensor,
    w_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    *,
    w_hr: Tensor | None = None,
    lengths: Tensor | None = None,
    cont: Tensor | None = None,
    reverse: bool = False,
    packed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Run an LSTM recurrence over a whole sequence in one fused kernel.

    .. math::
        z_t &= x^g_t + h_{t-1} W_{hh}^\top \\
        c_t &= \sigma(z_f) \odot c_{t-1} + \sigma(z_i) \odot \tanh(z_g) \\
        h_t &= W_{hr} (\sigma(z_o) \odot \tanh(c_t))

    The input projection is left to the caller, because it is a single GEMM that does not depend on time:
    ``xg = F.linear(x, w_ih, b_ih + b_hh)``. The last states are the caller's too: ``h[lengths - 1]``, or
    ``h[0]`` when reversed, and h0 where a length is 0.

    Args:
        xg: Input gates before the nonlinearity, in the order i, f, g, o. [T, B, 4H].
        w_hh: Recurrent weight, ``torch.nn.LSTM.weight_hh_l0``. [4H, P].
        h0: State before the first step. [B, P].
        c0: Cell before the first step. [B, H].
        w_hr: Projection of h, ``torch.nn.LSTM.weight_hr_l0``; without it P = H. [P, H].
        lengths: Steps of each row, int64, in 0..T. Past them h and c are 0 and xg and cont are not read. [B].
        cont: 0/1 of any dtype. Where it is 0 the step starts from a zero state instead of the previous one,
            and no gradient reaches the previous one; anything else counts as 1. [T, B].
        reverse: Run from each row's own last step to step 0.
        packed: ``lstm_pack(w_hh, w_hr)``, so that inference does not pack the weight again. Its values are
            used in place of w_hh and w_hr. CPU only.

    Returns:
        A tuple:

        - **h**: Hidden state after every step. [T, B, P].
        - **c**: Cell state after every step. [T, B, H].

    The floating-point arguments share one dtype and device: float32 (fused), float64 (the readable
    reference), bfloat16 or float16 (computed in float32). Differentiable twice.

    On the CPU a step whose rows all come from a zero state (of ``h0``, or reset by ``cont``) skips the
    product with ``w_hh``: a NaN or infinity there shows first in the step after.

    Raises:
        ValueError: If a shape, dtype, device or length is wrong, or ``packed`` is given where a gradient
            is needed.
    """
    save_gates = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (xg, w_hh, w_hr, h0, c0)
    )
    if save_gates and packed is not None:
        raise ValueError(
            "lstm: packed must be None where a gradient is needed, got a packed weight; "
            "use torch.no_grad(), or leave packed out"
        )
    h, c, _ = torch.ops.lrcn_fast.lstm(
        xg.contiguous(),
        w_hh.contiguous(),
        None if w_hr is None else w_hr.contiguous(),
        h0.contiguous(),
        c0.contiguous(),
        None if lengths is None else lengths.contiguous(),
        None if cont is None else cont_bytes(cont),
        packed,
        reverse,
        save_gates,
    )
    return h, c


def cont_bytes(cont: Tensor) -> Tensor:
    """Return markers of any dtype as the operators take them: bool or uint8, contiguous."""
    return (cont if cont.dtype in (torch.bool, torch.uint8) else cont != 0).contiguous()


def lstm_bidirectional(
    xg: Sequence[Tensor],
    w_hh: Sequence[Tensor],
    h0: Sequence[Tensor],
    c0: Sequence[Tensor],
    *,
    w_hr: Sequence[Tensor] = (),
    lengths: Tensor | None = None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Run two LSTM recurrences, the second of them with ``reverse``, side by side where the device can.

    Each result is what :func:`lstm` computes, and so is each gradient. On CUDA one kernel runs both, and one
    the backward pass of both, where it has room for both (the rule is in csrc/ops/cuda_plan.h). Everything
    else runs one after the other.

    Args:
        xg: Input gates of both, as in :func:`lstm`. 2 of [T, B, 4H].
        w_hh: Recurrent weights. 2 of [4H, P].
        h0: States before the first steps. 2 of [B, P].
        c0: Cells before the first steps. 2 of [B, H].
        w_hr: Projections of h, or nothing. 2 of [P, H].
        lengths: Steps of each row, in both directions. [B].

    Returns:
        A tuple:

        - **h**: Hidden state after every step. 2 of [T, B, P].
        - **c**: Cell state after every step. 2 of [T, B, H].

    Raises:
        ValueError: There are not two of each, their sizes differ, or what :func:`lstm` raises.
    """
    pairs = [xg, w_hh, w_hr, h0, c0]
    save_gates = torch.is_grad_enabled() and any(t.requires_grad for pair in pairs for t in pair)
    h, h_r, c, c_r, _, _ = torch.ops.lrcn_fast.lstm_bidirectional(
        *([t.contiguous() for t in pair] for pair in pairs),
        None if lengths is None else lengths.contiguous(),
        save_gates,
    )
    return (h, h_r), (c, c_r)


def lstm_pack(w_hh: Tensor, w_hr: Tensor | None = None, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rearrange recurrent weights for the CPU kernel, for inference.

    Args:
        w_hh: Recurrent weight, float32. [4H, P].
        w_hr: Projection of h, float32. [P, H].
        dtype: How to store them: torch.float32, torch.bfloat16, or torch.int8 with a scale per output. The
            arithmetic is float32, but for products with int8 weights, where h is rounded to 8-bit integers,
            at most 127 (without VNNI: 64), with a scale per 128 values of a row, and products of integers are
            added exactly; and with bfloat16 weights where :func:`lrcn_fast.runtime.isa` is avx512_bf16: there
            h is rounded to bfloat16.

    Returns:
        An opaque uint8 tensor for the ``packed`` argument of :func:`lstm`.

    Raises:
        ValueError: If a shape or dtype is wrong, or a weight is not finite and dtype is int8.
    """
    packed: Tensor = torch.ops.lrcn_fast.lstm_pack(
        w_hh.contiguous(), None if w_hr is None else w_hr.contiguous(), dtype
    )
    return packed


def linear_pack(w: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rearrange the weight of a linear layer for the CPU kernel, for inference.

    Args:
        w: ``torch.nn.Linear.weight``, float32. [N, K].
        dtype: How to store it, as in :func:`lstm_pack`.

    Returns:
        An opaque uint8 tensor for the ``packed`` argument of :func:`linear`.

    Raises:
        ValueError: If a shape or dtype is wrong, or the weight is not finite and dtype is int8.
    """
    packed: Tensor = torch.ops.lrcn_fast.linear_pack(w.contiguous(), dtype)
    return packed


def linear(x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """``F.linear`` with a packed weight, made for few rows. Inference on the CPU.

    A row's result does not depend on the rows beside it, nor on the number of threads, bit for bit.

    Args:
        x: Input, float32. [..., K].
        packed: ``linear_pack(w)`` of a weight [N, K].
        bias: Added to every row, float32. [N].
        out_features: N.

    Returns:
        ``x @ w.T + bias``. [..., N].

    Raises:
        NotImplementedError: If a gradient is asked for: a packed weight has none.
        ValueError: If a shape or dtype is wrong.
    """
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        raise NotImplementedError(
            "linear: a packed weight is for inference only, got an argument that requires a gradient; "
            "use torch.nn.functional.linear, or torch.no_grad()"
        )
    y: Tensor = torch.ops.lrcn_fast.linear(
        x.contiguous(), packed, None if bias is None else bias.contiguous(), out_features
    )
    return y


# ---- shapes: what the ops return, for tracing ------------------------------------------------------------


@torch.library.register_fake("lrcn_fast::lstm_pack")
def _(w_hh: Tensor, w_hr: Tensor | None, dtype: torch.dtype) -> Tensor:
    H, P = w_hh.shape[0] // 4, w_hh.shape[1]
    size = HEADER_BYTES + lstm_bytes(H, 0, P, dtype)
    if w_hr is not None:
        size += linear_bytes(P, H, dtype)
    return w_hh.new_empty(size, dtype=torch.uint8)


@torch.library.register_fake("lrcn_fast::linear_pack")
def _(w: Tensor, dtype: torch.dtype) -> Tensor:
    N, K = w.shape
    return w.new_empty(HEADER_BYTES + linear_bytes(N, K, dtype), dtype=torch.uint8)


@torch.library.register_fake("lrcn_fast::linear")
def _(x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.register_fake("lrcn_fast::lstm")
def _(
    xg: Tensor,
    w_hh: Tensor,
    w_hr: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    cont: Tensor | None,
    packed: Tensor | None,
    reverse: bool,
    save_gates: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    T, B, _ = xg.shape
    gates = xg.new_empty(xg.shape) if save_gates else xg.new_empty(0)
    return xg.new_empty(T, B, w_hh.shape[1]), xg.new_empty(T, B, c0.shape[1]), gates


@torch.library.register_fake("lrcn_fast::lstm_bidirectional")
def _(
    xg: list[Tensor],
    w_hh: list[Tensor],
    w_hr: list[Tensor],
    h0: list[Tensor],
    c0: list[Tensor],
    lengths: Tensor | None,
    save_gates: bool,
) -> tuple[Tensor, ...]:
    outputs = []
    for x, w, c in zip(xg, w_hh, c0, strict=True):
        T, B, _ = x.shape
        gates = x.new_empty(x.shape) if save_gates else x.new_empty(0)
        outputs.append((x.new_empty(T, B, w.shape[1]), x.new_empty(T, B, c.shape[1]), gates))
    return tuple(t for pair in zip(*outputs, strict=True) for t in pair)


@torch.library.register_fake("lrcn_fast::lstm_backward")
def _(
    d_h: Tensor,
    d_c: Tensor,
    d_gates: Tensor | None,
    w_hh: Tensor,
    w_hr: Tensor | None,
    gates: Tensor,
    c0: Tensor,
    c: Tensor,
    lengths: Tensor | None,
    cont: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_p = gates.new_empty(0) if w_hr is None else gates.new_empty(d_h.shape)
    d_h0 = gates.new_empty(c0.shape[0], w_hh.shape[1])
    return gates.new_empty(gates.shape), d_h0, gates.new_empty(c0.shape), d_p


@torch.library.register_fake("lrcn_fast::lstm_bidirectional_backward")
def _(
    d_h: list[Tensor],
    d_c: list[Tensor],
    d_gates: list[Tensor],
    w_hh: list[Tensor],
    w_hr: list[Tensor],
    gates: list[Tensor],
    c0: list[Tensor],
    c: list[Tensor],
    lengths: Tensor | None,
) -> tuple[Tensor, ...]:
    outputs = []
    for i in range(2):
        d_h0 = gates[i].new_empty(c0[i].shape[0], w_hh[i].shape[1])
        d_p = gates[i].new_empty(d_h[i].shape if w_hr else 0)
        outputs.append((gates[i].new_empty(gates[i].shape), d_h0, gates[i].new_empty(c0[i].shape), d_p))
    return tuple(t for pair in zip(*outputs, strict=True) for t in pair)


# ---- gradients -------------------------------------------------------------------------------------------
# h, c and the activated gates are all differentiable outputs of the forward op, so the backward op is a
# function of tensors that autograd knows, and its own gradient (a plain PyTorch formula) composes.


def _lstm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, w_hh, w_hr, h0, c0, lengths, cont, _, reverse, save_gates = inputs
    h, c, gates = output
    ctx.set_materialize_grads(False)
    ctx.reverse, ctx.save_gates = reverse, save_gates
    ctx.save_for_backward(w_hh, w_hr, h0, c0, lengths, cont, h, c, gates)


class _Saved(NamedTuple):
    """What the backward pass of one direction reads."""

    w_hh: Tensor
    w_hr: Tensor | None
    h0: Tensor
    c0: Tensor
    lengths: Tensor | None
    cont: Tensor | None
    h: Tensor
    c: Tensor
    gates: Tensor


def _lstm_backward(
    ctx: Any, d_h: Tensor | None, d_c: Tensor | None, d_gates: Tensor | None
) -> tuple[Tensor | None, ...]:
    if not ctx.save_gates:
        raise RuntimeError("lstm: save_gates must be True where a gradient is needed, got False")
    saved, wanted = _Saved(*ctx.saved_tensors), ctx.needs_input_grad[1:3]
    found = _run_backward(saved, ctx.reverse, d_h, d_c, d_gates)
    return *_gradients(saved, wanted, ctx.reverse, *found), None, None, None, None, None


def _run_backward(
    saved: _Saved, reverse: bool, d_h: Tensor | None, d_c: Tensor | None, d_gates: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d_xg, d_h0, d_c0 and d_p of one direction."""
    w_hh, w_hr, _, c0, lengths, cont, h, c, gates = saved
    found: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.lrcn_fast.lstm_backward(
        _dense(d_h, h),
        _dense(d_c, c),
        None if d_gates is None else d_gates.contiguous(),
        w_hh,
        w_hr,
        gates,
        c0,
        c,
        lengths,
        cont,
        reverse,
    )
    return found


def _dense(grad: Tensor | None, output: Tensor) -> Tensor:
    """The gradient of an output as a kernel reads it."""
    return torch.zeros_like(output) if grad is None else grad.contiguous()


def _gradients(
    saved: _Saved,
    wanted: Sequence[bool],
    reverse: bool,
    d_xg: Tensor,
    d_h0: Tensor,
    d_c0: Tensor,
    d_p: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
    """Those of xg, w_hh, w_hr, h0 and c0 in one direction; of the weights where they are wanted."""
    _, w_hr, h0, _, lengths, cont, h, c, gates = saved
    d_w_hh = d_w_hr = None
    if wanted[0]:  # sum over t of d_xg[t]^T @ h[t-1]: one GEMM over all T*B rows
        h_prev = reference.previous(h, h0, lengths, cont, reverse)
        d_w_hh = d_xg.flatten(0, 1).T @ h_prev.flatten(0, 1)  # [4H, P]
    if w_hr is not None and wanted[1]:
        u = gates[..., -c.shape[-1] :] * c.tanh()  # [T, B, H]
        d_w_hr = d_p.flatten(0, 1).T @ u.flatten(0, 1)  # [P, H]
    return d_xg, d_w_hh, d_w_hr, d_h0, d_c0


def _bidirectional_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, w_hh, w_hr, h0, c0, lengths, save_gates = inputs
    ctx.set_materialize_grads(False)
    ctx.save_gates = save_gates
    pairs = [w_hh, w_hr or (None, None), h0, c0, (lengths, lengths), (None, None)]
    pairs += [output[0:2], output[2:4], output[4:6]]
    ctx.save_for_backward(*(pair[i] for i in range(2) for pair in pairs))


def _bidirectional_backward(ctx: Any, *grads: Tensor | None) -> tuple[list[Tensor | None] | None, ...]:
    if not ctx.save_gates:
        raise RuntimeError("lstm: save_gates must be True where a gradient is needed, got False")
    saved = [_Saved(*half) for half in _halves(ctx.saved_tensors)]
    reached = [any(g is not None for g in grads[i::2]) for i in range(2)]
    if all(reached):
        both = _run_backward_of_both(saved, grads)
    found: list[tuple[Tensor | None, ...]] = []
    for i in range(2):
        if not reached[i]:
            found.append((None,) * 5)
            continue
        run = both[i::2] if all(reached) else _run_backward(saved[i], i == 1, *grads[i::2])
        wanted = [bool(pair) and pair[i] for pair in ctx.needs_input_grad[1:3]]
        found.append(_gradients(saved[i], wanted, i == 1, *run))
    d_xg, d_w_hh, d_w_hr, d_h0, d_c0 = (list(pair) for pair in zip(*found, strict=True))
    return d_xg, d_w_hh, d_w_hr if ctx.needs_input_grad[2] else [], d_h0, d_c0, None, None


def _halves(tensors: Sequence[Any]) -> tuple[Sequence[Any], ...]:
    """What was saved of one direction, and of the other."""
    size = len(tensors) // 2
    return tensors[:size], tensors[size:]


def _run_backward_of_both(saved: Sequence[_Saved], grads: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """d_xg of both directions, d_h0 of both, d_c0 and d_p."""
    w_hh, w_hr, _, c0, (lengths, _), _, h, c, gates = (list(pair) for pair in zip(*saved, strict=True))
    d_h, d_c, d_gates = (
        [_dense(g, output) for g, output in zip(grads[i : i + 2], outputs, strict=True)]
        for i, outputs in ((0, h), (2, c), (4, gates))
    )
    found: tuple[Tensor, ...] = torch.ops.lrcn_fast.lstm_bidirectional_backward(
        d_h,
        d_c,
        [] if grads[4] is None and grads[5] is None else d_gates,
        w_hh,
        [] if w_hr[0] is None else w_hr,
        gates,
        c0,
        c,
        lengths,
    )
    return found


def _lstm_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, reverse = inputs
    ctx.set_materialize_grads(False)
    ctx.reverse = reverse
    ctx.save_for_backward(*tensors)


def _lstm_backward_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    return (*second_derivative(reference.lstm_backward, ctx.saved_tensors, needs, ctx.reverse, grads), None)


def _bidirectional_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *pairs, lengths = inputs
    ctx.set_materialize_grads(False)
    pairs = [*(pair or (None, None) for pair in pairs), (lengths, lengths), (None, None)]
    ctx.save_for_backward(*(pair[i] for i in range(2) for pair in pairs))


def _bidirectional_backward_backward(
    ctx: Any, *grads: Tensor | None
) -> tuple[list[Tensor | None] | None, ...]:
    needs = ctx.needs_input_grad[:-1]
    found = [
        second_derivative(
            reference.lstm_backward, saved, [bool(pair) and pair[i] for pair in needs], i == 1, grads[i::2]
        )
        for i, saved in enumerate(_halves(ctx.saved_tensors))
    ]
    pairs = [list(pair) for pair in zip(*found, strict=True)]
    return *(pair if need else [] for pair, need in zip(pairs, needs, strict=False)), None


def second_derivative(
    formula: Callable[..., tuple[Tensor, ...]],
    saved: Sequence[Tensor | None],
    needs: Sequence[bool],
    reverse: bool,
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of a backward op's tensors, through the same function written in PyTorch.

    Args:
        formula: The function, of the tensors and ``reverse``.
        saved: The tensors.
        needs: Which of them a gradient is needed of, from the first on.
        reverse: The op's direction.
        grads: Gradients of its outputs.
    """
    # Views, so that a path from one argument to another outside this op is not counted again inside it.
    with torch.enable_grad():
        arguments: list[Any] = [None if t is None else t.view_as(t) for t in saved]
        outputs = formula(*arguments, reverse=reverse)
    wanted = [i for i, need in enumerate(needs[: len(arguments)]) if need]
    pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad]
    found: list[Tensor | None] = [None] * len(arguments)
    if pairs and wanted:
        values = torch.autograd.grad(
            [y for y, _ in pairs],
            [arguments[i] for i in wanted],
            [g for _, g in pairs],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
        for i, value in zip(wanted, values, strict=True):
            found[i] = value
    return found


torch.library.register_autograd("lrcn_fast::lstm", _lstm_backward, setup_context=_lstm_setup)
torch.library.register_autograd(
    "lrcn_fast::lstm_bidirectional", _bidirectional_backward, setup_context=_bidirectional_setup
)
torch.library.register_autograd(
    "lrcn_fast::lstm_backward", _lstm_backward_backward, setup_context=_lstm_backward_setup
)
torch.library.register_autograd(
    "lrcn_fast::lstm_bidirectional_backward",
    _bidirectional_backward_backward,
    setup_context=_bidirectional_backward_setup,
)


# ---- autocast --------------------------------------------------------------------------------------------
# torch.library.register_autocast takes one fixed dtype; these read the one the user asked for.


def _autocast(name: str, key: str, fixed: torch.dtype | None = None) -> None:
    op = getattr(torch.ops.lrcn_fast, name).default

    def rule(*args: Any) -> Any:
        device = (args[0][0] if isinstance(args[0], list) else args[0]).device.type
        dtype = fixed or torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return op(*(_cast(a, dtype) for a in args))

    _autocast_library.impl(name, rule, key)  # type: ignore[no-untyped-call]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Autocast's own rule: floating-point tensors other than float64."""
    if isinstance(value, list):
        return [_cast(v, dtype) for v in value]
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype is not torch.float64:
        return value.to(dtype)
    return value


_autocast_library = torch.library.Library("lrcn_fast", "IMPL")  # type: ignore[no-untyped-call]
_autocast("lstm", "AutocastCPU")
_autocast("lstm", "AutocastCUDA")
_autocast("lstm_bidirectional", "AutocastCPU")
_autocast("lstm_bidirectional", "AutocastCUDA")
_autocast("lstm_layer", "AutocastCPU")
_autocast("linear", "AutocastCPU", torch.float32)

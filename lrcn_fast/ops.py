"""Functional interface to the kernels. Stateless, differentiable, compilable.

Notation used for shapes in this package:
    T  time steps    B  batch    I  input size    H  hidden size    V  vocabulary
"""


import torch
from torch import Tensor

__all__ = ["lstm", "lstm_pack"]

import lrcn_fast._library  # noqa: F401  (registers the operators)


def lstm(
    xg: Tensor, w_hh: Tensor, h0: Tensor, c0: Tensor, *, packed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Run an LSTM recurrence over a whole sequence in one fused kernel.

    .. math::
        z_t &= x^g_t + h_{t-1} W_{hh}^\top \\
        c_t &= \sigma(z_f) \odot c_{t-1} + \sigma(z_i) \odot \tanh(z_g) \\
        h_t &= \sigma(z_o) \odot \tanh(c_t)

    The input projection is left to the caller, because it is a single GEMM that
    does not depend on time: ``xg = F.linear(x, w_ih, b_ih + b_hh)``.

    Args:
        xg: Input gates before the nonlinearity, in the order i, f, g, o. [T, B, 4H].
        w_hh: Recurrent weight, ``torch.nn.LSTM.weight_hh_l0``. [4H, H].
        h0: Initial hidden state. [B, H].
        c0: Initial cell state. [B, H].
        packed: ``lstm_pack(w_hh)``, to skip repacking a weight that has not changed.

    Returns:
        A tuple:

        - **h**: Hidden state after every step. [T, B, H].
        - **c**: Cell state after every step. [T, B, H].

    All arguments share one dtype and device. CPU: float32 (tuned) and float64.
    CUDA: float32, float16 and bfloat16, accumulating in float32.
    """
    save_gates = torch.is_grad_enabled() and any(t.requires_grad for t in (xg, w_hh, h0, c0))
    h, c, _ = torch.ops.lrcn_fast.lstm(
        xg.contiguous(), w_hh.contiguous(), h0.contiguous(), c0.contiguous(), packed, save_gates
    )
    return h, c


def lstm_pack(w_hh: Tensor) -> Tensor:
    """Rearrange a recurrent weight for the CPU kernel. [4H, H] -> [packed_size(H)]."""
    return torch.ops.lrcn_fast.lstm_pack(w_hh.contiguous())


@torch.library.register_fake("lrcn_fast::lstm_pack")
def _(w_hh: Tensor) -> Tensor:
    H = w_hh.shape[1]
    return w_hh.new_empty((H + 15) // 16 * H * 64)


@torch.library.register_fake("lrcn_fast::lstm")
def _(xg: Tensor, w_hh: Tensor, h0: Tensor, c0: Tensor, packed: Tensor | None, save_gates: bool):
    T, B, _ = xg.shape
    H = w_hh.shape[1]
    h = xg.new_empty(T, B, H)
    return h, torch.empty_like(h), xg.new_empty(T, B, 4 * H) if save_gates else xg.new_empty(0)


@torch.library.register_fake("lrcn_fast::lstm_backward")
def _(d_h: Tensor, d_c: Tensor, w_hh: Tensor, gates: Tensor, c0: Tensor, c: Tensor):
    return torch.empty_like(gates), torch.empty_like(c0), torch.empty_like(c0)


def _setup_context(ctx, inputs, output) -> None:
    _, w_hh, h0, c0, _, _ = inputs
    h, c, gates = output
    ctx.mark_non_differentiable(gates)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(w_hh, h0, c0, h, c, gates)


def _backward(ctx, d_h: Tensor | None, d_c: Tensor | None, _d_gates: None):
    w_hh, h0, c0, h, c, gates = ctx.saved_tensors
    d_h = torch.zeros_like(h) if d_h is None else d_h.contiguous()
    d_c = torch.zeros_like(c) if d_c is None else d_c.contiguous()
    d_xg, d_h0, d_c0 = torch.ops.lrcn_fast.lstm_backward(d_h, d_c, w_hh, gates, c0, c)

    # d_w_hh = sum_t d_xg[t]^T @ h[t-1]: one GEMM over all T*B rows.
    h_prev = torch.cat([h0.unsqueeze(0), h[:-1]])  # [T, B, H]
    d_w_hh = d_xg.flatten(0, 1).T @ h_prev.flatten(0, 1)  # [4H, H]
    return d_xg, d_w_hh, d_h0, d_c0, None, None


torch.library.register_autograd("lrcn_fast::lstm", _backward, setup_context=_setup_context)

"""A small two-layer LSTM with its inputs and gradients, for tests of what surrounds the numbers."""

import torch

from lrcn_fast import nn

T, B, I, H = 5, 3, 4, 16  # noqa: E741
LENGTHS = torch.tensor([5, 0, 2])
# As in test_nn_lstm.py: EPS_PER_STEP * T * layers * eps.
FLOAT = dict(rtol=0.5 * T * 2 * 1.2e-7, atol=0.5 * T * 2 * 1.2e-7)


def make(**options):
    torch.manual_seed(0)
    return nn.LSTM(I, H, num_layers=2, **options)


def inputs(**options):
    return torch.randn(T, B, I, generator=torch.Generator().manual_seed(1), **options)


def gradients(lstm, result):
    output, (h_n, c_n) = result
    return torch.autograd.grad(
        (output * output.detach().cos()).sum() + h_n.sum() + c_n.sum(), lstm.parameters()
    )

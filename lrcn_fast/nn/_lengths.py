"""Sequences of different lengths in one batch: their lengths checked, their last states picked."""

import torch
from torch import Tensor

from lrcn_fast.nn._checks import in_func_transform


def check_lengths(lengths: Tensor, x: Tensor, batched: bool) -> Tensor:
    """Return lengths [B] in 0..T."""
    T, B, _ = x.shape
    if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64:
        got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise ValueError(f"LSTM: lengths must be an int64 tensor, got {got}")
    if not batched and lengths.dim() == 0:
        lengths = lengths.unsqueeze(0)
    if lengths.shape != (B,):
        raise ValueError(f"LSTM: lengths must be [B] = [{B}], got {list(lengths.shape)}")
    if lengths.device != x.device:
        raise ValueError(
            f"LSTM: lengths must be on the device of the input, {x.device}, got {lengths.device}"
        )
    if lengths.device.type != "cpu" or in_func_transform():
        return lengths.clamp(0, T)  # a look at the values would wait for the device
    # A traced program cannot look either: there the operator does, when it runs.
    if not torch.compiler.is_compiling() and B and (int(lengths.min()) < 0 or int(lengths.max()) > T):
        raise ValueError(
            f"LSTM: lengths must be in 0..T = 0..{T}, got {int(lengths.min())}..{int(lengths.max())}"
        )
    return lengths


class Last:
    """The state after each row's last step, out of the states after every step."""

    def __init__(self, T: int, lengths: Tensor | None = None, *, rows: Tensor | None = None) -> None:
        self.T, self.lengths, self.rows = T, lengths, rows  # rows [B]: the last of packed states

    def __call__(self, values: Tensor, start: Tensor, reverse: bool) -> Tensor:
        """Pick from values [T, B, P], packed [N, P]; start [B, P] is the state of rows without steps."""
        if self.rows is not None:
            return values[: len(self.rows)] if reverse else values.index_select(0, self.rows)
        if self.lengths is None:
            return values[0] if reverse else values[-1]
        if reverse:
            last = values[0]
        else:
            index = (self.lengths - 1).clamp(0, self.T - 1).view(1, -1, 1).expand(1, *start.shape)
            last = values.gather(0, index).squeeze(0)
        return torch.where((self.lengths > 0).unsqueeze(-1), last, start.to(values.dtype))

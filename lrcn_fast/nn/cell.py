"""One LSTM step as a module."""

import torch
from torch import Tensor, nn

from lrcn_fast.nn._checks import check_flags, check_hx, check_like_weights, check_sizes, check_state
from lrcn_fast.nn._module import RecurrentModule
from lrcn_fast.ops_layer import lstm_cell_packed


class LSTMCell(RecurrentModule):
    """One LSTM step, a replacement for :class:`torch.nn.LSTMCell`: same parameters, same numbers.

    For a sequence that is known in advance :class:`lrcn_fast.nn.LSTM` is much faster: it projects all inputs
    at once and keeps the weights in cache from step to step.

    Args:
        input_size: Size of each input, I.
        hidden_size: Size of the state, H.
        bias: Whether to add ``bias_ih`` and ``bias_hh``.
        device: Where to make the parameters.
        dtype: Their type.

    Raises:
        ValueError: A size is not a positive int, or ``bias`` not a bool.

    Example:
        >>> cell = LSTMCell(10, 20)
        >>> h, c = cell(torch.randn(3, 10))
        >>> h.shape
        torch.Size([3, 20])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes("LSTMCell", input_size=input_size, hidden_size=hidden_size)
        check_flags("LSTMCell", bias=bias)
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.weight_ih = parameter(4 * hidden_size, input_size)
        self.weight_hh = parameter(4 * hidden_size, hidden_size)
        self.register_parameter("bias_ih", parameter(4 * hidden_size) if bias else None)
        self.register_parameter("bias_hh", parameter(4 * hidden_size) if bias else None)
        biases = ("bias_ih", "bias_hh") if bias else (None, None)
        self._names = [("weight_ih", "weight_hh", *biases, None)]
        self.reset_parameters()

    @classmethod
    def from_torch(cls, torch_cell: nn.LSTMCell) -> "LSTMCell":
        """Make a cell that shares the parameters of a :class:`torch.nn.LSTMCell`.

        Raises:
            ValueError: ``torch_cell`` is something else, or its weights are not plain parameters.
        """
        if not isinstance(torch_cell, nn.LSTMCell):
            raise ValueError(
                f"from_torch: torch_cell must be a torch.nn.LSTMCell, got {type(torch_cell).__name__}"
            )
        new = cls(torch_cell.input_size, torch_cell.hidden_size, torch_cell.bias, device="meta")
        new._share_parameters(torch_cell)
        return new

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            input: [B, I], or [I] for a single row.
            hx: ``(h, c)`` before the step, zeros if None. [B, H] each, or [H].

        Returns:
            A tuple:

            - **h**: Hidden state after the step. [B, H] or [H].
            - **c**: Cell state after the step. [B, H] or [H].

        Raises:
            ValueError: A shape or dtype does not fit the weights.
        """
        H = self.hidden_size
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"LSTMCell: input must be [B, I] or [I], I = {self.input_size}, got {list(input.shape)}"
            )
        weight = self._weight("weight_hh")
        check_like_weights("LSTMCell", "input", input, weight)
        batched = input.dim() == 2
        if hx is not None:
            hx = check_hx("LSTMCell", hx)
            layout, shape = ("[B, H]", (input.shape[0], H)) if batched else ("[H]", (H,))
            check_state("LSTMCell", "hx[0]", hx[0], layout, shape, weight)
            check_state("LSTMCell", "hx[1]", hx[1], layout, shape, weight)
        if not batched:
            input = input.unsqueeze(0)
            hx = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        if hx is None:
            zeros = input.new_zeros(input.shape[0], H, dtype=weight.dtype)
            hx = zeros, zeros
        h0, c0 = hx
        if self._reads_packs(weight, input, h0, c0):
            # float32 in and out whatever the input, as LSTM.
            h, c = lstm_cell_packed(input.float(), self._current_packs().weights[0], h0.float(), c0.float())
        else:
            h, c = self._run_direction(0, input.unsqueeze(0), h0, c0)  # [1, B, H]
            h, c = h.squeeze(0), c.squeeze(0)
            if h.requires_grad:
                # The op keeps h and c for backward; loops over cells write into their states (`h[done] = 0`).
                h, c = h.clone(), c.clone()
        return (h, c) if batched else (h[0], c[0])

    def extra_repr(self) -> str:
        """Sizes, and what differs from the defaults."""
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")

"""Checks of arguments that LSTM and LSTMCell share. Every error names its function and argument."""

import torch
from torch import Tensor


def check_sizes(name: str, **sizes: int) -> None:
    """Raise ValueError unless every size is a positive int."""
    for what, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
            raise ValueError(f"{name}: {what} must be a positive int, got {size!r}")


def check_flags(name: str, **flags: bool) -> None:
    """Raise ValueError unless every flag is a bool."""
    for what, flag in flags.items():
        if not isinstance(flag, bool):
            raise ValueError(f"{name}: {what} must be a bool, got {flag!r}")


def check_probability(name: str, what: str, p: float) -> float:
    """Return ``p`` as a float, or raise ValueError unless it is a number in [0, 1]."""
    if not isinstance(p, (int, float)) or isinstance(p, bool) or not 0 <= p <= 1:
        raise ValueError(f"{name}: {what} must be a number in [0, 1], got {p!r}")
    return float(p)


def compute_dtype(weight: Tensor) -> torch.dtype | None:
    """Return the dtype autocast asks to compute in, None outside autocast. Autocast leaves float64 alone."""
    device = weight.device.type
    if weight.dtype == torch.float64 or device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def in_func_transform() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp, ...) is running."""
    # A traced program shows none: there the tracer has taken the transform apart.
    return not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is not None


def check_like_weights(name: str, what: str, tensor: Tensor, weight: Tensor) -> None:
    """Raise ValueError unless ``tensor`` has the weights' device and, outside autocast, their dtype."""
    if tensor.dtype != weight.dtype and compute_dtype(weight) is None:
        raise ValueError(
            f"{name}: {what} must have the dtype of the weights, {weight.dtype}, got {tensor.dtype}"
        )
    if tensor.device != weight.device:
        raise ValueError(
            f"{name}: {what} must be on the device of the weights, {weight.device}, got {tensor.device}"
        )


def check_hx(name: str, hx: object) -> tuple[Tensor, Tensor]:
    """Return ``hx`` as a pair of tensors, or raise ValueError."""
    if not isinstance(hx, (tuple, list)) or len(hx) != 2 or not all(isinstance(s, Tensor) for s in hx):
        raise ValueError(f"{name}: hx must be a pair of tensors (h_0, c_0), got {type(hx).__name__}")
    return hx[0], hx[1]


def check_state(
    name: str, what: str, state: Tensor, layout: str, shape: tuple[int, ...], weight: Tensor
) -> None:
    """Raise ValueError unless ``state`` has this shape, which is ``layout``, and fits the weights."""
    if state.shape != shape:
        raise ValueError(f"{name}: {what} must be {layout} = {list(shape)}, got {list(state.shape)}")
    check_like_weights(name, what, state, weight)

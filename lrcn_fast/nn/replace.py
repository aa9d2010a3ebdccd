"""Swap the LSTMs of a model for this package's."""

from typing import TypeVar, cast

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from lrcn_fast.nn.cell import LSTMCell
from lrcn_fast.nn.lstm import LSTM

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def replace_lstm(module: ModuleT) -> ModuleT:
    """Swap every :class:`torch.nn.LSTM` and :class:`torch.nn.LSTMCell` in a model, in place.

    The new modules share the parameters of the old, so optimisers, checkpoints and tied weights go on
    working, and a module that was used in several places still is one module. Subclasses are left alone:
    they may compute something else.

    Args:
        module: The model.

    Returns:
        The model; if it is itself one of the two classes, the new module.

    Raises:
        ValueError: An LSTM's weights are not plain parameters (weight_norm, pruning, a parametrization).
            Nothing has been swapped then.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.LSTM(3, 5))
        >>> replace_lstm(model)
        Sequential(
          (0): LSTM(3, 5)
        )
    """
    new: dict[nn.Module, nn.Module] = {}
    for old in module.modules():
        kind = type_before_parametrizations(old)  # a parametrization makes a subclass; from_torch refuses it
        if kind is nn.LSTM:
            new[old] = LSTM.from_torch(cast(nn.LSTM, old))
        elif kind is nn.LSTMCell:
            new[old] = LSTMCell.from_torch(cast(nn.LSTMCell, old))
    for parent in module.modules():
        for name, child in list(parent._modules.items()):  # named_children() shows a shared child once
            if child in new:
                setattr(parent, name, new[child])
    return cast(ModuleT, new.get(module, module))

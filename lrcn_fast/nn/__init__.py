"""LSTM modules: torch.nn's interface, parameters and numbers, on the kernels of ``lrcn_fast.ops``."""

from lrcn_fast.nn.cell import LSTMCell
from lrcn_fast.nn.lstm import LSTM
from lrcn_fast.nn.replace import replace_lstm

__all__ = ["LSTM", "LSTMCell", "replace_lstm"]

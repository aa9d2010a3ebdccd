"""How large packed weights are, from shapes that may be symbolic: what tracing needs to know.

The layouts belong to csrc; each function names its twin there, and a test compares the two.
"""

from collections.abc import Sequence

import torch

__all__ = ["cuda_decoder_bytes", "decoder_bytes", "linear_bytes", "lstm_bytes", "lstm_layer_bytes"]

HEADER_BYTES = 64  # PackHeader in csrc/ops/packed.h
_DECODER_HEADER_BYTES = 256  # Header in csrc/core/decoder.cpp, padded
_CUDA_DECODER_HEADER_BYTES = 512  # kHeaderBytes in csrc/ops/cuda_decoder.cpp


def _panel_bytes(dtype: torch.dtype, *inputs: int) -> int:
    """``panel_bytes`` of csrc/core/linear.h: 64 outputs by inputs that come in parts."""
    per_word = 4 // dtype.itemsize
    words = sum((k + per_word - 1) // per_word for k in inputs)
    return (256 if dtype is torch.int8 else 0) + 256 * words


def linear_bytes(N: int, K: int, dtype: torch.dtype) -> int:
    """``linear_packed_bytes`` of csrc/core/linear.h."""
    return (N + 63) // 64 * _panel_bytes(dtype, K)


def lstm_bytes(H: int, kx: int, kh: int, dtype: torch.dtype) -> int:
    """``lstm_packed_bytes`` of csrc/core/lstm.h."""
    return (H + 15) // 16 * _panel_bytes(dtype, kx, kh)


def lstm_layer_bytes(I: int, H: int, P: int, projects: bool, dtype: torch.dtype) -> int:  # noqa: E741
    """``Parts`` of csrc/ops/cpu_lstm_packed.cpp, and the header."""
    size = HEADER_BYTES + (16 * H + 63) // 64 * 64
    size += lstm_bytes(H, I, 0, dtype) + lstm_bytes(H, 0, P, dtype)
    return size + (linear_bytes(P, H, dtype) if projects else 0)


def decoder_bytes(
    V: int,
    E: int,
    hidden: Sequence[int],
    F: int,
    static_layer: int,
    image_first: bool,
    dtype: torch.dtype,
    table: bool,
) -> int:
    """``decoder_packed_bytes`` of csrc/core/decoder.h."""

    def floats(n: int) -> int:
        return (n + 15) // 16 * 64  # every part starts on a cache line

    size = _DECODER_HEADER_BYTES + floats(V * (4 * hidden[0] if table else E))
    for kx, H in zip([0 if table else E, *hidden], hidden, strict=False):
        size += lstm_bytes(H, kx, H, dtype) + floats(4 * H)
    image = torch.bfloat16 if dtype is torch.int8 else dtype  # type_of_image
    if static_layer >= 0:
        size += linear_bytes(4 * hidden[static_layer], F, image)
    if image_first and table:
        size += linear_bytes(4 * hidden[0], E, image)
    exact = floats(V * hidden[-1]) if dtype is not torch.float32 else 0
    return size + linear_bytes(V, hidden[-1], dtype) + floats(V) + exact


def cuda_decoder_bytes(
    V: int,
    E: int,
    hidden: Sequence[int],
    F: int,
    static_layer: int,
    image_first: bool,
    dtype: torch.dtype,
    table: bool,
) -> int:
    """``decode_packed_bytes`` of csrc/cuda/decode.h, and the header."""

    def part(rows: int, columns: int, itemsize: int) -> int:
        return (rows * ((columns + 3) // 4 * 4) * itemsize + 15) // 16 * 16

    def weight(rows: int, columns: int) -> int:
        return part(rows, columns, dtype.itemsize)

    size = _CUDA_DECODER_HEADER_BYTES + (part(1, V * 4 * hidden[0], 4) if table else part(V, E, 4))
    for layer, (kx, H) in enumerate(zip([E, *hidden], hidden, strict=False)):
        size += (0 if layer == 0 and table else weight(4 * H, kx)) + weight(4 * H, H) + part(1, 4 * H, 4)
    if static_layer >= 0:
        size += weight(4 * hidden[static_layer], F)
    if image_first and table:
        size += weight(4 * hidden[0], E)
    return size + weight(V, hidden[-1]) + part(1, V, 4)

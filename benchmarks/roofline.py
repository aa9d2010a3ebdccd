"""How far from this machine's limit the kernels are: one packed matrix times M rows, and a whole beam search.

Beside each kernel run, in the same rounds, the two things that it cannot do without: reading its weights once
(a beam search: once a step), and its multiply-adds, in registers: of float32, for int8 weights of bytes where
one instruction multiplies those, for bfloat16 weights of pairs of bfloat16 where the kernels multiply those
(avx512_bf16: not where float32 is faster). The slower of the two is
the floor; `of the limit` is floor / kernel. Memory is read where the weights are too: in the caches if they
fit. The last case is what it costs to start threads and to join them.
"""

import copy
import ctypes
import functools
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import torch
from decode import WORDS, F, H, K, V, make_decoder

from lrcn_fast import ops
from lrcn_fast.runtime import isa

SOURCE = Path(__file__).with_suffix(".cpp")
MATRICES = ((4096, 1024), (8832, 1024))
ROWS = (1, 5, 16, 32, 128)
DTYPES = (torch.float32, torch.bfloat16, torch.int8)


@functools.cache
def library() -> ctypes.CDLL:
    """Compile the limits for this machine."""
    folder = tempfile.mkdtemp()
    target = f"{folder}/roofline.so"
    flags = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"]
    subprocess.run(["g++", "-std=c++17", *flags, str(SOURCE), "-o", target], check=True)
    found = ctypes.CDLL(target)
    found.roofline_read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    for dtype in DTYPES:
        _multiply_add(found, dtype).argtypes = [ctypes.c_int64, ctypes.c_int]
    found.roofline_fork.argtypes = [ctypes.c_int64, ctypes.c_int]
    return found


def _multiply_add(functions: ctypes.CDLL, dtype: torch.dtype) -> Any:
    if dtype == torch.bfloat16 and isa() != "avx512_bf16":
        dtype = torch.float32  # which they are widened to
    return getattr(functions, f"roofline_multiply_add_{str(dtype)[6:]}")


def limits(weights: int, times: int, multiply_adds: int, dtype: torch.dtype) -> harness.Variants:
    """The floor's two parts."""
    threads = torch.get_num_threads()
    num_bytes = weights * dtype.itemsize
    data = torch.ones(num_bytes // 4)
    run = _multiply_add(library(), dtype)
    return {
        "read": lambda: library().roofline_read(data.data_ptr(), num_bytes, times, threads),
        "multiply-add": lambda: run(multiply_adds, threads),
    }


def measure() -> Iterator[tuple[dict[str, Any], harness.Variants, Callable[[Any, Any], None]]]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    for N, C in MATRICES:
        w = torch.randn(N, C)
        for dtype in DTYPES:
            packed = ops.linear_pack(w, dtype=dtype)
            for M in ROWS:
                x = torch.randn(M, C)
                case = {"what": "linear", "M": M, "N": N, "K": C, "dtype": str(dtype)[6:], "threads": threads}
                kernel = functools.partial(ops.linear, x, packed, None, N)
                yield case, limits(N * C, 1, M * N * C, dtype) | {"lrcn_fast": kernel}, nothing
    decoder = make_decoder()
    weights = 4 * H * H + 4 * H * (H + H) + V * H
    for dtype in DTYPES:
        model = copy.deepcopy(decoder).prepare(str(dtype)[6:])
        for B in (1, 8):
            features = torch.randn(B, F, generator=torch.Generator().manual_seed(B))
            search = functools.partial(
                model.generate, features, num_beams=K, max_new_tokens=WORDS, suppress_tokens=(decoder.eos_id,)
            )
            # The first step has one row an image.
            rows = B * (K * (WORDS - 1) + 1)
            case = {"what": "beam search", "images": B, "dtype": str(dtype)[6:], "threads": threads}
            floor = limits(weights, WORDS, rows * weights, dtype)
            yield case, floor | {"lrcn_fast": search}, nothing
    fork = {"fork and join, 1000 times": lambda: library().roofline_fork(1000, threads)}
    yield {"what": "fork", "threads": threads}, fork, nothing


def nothing(actual: object, expected: object) -> None:
    """Limits have no result; those of the kernels are compared in the tests."""


def markdown(report: dict[str, Any]) -> str:
    """Time, floor and share of the limit, in Markdown."""
    lines = ["| case | rows | weights | read, ms | multiply-add, ms | lrcn_fast, ms | of the limit |"]
    lines.append("|---" * 7 + "|")
    for case in report["cases"]:
        what, variants = case["case"], case["variants"]
        if "lrcn_fast" not in variants:
            continue
        read, compute, ours = (variants[n]["us"] for n in ("read", "multiply-add", "lrcn_fast"))
        shares = [
            max(statistics.median(r), statistics.median(c)) / statistics.median(o)
            for r, c, o in zip(read, compute, ours, strict=True)
        ]
        if what["what"] == "linear":
            name, rows = f"[{what['N']}, {what['K']}]", f"{what['M']}"
        else:
            name, rows = "beam search", f"{what['images']} x {K}"
        times = (variants[n]["median_us"] / 1e3 for n in ("read", "multiply-add", "lrcn_fast"))
        lines.append(
            f"| {name} | {rows} | {what['dtype']} | {' | '.join(f'{t:.3g}' for t in times)} "
            f"| {statistics.median(shares):.0%} ({min(shares):.0%}-{max(shares):.0%}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    harness.main(__file__, "roofline", measure)

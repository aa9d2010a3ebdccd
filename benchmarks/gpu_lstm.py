"""LSTM layer on a GPU: torch.nn.LSTM (cuDNN), the same in a CUDA graph, and lrcn_fast in both ways.

Question: how much faster is ``lrcn_fast.nn.LSTM`` than ``torch.nn.LSTM``, forward and in training?
Each row names the cuDNN algorithm PyTorch lets cuDNN use for it, since that decides how good the baseline is.
"""

import os
from collections.abc import Callable, Iterator

import harness
import torch
from torch import Tensor, nn

from lrcn_fast.nn import LSTM

# T, B, I = H, dtype. The first rows are LRCN's own sizes: captions (T=20, H=1000) and actions (T=16, H=256).
SIZES = [
    (20, 100, 1000, torch.float32),
    (20, 100, 1000, torch.bfloat16),
    (16, 24, 256, torch.float32),
    (100, 1, 512, torch.bfloat16),
    (100, 8, 512, torch.bfloat16),
    (100, 32, 512, torch.bfloat16),
    (100, 8, 1024, torch.bfloat16),
    (100, 32, 1024, torch.float16),
    (100, 64, 1024, torch.bfloat16),
    (100, 8, 128, torch.float32),
    (1024, 16, 768, torch.float16),
]
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # float32 runs as TF32


def cudnn_algorithm(B: int, H: int, dtype: torch.dtype) -> str:
    """What aten/src/ATen/native/cudnn/RNN.cpp picks for one unidirectional layer with I = H, unpacked."""
    if dtype == torch.float16 and H % 128 == 0 and H <= 1024 and B % 8 == 0 and B <= 128:
        return "PERSIST_STATIC"
    if H <= 128:
        return "PERSIST_STATIC_SMALL_H"
    if H <= 192:
        return "PERSIST_STATIC_SMALL_H forward, STANDARD backward"
    return "STANDARD"


def _close(dtype: torch.dtype) -> Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], None]:
    def check(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
        for a, e in zip(actual, expected, strict=True):
            scale = max(1.0, e.abs().max().item())
            torch.testing.assert_close(a.float(), e.float(), rtol=0, atol=TOLERANCE[dtype] * scale)

    return check


def _graphed(run: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
    """Capture run() once; every call replays it and returns the same tensors."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return out

    return replay


def _forward(module: nn.Module, x: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    def run() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (module(x)[0],)

    return run


def _train(module: nn.Module, x: Tensor, d_y: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    x = x.clone().requires_grad_()
    wanted = [x, *module.parameters()]

    def run() -> tuple[Tensor, ...]:
        y, _ = module(x)
        return y, *torch.autograd.grad(y, wanted, d_y)

    return run


def measure() -> Iterator[tuple[dict[str, object], harness.Variants, Callable[[object, object], None]]]:
    torch.backends.cuda.matmul.allow_tf32 = True  # as torch.backends.cudnn.allow_tf32 is by default
    for T, B, H, dtype in SIZES:
        torch.manual_seed(0)
        peer = nn.LSTM(H, H).to("cuda", dtype)
        ours = LSTM.from_torch(peer)
        x = torch.randn(T, B, H, device="cuda", dtype=dtype)
        d_y = torch.randn(T, B, H, device="cuda", dtype=dtype) / (T * B) ** 0.5
        for what in ("forward", "train"):
            runs = {
                name: _forward(m.eval(), x) if what == "forward" else _train(m.train(), x, d_y)
                for name, m in (("torch.nn.LSTM", peer), ("lrcn_fast", ours))
            }
            variants = {
                "torch.nn.LSTM": runs["torch.nn.LSTM"],
                "torch.nn.LSTM, graph": _graphed(runs["torch.nn.LSTM"]),
                "lrcn_fast": runs["lrcn_fast"],
                "lrcn_fast, graph": _graphed(runs["lrcn_fast"]),
            }
            if dtype != torch.float32:  # what the persistent kernels are worth
                os.environ["LRCN_FAST_LSTM_PLAN"] = "step"
                variants["lrcn_fast, graph, plan step"] = _graphed(runs["lrcn_fast"])
                del os.environ["LRCN_FAST_LSTM_PLAN"]
            case = {"what": what, "T": T, "B": B, "H": H, "dtype": str(dtype).removeprefix("torch.")}
            case["cudnn"] = cudnn_algorithm(B, H, dtype)
            yield case, variants, _close(dtype)


if __name__ == "__main__":
    harness.main(__file__, "gpu-lstm", measure)

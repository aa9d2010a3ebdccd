"""LSTM layer on a GPU: torch.nn.LSTM (cuDNN), the same in a CUDA graph, and lrcn_fast in both ways.

Question: how much faster is ``lrcn_fast.nn.LSTM`` than ``torch.nn.LSTM``, forward and in training, and which
of its plans is the fastest where? Each row names the kernels cuDNN ran, because its algorithm decides
how good the baseline is. float32 comes with torch's TF32 switches on and off.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import harness
import torch
from torch import Tensor, nn

from lrcn_fast.nn import LSTM

# T, B, I = H, dtype. The first rows are LRCN's own sizes: captions (T=20, H=1000) and actions (T=16, H=256).
SIZES = [
    (20, 100, 1000, "tf32"),
    (20, 100, 1000, "float32"),
    (20, 100, 1000, "bfloat16"),
    (16, 24, 256, "tf32"),
    (16, 24, 256, "float32"),
    (100, 8, 128, "float32"),
    (100, 8, 128, "bfloat16"),
    (100, 1, 512, "bfloat16"),
    (100, 32, 512, "bfloat16"),
    (100, 8, 1024, "bfloat16"),
    (100, 32, 1024, "float16"),
    (200, 16, 768, "float16"),
]
TOLERANCE = {"tf32": 5e-3, "float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
PLANS = ("step", "block", "cluster", "grid")


def _close(kind: str) -> Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], None]:
    def check(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
        for a, e in zip(actual, expected, strict=True):
            scale = max(1.0, e.abs().max().item())
            torch.testing.assert_close(a.float(), e.float(), rtol=0, atol=TOLERANCE[kind] * scale)

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


def _with_plan(run: Callable[[], tuple[Tensor, ...]], plan: str) -> Callable[[], tuple[Tensor, ...]] | None:
    """run() captured under one plan, or None where the plan does not take it."""
    os.environ["LRCN_FAST_LSTM_PLAN"] = plan
    try:
        run()
        return _graphed(run)
    except ValueError:
        return None
    finally:
        del os.environ["LRCN_FAST_LSTM_PLAN"]


def kernels(run: Callable[[], object]) -> list[str]:
    """Names of the kernels of one call, those that took longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda e: -e.device_time_total)
    return [f"{e.key[:80]} x{e.count}" for e in events[:4]]


def measure() -> Iterator[tuple[dict[str, Any], harness.Variants, Any]]:
    baselines: list[tuple[dict[str, Any], bool, Callable[[], object]]] = []
    for T, B, H, kind in SIZES:
        tf32 = kind == "tf32"
        _switch(tf32)
        dtype = torch.float32 if tf32 else getattr(torch, kind)
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
            variants: harness.Variants = {
                "torch.nn.LSTM": runs["torch.nn.LSTM"],
                "torch.nn.LSTM, graph": _graphed(runs["torch.nn.LSTM"]),
                "lrcn_fast": runs["lrcn_fast"],
                "lrcn_fast, graph": _graphed(runs["lrcn_fast"]),
            }
            for plan in PLANS:
                run = _with_plan(runs["lrcn_fast"], plan)
                if run is not None:
                    variants[f"graph, plan {plan}"] = run
            case: dict[str, Any] = {"what": what, "T": T, "B": B, "H": H, "dtype": kind}
            baselines.append((case, tf32, runs["torch.nn.LSTM"]))
            yield case, variants, _close(kind)
    for case, tf32, baseline in baselines:  # after everything is timed: a profiler may leave the GPU slower
        _switch(tf32)
        case["cudnn"] = kernels(baseline)


def _switch(tf32: bool) -> None:
    """Torch's two switches: ours follows the one of matrix products, cuDNN the other."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


if __name__ == "__main__":
    harness.main(__file__, "gpu-lstm", measure, gpu=True)

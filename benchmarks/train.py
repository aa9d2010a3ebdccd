"""A training step of nn.LSTM on the CPU, forward and backward, against torch.nn.LSTM.

One layer, I = H, gradients of all parameters. Two questions: T = 20 steps over the grid of lstm.py, in
float32 and in bfloat16 under autocast; and rows of 1 to 500 steps in float32, as a PackedSequence or, ours,
with `lengths`.

Weights are packed in every step, by torch as by us. torch trains an LSTM under bfloat16 autocast only where
the CPU has instructions for it; elsewhere its float32 is what there is to compare with. torch.compile is no
variant: see lstm.py. Gradients, each as a share of the largest of its parameter, must match torch's float32
to 1e-5 (ten times that over 500 steps), and to 0.05 in bfloat16. With LRCN_FAST_ISA set torch's bfloat16 is
left out.
"""

from collections.abc import Callable, Iterator
from typing import Any

import harness
import torch
from lstm import LONGEST, SIZES, T, long_rows, with_precision
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lrcn_fast.nn import LSTM

TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}


def measure() -> Iterator[tuple[dict[str, Any], harness.Variants, harness.Check]]:
    for H, B in SIZES:
        torch.manual_seed(H + B)
        lstm = nn.LSTM(H, H)
        x = torch.randn(T, B, H)
        ours = LSTM.from_torch(lstm)
        variants: harness.Variants = {"torch float32": step(lstm, lambda m, x=x: m(x)[0])}
        if not harness.forced_isa() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            variants["torch bfloat16"] = step(lstm, lambda m, x=x: m(x)[0], autocast=True)
        variants["lrcn_fast float32"] = step(ours, lambda m, x=x: m(x)[0])
        variants["lrcn_fast bfloat16"] = step(ours, lambda m, x=x: m(x)[0], autocast=True)
        yield {"what": "training step", "T": T, "B": B, "I=H": H}, with_precision(variants), check
    lstm = nn.LSTM(512, 512)
    x, lengths = long_rows(32, 512)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    ours = LSTM.from_torch(lstm)
    variants = {
        "torch PackedSequence float32": step(lstm, lambda m: m(packed)[0].data),
        "lrcn_fast lengths float32": step(ours, lambda m: m(x, lengths=lengths)[0]),
        "lrcn_fast PackedSequence float32": step(ours, lambda m: m(packed)[0].data),
    }
    yield {"what": "lengths", "T": f"1..{LONGEST}", "B": 32, "I=H": 512}, with_precision(variants), check_long


def step(
    module: nn.Module, forward: Callable[[nn.Module], Tensor], *, autocast: bool = False
) -> Callable[[], tuple[Tensor, ...]]:
    """Forward, a loss, and the gradients of the parameters."""
    module.train()
    parameters = list(module.parameters())

    def run() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = forward(module)
        return torch.autograd.grad(y.float().square().sum(), parameters)

    return run


Result = tuple[str, tuple[Tensor, ...]]


def check(actual: Result, expected: Result, growth: float = 1) -> float:
    """Compare shares of the largest gradient of a parameter; return the relative error (root mean square)."""
    precision = actual[0]
    gradients, true = (torch.cat([(g / g.abs().max()).flatten() for g in r[1]]) for r in (actual, expected))
    tolerance = growth * TOLERANCE[precision]
    torch.testing.assert_close(gradients, true, rtol=tolerance, atol=tolerance)
    return ((gradients - true).norm() / true.norm()).item()


def check_long(actual: Result, expected: Result) -> float:
    return check(actual, expected, growth=10)


if __name__ == "__main__":
    harness.main(__file__, "train", measure, case_seconds=3)

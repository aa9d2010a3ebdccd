"""nn.LSTM on the CPU, inference: against torch.nn.LSTM, ONNX Runtime and OpenVINO.

Three questions, one layer with I = H each, in float32, bfloat16 and int8:

inference: T = 20 steps over a grid of H and B, with the floors of roofline.py beside it: reading the
    recurrent weights every step and the input weights once, and all multiply-adds.
streaming: 20 frames one at a time (B = 1), the state carried from call to call.
lengths: rows of 1 to 500 steps; torch takes a PackedSequence, made beforehand, as do we, or `lengths`.

torch runs in eval mode under no_grad (its inference primitive); the other peers are described in peers.py;
ours are packed by prepare(). torch.compile is no variant of its own: Dynamo does not trace torch.nn.LSTM,
so it is the same call (1.06 against 1.01 ms, H = 256). Packing and conversion are not timed. Results must
match torch's float32: to 1e-5 in float32 (ten times that over 500 steps), 0.02 in bfloat16, 0.05 with int8
weights. With LRCN_FAST_ISA set only torch and ours are timed: the others do not depend on it.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import harness
import numpy as np
import peers
import roofline
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lrcn_fast.nn import LSTM, LSTMCell
from lrcn_fast.runtime import LstmStream

T = 20
SIZES = [(H, B) for H in (256, 512, 1000, 1024) for B in (1, 5, 32, 128)]
PRECISIONS = ("float32", "bfloat16", "int8")
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.05}
LONGEST = 500

Step = Callable[[Tensor, tuple[Tensor, Tensor]], tuple[Tensor, tuple[Tensor, Tensor]]]


def measure() -> Iterator[tuple[dict[str, Any], harness.Variants, harness.Check]]:
    for H, B in SIZES:
        torch.manual_seed(H + B)
        lstm = nn.LSTM(H, H).eval()
        x = torch.randn(T, B, H)
        yield {"what": "inference", "T": T, "B": B, "I=H": H}, inference(lstm, x), check
    lstm, x = nn.LSTM(512, 512).eval(), torch.randn(T, 1, 512)
    yield {"what": "streaming", "frames": T, "B": 1, "I=H": 512}, streaming(lstm, x), check
    x, lengths = long_rows(32, 512)
    case = {"what": "lengths", "T": f"1..{LONGEST}", "B": 32, "I=H": 512}
    yield case, with_lengths(lstm, x, lengths), check


def inference(lstm: nn.LSTM, x: Tensor) -> harness.Variants:
    variants: harness.Variants = {"torch float32": no_grad(lambda: lstm(x)[0])}
    if not harness.forced_isa():
        low, low_x = copy.deepcopy(lstm).bfloat16(), x.bfloat16()
        small = peers.torch_int8(lstm)
        variants["torch bfloat16"] = no_grad(lambda: low(low_x)[0])
        variants["torch int8"] = no_grad(lambda: small(x)[0])
        feeds = {"x": x.numpy()}
        for name, run in peers.onnx_runs(lstm, feeds, PRECISIONS).items():
            variants[name] = lambda run=run: torch.from_numpy(run(feeds)[0]).squeeze(1)
    for precision in PRECISIONS:
        ours = prepared(LSTM.from_torch(lstm), precision)
        variants[f"lrcn_fast {precision}"] = no_grad(lambda ours=ours: ours(x)[0])
    variants = with_precision(variants)
    if not harness.forced_isa():
        variants |= floors(x.shape[1], lstm.hidden_size)
    return variants


def floors(B: int, H: int) -> harness.Variants:
    """What no kernel can do without, of roofline.py: to read the weights, and the multiply-adds."""
    weights = 4 * H * H  # of the recurrence, and as many of the input
    found: harness.Variants = {}
    for precision in PRECISIONS:
        limits = roofline.limits(weights, T + 1, T * B * 2 * weights, getattr(torch, precision))
        found |= {f"{name} {precision}": run for name, run in limits.items()}
    return found


def streaming(lstm: nn.LSTM, x: Tensor) -> harness.Variants:
    H = lstm.hidden_size
    zeros = torch.zeros(1, 1, H)
    torch_cell, our_cell = nn.LSTMCell(H, H).eval(), LSTMCell(H, H)
    for cell in (torch_cell, our_cell):
        cell.load_state_dict({name.removesuffix("_l0"): w for name, w in lstm.state_dict().items()})

    def carried(step: Step, start: Tensor = zeros) -> Callable[[], Tensor]:
        frames = x.to(start.dtype).split(1)

        def run() -> Tensor:
            out, state = [], (start, start)
            for frame in frames:
                y, state = step(frame, state)
                out.append(y)
            return torch.cat(out)

        return no_grad(run)

    def carried_by_cell(cell: nn.Module) -> Callable[[], Tensor]:
        def step(frame: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            h, c = cell(frame[0], state)
            return h[None], (h, c)

        return carried(step, zeros[0])

    def carried_by_onnx(run: peers.Run) -> Callable[[], Tensor]:
        def stream() -> Tensor:
            out, h, c = [], zeros.numpy(), zeros.numpy()
            for frame in arrays:
                y, h, c = run({"x": frame, "h": h, "c": c})
                out.append(y.copy())
            return torch.from_numpy(np.concatenate(out)).squeeze(1)

        return stream

    def carried_by_stream(stream: LstmStream) -> Callable[[], Tensor]:
        def run() -> Tensor:
            stream.reset()
            return torch.from_numpy(np.stack([stream.step(frame[0]) for frame in arrays]))

        return run

    arrays = [frame.numpy() for frame in x.split(1)]
    variants: harness.Variants = {"torch float32": carried(lstm)}
    if not harness.forced_isa():
        variants["torch LSTMCell float32"] = carried_by_cell(torch_cell)
        variants["torch bfloat16"] = carried(copy.deepcopy(lstm).bfloat16(), zeros.bfloat16())
        variants["torch int8"] = carried(peers.torch_int8(lstm))
        feeds = {"x": arrays[0], "h": zeros.numpy(), "c": zeros.numpy()}
        for name, run in peers.onnx_runs(lstm, feeds, PRECISIONS).items():
            variants[name] = carried_by_onnx(run)
    bias = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().numpy()
    weights = [w.detach().numpy() for w in (lstm.weight_hh_l0, lstm.weight_ih_l0)]
    for precision in PRECISIONS:
        stream = LstmStream(
            weights[0],
            1,
            w_ih=weights[1],
            bias=bias,
            dtype=precision,
            threads=torch.get_num_threads(),
        )
        variants[f"lrcn_fast nn.LSTM {precision}"] = carried(prepared(LSTM.from_torch(lstm), precision))
        variants[f"lrcn_fast LSTMCell {precision}"] = carried_by_cell(
            prepared(copy.deepcopy(our_cell), precision)
        )
        variants[f"lrcn_fast LstmStream {precision}"] = carried_by_stream(stream)
    return with_precision(variants)


def long_rows(B: int, size: int) -> tuple[Tensor, Tensor]:
    """Padded rows [T, B, size], and their lengths [B], uniform in 1..LONGEST."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, LONGEST + 1, (B,), generator=generator)
    return torch.randn(int(lengths.max()), B, size, generator=generator), lengths


def with_lengths(lstm: nn.LSTM, x: Tensor, lengths: Tensor) -> harness.Variants:
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    ours = prepared(LSTM.from_torch(lstm), "float32")
    variants: harness.Variants = {"torch PackedSequence float32": no_grad(lambda: lstm(packed)[0])}
    if not harness.forced_isa():
        feeds = {"x": x.numpy(), "lengths": lengths.int().numpy()}
        for name, run in peers.onnx_runs(lstm, feeds, ("float32",)).items():
            variants[name] = lambda run=run: torch.from_numpy(run(feeds)[0]).squeeze(1)
    variants["lrcn_fast lengths float32"] = no_grad(lambda: ours(x, lengths=lengths)[0])
    variants["lrcn_fast PackedSequence float32"] = no_grad(lambda: ours(packed)[0])
    return with_precision(variants)


def prepared(ours: Any, precision: str) -> Any:
    """One of our modules, in eval mode, with its weights packed."""
    return ours.eval().prepare(precision)


def no_grad(run: Callable[[], Any]) -> Callable[[], Any]:
    return torch.no_grad()(run)


def with_precision(variants: harness.Variants) -> harness.Variants:
    """The variants, which then return their precision too: `check` must know it."""

    def both(name: str, run: Callable[[], object]) -> tuple[str, object]:
        return name.partition(",")[0].split()[-1], run()

    return {name: functools.partial(both, name, run) for name, run in variants.items()}


def check(actual: Any, expected: tuple[str, Any]) -> float | None:
    """Compare, and return the relative error (root mean square). Floors have no result."""
    if not isinstance(actual, tuple):
        return None
    tolerance = TOLERANCE[actual[0]]
    y, e = (_padded(result[1]) for result in (actual, expected))
    if len(e) > T:
        tolerance *= 10
    torch.testing.assert_close(y, e, rtol=tolerance, atol=tolerance)
    return ((y - e).norm() / e.norm()).item()


def _padded(y: Tensor | PackedSequence) -> Tensor:
    return (pad_packed_sequence(y)[0] if isinstance(y, PackedSequence) else y).float()


if __name__ == "__main__":
    harness.main(__file__, "lstm", measure, case_seconds=3)

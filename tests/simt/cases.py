"""Inputs, float64 references and checks of the kernels, for the tests of every schedule."""

import dataclasses

import numpy as np
import torch

EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
DTYPES = tuple(EPS)
# lrcn::cuda::Dtype
CODE = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}


def bf16(x):
    """Round to the nearest bfloat16, as uint16 bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def widen(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def stored(x, dtype):
    """x as an array of a storage type; bfloat16 as bits."""
    out = aligned(np.shape(x), np.uint16 if dtype == "bfloat16" else dtype)
    out[...] = bf16(x) if dtype == "bfloat16" else x
    return out


def value(x, dtype):
    """The float64 values of a stored array."""
    return (widen(x) if dtype == "bfloat16" else x).astype(np.float64)


def state_type(dtype):
    return np.float64 if dtype == "float64" else np.float32


def blank(shape, dtype):
    """An array whose every element is a NaN, so that what a kernel leaves out is seen."""
    if dtype == "bfloat16":
        return np.full(shape, 0x7FC0, np.uint16)
    return np.full(shape, np.nan, dtype)


def aligned(shape, dtype):
    """Zeros that start on 16 bytes, as cudaMalloc would give, and some way from any other array."""
    bytes_, margin = int(np.prod(shape)) * np.dtype(dtype).itemsize, 256
    raw = np.zeros(bytes_ + 2 * margin, np.uint8)
    offset = margin - raw.ctypes.data % 16
    return raw[offset : offset + bytes_].view(dtype).reshape(shape)


@dataclasses.dataclass(frozen=True)
class Lstm:
    """One LSTM call: sizes and everything optional about it."""

    T: int
    B: int
    H: int
    dtype: str = "float32"
    P: int = 0  # a projection, if not 0
    lengths: tuple | None = None
    cont: bool = False
    reverse: bool = False
    gates: bool = True  # they are saved, and the backward pass is run
    d_gates: bool = True  # they have a gradient of their own
    groups: int = 0  # of blocks, for the plan "grid"
    blocks: int = 0  # of a cluster, for the plans "block" (1) and "cluster"; 0 in both: the plan "step"
    both: bool = False  # another call, in the other direction, beside it
    seed: int = 0

    def __str__(self):
        flags = [f"P{self.P}"] * bool(self.P) + ["lengths"] * bool(self.lengths) + ["cont"] * self.cont
        flags += (
            [f"grid{self.groups}"] * bool(self.groups)
            + [f"cluster{self.blocks}"] * bool(self.blocks)
            + ["reverse"] * self.reverse
            + ["both"] * self.both
            + ["forward"] * (not self.gates)
        )
        flags += ["no_d_gates"] * (not self.d_gates)
        return "-".join([self.dtype, f"{self.T}x{self.B}x{self.H}", *flags])

    def directions(self):
        """The calls of one direction that it is made of."""
        one = dataclasses.replace(self, both=False)
        other = dataclasses.replace(one, reverse=not self.reverse, seed=self.seed + 1)
        return [one, other] if self.both else [self]

    def runs_backward_at_once(self):
        """Is there a kernel for all steps of its backward pass?"""
        clusters = self.blocks > 1 and self.dtype in ("float16", "bfloat16")
        return bool(self.gates and (self.groups or clusters))

    def inputs(self):
        """Everything the op is given, as stored."""
        T, B, H, P = self.T, self.B, self.H, self.P or self.H
        rng = np.random.default_rng([T, B, H, P, *([self.seed] if self.seed else [])])
        scale = H**-0.5

        def normal(*shape):
            return stored(rng.standard_normal(shape), self.dtype)

        x = {
            "xg": normal(T, B, 4 * H),
            "w_hh": stored(rng.uniform(-scale, scale, (4 * H, P)), self.dtype),
            "w_hr": stored(rng.uniform(-scale, scale, (P, H)), self.dtype) if self.P else None,
            "h0": normal(B, P),
            "c0": normal(B, H),
            "lengths": None if self.lengths is None else np.array(self.lengths, np.int64),
            "cont": (rng.random((T, B)) < 0.6).astype(np.uint8) if self.cont else None,
            "d_h": normal(T, B, P),
            "d_c": normal(T, B, H),
            "d_gates": normal(T, B, 4 * H) if self.d_gates else None,
        }
        if self.lengths is not None:  # what lies in the padding must not matter
            for name in ("xg", "d_h", "d_c", "d_gates"):
                for b, length in enumerate(self.lengths):
                    if x[name] is not None:
                        x[name][max(length, 0) :, b] = blank((), self.dtype)
        return x


def reference(case, x):
    """The op in float64, row by row and step by step as its documentation has it; gradients by autograd."""
    v = {
        k: None if a is None else torch.tensor(value(a, case.dtype)).requires_grad_()
        for k, a in x.items()
        if k not in ("lengths", "cont")
    }
    T, B, H, P = case.T, case.B, case.H, case.P or case.H
    h = [[torch.zeros(P, dtype=torch.float64)] * B for _ in range(T)]
    c = [[torch.zeros(H, dtype=torch.float64)] * B for _ in range(T)]
    gates = [[torch.zeros(4 * H, dtype=torch.float64)] * B for _ in range(T)]
    p = []  # ((t, b), the projected h), for the gradient that reaches it
    for b in range(B):
        length = T if x["lengths"] is None else min(max(int(x["lengths"][b]), 0), T)
        h_t, c_t = v["h0"][b], v["c0"][b]
        for t in range(length - 1, -1, -1) if case.reverse else range(length):
            if x["cont"] is not None and not x["cont"][t, b]:
                h_t, c_t = torch.zeros_like(h_t), torch.zeros_like(c_t)
            z = v["xg"][t, b] + v["w_hh"] @ h_t
            i, f, g, o = z.split(H)
            a = torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()])
            i, f, g, o = a.split(H)
            c_t = f * c_t + i * g
            h_t = o * c_t.tanh()
            if x["w_hr"] is not None:
                h_t = v["w_hr"] @ h_t
                p.append(((t, b), h_t))
            h[t][b], c[t][b], gates[t][b] = h_t, c_t, a

    def stack(rows):
        return torch.stack([torch.stack(row) for row in rows])

    out = {"h": stack(h), "c": stack(c), "gates": stack(gates)}
    pairs = [(out["h"], v["d_h"]), (out["c"], v["d_c"])] + [(out["gates"], v["d_gates"])] * case.d_gates
    loss = sum((a * torch.nan_to_num(d.detach())).sum() for a, d in pairs)
    wanted = [v["xg"], v["h0"], v["c0"], *(h_t for _, h_t in p)]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    grads = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True)]
    out |= dict(zip(("d_xg", "d_h0", "d_c0"), grads, strict=False))
    if case.P:
        out["d_p"] = torch.zeros(T, B, P, dtype=torch.float64)
        for (at, _), g in zip(p, grads[3:], strict=True):
            out["d_p"][at] = g
    return {k: a.detach().numpy() for k, a in out.items()}


def call_persistent(library, launcher, case, inputs, tensors, plan, schedule):
    """Launch one direction or both. tensors: what each of them has of its own, in the launcher's order."""
    rows = {name: inputs[0][name] for name in ("lengths", "cont")}
    rows = dict(T=case.T, B=case.B, H=case.H, **rows, reverse=case.reverse, dtype=CODE[case.dtype])
    second = dict.fromkeys(tensors[0]) if len(tensors) == 1 else tensors[1]
    arguments = tensors[0] | {f"{name}2": array for name, array in second.items()}
    numbers = {k: int(v) for k, v in (rows | plan).items() if isinstance(v, int)}
    library.call(launcher, **rows, **arguments, **plan, **schedule,
                 shown=numbers | {"directions": len(tensors)})  # fmt: skip


def run_persistent(library, case, inputs, **schedule):
    """All steps in one launch, of one direction or of both: inputs and results are lists."""
    T, B, H = case.T, case.B, case.H
    results, tensors = [], []
    for x in inputs:
        out = {"h": blank((T, B, H), case.dtype), "c": blank((T, B, H), case.dtype)}
        out["gates"] = blank((T, B, 4 * H), case.dtype) if case.gates else None
        results.append(out)
        z_first = value(x["h0"], case.dtype) @ value(x["w_hh"], case.dtype).T
        given = {name: x[name] for name in ("xg", "w_hh", "c0")}
        tensors.append(given | {"z_first": z_first.astype(state_type(case.dtype))} | out)
    if case.groups:
        exchange = aligned((len(inputs), 2, B, (H + 7) // 8, 8), np.uint16)
        launcher, plan = "lstm_grid", dict(exchange=exchange, groups=case.groups)
    else:
        launcher, plan = "lstm_cluster", dict(blocks=case.blocks)
    call_persistent(library, launcher, case, inputs, tensors, plan, schedule)
    return results


def run_persistent_backward(library, case, inputs, forward, **schedule):
    """The backward pass in the same way, from the results of the forward pass."""
    T, B, H = case.T, case.B, case.H
    results, tensors = [], []
    for x, saved in zip(inputs, forward, strict=True):
        d_xg = aligned((T, B, 4 * H), np.uint16 if case.dtype == "bfloat16" else case.dtype)
        d_xg[...] = blank((), case.dtype)
        results.append({"d_xg": d_xg, "d_c0": blank((B, H), case.dtype)})
        d_first = first_gradient(case)
        given = {name: x[name] for name in ("d_h", "d_c", "d_gates", "w_hh")}
        given |= dict(gates=saved["gates"], c=saved["c"], c0=x["c0"])
        tensors.append(given | dict(d_xg=d_xg, d_first=d_first, d_c0=results[-1]["d_c0"]))
    if case.groups:
        done = np.zeros((len(inputs), case.groups, H // 8), np.uint32)
        launcher, plan = "lstm_grid_backward", dict(done=done, groups=case.groups)
    else:
        launcher, plan = "lstm_cluster_backward", dict(blocks=case.blocks)
    call_persistent(library, launcher, case, inputs, tensors, plan, schedule)
    for one, x, out, given in zip(case.directions(), inputs, results, tensors, strict=True):
        out["d_h0"] = initial_gradient(one, x, out["d_xg"], given["d_first"])
    return results


def run_lstm(library, case, x, **schedule):
    """What csrc/ops/cuda.cpp does, with numpy for the matrix products."""
    if case.groups or case.blocks:
        return run_persistent(library, case, [x], **schedule)[0]
    T, B, H, P, dtype = case.T, case.B, case.H, case.P or case.H, case.dtype
    wide = state_type(dtype)
    rows = dict(T=T, B=B, H=H, lengths=x["lengths"], cont=x["cont"], reverse=case.reverse, dtype=CODE[dtype])
    out = {"h": blank((T, B, P), dtype), "c": blank((T, B, H), dtype)}
    out["gates"] = blank((T, B, 4 * H), dtype) if case.gates else None
    order = range(T - 1, -1, -1) if case.reverse else range(T)

    def product(a, b, to=wide):
        result = value(a, dtype) @ value(b, dtype)
        return result.astype(wide) if to is wide else stored(result, dtype)

    z_first = product(x["h0"], x["w_hh"].T)
    late = case.reverse and case.lengths is not None
    z = np.full_like(z_first, np.nan) if late else z_first
    c_state = np.full((B, H), np.nan, wide)
    unprojected = blank((B, H), dtype)
    for n, t in enumerate(order):
        if n > 0:
            z[:] = product(out["h"][order[n - 1]], x["w_hh"].T)
        h = unprojected if case.P else out["h"][t]
        recurrent = {"z_first": z_first, "recurrent": z}
        states = {"c_state": c_state, "h": h, "c": out["c"], "gates": out["gates"]}
        library.call("lstm_cell", **rows, xg=x["xg"], c0=x["c0"], **recurrent, **states, t=t, **schedule)
        if case.P:
            out["h"][t] = product(unprojected, x["w_hr"].T, dtype)
    return out


def first_gradient(case):
    """Room for the gradient of each row's first step, where rows differ in it."""
    masked = case.cont or case.lengths is not None
    return blank((case.B, 4 * case.H), case.dtype) if masked else None


def initial_gradient(case, x, d_xg, d_first):
    """That of h0."""
    last = d_xg[-1 if case.reverse else 0] if d_first is None else d_first
    return stored(value(last, case.dtype) @ value(x["w_hh"], case.dtype), case.dtype)


def run_lstm_backward(library, case, x, forward, **schedule):
    if case.runs_backward_at_once():
        return run_persistent_backward(library, case, [x], [forward], **schedule)[0]
    T, B, H, P, dtype = case.T, case.B, case.H, case.P or case.H, case.dtype
    wide = state_type(dtype)
    rows = dict(T=T, B=B, H=H, lengths=x["lengths"], cont=x["cont"], reverse=case.reverse, dtype=CODE[dtype])
    out = {"d_xg": blank((T, B, 4 * H), dtype), "d_c0": blank((B, H), dtype)}
    d_first = first_gradient(case)
    recurrent, carry = np.full((B, P), np.nan, wide), np.full((B, H), np.nan, wide)
    d_unprojected = np.full((B, H), np.nan, wide)
    if case.P:
        out["d_p"] = blank((T, B, P), dtype)
    for t in range(T) if case.reverse else range(T - 1, -1, -1):
        if case.P:
            arrays = dict(d_h=x["d_h"], recurrent=recurrent, d_p=out["d_p"])
            library.call("lstm_projection_backward", **rows, **arrays, P=P, t=t, **schedule)
            d_unprojected[:] = value(out["d_p"][t], dtype) @ value(x["w_hr"], dtype)
        arrays = dict(d_h=None if case.P else x["d_h"], d_c=x["d_c"], d_gates=x["d_gates"])
        arrays |= dict(gates=forward["gates"], c=forward["c"], c0=x["c0"])
        arrays |= dict(recurrent=d_unprojected if case.P else recurrent, carry=carry)
        arrays |= dict(d_xg=out["d_xg"], d_first=d_first, d_c0=out["d_c0"])
        library.call("lstm_cell_backward", **rows, **arrays, t=t, **schedule)
        recurrent[:] = value(out["d_xg"][t], dtype) @ value(x["w_hh"], dtype)
    out["d_h0"] = initial_gradient(case, x, out["d_xg"], d_first)
    return out


# In units of the storage type's eps and of the largest value of each result. Worst of all cases of
# test_lstm_kernels.py: float32 1.0 forward and 1.9 backward, float64 0.6 and 1.2, half types 0.4 and 0.9.
TOLERANCE = 5


def compare(actual, expected, case):
    """Largest error of any result in units of eps; raises where it is more than TOLERANCE."""
    worst = 0.0
    for name, a in actual.items():
        if a is None:
            continue
        a, e = value(a, case.dtype), expected[name]
        error = np.abs(a - e).max() / (EPS[case.dtype] * max(1.0, np.abs(e).max()))
        assert error <= TOLERANCE, f"{case}: {name} is off by {error:.3g} eps"
        worst = max(worst, error)
    return worst


_expected = {}


def expectation(case):
    """Inputs and expected results of each direction."""
    for one in case.directions():
        if one not in _expected:
            x = one.inputs() | {"cont": case.inputs()["cont"]}  # which both directions share
            _expected[one] = x, reference(one, x)
    return zip(*(_expected[one] for one in case.directions()), strict=True)


def run_both(library, case, inputs, **schedule):
    """Both directions side by side: the results of each, and of its backward pass where both share one."""
    results = run_persistent(library, case, inputs, **schedule)
    if case.runs_backward_at_once():
        gradients = run_persistent_backward(library, case, inputs, results, **schedule)
        results = [out | grads for out, grads in zip(results, gradients, strict=True)]
    return results


def check_lstm(library, case, **schedule):
    """Forward and backward of one call on one schedule."""
    inputs, expected = expectation(case)
    if case.both:
        results = run_both(library, case, inputs, **schedule)
        return max(compare(a, e, case) for a, e in zip(results, expected, strict=True))
    forward = run_lstm(library, case, inputs[0], **schedule)
    worst = compare(forward, expected[0], case)
    if case.gates:
        gradients = run_lstm_backward(library, case, inputs[0], forward, **schedule)
        worst = max(worst, compare(gradients, expected[0], case))
    return worst


def check_apart(library, case, **schedule):
    """Both directions side by side: bit for bit what each gives alone, on another schedule."""
    inputs, _ = expectation(case)
    together = run_both(library, case, inputs, **schedule)
    for one, x, results in zip(case.directions(), inputs, together, strict=True):
        alone = run_lstm(library, one, x)
        if case.runs_backward_at_once():
            alone |= run_lstm_backward(library, one, x, alone)
        assert alone.keys() == results.keys()
        for name, array in results.items():
            assert array is None or array.tobytes() == alone[name].tobytes(), f"{case}: {name}"


def check_nan(library, **schedule):
    """The plan "grid": a NaN in one unit of one row makes that row NaN, and no other."""
    case = Lstm(5, 2, 24, dtype="bfloat16", groups=1, gates=False)
    x = case.inputs()
    x["xg"][1, 0, 1] = blank((), "bfloat16")
    h = value(run_lstm(library, case, x, **schedule)["h"], "bfloat16")
    assert np.isnan(h[2:, 0]).all()
    assert np.isfinite(h[0]).all()
    assert np.isfinite(h[:, 1]).all()

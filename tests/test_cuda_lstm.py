"""The LSTM on a GPU, against the float64 reference and against torch.nn.LSTM."""

import itertools

import pytest
import torch

from lrcn_fast import reference

pytestmark = pytest.mark.needs_cuda

ops = pytest.importorskip("lrcn_fast.ops")
DEVICE = "cuda"
LENGTHS = (5, 0, 7, 1, 3)

# Error over eps of the storage type and the largest value of the result (at least 1).
TOLERANCE = {torch.float32: 32, torch.float64: 32, torch.bfloat16: 8, torch.float16: 8}


def inputs(T, B, H, *, P=None, dtype=torch.float32, seed=0, requires_grad=False):
    """Tensors of the scale of a trained network, the same on every machine."""
    generator = torch.Generator().manual_seed(hash((T, B, H, P, seed)) % 2**31)
    scale = H**-0.5

    def uniform(*shape, scale=1.0):
        x = (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1) * scale
        return x.to(dtype=dtype, device=DEVICE).requires_grad_(requires_grad)

    x = {
        "xg": uniform(T, B, 4 * H, scale=2.0),
        "w_hh": uniform(4 * H, P or H, scale=scale),
        "h0": uniform(B, P or H),
        "c0": uniform(B, H),
    }
    if P:
        x["w_hr"] = uniform(P, H, scale=scale)
    return x


def options(T, B, *, lengths=None, cont=False, reverse=False):
    kept = torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < 0.7
    return {
        "lengths": None if lengths is None else torch.tensor(lengths, device=DEVICE),
        "cont": kept.to(DEVICE) if cont else None,
        "reverse": reverse,
    }


def double(x):
    return {k: v.detach().double().requires_grad_() if v.is_floating_point() else v for k, v in x.items()}


worst: dict[torch.dtype, float] = {}


@pytest.fixture(autouse=True, scope="module")
def _report_worst(request):
    """Say how near the tolerances are to what was measured."""
    yield
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if worst and reporter is not None:
        reporter.write_line("")
        for dtype, error in worst.items():
            reporter.write_line(f"worst error, {dtype}: {error:.2f} eps of {TOLERANCE[dtype]}")


def check(actual, expected, name):
    assert torch.isfinite(actual).all(), f"{name} is not finite"
    scale = max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
    error = (actual.double() - expected).abs().max().item() if expected.numel() else 0.0
    error /= torch.finfo(actual.dtype).eps * scale
    worst[actual.dtype] = max(worst.get(actual.dtype, 0.0), error)
    assert error <= TOLERANCE[actual.dtype], f"{name} is off by {error:.3g} eps"


VARIANTS = [
    pytest.param({}, None, id="plain"),
    pytest.param({"reverse": True}, None, id="reverse"),
    pytest.param({"lengths": LENGTHS}, None, id="lengths"),
    pytest.param({"lengths": LENGTHS, "reverse": True}, None, id="lengths-reverse"),
    pytest.param({"cont": True}, None, id="cont"),
    pytest.param({"lengths": LENGTHS, "cont": True, "reverse": True}, None, id="lengths-cont-reverse"),
    pytest.param({}, 6, id="proj"),
    pytest.param({"lengths": LENGTHS, "cont": True}, 6, id="proj-lengths-cont"),
    pytest.param({"lengths": LENGTHS, "cont": True, "reverse": True}, 6, id="proj-lengths-cont-reverse"),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
@pytest.mark.parametrize(("variant", "P"), VARIANTS)
def test_forward_and_backward(variant, P, dtype, monkeypatch):
    monkeypatch.setenv("LRCN_FAST_LSTM_PLAN", "step")
    compare(7, 5, 20, variant, P, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("variant", [v.values[0] for v in VARIANTS if v.values[1] is None], ids=str)
@pytest.mark.parametrize(("T", "B", "H"), [(7, 5, 24), (40, 5, 256), (9, 5, 1000), (12, 5, 1024)])
def test_plan_grid(T, B, H, variant, dtype, monkeypatch):
    monkeypatch.setenv("LRCN_FAST_LSTM_PLAN", "grid")
    compare(T, B, H, variant, None, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("T", "B", "H"), [(20, 8, 128), (20, 32, 1024), (20, 64, 512), (20, 100, 256), (300, 16, 768)]
)
def test_plan_grid_rows(T, B, H, dtype, monkeypatch):
    monkeypatch.setenv("LRCN_FAST_LSTM_PLAN", "grid")
    compare(T, B, H, {}, None, dtype)


FUSED = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", FUSED, ids=lambda d: str(d).split(".")[1])
@pytest.mark.parametrize("variant", [v.values[0] for v in VARIANTS if v.values[1] is None], ids=str)
@pytest.mark.parametrize(("T", "B", "H"), [(7, 5, 20), (30, 5, 100)])
def test_plan_block(T, B, H, variant, dtype, monkeypatch):
    monkeypatch.setenv("LRCN_FAST_LSTM_PLAN", "block")
    # It has no backward pass.
    compare(T, B, H, variant, None, dtype, lambda: monkeypatch.setenv("LRCN_FAST_LSTM_PLAN", "step"))


@pytest.fixture
def _needs_clusters():
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("needs clusters")


@pytest.mark.usefixtures("_needs_clusters")
@pytest.mark.parametrize("dtype", FUSED, ids=lambda d: str(d).split(".")[1])
@pytest.mark.parametrize("variant", [v.values[0] for v in VARIANTS if v.values[1] is None], ids=str)
@pytest.mark.parametrize(("T", "B", "H"), [(7, 5, 20), (20, 5, 130), (30, 5, 256)])
def test_plan_cluster(T, B, H, variant, dtype, monkeypatch):
    monkeypatch.setenv("LRCN_FAST_LSTM_PLAN", "cluster")
    backward = "step" if dtype == torch.float32 else "cluster"
    compare(T, B, H, variant, None, dtype, lambda: monkeypatch.setenv("LRCN_FAST_LSTM_PLAN", backward))


@pytest.mark.usefixtures("_needs_clusters")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("T", "B", "H"), [(20, 100, 128), (300, 16, 250), (20, 64, 320), (100, 33, 512)])
def test_plan_cluster_rows(T, B, H, dtype, monkeypatch):
    monkeypatch.setenv("LRCN_FAST_LSTM_PLAN", "cluster")
    compare(T, B, H, {}, None, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize(
    ("plan", "T", "B", "H"),
    [
        ("grid", 7, 5, 24),
        ("grid", 20, 20, 256),  # several groups of rows in each direction
        ("grid", 9, 5, 1024),  # one direction fills the GPU: one after the other
        ("block", 7, 20, 100),
        ("cluster", 20, 20, 256),
        ("step", 5, 3, 20),
    ],
)
def test_both_directions(plan, T, B, H, lengths, dtype, monkeypatch):
    if plan == "cluster" and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("needs clusters")
    monkeypatch.setenv("LRCN_FAST_LSTM_PLAN", plan)
    pair = [inputs(T, B, H, dtype=dtype, seed=seed, requires_grad=True) for seed in (0, 1)]
    o = options(T, B, lengths=[(3 * b + T) % (T + 1) for b in range(B)] if lengths else None)

    def backward(h, c):
        monkeypatch.setenv("LRCN_FAST_LSTM_PLAN", "step" if plan == "block" else plan)  # block has none
        d = [torch.ones_like(t) for t in (*h, *c)]
        return torch.autograd.grad((*h, *c), [t for x in pair for t in x.values()], d)

    h, c = ops.lstm_bidirectional(*([x[name] for x in pair] for name in pair[0]), lengths=o["lengths"])
    grads = backward(h, c)
    for i, x in enumerate(pair):
        x64 = double(x)
        h64, c64 = reference.lstm(**x64, **o | {"reverse": i == 1})
        check(h[i], h64, "h")
        check(c[i], c64, "c")
        expected = torch.autograd.grad(h64.sum() + c64.sum(), list(x64.values()))
        for name, a, e in zip(x, grads[i * len(x) :], expected, strict=False):
            check(a, e, f"d_{name}")

    monkeypatch.setenv("LRCN_FAST_LSTM_PLAN", plan)
    apart = [ops.lstm(**x, **o | {"reverse": i == 1}) for i, x in enumerate(pair)]
    h_apart, c_apart = zip(*apart, strict=True)
    for a, b in zip((*h, *c, *grads), (*h_apart, *c_apart, *backward(h_apart, c_apart)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("plan", "H", "dtype"),
    [
        ("grid", 8, torch.float32),
        ("grid", 1025, torch.bfloat16),
        ("block", 129, torch.bfloat16),
        ("block", 128, torch.float32),
        ("cluster", 513, torch.bfloat16),
        ("cluster", 8, torch.float64),
    ],
)
def test_plan_refuses(plan, H, dtype, monkeypatch):
    monkeypatch.setenv("LRCN_FAST_LSTM_PLAN", plan)
    with pytest.raises(ValueError, match="LRCN_FAST_LSTM_PLAN must be step for this call"):
        ops.lstm(**inputs(2, 2, H, dtype=dtype))


def test_tf32_is_torchs_switch(monkeypatch):
    """Off: as exact as float32 is. On: the products are rounded to 10 bits, here too."""
    monkeypatch.setenv("LRCN_FAST_LSTM_PLAN", "step")
    x = inputs(20, 16, 512)
    h64, _ = reference.lstm(**double(x))
    error = {}
    for allowed in (False, True):
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", allowed)
        h, _ = ops.lstm(**x)
        error[allowed] = (h.double() - h64).abs().max().item()
    assert error[False] <= TOLERANCE[torch.float32] * torch.finfo(torch.float32).eps
    assert error[True] <= 2.0**-8
    if torch.cuda.get_device_capability()[0] >= 8:
        assert error[True] > error[False]


def compare(T, B, H, variant, P, dtype, before_backward=lambda: None):
    """Forward and backward against the reference in float64."""
    x, o = inputs(T, B, H, P=P, dtype=dtype, requires_grad=True), options(T, B, **variant)
    x64 = double(x)
    h, c = ops.lstm(**x, **o)
    h64, c64 = reference.lstm(**x64, **o)
    check(h, h64, "h")
    check(c, c64, "c")
    before_backward()
    d_h, d_c = torch.randn_like(h64), torch.randn_like(c64)
    d_h, d_c = d_h.to(dtype), d_c.to(dtype)
    grads = torch.autograd.grad((h, c), list(x.values()), (d_h, d_c))
    expected = torch.autograd.grad((h64, c64), list(x64.values()), (d_h.double(), d_c.double()))
    for name, a, e in zip(x, grads, expected, strict=True):
        check(a, e, f"d_{name}")


@pytest.mark.parametrize(
    ("T", "B", "H"),
    [(1, 1, 1), (3, 1, 127), (2, 3, 128), (4, 17, 129), (30, 8, 256), (5, 64, 1000), (9, 300, 33)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_sizes(T, B, H, dtype):
    x = inputs(T, B, H, dtype=dtype, requires_grad=True)
    x64 = double(x)
    h, c = ops.lstm(**x)
    h64, c64 = reference.lstm(**x64)
    check(h, h64, "h")
    check(c, c64, "c")
    d_h = torch.randn_like(h)
    grads = torch.autograd.grad(h, list(x.values()), d_h)
    expected = torch.autograd.grad(h64, list(x64.values()), d_h.double())
    for name, a, e in zip(x, grads, expected, strict=True):
        check(a, e, f"d_{name}")


@pytest.mark.parametrize(("T", "B", "H"), [(0, 3, 4), (3, 0, 4)])
def test_empty(T, B, H):
    x = inputs(T, B, H, requires_grad=True)
    h, c = ops.lstm(**x)
    assert h.shape == c.shape == (T, B, H)
    grads = torch.autograd.grad(h.sum() + c.sum(), list(x.values()), allow_unused=True)
    assert all(g is None or (g == 0).all() for g in grads)


@pytest.mark.parametrize("reverse", [False, True])
def test_nan_in_the_padding_goes_nowhere(reverse):
    T, B, H = 7, 5, 20
    o = options(T, B, lengths=LENGTHS, reverse=reverse)
    inside = (torch.arange(T, device=DEVICE)[:, None] < o["lengths"]).unsqueeze(-1)

    def run(filler):
        x = inputs(T, B, H)
        x["xg"] = torch.where(inside, x["xg"], filler)
        x = {k: v.requires_grad_() for k, v in x.items()}
        h, c = ops.lstm(**x, **o)
        return h, c, *torch.autograd.grad(h.sum() + (c * c).sum(), list(x.values()))

    for a, b in zip(run(float("nan")), run(0.0), strict=True):
        assert torch.equal(a, b)


def test_nan_and_infinity_pass_through():
    x = inputs(4, 2, 8)
    x["xg"][1, 0, 3] = float("nan")
    h, _ = ops.lstm(**x)
    assert h[1:, 0].isnan().any()
    assert h[:, 1].isfinite().all()
    x = inputs(2, 1, 4)
    x["xg"][0] = float("inf")
    h, c = ops.lstm(**x)
    assert torch.allclose(c[0], x["c0"] + 1)
    assert h.isfinite().all()


def test_lengths_out_of_range_are_clamped():
    T, B, H = 4, 3, 8
    x = inputs(T, B, H)
    wild = ops.lstm(**x, lengths=torch.tensor([-3, 9, 2], device=DEVICE))
    tame = ops.lstm(**x, lengths=torch.tensor([0, 4, 2], device=DEVICE))
    for a, b in zip(wild, tame, strict=True):
        assert torch.equal(a, b)


def capture(run):
    """A CUDA graph of run(), and the tensors that it writes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph, outputs


@pytest.mark.parametrize("P", [None, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_capture_in_a_graph(dtype, P):
    T, B, H = 6, 4, 32
    x = inputs(T, B, H, P=P, dtype=dtype, requires_grad=True)
    o = options(T, B, lengths=(6, 0, 3, 5), cont=True, reverse=True)

    def run():
        h, c = ops.lstm(**x, **o)
        return h, c, *torch.autograd.grad(h.sum() + c.sum(), list(x.values()))

    graph, captured = capture(run)
    for seed in (1, 2):
        with torch.no_grad():
            for k, v in inputs(T, B, H, P=P, dtype=dtype, seed=seed).items():
                x[k].copy_(v)
            o["lengths"].copy_(torch.tensor([seed, 6, 4, 0]))
        graph.replay()
        for a, b in zip(captured, run(), strict=True):
            assert torch.equal(a, b)


def test_both_directions_in_a_graph():
    pair = [inputs(6, 4, 32, dtype=torch.bfloat16, seed=seed, requires_grad=True) for seed in (0, 1)]
    lengths = torch.tensor([6, 0, 3, 5], device=DEVICE)
    leaves = [t for x in pair for t in x.values()]

    def run():
        h, c = ops.lstm_bidirectional(*([x[name] for x in pair] for name in pair[0]), lengths=lengths)
        return *h, *c, *torch.autograd.grad(sum(t.sum() for t in (*h, *c)), leaves)

    graph, captured = capture(run)
    with torch.no_grad():
        for t in leaves:
            t.mul_(0.5)
    graph.replay()
    for a, b in zip(captured, run(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_never_waits_for_the_gpu(dtype):
    T, B, H = 6, 4, 32
    x, o = (
        inputs(T, B, H, P=12, dtype=dtype, requires_grad=True),
        options(T, B, lengths=(6, 0, 3, 5), cont=True),
    )
    d_h = torch.ones(T, B, 12, dtype=dtype, device=DEVICE)
    ops.lstm(**x, **o)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        h, _ = ops.lstm(**x, **o)
        torch.autograd.grad(h, list(x.values()), d_h)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[1])
def test_same_bits_every_time(dtype):
    x, o = inputs(20, 16, 96, dtype=dtype, requires_grad=True), options(20, 16, cont=True)

    def run():
        h, c = ops.lstm(**x, **o)
        return h, c, *torch.autograd.grad(h.sum() + c.sum(), list(x.values()))

    first = run()
    for _ in range(5):
        for a, b in zip(first, run(), strict=True):
            assert torch.equal(a, b)


def test_other_streams_and_devices():
    x = inputs(5, 3, 16)
    expected, _ = ops.lstm(**x)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        h, _ = ops.lstm(**x)
        torch.cuda.current_stream().synchronize()
    assert torch.equal(h, expected)
    for device in range(1, torch.cuda.device_count()):  # the current device stays another one
        h, _ = ops.lstm(**{k: v.to(f"cuda:{device}") for k, v in x.items()})
        assert torch.equal(h.to(DEVICE), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    pytest.importorskip("expecttest")  # opcheck needs it
    for save_gates, P, masked in itertools.product((False, True), (None, 3), (False, True)):
        x = inputs(3, 2, 4, P=P, dtype=dtype, requires_grad=save_gates)
        o = options(3, 2, lengths=(3, 1) if masked else None, cont=masked)
        weights, masks = (x["w_hh"], x.get("w_hr")), (o["lengths"], o["cont"])
        args = (x["xg"], *weights, x["h0"], x["c0"], *masks, None, False, save_gates)
        torch.library.opcheck(torch.ops.lrcn_fast.lstm.default, args)
        if save_gates:
            with torch.no_grad():
                h, c, gates = torch.ops.lrcn_fast.lstm(*args)
                args = (h, c, None, *weights, gates, x["c0"], c, *masks, False)
                args = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in args)
            torch.library.opcheck(torch.ops.lrcn_fast.lstm_backward.default, args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_opcheck_of_both_directions(dtype):
    pytest.importorskip("expecttest")
    pair = [inputs(3, 2, 8, dtype=dtype, seed=seed) for seed in (0, 1)]
    xg, w_hh, h0, c0 = ([x[name] for x in pair] for name in pair[0])
    for lengths in (None, torch.tensor([3, 1], device=DEVICE)):
        arguments = (xg, w_hh, [], h0, c0, lengths, True)
        torch.library.opcheck(torch.ops.lrcn_fast.lstm_bidirectional.default, arguments)
        outputs = torch.ops.lrcn_fast.lstm_bidirectional(*arguments)
        h, c, gates = (list(outputs[i : i + 2]) for i in (0, 2, 4))
        arguments = (h, c, [], w_hh, [], gates, c0, c, lengths)
        torch.library.opcheck(torch.ops.lrcn_fast.lstm_bidirectional_backward.default, arguments)


@pytest.mark.parametrize(("variant", "P"), [VARIANTS[0].values, VARIANTS[5].values, VARIANTS[8].values])
def test_gradcheck(variant, P):
    x = inputs(7, 5, 2, P=P, dtype=torch.float64, requires_grad=True)
    o = options(7, 5, **variant)
    assert torch.autograd.gradcheck(
        lambda *v: ops.lstm(**dict(zip(x, v, strict=True)), **o), tuple(x.values())
    )


def test_gradgradcheck():
    x = inputs(3, 2, 2, dtype=torch.float64, requires_grad=True)
    o = options(3, 2, lengths=(3, 1), cont=True)
    assert torch.autograd.gradgradcheck(
        lambda *v: ops.lstm(**dict(zip(x, v, strict=True)), **o), tuple(x.values())
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h0": (2, 9)}, r"lstm: h0 must be \[B, H\] = \[2, 8\], got \[2, 9\]"),
        ({"w_hh": (32, 7)}, r"lstm: w_hh must be \[4H, H\] = \[32, 8\], got \[32, 7\]"),
        ({"xg": (3, 2, 31)}, r"lstm: xg must be \[T, B, 4H\] = \[3, 2, 32\], got \[3, 2, 31\]"),
    ],
)
def test_errors(change, message):
    x = inputs(3, 2, 8)
    x |= {k: torch.zeros(v, device=DEVICE) for k, v in change.items()}
    with pytest.raises(ValueError, match=message):
        ops.lstm(**x)


def test_unknown_plan(monkeypatch):
    monkeypatch.setenv("LRCN_FAST_LSTM_PLAN", "bogus")
    with pytest.raises(ValueError, match=r'LRCN_FAST_LSTM_PLAN must be .*, got "bogus"'):
        ops.lstm(**inputs(2, 2, 8))


MODULES = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"batch_first": True, "bias": False},
    {"proj_size": 5},
]


@pytest.mark.parametrize("settings", MODULES, ids=lambda s: "-".join(s) or "plain")
def test_module_against_torch(settings):
    from lrcn_fast.nn import LSTM

    torch_lstm = torch.nn.LSTM(12, 16, **settings).to(DEVICE, torch.float64)
    ours = LSTM.from_torch(torch_lstm)
    x = torch.randn(6, 6, 12, device=DEVICE, dtype=torch.float64, requires_grad=True)
    y, (h_n, c_n) = ours(x)
    y_ref, (h_ref, c_ref) = torch_lstm(x)
    for a, b in ((y, y_ref), (h_n, h_ref), (c_n, c_ref)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    wanted = [x, *torch_lstm.parameters()]
    grads = torch.autograd.grad((y.sum() + (h_n * h_n).sum() + c_n.sum()), wanted)
    grads_ref = torch.autograd.grad((y_ref.sum() + (h_ref * h_ref).sum() + c_ref.sum()), wanted)
    for a, b in zip(grads, grads_ref, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
def test_module_in_low_precision(dtype):
    from lrcn_fast.nn import LSTM

    exact = torch.nn.LSTM(64, 128).to(DEVICE, torch.float64)
    x = torch.randn(20, 8, 64, device=DEVICE, dtype=torch.float64)
    rounded = torch.nn.LSTM(64, 128).to(DEVICE, dtype)
    rounded.load_state_dict(exact.state_dict())
    y, _ = LSTM.from_torch(rounded)(x.to(dtype))
    exact.load_state_dict(rounded.double().state_dict())
    y64, _ = exact(x.to(dtype).double())
    check(y, y64, "y")


def test_module_with_packed_sequence():
    from lrcn_fast.nn import LSTM

    torch_lstm = torch.nn.LSTM(12, 16, bidirectional=True).to(DEVICE, torch.float64)
    x = torch.randn(6, 3, 12, device=DEVICE, dtype=torch.float64)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([2, 6, 4]), enforce_sorted=False)
    y, (h_n, c_n) = LSTM.from_torch(torch_lstm)(packed)
    y_ref, (h_ref, c_ref) = torch_lstm(packed)
    for a, b in ((y.data, y_ref.data), (h_n, h_ref), (c_n, c_ref)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_module_under_autocast_and_compile():
    from lrcn_fast.nn import LSTM

    lstm = LSTM(16, 32).to(DEVICE)
    x = torch.randn(5, 4, 16, device=DEVICE)
    y, _ = lstm(x)
    with torch.autocast("cuda", torch.bfloat16):
        low, _ = lstm(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), y, rtol=0, atol=0.03)
    compiled, _ = torch.compile(lstm, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, y, rtol=0, atol=1e-5)

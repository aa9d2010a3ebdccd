"""The lstm_layer op: a layer with its projection, against float64 in PyTorch; lengths, packed sequences."""

import pytest
import torch
from test_ops_lstm import OPTIONS, SIZES, make_inputs, make_masks
from torch.nn import functional as F

from lrcn_fast import reference
from lrcn_fast.ops_layer import lstm_layer

I = 11  # noqa: E741
NAMES = ("x", "w_ih", "w_hh", "bias", "h0", "c0", "w_hr")
BATCH_SIZES = torch.tensor([4, 4, 2, 1, 1])  # lengths 5, 3, 2, 2
PACKED = [
    pytest.param(r, P, id=f"{'reverse' if r else 'forward'}-{P}") for r in (False, True) for P in (None, 7)
]

# |error| <= EPS * T * eps * (largest + |reference|) against float64. Worst seen over 20 seeds of each test,
# AVX2 and generic: outputs 1.2, gradients 2.9.
EPS = 6


def layer_inputs(T, B, H, dtype=torch.float32, P=None, requires_grad=False, packed_rows=None):
    """The arguments of lstm_layer, in the order of NAMES, at a trained scale; w_hr only with P."""
    _, w_hh, h0, c0, *w_hr = make_inputs(T, B, H, torch.float64, P=P)
    generator = torch.Generator().manual_seed(T + B + H)
    rows = (T, B) if packed_rows is None else (packed_rows,)
    x = torch.randn(*rows, I, generator=generator, dtype=torch.float64)
    w_ih = torch.randn(4 * H, I, generator=generator, dtype=torch.float64) * I**-0.5
    bias = torch.randn(4 * H, generator=generator, dtype=torch.float64)
    return [t.to(dtype).requires_grad_(requires_grad) for t in (x, w_ih, w_hh, bias, h0, c0, *w_hr)]


def run(inputs, **options):
    return lstm_layer(*inputs[:6], w_hr=inputs[6] if len(inputs) > 6 else None, **options)


def formula(inputs, *, batch_sizes=None, lengths=None, **options):
    """The same in PyTorch, packed sequences through padded ones."""
    x, w_ih, w_hh, bias, h0, c0, *w_hr = inputs
    place = None
    if batch_sizes is not None:
        place, lengths = reference.packed_places(batch_sizes)
        x = x.new_zeros(len(batch_sizes) * len(h0), I).index_copy(0, place, x).unflatten(0, (-1, len(h0)))
    xg = F.linear(x, w_ih, bias)
    states = reference.lstm(xg, w_hh, h0, c0, w_hr=w_hr[0] if w_hr else None, lengths=lengths, **options)
    return states if place is None else tuple(s.flatten(0, 1)[place] for s in states)


def assert_close(name, actual, expected, steps):
    bound = EPS * steps * torch.finfo(actual.dtype).eps
    largest = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual.double(), expected, rtol=bound, atol=bound * largest, msg=lambda m: f"{name}: {m}"
    )


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def check(inputs, steps, **options):
    """Outputs and every gradient."""
    wide = [t.detach().double().requires_grad_() for t in inputs]
    actual, expected = run(inputs, **options), formula(wide, **options)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(s.shape, generator=generator) for s in actual]
    grads = torch.autograd.grad(actual, inputs, weights)
    wide_grads = torch.autograd.grad(expected, wide, [w.double() for w in weights])
    for name, a, e in zip(("h", "c", *NAMES), (*actual, *grads), (*expected, *wide_grads), strict=False):
        assert_close(name, a, e.detach(), steps)


@pytest.mark.parametrize(("T", "B", "H"), [*SIZES, pytest.param(3, 400, 5, id="projected-in-two-blocks")])
def test_matches_formula(T, B, H):
    check(layer_inputs(T, B, H, requires_grad=True), T)


@pytest.mark.parametrize(("lengths", "cont", "reverse", "P"), OPTIONS)
def test_matches_formula_with_options(lengths, cont, reverse, P):
    inputs = layer_inputs(6, 7, 17, P=P, requires_grad=True)
    check(inputs, 6, **make_masks(6, 7, lengths, cont), reverse=reverse)


@pytest.mark.parametrize(("reverse", "P"), PACKED)
def test_packed_sequences_match_formula(reverse, P):
    inputs = layer_inputs(5, 4, 17, P=P, requires_grad=True, packed_rows=12)
    check(inputs, 5, batch_sizes=BATCH_SIZES, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences_are_padded_ones_bit_for_bit(reverse):
    inputs = layer_inputs(5, 4, 17, packed_rows=12)
    place, lengths = reference.packed_places(BATCH_SIZES)
    assert lengths.tolist() == [5, 3, 2, 2]
    x = torch.full((20, I), float("nan")).index_copy(0, place, inputs[0]).unflatten(0, (5, 4))
    padded = run([x, *inputs[1:]], lengths=lengths, reverse=reverse)
    packed = run(inputs, batch_sizes=BATCH_SIZES, reverse=reverse)
    assert_same(packed, tuple(s.flatten(0, 1)[place] for s in padded))


# ---- derivatives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lengths", "cont", "reverse", "P"), OPTIONS)
def test_first_and_second_derivatives(lengths, cont, reverse, P):
    inputs = layer_inputs(3, 3, 2, torch.float64, P=1 if P else None, requires_grad=True)
    options = make_masks(3, 3, lengths, cont) | {"reverse": reverse}
    assert torch.autograd.gradcheck(lambda *x: run(x, **options), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: run(x, **options), inputs, fast_mode=True)


@pytest.mark.parametrize(("reverse", "P"), PACKED)
def test_first_and_second_derivatives_of_packed_sequences(reverse, P):
    inputs = layer_inputs(5, 4, 2, torch.float64, P=1 if P else None, requires_grad=True, packed_rows=12)
    options = {"batch_sizes": BATCH_SIZES, "reverse": reverse}
    assert torch.autograd.gradcheck(lambda *x: run(x, **options), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: run(x, **options), inputs, fast_mode=True)


@pytest.mark.parametrize("wanted", NAMES)
def test_each_gradient_alone(wanted):
    inputs = layer_inputs(3, 2, 3, torch.float64, P=2)
    inputs[NAMES.index(wanted)].requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: run(x), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: run(x), inputs, fast_mode=True)


def test_no_gradient_without_saved_gates():
    x, w_ih, w_hh, bias, h0, c0 = layer_inputs(2, 1, 3, requires_grad=True)
    h, _, _ = torch.ops.lrcn_fast.lstm_layer(
        x, w_ih, w_hh, bias, None, h0, c0, None, None, None, False, False
    )
    with pytest.raises(RuntimeError, match="lstm_layer: save_gates must be True where a gradient is needed"):
        h.sum().backward()


# ---- guarantees --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_padding_reaches_nothing(value, reverse, dtype):
    T, B = 5, 4
    inputs = layer_inputs(T, B, 17, dtype, P=7, requires_grad=True)
    options = {"lengths": torch.tensor([5, 0, 2, 4]), "reverse": reverse}
    outside = torch.arange(T)[:, None] >= options["lengths"]
    poisoned = [torch.where(outside[..., None], value, inputs[0]).detach().requires_grad_(), *inputs[1:]]
    d_h = torch.where(outside[..., None], value, torch.ones(T, B, 7, dtype=dtype))
    outputs, clean = run(poisoned, **options), run(inputs, **options)
    assert_same(outputs, clean)
    assert all((t[outside] == 0).all() for t in outputs)
    grads = torch.autograd.grad(outputs[0], poisoned, d_h)
    assert_same(grads, torch.autograd.grad(clean[0], inputs, torch.ones_like(d_h)))
    assert (grads[0][outside] == 0).all()


def test_results_do_not_depend_on_threads():
    inputs = layer_inputs(3, 9, 400)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run(inputs, lengths=torch.arange(9) % 4))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype):
    inputs = layer_inputs(5, 3, 17, dtype, P=7)
    wide = run([t.float() for t in inputs])
    assert_same(run(inputs), tuple(t.to(dtype) for t in wide))


def test_autocast_runs_in_its_dtype():
    inputs = layer_inputs(4, 2, 17, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h, _ = run(inputs)
    assert_same(h, run([t.bfloat16() for t in inputs])[0])
    assert all(g.dtype is torch.float32 for g in torch.autograd.grad(h.sum(), inputs))


@pytest.mark.parametrize("P", [None, 3])
@pytest.mark.parametrize(("T", "B"), [(0, 2), (3, 0), (0, 0)])
def test_empty_sequences_and_batches(T, B, P):
    inputs = layer_inputs(T, B, 5, P=P, requires_grad=True)
    for options in ({}, make_masks(T, B, True, True), {"reverse": True}):
        h, c = run(inputs, **options)
        assert h.shape == (T, B, P or 5)
        for grad, t in zip(torch.autograd.grad(h.sum() + c.sum(), inputs), inputs, strict=True):
            assert_same(grad, torch.zeros_like(t))


def test_rows_without_steps_have_no_gradient():
    inputs = layer_inputs(3, 2, 5, requires_grad=True)
    h, _ = run(inputs, lengths=torch.tensor([0, 0]))
    assert_same(torch.autograd.grad(h.sum(), inputs), tuple(torch.zeros_like(t) for t in inputs))


# ---- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "replacement", "message"),
    [
        ("x", torch.zeros(3, I), r"lstm_layer: x must be \[T, B, I\], got \[3, 11\]"),
        ("x", torch.zeros(3, 2, I).long(), "lstm_layer: x must be float32, float64, bfloat16 or float16"),
        ("w_ih", torch.zeros(20, 9), r"lstm_layer: w_ih must be \[4H, I\] = \[20, 11\], got \[20, 9\]"),
        ("w_hh", torch.zeros(20, 4), r"lstm_layer: w_hh must be \[4H, H\] = \[20, 5\], got \[20, 4\]"),
        ("bias", torch.zeros(19), r"lstm_layer: bias must be \[4H\] = \[20\], got \[19\]"),
        ("h0", torch.zeros(2, 5).double(), "lstm_layer: h0 must have the dtype of x, Float, got Double"),
        ("c0", torch.zeros(5), r"lstm_layer: c0 must be \[B, H\], got \[5\]"),
        ("w_hr", torch.zeros(5), r"lstm_layer: w_hr must be \[P, H\], got \[5\]"),
        ("lengths", torch.tensor([3, 4]), r"lstm_layer: lengths must be within 0..T = 0..3, got 4 at row 1"),
        ("cont", torch.zeros(2, 3), r"lstm_layer: cont must be \[T, B\] = \[3, 2\], got \[2, 3\]"),
    ],
)
def test_errors_name_the_argument(argument, replacement, message):
    inputs = dict(zip(NAMES, layer_inputs(3, 2, 5), strict=False))
    inputs[argument] = replacement
    with pytest.raises(ValueError, match=message):
        lstm_layer(**inputs)


@pytest.mark.parametrize(
    ("batch_sizes", "options", "message"),
    [
        ([2, 3], {}, "lstm_layer: batch_sizes must fall from B = 2, got 3 at step 1"),
        ([2, 1], {}, "lstm_layer: batch_sizes must sum to the rows of x = 5, got 3"),
        ([2, 2, -1], {}, "lstm_layer: batch_sizes must fall from B = 2, got -1 at step 2"),
        ([2.0], {}, r"lstm_layer: batch_sizes must be int64 \[T\] on the CPU, got Float \[1\]"),
        (
            [2, 2, 1],
            {"cont": torch.ones(3, 2)},
            "lstm_layer: lengths and cont must be None with batch_sizes, got a tensor",
        ),
    ],
)
def test_errors_of_packed_sequences(batch_sizes, options, message):
    inputs = layer_inputs(3, 2, 5, packed_rows=5)
    with pytest.raises(ValueError, match=message):
        run(inputs, batch_sizes=torch.tensor(batch_sizes), **options)

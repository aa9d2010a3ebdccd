"""The packed linear op against torch.nn.functional.linear in float64."""

import pytest
import torch
from conftest import int8_activations, rounds_bfloat16
from torch.nn import functional as F

from lrcn_fast import ops

DTYPES = [torch.float32, torch.bfloat16, torch.int8]

# |error| <= 4 * eps * sum |x w|, the bound of tests/cpp/linear.cpp; worst seen there 1.9.
EPS_PER_SUM = 4


def rounded(w, dtype):
    """The weight as it is stored, in float64."""
    if dtype is torch.int8:
        scale = w.double().abs().amax(1, keepdim=True) / 127
        return (w.double() / scale).round() * scale
    return w.to(dtype).double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "N"),
    [((1,), 1), ((3, 15), 63), ((2, 3, 17), 65), ((50, 100), 130), ((0, 5), 7), ((2, 800), 64)],
    ids=str,
)
def test_matches_float64(shape, N, bias, dtype):
    x, w, b = torch.randn(shape), torch.randn(N, shape[-1]), torch.randn(N) if bias else None
    y = ops.linear(x, ops.linear_pack(w, dtype=dtype), b, N)
    stored, wide_b = rounded(w, dtype), None if b is None else b.double()
    x = int8_activations(x) if dtype is torch.int8 else x
    expected = F.linear(x.double(), stored, wide_b)
    size = F.linear(x.double().abs(), stored.abs(), None if b is None else wide_b.abs())
    assert y.shape == (*shape[:-1], N)
    bound = EPS_PER_SUM * torch.finfo(torch.float32).eps * size
    if dtype is torch.bfloat16 and rounds_bfloat16():
        bound = bound + 2.0**-8 * size
    assert ((y.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("K", [1, 3, 4, 127, 128, 129, 300])
def test_int8_rounds_activations_by_blocks(K):
    x = torch.randn(50, K) * torch.logspace(-20, 20, 50)[:, None]
    x[:, 128:] *= 1e-6  # a block's step is its own
    x[0] = 0.0
    rounded = int8_activations(x)
    error = F.pad((rounded - x).abs(), (0, -K % 128)).unflatten(1, (-1, 128))
    largest = F.pad(x.abs(), (0, -K % 128)).unflatten(1, (-1, 128)).amax(2, keepdim=True)
    assert (error <= largest / 64 * 0.50001).all()
    assert K == 1 or (error > largest * 1e-4).any()  # it does round
    torch.testing.assert_close(int8_activations(rounded), rounded, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_its_batch_or_on_threads(dtype):
    x, w = torch.randn(53, 500), torch.randn(300, 500)
    packed = ops.linear_pack(w, dtype=dtype)
    whole = ops.linear(x, packed, None, 300)
    for M in (1, 2, 3, 4, 5, 6, 7, 13, 49):
        assert torch.equal(ops.linear(x[-M:], packed, None, 300), whole[-M:])
    torch.set_num_threads(3)
    assert torch.equal(ops.linear(x, packed, None, 300), whole)


def test_autocast_computes_in_float32():
    x, w = torch.randn(2, 9), torch.randn(5, 9)
    packed = ops.linear_pack(w)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.linear(x.bfloat16(), packed, None, 5)
    assert torch.equal(y, ops.linear(x.bfloat16().float(), packed, None, 5))


def test_nan_and_infinity_pass_through():
    x, w = torch.ones(3, 20), torch.randn(70, 20)
    x[1, 3], x[2, 19] = float("nan"), float("inf")
    y = ops.linear(x, ops.linear_pack(w), None, 70)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()
    assert (y[2] == w[:, 19].sign() * float("inf")).all()


def test_no_gradient():
    packed = ops.linear_pack(torch.randn(5, 9))
    with pytest.raises(NotImplementedError, match="linear: a packed weight is for inference only"):
        ops.linear(torch.randn(2, 9, requires_grad=True), packed, None, 5)


@pytest.mark.parametrize(
    ("argument", "replacement", "message"),
    [
        ("x", torch.tensor(1.0), r"linear: x must be \[..., K\], got a scalar"),
        ("x", torch.zeros(2, 9).double(), "linear: x must be float32, got Double"),
        ("x", torch.zeros(2, 8), r"packed must be packed from a weight of \[5, 8\], got one of \[5, 9\]"),
        ("out_features", 6, r"packed must be packed from a weight of \[6, 9\], got one of \[5, 9\]"),
        (
            "packed",
            torch.zeros(5, 9),
            r"linear: packed must be a packed weight on the CPU, got Float \[5, 9\]",
        ),
        ("packed", ops.lstm_pack(torch.zeros(20, 5)), "linear: packed is no packed weight of this op"),
        ("bias", torch.zeros(4), r"linear: bias must be \[N\] = \[5\], got \[4\]"),
    ],
)
def test_errors_name_the_argument(argument, replacement, message):
    arguments = {
        "x": torch.zeros(2, 9),
        "packed": ops.linear_pack(torch.zeros(5, 9)),
        "bias": torch.zeros(5),
        "out_features": 5,
    }
    arguments[argument] = replacement
    with pytest.raises(ValueError, match=message):
        ops.linear(**arguments)


@pytest.mark.parametrize(
    ("w", "dtype", "message"),
    [
        (torch.zeros(5), torch.float32, r"linear_pack: w must be \[N, K\], got \[5\]"),
        (torch.zeros(5, 9).double(), torch.float32, "linear_pack: w must be float32, got Double"),
        (
            torch.zeros(5, 9),
            torch.float64,
            "linear_pack: dtype must be float32, bfloat16 or int8, got Double",
        ),
        (
            torch.full((5, 9), float("inf")),
            torch.int8,
            "linear_pack: w must be finite to be stored as int8, got inf",
        ),
    ],
)
def test_pack_errors(w, dtype, message):
    with pytest.raises(ValueError, match=message):
        ops.linear_pack(w, dtype=dtype)

"""Both directions in one call, against one call for each."""

import pytest
import torch
from test_ops_lstm import assert_same, make_inputs

from lrcn_fast import nn, ops

FLOATING = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def make_pair(T, B, H, dtype=torch.float32, P=None, requires_grad=False, device="cpu"):
    """What make_inputs returns, twice, with other numbers in the second."""
    first = make_inputs(T, B, H, dtype, P)
    second = [t.flip(0) for t in first]
    return [
        [t.detach().to(device).requires_grad_(requires_grad) for t in inputs] for inputs in (first, second)
    ]


def together(pair, lengths=None):
    """h, h of the reverse direction, c, c of the reverse direction."""
    xg, w_hh, h0, c0, *w_hr = zip(*pair, strict=True)
    h, c = ops.lstm_bidirectional(xg, w_hh, h0, c0, w_hr=w_hr[0] if w_hr else (), lengths=lengths)
    return *h, *c


def apart(pair, lengths=None):
    (h, c), (h_reverse, c_reverse) = (
        ops.lstm(*inputs[:4], w_hr=inputs[4] if len(inputs) > 4 else None, lengths=lengths, reverse=reverse)
        for inputs, reverse in zip(pair, (False, True), strict=True)
    )
    return h, h_reverse, c, c_reverse


@pytest.mark.parametrize("lengths", [None, (4, 0, 2)], ids=["full", "lengths"])
@pytest.mark.parametrize("P", [None, 7], ids=["plain", "proj"])
@pytest.mark.parametrize("dtype", FLOATING, ids=lambda d: str(d).split(".")[1])
def test_is_lstm_twice(dtype, P, lengths, device):
    lengths = None if lengths is None else torch.tensor(lengths, device=device)
    pair = make_pair(4, 3, 17, dtype, P, requires_grad=True, device=device)
    outputs, expected = together(pair, lengths), apart(pair, lengths)
    assert_same(outputs, expected)
    with torch.no_grad():
        assert_same(together(pair, lengths), expected)
    d = [torch.randn_like(t) for t in outputs]
    leaves = [*pair[0], *pair[1]]
    assert_same(torch.autograd.grad(outputs, leaves, d), torch.autograd.grad(expected, leaves, d))


def test_a_direction_that_nothing_reaches_has_no_gradient():
    pair = make_pair(3, 2, 5, requires_grad=True)
    outputs = together(pair)
    for i, inputs in enumerate(pair):
        grads = torch.autograd.grad(
            outputs[i].sum(), [*inputs, *pair[1 - i]], allow_unused=True, retain_graph=True
        )
        assert [g is None for g in grads] == [False] * 4 + [True] * 4


def test_second_derivatives():
    pair = make_pair(3, 2, 3, torch.float64, P=2, requires_grad=True)
    lengths, leaves = torch.tensor([2, 3]), [*pair[0], *pair[1]]
    size = len(pair[0])

    def run(*tensors):
        return together([tensors[:size], tensors[size:]], lengths)

    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_in_its_dtype(dtype, device):
    pair = make_pair(3, 2, 5, device=device)
    with torch.autocast(device, dtype):
        outputs = together(pair)
    assert {t.dtype for t in outputs} == {dtype}
    assert_same(outputs, apart([[t.to(dtype) for t in inputs] for inputs in pair]))


@pytest.mark.parametrize("shape", [(0, 2, 5), (3, 0, 5)], ids=["no-steps", "no-rows"])
def test_empty(shape, device):
    T, B, H = shape
    pair = make_pair(T, B, H, requires_grad=True, device=device)
    outputs = together(pair)
    assert all(t.shape == (T, B, H) for t in outputs)
    grads = torch.autograd.grad(sum(t.sum() for t in outputs), [*pair[0], *pair[1]])
    assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: [torch.zeros(4, 3, 20)]}, r"lstm_bidirectional: xg must be 2 tensors, got 1"),
        ({1: [torch.zeros(20, 5)] * 3}, r"lstm_bidirectional: w_hh must be 2 tensors, got 3"),
        ({2: []}, r"lstm_bidirectional: h0 must be 2 tensors, got 0"),
        ({3: [torch.zeros(3, 5), torch.zeros(3, 6)]}, r"lstm: xg must be \[T, B, 4H\] = \[4, 3, 24\], got"),
        (
            {0: [torch.zeros(4, 3, 20), torch.zeros(5, 3, 20)]},
            r"lstm_bidirectional: xg\[1\] must be \[T, B, 4H\] = \[4, 3, 20\], got \[5, 3, 20\]",
        ),
    ],
    ids=["xg", "w_hh", "h0", "sizes", "steps"],
)
def test_errors(change, message):
    arguments = [list(t) for t in zip(*make_pair(4, 3, 5), strict=True)]
    for at, value in change.items():
        arguments[at] = value
    with pytest.raises(ValueError, match=message):
        ops.lstm_bidirectional(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: 1}, r"lstm_bidirectional_backward: d_h must be 2 tensors, got 1"),
        ({2: 1}, r"lstm_bidirectional_backward: d_gates must be 2 tensors or none, got 1"),
        ({3: 0}, r"lstm_bidirectional_backward: w_hh must be 2 tensors, got 0"),
        ({4: 1}, r"lstm_bidirectional_backward: w_hr must be 2 tensors or none, got 1"),
        ({5: 0}, r"lstm_bidirectional_backward: gates must be 2 tensors, got 0"),
        ({7: 1}, r"lstm_bidirectional_backward: c must be 2 tensors, got 1"),
    ],
    ids=["d_h", "d_gates", "w_hh", "w_hr", "gates", "c"],
)
def test_errors_of_the_backward_op(change, message):
    xg, w_hh, h0, c0, w_hr = (list(t) for t in zip(*make_pair(4, 3, 5, P=2), strict=True))
    outputs = torch.ops.lrcn_fast.lstm_bidirectional(xg, w_hh, w_hr, h0, c0, None, True)
    h, c, gates = ([*outputs[i : i + 2]] for i in (0, 2, 4))
    arguments = [h, c, [], w_hh, w_hr, gates, c0, c]
    for at, count in change.items():
        arguments[at] = (arguments[at] or gates)[:count]
    with pytest.raises(ValueError, match=message):
        torch.ops.lrcn_fast.lstm_bidirectional_backward(*arguments, None)


def test_both_directions_have_the_same_sizes_in_the_backward_op():
    one, other = make_pair(4, 3, 5)[0], make_pair(3, 3, 5)[1]
    runs = [
        torch.ops.lrcn_fast.lstm(xg, w_hh, None, h0, c0, None, None, None, False, True)
        for xg, w_hh, h0, c0 in (one, other)
    ]
    h, c, gates = (list(t) for t in zip(*runs, strict=True))
    _, w_hh, _, c0 = (list(t) for t in zip(one, other, strict=True))
    message = r"lstm_bidirectional_backward: c\[1\] must be \[T, B, H\] = \[4, 3, 5\], got \[3, 3, 5\]"
    with pytest.raises(ValueError, match=message):
        torch.ops.lrcn_fast.lstm_bidirectional_backward(h, c, [], w_hh, [], gates, c0, c, None)


def test_both_project_or_neither():
    xg, w_hh, h0, c0, w_hr = zip(*make_pair(4, 3, 5, P=2), strict=True)
    with pytest.raises(ValueError, match="lstm_bidirectional: w_hr must be 2 tensors or none, got 1"):
        ops.lstm_bidirectional(xg, w_hh, h0, c0, w_hr=w_hr[:1])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("P", [0, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_the_module_computes_the_same_side_by_side(bias, P, dtype):
    """What nn.LSTM does on CUDA, done on the CPU."""
    lstm = nn.LSTM(6, 5, 2, bias=bias, bidirectional=True, proj_size=P)
    x = torch.randn(4, 3, 2 * (P or 5))
    h0, c0 = torch.randn(4, 3, P or 5), torch.randn(4, 3, 5)
    lengths = torch.tensor([4, 0, 2])
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        states = lstm._run_side_by_side(2, x, h0, c0, lengths)
    for i, state in enumerate(states, 2):
        w = lstm._weights(i).to(dtype or torch.float32)
        x_i, h, c = (t.to(w.hh.dtype) for t in (x, h0[i], c0[i]))
        xg = torch.nn.functional.linear(x_i, w.ih, w.bias)
        assert_same(state, ops.lstm(xg, w.hh, h, c, w_hr=w.hr, lengths=lengths, reverse=i == 3))

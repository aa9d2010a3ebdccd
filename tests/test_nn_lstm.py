"""nn.LSTM and nn.LSTMCell against torch.nn's, over all their options: results and every gradient."""

import itertools

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.testing._internal.common_modules import module_db

from lrcn_fast import nn

T, B, I, H = 7, 3, 6, 17  # noqa: E741  (H is one over a panel of 16)
LENGTHS = torch.tensor([3, 7, 1])

# |error| <= EPS_PER_STEP * T * layers * eps * (scale + |expected|) against torch.nn in float64, where scale
# is the largest entry, at least 1. Worst seen over 3 seeds on generic and AVX2: 0.07 for outputs, 0.2 for
# gradients, in float32 and float64 alike.
EPS_PER_STEP = 0.5


def assert_close(name, actual, expected, steps=T * 2):
    expected = expected.detach()
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    bound = EPS_PER_STEP * steps * torch.finfo(actual.dtype).eps
    assert actual.shape == expected.shape, name
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=bound, atol=bound * scale, msg=lambda m: f"{name}: {m}"
    )


def flat(result):
    output, (h_n, c_n) = result
    return {"output": output.data if isinstance(output, PackedSequence) else output, "h_n": h_n, "c_n": c_n}


def randn(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def compare(ours, theirs, x, hx, dtype):
    """Outputs, states, and the gradients of inputs and parameters: ours in dtype, theirs in float64."""

    def run(module, dtype):
        def leaf(t):
            return t.detach().to(dtype).requires_grad_()

        if isinstance(x, PackedSequence):
            data = leaf(x.data)
            input = PackedSequence(data, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
        else:
            data = input = leaf(x)
        state = None if hx is None else tuple(leaf(s) for s in hx)
        result = module(input, state)
        values = flat(result)
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(v.shape, generator=generator, dtype=torch.float64) for v in values.values()]
        loss = sum((v * w.to(v.dtype)).sum() for v, w in zip(values.values(), weights, strict=True))
        leaves = {"input": data, **dict(module.named_parameters())}
        if state is not None:
            leaves |= {"h_0": state[0], "c_0": state[1]}
        grads = torch.autograd.grad(loss, list(leaves.values()))
        values |= {f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)}
        return result[0], values

    output, actual = run(ours, dtype)
    expected_output, expected = run(theirs, torch.float64)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].dtype == dtype
        assert_close(name, actual[name], expected[name])
    if isinstance(x, PackedSequence):
        for a, b in zip(output[1:], expected_output[1:], strict=True):
            assert (a is None and b is None) or torch.equal(a, b)

    # Inference, from packed weights where there are any.
    ours.eval()
    state = None if hx is None else tuple(s.to(dtype) for s in hx)
    with torch.inference_mode():
        result = flat(ours(x.to(dtype), state))
    for name, value in result.items():
        assert_close(f"inference {name}", value, expected[name])


FORMS = ["padded", "unbatched", "packed", "packed-sorted"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("proj_size", [0, 5])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["uni", "bi"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_option_matrix(num_layers, bidirectional, proj_size, form, dtype):
    for bias, batch_first, with_hx in itertools.product([True, False], repeat=3):
        options = dict(
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            proj_size=proj_size,
        )
        theirs = torch.nn.LSTM(I, H, **options, dtype=torch.float64)
        ours = nn.LSTM(I, H, **options, dtype=dtype)
        ours.load_state_dict(theirs.state_dict())
        # "The same weights" must hold after rounding too.
        theirs.load_state_dict(ours.state_dict())
        LD = num_layers * (1 + bidirectional)
        rows = () if form == "unbatched" else (B,)
        hx = (randn(LD, *rows, proj_size or H), randn(LD, *rows, H)) if with_hx else None
        if form == "unbatched":
            x = randn(T, I)
        elif form == "padded":
            x = randn(B, T, I) if batch_first else randn(T, B, I)
        else:
            sequences = [randn(int(n), I) for n in LENGTHS]
            if form == "packed-sorted":
                sequences.sort(key=len, reverse=True)
            x = pack_sequence(sequences, enforce_sorted=form == "packed-sorted")
        # Round once: both read the same numbers.
        x = x.to(dtype).double()
        hx = None if hx is None else tuple(s.to(dtype).double() for s in hx)
        compare(ours, theirs, x, hx, dtype)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 5, 3, 16), (40, 1, 8, 64), (3, 0, 4, 5)], ids=str)
def test_sizes(shape):
    T, B, I, H = shape  # noqa: E741
    theirs = torch.nn.LSTM(I, H, dtype=torch.float64)
    ours = nn.LSTM(I, H)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    compare(ours, theirs, randn(T, B, I).float().double(), None, torch.float32)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(num_layers=3, bidirectional=True),
        dict(num_layers=2, proj_size=3),
        dict(bias=False),
        dict(bidirectional=True, proj_size=2, bias=False),
    ],
    ids=str,
)
def test_same_initial_weights_and_state_dict(options):
    torch.manual_seed(7)
    theirs = torch.nn.LSTM(I, H, **options)
    after = torch.random.get_rng_state()
    torch.manual_seed(7)
    ours = nn.LSTM(I, H, **options)
    assert torch.equal(torch.random.get_rng_state(), after)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    for a, b in zip(ours.all_weights, theirs.all_weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    ours.flatten_parameters()
    torch.manual_seed(8)
    theirs.reset_parameters()
    torch.manual_seed(8)
    ours.reset_parameters()
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_draws_as_torch(batch_first):
    options = dict(num_layers=3, dropout=0.4, batch_first=batch_first, bidirectional=True)
    theirs = torch.nn.LSTM(I, H, **options, dtype=torch.float64)
    ours = nn.LSTM.from_torch(theirs)
    x = randn(B, T, I)
    torch.manual_seed(3)
    expected = theirs(x)
    torch.manual_seed(3)
    assert_close("output", ours(x)[0], expected[0])
    assert not torch.equal(ours(x)[0], ours(x)[0])
    ours.eval()
    assert torch.equal(ours(x)[0], ours(x)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize(("ours", "theirs"), [(nn.LSTM, torch.nn.LSTM), (nn.LSTMCell, torch.nn.LSTMCell)])
def test_torchs_own_inputs(ours, theirs, dtype):
    (info,) = [info for info in module_db if info.module_cls is theirs]
    samples = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=True)
    assert samples
    steps = T * 2 * 9  # torch draws from [-9, 9]: the rounding of the gates grows with them
    for sample in samples:
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        module = ours(*args, **kwargs, dtype=dtype)
        reference = theirs(*args, **kwargs, dtype=torch.float64)
        reference.load_state_dict(module.state_dict())
        inputs = sample.forward_input.args
        # What torch itself compares with: the batched form of the module.
        torch.testing.assert_close(module(*inputs), sample.reference_fn(module, *inputs))
        doubles = [
            i.double() if isinstance(i, torch.Tensor) else tuple(s.double() for s in i) for i in inputs
        ]
        actual, expected = module(*inputs), reference(*doubles)
        for a, b in zip(_tensors(actual), _tensors(expected), strict=True):
            assert_close("output", a, b, steps)
        grads = [
            torch.autograd.grad(sum(t.cos().sum() for t in _tensors(result)), list(m.parameters()))
            for result, m in ((actual, module), (expected, reference))
        ]
        for (name, _), a, b in zip(module.named_parameters(), *grads, strict=True):
            assert_close(f"d {name}", a, b, steps)


def _tensors(result):
    return [result] if isinstance(result, torch.Tensor) else [t for r in result for t in _tensors(r)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(), (3,), (0,)], ids=["unbatched", "batched", "empty"])
@pytest.mark.parametrize("with_hx", [False, True])
def test_cell(dtype, bias, rows, with_hx):
    torch.manual_seed(1)
    theirs = torch.nn.LSTMCell(I, H, bias)
    torch.manual_seed(1)
    ours = nn.LSTMCell(I, H, bias)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours, theirs = ours.to(dtype), theirs.double()

    def run(module, dtype):
        torch.manual_seed(2)
        leaves = [torch.randn(*rows, n).to(dtype).requires_grad_() for n in (I, H, H)]
        x, *hx = leaves
        h, c = module(x, tuple(hx) if with_hx else None)
        h2, c2 = module(x * 0.5, (h, c))
        loss = (h2 * torch.linspace(1, 2, H).to(dtype)).sum() + c2.sin().sum() + h.sum()
        wanted = (leaves if with_hx else leaves[:1]) + list(module.parameters())
        with torch.no_grad():
            inference = module.eval()(x, tuple(hx) if with_hx else None)
        return [h, c, h2, c2, *inference], torch.autograd.grad(loss, wanted)

    for a, b in zip(run(ours, dtype), run(theirs, torch.float64), strict=True):
        for i, (actual, expected) in enumerate(zip(a, b, strict=True)):
            assert_close(str(i), actual, expected)


def test_cell_states_may_be_written_to():
    """Loops that reset states in place must not break backward: torch.nn.LSTMCell allows it."""
    cell = nn.LSTMCell(I, H)
    h, c = cell(torch.randn(B, I))
    h[0] = 0
    c.mul_(0.5)
    h, c = cell(torch.randn(B, I), (h, c))
    (h.sum() + c.sum()).backward()
    assert cell.weight_hh.grad is not None


@pytest.mark.parametrize("options", [{}, dict(bidirectional=True, proj_size=2, num_layers=2)], ids=str)
def test_gradcheck_and_gradgradcheck(options):
    lstm = nn.LSTM(2, 3, **options, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([2, 3])
    names = [name for name, _ in lstm.named_parameters()]

    def run(x, *parameters):
        named = dict(zip(names, parameters, strict=True))
        output, (h_n, c_n) = torch.func.functional_call(lstm, named, (x,), {"lengths": lengths})
        return output, h_n, c_n

    # Smaller than initialisation draws them: at larger values finite differences lose digits.
    parameters = [p.detach().mul(0.5).requires_grad_() for p in lstm.parameters()]
    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *parameters), fast_mode=True)


def test_results_in_half_precision():
    for dtype in (torch.bfloat16, torch.float16):
        lstm = nn.LSTM(I, H, 2, bidirectional=True).to(dtype)
        theirs = torch.nn.LSTM(I, H, 2, bidirectional=True, dtype=torch.float64)
        theirs.load_state_dict(lstm.state_dict())
        x = torch.randn(T, B, I).to(dtype).requires_grad_()
        output, (h_n, c_n) = lstm(x)
        assert {output.dtype, h_n.dtype, c_n.dtype} == {dtype}
        # Steps compute in float32; xg and h round. Worst seen over 20 seeds: 0.18 eps.
        torch.testing.assert_close(
            output.double(), theirs(x.double())[0], rtol=0, atol=0.5 * torch.finfo(dtype).eps
        )
        output.float().sum().backward()
        assert x.grad.dtype == dtype
        assert torch.isfinite(x.grad).all()


def lstm_error(match, *args, error=ValueError, lstm=None, **kwargs):
    with pytest.raises(error, match=match):
        (lstm or nn.LSTM(I, H))(*args, **kwargs)


def test_forward_errors():
    x = torch.randn(T, B, I)
    h, c = torch.zeros(1, B, H), torch.zeros(1, B, H)
    lstm_error(r"LSTM: input must be \[T, B, I\] or \[T, I\], I = 6, got \[7, 3, 5\]", x[..., 1:])
    lstm_error(r"LSTM: input must be \[B, T, I\].*got \[6\]", x[0, 0], lstm=nn.LSTM(I, H, batch_first=True))
    lstm_error(r"LSTM: input must have at least one step, got \[0, 3, 6\]", x[:0])
    lstm_error(r"input must have the dtype of the weights, torch.float32, got torch.float64", x.double())
    lstm_error(r"input must be on the device of the weights, cpu, got meta", x.to("meta"))
    lstm_error(r"hx must be a pair of tensors \(h_0, c_0\), got Tensor", x, h)
    lstm_error(r"hx\[0\] must be \[L\*D, B, P\] = \[1, 3, 17\], got \[1, 2, 17\]", x, (h[:, 1:], c))
    lstm_error(r"hx\[1\] must be \[L\*D, B, H\] = \[1, 3, 17\], got \[3, 17\]", x, (h, c[0]))
    lstm_error(r"hx\[0\] must be \[L\*D, P\] = \[1, 17\], got \[1, 3, 17\]", x[:, 0], (h, c))
    lstm_error(r"hx\[1\] must have the dtype of the weights", x, (h, c.double()))
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    lstm_error(r"input.data must be \[N, I\], I = 5, got \[11, 6\]", packed, lstm=nn.LSTM(5, H))
    lstm_error(r"hx\[0\] must be .* = \[1, 3, 17\], got \[1, 2, 17\]", packed, (h[:, 1:], c[:, 1:]))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(input_size=0), "input_size must be a positive int, got 0"),
        (dict(hidden_size=-1), "hidden_size must be a positive int, got -1"),
        (dict(hidden_size=2.5), "hidden_size must be a positive int, got 2.5"),
        (dict(num_layers=0), "num_layers must be a positive int, got 0"),
        (dict(bias=1), "bias must be a bool, got 1"),
        (dict(batch_first="yes"), "batch_first must be a bool, got 'yes'"),
        (dict(dropout=1.5), r"dropout must be a number in \[0, 1\], got 1.5"),
        (dict(dropout=True), r"dropout must be a number in \[0, 1\], got True"),
        (dict(proj_size=-1), r"proj_size must be an int, 0 to hidden_size - 1 = 3, got -1"),
        (dict(proj_size=4), r"proj_size must be an int, 0 to hidden_size - 1 = 3, got 4"),
        (dict(zoneout=-0.1), r"zoneout must be a number in \[0, 1\], got -0.1"),
        (dict(zoneout=(0.1, 0.2, 0.3)), r"zoneout must be a number or a pair \(hidden, cell\)"),
        (dict(recurrent_dropout=2), r"recurrent_dropout must be a number in \[0, 1\], got 2"),
        (dict(layer_norm=None), "layer_norm must be a bool, got None"),
    ],
    ids=str,
)
def test_constructor_errors(options, match):
    with pytest.raises(ValueError, match="LSTM: " + match):
        nn.LSTM(**{"input_size": 3, "hidden_size": 4, **options})


def test_useless_dropout_warns():
    with pytest.warns(UserWarning, match="dropout = 0.5 does nothing with num_layers = 1"):
        nn.LSTM(3, 4, dropout=0.5)


def test_cell_errors():
    cell = nn.LSTMCell(I, H)
    x, h = torch.randn(B, I), torch.zeros(B, H)
    for match, args in [
        (r"input must be \[B, I\] or \[I\], I = 6, got \[3, 5\]", (x[:, 1:],)),
        (r"input must be \[B, I\] or \[I\], I = 6, got \[1, 3, 6\]", (x[None],)),
        (r"input must have the dtype of the weights, torch.float32, got torch.float64", (x.double(),)),
        (r"hx must be a pair of tensors \(h_0, c_0\), got Tensor", (x, h)),
        (r"hx\[0\] must be \[B, H\] = \[3, 17\], got \[2, 17\]", (x, (h[1:], h[1:]))),
        (r"hx\[1\] must be \[B, H\] = \[3, 17\], got \[3, 16\]", (x, (h, h[:, 1:]))),
    ]:
        with pytest.raises(ValueError, match="LSTMCell: " + match):
            cell(*args)
    with pytest.raises(ValueError, match="LSTMCell: hidden_size must be a positive int, got 0"):
        nn.LSTMCell(3, 0)


def test_repr_shows_what_differs():
    assert repr(nn.LSTM(3, 4)) == "LSTM(3, 4)"
    lstm = nn.LSTM(3, 4, 2, bias=False, proj_size=2, zoneout=(0.1, 0.0))
    assert repr(lstm) == "LSTM(3, 4, proj_size=2, num_layers=2, bias=False, zoneout=(0.1, 0.0))"
    assert repr(nn.LSTMCell(3, 4, bias=False)) == "LSTMCell(3, 4, bias=False)"

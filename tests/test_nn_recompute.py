"""nn.LSTM(recompute=True): the same numbers from less memory."""

import pytest
import torch
from small_lstm import LENGTHS, B, H, I, T, gradients, inputs, make
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.rnn import pack_padded_sequence

from lrcn_fast import nn

OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"bidirectional": True, "proj_size": 5, "dropout": 0.5}, id="bidirectional-proj-dropout"),
    pytest.param({"layer_norm": True, "zoneout": 0.3, "recurrent_dropout": 0.3}, id="custom"),
]


def pair(**options):
    lstms = [make(recompute=recompute, **options) for recompute in (False, True)]
    lstms[1].load_state_dict(lstms[0].state_dict())
    return lstms


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["padded", "lengths", "packed", "autocast"])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_bits(options, form):
    results = []
    for lstm in pair(**options):
        torch.manual_seed(2)  # of the dropout masks
        x = inputs(requires_grad=True)
        if form == "packed":
            output, states = lstm(pack_padded_sequence(x, LENGTHS.clamp(1), enforce_sorted=False))
            output = output.data
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=form == "autocast"):
                output, states = lstm(x, lengths=LENGTHS if form == "lengths" else None)
        torch.rand(1)  # the masks are drawn again from where they were
        grads = torch.autograd.grad(output.float().square().sum() + states[1].sum(), [x, *lstm.parameters()])
        results.append((output, *states, *grads))
    assert_same(*results[::-1])
    assert results[0][-1].abs().sum() > 0


def saved_bytes(module, x):
    """Bytes that autograd holds between the passes, shared storage once, without parameters and input."""
    known = {t.untyped_storage().data_ptr() for t in (x, *module.parameters())}
    held = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in known:
            held[t.untyped_storage().data_ptr()] = t  # alive, so that no address comes twice
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        output, _ = module(x)
    assert output.requires_grad
    return sum(t.untyped_storage().nbytes() for t in held.values())


def test_less_is_saved():
    x = torch.randn(20, 4, I)
    one = 20 * 4 * H * 4  # bytes of an h
    plain, recompute = (nn.LSTM(I, H, 3, recompute=on) for on in (False, True))
    # Of each layer: h, c and gates, and 0.1 for the initial states and the biases.
    assert 3 * 6 * one <= saved_bytes(plain, x) <= 3 * 6.1 * one
    assert saved_bytes(recompute, x) <= 2 * one  # what a layer starts from: the h below


def test_nothing_is_kept_or_repeated_without_gradients():
    lstm = make(recompute=True).eval()
    with torch.no_grad():
        output, _ = lstm(inputs())
    assert not output.requires_grad
    assert len(lstm._packs.weights) == 2


def test_second_derivatives():
    grads = []
    for lstm in pair():
        x = inputs(requires_grad=True)
        (d_x,) = torch.autograd.grad(lstm(x)[0].square().sum(), x, create_graph=True)
        grads.append(torch.autograd.grad(d_x.square().sum(), [x, *lstm.parameters()]))
    assert_same(*grads[::-1])


def test_torch_func_goes_without():
    lstm, x = make(recompute=True), inputs()

    def loss(parameters):
        return torch.func.functional_call(lstm, parameters, (x,))[0].square().sum()

    grads = torch.func.grad(loss)(dict(lstm.named_parameters()))
    expected = torch.autograd.grad(lstm(x)[0].square().sum(), lstm.parameters())
    torch.testing.assert_close(tuple(grads.values()), expected, rtol=1e-5, atol=1e-5)


def test_compiles_in_one_graph():
    lstm, x = make(recompute=True), inputs()
    result = torch.compile(lstm, fullgraph=True, backend="aot_eager")(x, lengths=LENGTHS)
    expected = lstm(x, lengths=LENGTHS)
    assert_same(result, expected)
    assert_same(gradients(lstm, result), gradients(lstm, expected))


def test_it_is_an_option_like_the_others():
    assert repr(nn.LSTM(I, H, recompute=True)) == f"LSTM({I}, {H}, recompute=True)"
    assert repr(nn.LSTM(I, H)) == f"LSTM({I}, {H})"
    with pytest.raises(ValueError, match="LSTM: recompute must be a bool, got 1"):
        nn.LSTM(I, H, recompute=1)
    lstm = make()
    lstm.recompute = True  # also later
    assert saved_bytes(lstm, torch.randn(T, B, I)) <= T * B * H * 4

"""Packed inference weights of nn.LSTM: when they are made, read and dropped, and what they round."""

import copy

import pytest
import torch
from conftest import rounds_bfloat16
from small_lstm import FLOAT, LENGTHS, B, H, I, T, gradients, inputs, make

from lrcn_fast import nn


def unpacked(lstm, x):
    """What the weights, as they are now, give without packs."""
    theirs = torch.nn.LSTM(I, H, 2)
    theirs.load_state_dict(lstm.state_dict())
    with torch.no_grad():
        return theirs(x)


def optimizer_step(lstm, x):
    lstm.train()
    lstm(x)[0].square().sum().backward()
    torch.optim.SGD(lstm.parameters(), lr=1.0).step()
    lstm.eval()


def fused_step(lstm, x):
    lstm.train()
    lstm(x)[0].square().sum().backward()
    torch.optim.SGD(lstm.parameters(), lr=1.0, fused=True).step()
    lstm.eval()


def data_in_train_mode(lstm, x):
    lstm.train()
    lstm.weight_hh_l0.data.copy_(lstm.weight_hh_l0.data * 2)
    lstm.eval()


def data_then_eval(lstm, x):
    lstm.weight_hh_l0.data.mul_(2)
    lstm.eval()


def data_then_prepare(lstm, x):
    lstm.weight_ih_l1.data.mul_(2)
    lstm.prepare()


def in_place(lstm, x):
    with torch.no_grad():
        lstm.weight_hh_l1.mul_(2)


def in_place_in_inference_mode(lstm, x):
    with torch.inference_mode():
        lstm.bias_hh_l1.add_(1)


def replaced_parameter(lstm, x):
    lstm.weight_ih_l0 = torch.nn.Parameter(lstm.weight_ih_l0.detach() * 2)


def replaced_data(lstm, x):
    lstm.weight_ih_l0.data = lstm.weight_ih_l0.detach() * 2
    lstm.eval()


def load_state_dict(lstm, x):
    lstm.load_state_dict({name: p * 2 for name, p in lstm.state_dict().items()})


def load_state_dict_of_parent(lstm, x):
    parent = torch.nn.Sequential(lstm)
    parent.load_state_dict({name: p * 2 for name, p in parent.state_dict().items()}, assign=True)


def to_and_back(lstm, x):
    lstm.to(torch.bfloat16).to(torch.float32)


def through_apply(lstm, x):
    lstm._apply(lambda t: t * 2)


CHANGES = [
    optimizer_step,
    fused_step,
    data_in_train_mode,
    data_then_eval,
    data_then_prepare,
    in_place,
    in_place_in_inference_mode,
    replaced_parameter,
    replaced_data,
    load_state_dict,
    load_state_dict_of_parent,
    to_and_back,
    through_apply,
]


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_no_pack_is_stale(change, prepared):
    lstm, x = make().eval(), inputs()
    if prepared:
        lstm.prepare()
    with torch.no_grad():
        before = lstm(x)
    assert len(lstm._packs.weights) == 2
    torch.testing.assert_close(before, unpacked(lstm, x), **FLOAT)
    change(lstm, x)
    with torch.no_grad():
        after = lstm(x)
    assert not torch.equal(after[0], before[0])
    torch.testing.assert_close(after, unpacked(lstm, x), **FLOAT)


def test_packs_are_made_once_and_only_for_inference():
    lstm, x = make(), inputs()
    with torch.no_grad():
        lstm(x)
    assert not lstm._packs  # training mode
    lstm.eval()
    lstm(x)
    assert not lstm._packs  # somebody may want a gradient
    with torch.inference_mode():
        lstm(x)
    packs = lstm._packs
    assert len(packs.weights) == 2
    with torch.no_grad():
        lstm(x)
    assert lstm._packs is packs
    x.requires_grad_()
    output = lstm(x)[0]
    lstm.requires_grad_(False)
    assert output.requires_grad
    assert lstm(x)[0].requires_grad
    assert not lstm(x.detach())[0].requires_grad
    cell = nn.LSTMCell(I, H).eval()
    with torch.no_grad():
        first = cell(x[0])
        assert len(cell._packs.weights) == 1
        cell.weight_hh.mul_(2)
        hx = (torch.ones(B, H), torch.ones(B, H))
        torch.testing.assert_close(cell(x[0], hx), cell.train()(x[0], hx), **FLOAT)
        assert not cell._packs
        torch.testing.assert_close(cell(x[0]), first, **FLOAT)  # from h = 0 weight_hh does not matter


def test_packed_and_plain_inference_agree():
    x = torch.randn(T, B, I)
    for options in ({}, dict(proj_size=5), dict(bidirectional=True), dict(bias=False)):
        lstm = make(**options)
        with torch.no_grad():
            plain = lstm(x, lengths=LENGTHS)
            torch.testing.assert_close(lstm.eval()(x, lengths=LENGTHS), plain, **FLOAT)


def rounded(w, dtype):
    """Weights as a pack stores them: bfloat16, or int8 with one scale per row."""
    if dtype == "bfloat16":
        return w.bfloat16().float()
    scale = w.abs().amax(1, keepdim=True) / 127
    return (w / scale).round() * scale


@pytest.mark.parametrize("options", [{}, dict(proj_size=5), dict(bidirectional=True, bias=False)], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_prepare_rounds_the_weights(dtype, options):
    lstm, x = make(**options).eval(), inputs()
    exact = copy.deepcopy(lstm)
    trained = gradients(lstm, lstm(x))
    assert lstm.prepare(dtype) is lstm
    for module in (lstm, lstm.train().eval()):  # the choice outlives the packs
        with torch.no_grad():
            output, states = module(x, lengths=LENGTHS)
        assert output.dtype == torch.float32
        with torch.no_grad():
            for name, p in exact.named_parameters():
                if p.dim() == 2:
                    p.copy_(rounded(lstm.get_parameter(name), dtype))
            # int8 weights multiply integers of 8 bits: measured 9e-4
            close = dict(rtol=0, atol=3e-3) if dtype == "int8" else FLOAT
            if dtype == "bfloat16" and rounds_bfloat16():
                close = dict(rtol=0, atol=1e-3)  # measured 2.6e-4
            torch.testing.assert_close((output, states), exact(x, lengths=LENGTHS), **close)
    assert not lstm(x)[0].requires_grad  # inference weights
    with torch.no_grad():
        assert not torch.equal(lstm(x)[0], lstm.prepare("float32")(x)[0])
    lstm.prepare(dtype).train()
    torch.testing.assert_close(gradients(lstm, lstm(x)), trained, **FLOAT)


def test_errors_of_prepare():
    lstm, x = make(), inputs()
    with pytest.raises(ValueError, match=r"prepare: dtype must be float32, bfloat16 or int8, got 'float16'"):
        lstm.prepare("float16")
    with pytest.raises(ValueError, match=r"prepare: parameters must be torch.float32, got torch.float64"):
        make().double().prepare("bfloat16")
    with pytest.raises(NotImplementedError, match="dtype must be float32 with layer_norm, zoneout or"):
        make(layer_norm=True).prepare("int8")
    with pytest.raises(NotImplementedError, match="prepare: dtype must be float32 on meta, got bfloat16"):
        nn.LSTM(I, H, device="meta").prepare("bfloat16")
    assert not make(layer_norm=True).prepare("float32")._packs
    lstm.eval().prepare("int8")
    with pytest.raises(ValueError, match="input and hx must not require grad with weights prepared as int8"):
        lstm(x.requires_grad_())
    # Never back to float32 in silence.
    with pytest.raises(ValueError, match=r"prepare: parameters must be torch.float32, got torch.bfloat16"):
        lstm.bfloat16()(x.bfloat16())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_inference_does_not_depend_on_threads_or_neighbours(dtype):
    lstm = nn.LSTM(33, 65, num_layers=2, bidirectional=True).eval().prepare(dtype)
    x = torch.randn(T, 9, 33)
    with torch.inference_mode():
        expected = lstm(x)[0]
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(lstm(x)[0], expected)
        assert torch.equal(lstm(x[:, 4:5])[0], expected[:, 4:5])


def test_modules_made_in_inference_mode():
    with torch.inference_mode():
        lstm = make().eval()
        expected = lstm(inputs())
        assert lstm._packs
        lstm.load_state_dict({name: p * 2 for name, p in lstm.state_dict().items()})
        assert not torch.equal(lstm(inputs())[0], expected[0])


def test_autocast_leaves_prepared_weights_in_float32():
    lstm, x = make().eval().prepare("int8"), inputs()
    with torch.no_grad():
        expected = lstm(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(lstm(x), expected, rtol=0, atol=0)
        lstm.prepare("float32")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert lstm(x)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"num_layers": 2, "proj_size": 5}], ids=str)
def test_frames_one_by_one_are_the_sequence(dtype, options):
    """Bit for bit, though a single step takes its input weights as it goes and a sequence beforehand."""
    torch.manual_seed(0)
    lstm = nn.LSTM(150, 40, **options).eval().prepare(dtype)
    for rows in (1, 5, 7, 60):
        x = torch.randn(4, rows, 150)
        with torch.no_grad():
            y, (h, c) = lstm(x)
            state, frames = None, []
            for frame in x.split(1):
                out, state = lstm(frame, state)
                frames.append(out)
        assert torch.equal(torch.cat(frames), y)
        assert torch.equal(state[0], h)
        assert torch.equal(state[1], c)

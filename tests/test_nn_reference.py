"""reference.lstm, the definition of correct, against torch.nn.LSTM and hand-made cases, in float64."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lrcn_fast import reference

T, B, I, H = 6, 4, 3, 5  # noqa: E741
LENGTHS = torch.tensor([6, 0, 3, 1])


def make(P=None, seed=0):
    """xg, h0, c0 and a torch.nn.LSTM that has the weights, all float64."""
    torch.manual_seed(seed)
    lstm = torch.nn.LSTM(I, H, proj_size=P or 0, bidirectional=True, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    h0 = torch.randn(2, B, P or H, dtype=torch.float64, requires_grad=True)
    c0 = torch.randn(2, B, H, dtype=torch.float64, requires_grad=True)
    return lstm, x, h0, c0


def run(lstm, x, h0, c0, direction, **options):
    suffix = "_l0_reverse" if direction else "_l0"
    w = {n.removesuffix(suffix): p for n, p in lstm.named_parameters() if n.endswith(suffix)}
    xg = torch.nn.functional.linear(x, w["weight_ih"], w["bias_ih"] + w["bias_hh"])
    return reference.lstm(
        xg,
        w["weight_hh"],
        h0[direction],
        c0[direction],
        w_hr=w.get("weight_hr"),
        reverse=bool(direction),
        **options,
    )


def assert_same(ours, theirs, inputs, d_out):
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)
    grads = [torch.autograd.grad(out, inputs, d_out, retain_graph=True) for out in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("P", [None, 2])
def test_matches_torch(P):
    lstm, x, h0, c0 = make(P)
    expected, _ = lstm(x, (h0, c0))
    actual = torch.cat([run(lstm, x, h0, c0, d)[0] for d in (0, 1)], dim=-1)
    assert_same(actual, expected, [x, h0, c0, *lstm.parameters()], torch.randn_like(expected))


@pytest.mark.parametrize("P", [None, 2])
def test_lengths_match_packed_sequences(P):
    lstm, x, h0, c0 = make(P)
    lengths = LENGTHS.clamp(min=1)  # torch has no empty rows
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    expected = pad_packed_sequence(lstm(packed, (h0, c0))[0], total_length=T)[0]
    actual = torch.cat([run(lstm, x, h0, c0, d, lengths=lengths)[0] for d in (0, 1)], dim=-1)
    assert_same(actual, expected, [x, h0, c0, *lstm.parameters()], torch.randn_like(expected))


@pytest.mark.parametrize("direction", [0, 1])
def test_padding_reaches_nothing(direction):
    lstm, _, h0, c0 = make()
    inside = torch.arange(T)[:, None] < LENGTHS
    xg = torch.randn(T, B, 4 * H, dtype=torch.float64)
    xg_nan = torch.where(inside[..., None], xg, float("nan")).requires_grad_()
    cont = torch.where(inside, 1.0, float("nan"))
    w = lstm.weight_hh_l0
    results = []
    for gates in (xg.requires_grad_(), xg_nan):
        h, c = reference.lstm(gates, w, h0[0], c0[0], lengths=LENGTHS, cont=cont, reverse=bool(direction))
        results.append((h, c, *torch.autograd.grad((h.sin() + c.cos()).sum(), [gates, w, h0, c0])))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    h, c, d_xg = results[1][:3]
    assert (h[~inside] == 0).all()
    assert (c[~inside] == 0).all()
    assert (d_xg[~inside] == 0).all()


@pytest.mark.parametrize("reverse", [False, True])
def test_cont_cuts_a_sequence_in_two(reverse):
    lstm, _, h0, c0 = make()
    xg = torch.randn(T, B, 4 * H, dtype=torch.float64)
    cont = torch.ones(T, B, dtype=torch.int64)
    cut = 2
    cont[cut] = 0
    zero = torch.zeros_like(h0[0])
    h, _ = reference.lstm(xg, lstm.weight_hh_l0, h0[0], c0[0], cont=cont, reverse=reverse)
    # The step at `cut` starts anew: forward it begins the second part, in reverse it ends the first.
    parts = [xg[: cut + 1], xg[cut + 1 :]] if reverse else [xg[:cut], xg[cut:]]
    states = [(zero, zero), (h0[0], c0[0])] if reverse else [(h0[0], c0[0]), (zero, zero)]
    expected = torch.cat(
        [
            reference.lstm(part, lstm.weight_hh_l0, *state, reverse=reverse)[0]
            for part, state in zip(parts, states, strict=True)
        ]
    )
    torch.testing.assert_close(h, expected, rtol=1e-14, atol=1e-14)


def test_no_gradient_crosses_a_reset():
    lstm, _, h0, c0 = make()
    xg = torch.randn(T, B, 4 * H, dtype=torch.float64, requires_grad=True)
    cont = torch.ones(T, B, dtype=torch.bool)
    cont[3] = False
    h, _ = reference.lstm(xg, lstm.weight_hh_l0, h0[0], c0[0], cont=cont)
    d_xg, d_h0 = torch.autograd.grad(h[3:].sum(), [xg, h0])
    assert (d_xg[:3] == 0).all()
    assert (d_h0 == 0).all()
    assert (d_xg[3:] != 0).any(-1).all()


def test_no_steps_and_no_rows():
    w = torch.randn(4 * H, H)
    h, c = reference.lstm(torch.randn(0, B, 4 * H), w, torch.zeros(B, H), torch.zeros(B, H))
    assert h.shape == c.shape == (0, B, H)
    h, c = reference.lstm(torch.randn(T, 0, 4 * H), w, torch.zeros(0, H), torch.zeros(0, H))
    assert h.shape == c.shape == (T, 0, H)


def test_options_by_hand():
    """One unit, one step, every option: the equations of the docstring with the numbers put in."""
    import math

    def sigmoid(v):
        return 1 / (1 + math.exp(-v))

    tensor = torch.tensor
    i, f, g, o, h0, c0, keep_h, keep_c, d = 0.3, -0.2, 0.7, 0.1, 0.5, -0.4, 0.25, 0.75, 2.0
    xg = tensor([[[i, f, g, o]]]).double()
    w = torch.zeros(4, 1).double()
    h, c = reference.lstm(
        xg,
        w,
        tensor([[h0]]).double(),
        tensor([[c0]]).double(),
        # The norm of a constant vector is 0: what is left of it is the bias.
        ln_hh=(torch.ones(4).double(), torch.full((4,), 0.05).double()),
        ln_c=(torch.ones(1).double(), tensor([0.6]).double()),
        keep_h=keep_h,
        keep_c=keep_c,
        dropout_g=torch.full((1, 1, 1), d).double(),
    )
    c_new = sigmoid(f + 0.05) * c0 + sigmoid(i + 0.05) * d * math.tanh(g + 0.05)
    h_new = sigmoid(o + 0.05) * math.tanh(0.6)
    assert c.item() == pytest.approx(keep_c * c0 + (1 - keep_c) * c_new, abs=1e-6)
    assert h.item() == pytest.approx(keep_h * h0 + (1 - keep_h) * h_new, abs=1e-6)


def test_zoneout_masks_keep_old_values_exactly():
    lstm, _, h0, c0 = make()
    xg = torch.randn(1, B, 4 * H, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    keep_h, keep_c = torch.rand(2, 1, B, H, generator=generator) < 0.5
    plain = reference.lstm(xg, lstm.weight_hh_l0, h0[0], c0[0])
    h, c = reference.lstm(xg, lstm.weight_hh_l0, h0[0], c0[0], keep_h=keep_h, keep_c=keep_c)
    assert torch.equal(h[0], torch.where(keep_h[0], h0[0], plain[0][0]))
    assert torch.equal(c[0], torch.where(keep_c[0], c0[0], plain[1][0]))

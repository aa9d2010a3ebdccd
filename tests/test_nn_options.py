"""What nn.LSTM has beyond torch.nn.LSTM: lengths, cont, layer_norm, zoneout, recurrent_dropout."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lrcn_fast import nn, reference

T, B, I, H = 6, 5, 3, 8  # noqa: E741
LENGTHS = torch.tensor([4, 6, 0, 1, 6])
NAN = float("nan")
DOUBLE = torch.float64

# Double-precision results that differ only in the order of sums; worst seen 6e-16.
TIGHT = dict(rtol=2e-15, atol=2e-15)
# As in test_nn_lstm.py: EPS_PER_STEP * T * layers * eps.
FLOAT = dict(rtol=0.5 * T * 2 * 1.2e-7, atol=0.5 * T * 2 * 1.2e-7)


def randn(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


def values(result):
    output, (h_n, c_n) = result
    return output, h_n, c_n


def all_gradients(module, result, *inputs):
    loss = sum((v * torch.linspace(-1, 1, v.numel()).to(v.dtype).view(v.shape)).sum() for v in values(result))
    return torch.autograd.grad(loss, [*inputs, *module.parameters()])


# lengths


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("proj_size", [0, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_are_packed_sequences(bidirectional, proj_size, batch_first):
    options = dict(num_layers=2, bidirectional=bidirectional, proj_size=proj_size, batch_first=batch_first)
    theirs = torch.nn.LSTM(I, H, **options, dtype=DOUBLE)
    ours = nn.LSTM.from_torch(theirs)
    lengths = LENGTHS.clamp(min=1)  # torch has no empty rows
    x = randn(B, T, I) if batch_first else randn(T, B, I)
    LD = 2 * (1 + bidirectional)
    leaves = [t.requires_grad_() for t in (x, randn(LD, B, proj_size or H), randn(LD, B, H))]
    packed = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
    output, states = theirs(packed, tuple(leaves[1:]))
    expected = pad_packed_sequence(output, batch_first=batch_first, total_length=T)[0], states
    actual = ours(x, tuple(leaves[1:]), lengths=lengths)
    torch.testing.assert_close(values(actual), values(expected), **TIGHT)
    torch.testing.assert_close(
        all_gradients(ours, actual, *leaves), all_gradients(theirs, expected, *leaves), **TIGHT
    )


@pytest.mark.parametrize("options", [{}, dict(layer_norm=True, zoneout=0.1, recurrent_dropout=0.2)], ids=str)
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["f32", "f64"])
def test_padding_reaches_neither_outputs_nor_gradients(dtype, inference, options):
    lstm = nn.LSTM(I, H, num_layers=2, bidirectional=True, batch_first=True, dtype=dtype, **options)
    lstm.train(not inference)
    inside = torch.arange(T) < LENGTHS[:, None]
    clean = torch.where(inside[..., None], torch.randn(B, T, I), 0).to(dtype)
    hx = (torch.randn(4, B, H, dtype=dtype).requires_grad_(), torch.randn(4, B, H, dtype=dtype))
    results = []
    for filler in (0.0, NAN, float("inf")):
        x = torch.where(inside[..., None], clean, filler).requires_grad_(not inference)
        torch.manual_seed(0)
        with torch.inference_mode(inference):
            result = lstm(x, hx, lengths=LENGTHS)
        grads = () if inference else all_gradients(lstm, result, x, hx[0])
        results.append((*values(result), *grads))
        assert (result[0][~inside] == 0).all()
        if grads:
            assert (grads[0][~inside] == 0).all()
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=0, atol=0)
    _, h_n, c_n = results[0][:3]
    assert torch.equal(h_n[:, 2], hx[0][:, 2])  # the row of length 0
    assert torch.equal(c_n[:, 2], hx[1][:, 2])


def test_a_row_does_not_depend_on_its_neighbours():
    lstm = nn.LSTM(I, H, num_layers=2, bidirectional=True).eval()
    x = torch.randn(T, B, I)
    with torch.no_grad():
        output, h_n, c_n = values(lstm(x, lengths=LENGTHS))
        for row, length in enumerate(LENGTHS.tolist()):
            if length == 0:
                continue
            alone = values(lstm(x[:length, row : row + 1]))
            torch.testing.assert_close(output[:length, row : row + 1], alone[0], **FLOAT)
            torch.testing.assert_close(h_n[:, row : row + 1], alone[1], **FLOAT)
            torch.testing.assert_close(c_n[:, row : row + 1], alone[2], **FLOAT)


def test_lengths_of_one_sequence():
    lstm = nn.LSTM(I, H)
    x = torch.randn(T, I)
    expected = lstm(x[:4])
    for lengths in (torch.tensor(4), torch.tensor([4])):
        output, (h_n, _) = lstm(x, lengths=lengths)
        torch.testing.assert_close(output[:4], expected[0])
        torch.testing.assert_close(h_n, expected[1][0])
        assert (output[4:] == 0).all()


def test_errors_of_lengths():
    lstm, x = nn.LSTM(I, H), torch.randn(T, B, I)

    def fails(match, lengths, x=x):
        with pytest.raises(ValueError, match=match):
            lstm(x, lengths=lengths)

    fails(r"lengths must be in 0..T = 0..6, got 1..7", torch.tensor([1, 2, 3, 4, 7]))
    fails(r"lengths must be in 0..T = 0..6, got -1..4", torch.tensor([1, 2, 3, 4, -1]))
    fails(r"lengths must be \[B\] = \[5\], got \[2\]", torch.tensor([1, 2]))
    fails(r"lengths must be an int64 tensor, got torch.int32", LENGTHS.int())
    fails(r"lengths must be an int64 tensor, got list", LENGTHS.tolist())
    fails(r"lengths must be on the device of the input, cpu, got meta", LENGTHS.to("meta"))
    packed = pack_padded_sequence(x, LENGTHS.clamp(min=1), enforce_sorted=False)
    fails(r"lengths must be None with a PackedSequence", LENGTHS, packed)


# cont


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_cont_starts_anew_in_every_layer(inference, batch_first, dtype):
    lstm = nn.LSTM(I, H, num_layers=2, batch_first=batch_first)
    lstm.train(not inference)
    x, hx = torch.randn(T, B, I), (torch.randn(2, B, H), torch.randn(2, B, H))
    cont = torch.ones(T, B, dtype=dtype)
    cont[3, 1] = cont[0, 2] = cont[5, 2] = 0

    def layout(t):
        return t.transpose(0, 1) if batch_first else t

    with torch.inference_mode(inference):
        output, (h_n, c_n) = lstm(layout(x), hx, cont=layout(cont))
        # By hand: each row cut into sequences, which begin at 0 and at every reset.
        for row in range(B):
            state = tuple(s[:, row : row + 1] for s in hx)
            starts = [0, *[t for t in range(1, T) if not cont[t, row]]]
            for start, end in zip(starts, [*starts[1:], T], strict=True):
                fresh = start > 0 or not cont[0, row]
                part, state = lstm(
                    layout(x[start:end, row : row + 1]), None if fresh else tuple(s for s in state)
                )
                torch.testing.assert_close(layout(output)[start:end, row : row + 1], layout(part), **FLOAT)
            torch.testing.assert_close(h_n[:, row : row + 1], state[0], **FLOAT)
            torch.testing.assert_close(c_n[:, row : row + 1], state[1], **FLOAT)


def test_no_gradient_passes_a_reset():
    lstm = nn.LSTM(I, H, num_layers=2)
    x = torch.randn(T, B, I, requires_grad=True)
    h0, c0 = (torch.randn(2, B, H, requires_grad=True) for _ in range(2))
    cont = torch.ones(T, B)
    cont[3] = 0
    output, _ = lstm(x, (h0, c0), cont=cont, lengths=torch.full((B,), T))
    d_x, d_h0, d_c0 = torch.autograd.grad(output[3:].square().sum(), (x, h0, c0))
    assert (d_x[:3] == 0).all()
    assert (d_h0 == 0).all()
    assert (d_c0 == 0).all()
    assert (d_x[3:] != 0).any(-1).all()


def test_cont_of_one_sequence_and_nan_states():
    lstm = nn.LSTM(I, H)
    x = torch.randn(T, I)
    cont = torch.ones(T)
    cont[0] = 0
    nan = torch.full((1, H), NAN)
    torch.testing.assert_close(lstm(x, (nan, nan), cont=cont)[0], lstm(x)[0])


def test_cont_of_custom_cells():
    """A reset clears what zoneout would keep, too."""
    lstm = nn.LSTM(I, H, num_layers=2, layer_norm=True, zoneout=(0.4, 0.3), dtype=DOUBLE).eval()
    x, hx = randn(T, B, I), (randn(2, B, H), randn(2, B, H))
    cont = torch.ones(T, B)
    cont[2] = 0
    output, states = lstm(x, hx, cont=cont)
    first, _ = lstm(x[:2], hx)
    second, expected = lstm(x[2:])
    torch.testing.assert_close(output, torch.cat([first, second]), **TIGHT)
    torch.testing.assert_close(states, expected, **TIGHT)


def test_errors_of_cont():
    x, cont = torch.randn(T, B, I), torch.ones(T, B)
    with pytest.raises(NotImplementedError, match="cont must be None with bidirectional=True"):
        nn.LSTM(I, H, bidirectional=True)(x, cont=cont)
    packed = pack_padded_sequence(x, LENGTHS.clamp(min=1), enforce_sorted=False)
    with pytest.raises(NotImplementedError, match="cont must be None with a PackedSequence"):
        nn.LSTM(I, H)(packed, cont=cont)
    with pytest.raises(ValueError, match=r"cont must be laid out as input = \[6, 5\], got \[5, 6\]"):
        nn.LSTM(I, H)(x, cont=cont.T)
    with pytest.raises(ValueError, match="cont must be on the device of the input, cpu, got meta"):
        nn.LSTM(I, H)(x, cont=cont.to("meta"))


# layer_norm


def test_layer_norm_parameters():
    plain, lstm = (nn.LSTM(I, H, num_layers=2, bidirectional=True, layer_norm=ln) for ln in (False, True))
    extra = [name for name in lstm.state_dict() if name not in plain.state_dict()]
    assert list(lstm.state_dict()) == list(plain.state_dict()) + extra
    shapes = {"ih": 4 * H, "hh": 4 * H, "c": H}
    assert extra == [
        f"ln_{norm}_{what}_l{layer}{direction}"
        for layer in (0, 1)
        for direction in ("", "_reverse")
        for norm in shapes
        for what in ("weight", "bias")
    ]
    for name in extra:
        value = lstm.state_dict()[name]
        assert value.shape == (shapes[name.split("_")[1]],)
        assert (value == (1 if "weight" in name else 0)).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("proj_size", [0, 3])
def test_layer_norm_is_its_definition(proj_size, bias):
    """Two steps of one layer, written down from Ba et al. and architecture's formula, gradients too."""
    lstm = nn.LSTM(I, H, bias=bias, proj_size=proj_size, layer_norm=True, dtype=DOUBLE)
    for p in lstm.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x, h0, c0 = randn(2, B, I).requires_grad_(), randn(1, B, proj_size or H), randn(1, B, H)
    p = {name.removesuffix("_l0"): value for name, value in lstm.named_parameters()}

    def norm(v, name):
        centred = v - v.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / scale * p[f"ln_{name}_weight"] + p[f"ln_{name}_bias"]

    h, c = h0[0], c0[0]
    outputs = []
    for x_t in x:
        z = norm(x_t @ p["weight_ih"].T, "ih") + norm(h @ p["weight_hh"].T, "hh")
        if bias:
            z = z + p["bias_ih"] + p["bias_hh"]
        i, f, g, o = z.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * norm(c, "c").tanh()
        if proj_size:
            h = h @ p["weight_hr"].T
        outputs.append(h)
    expected = torch.stack(outputs), (h[None], c[None])
    actual = lstm(x, (h0, c0))
    torch.testing.assert_close(values(actual), values(expected), **TIGHT)
    # The backward of a norm of 8 numbers loses some digits; worst seen 1e-15 of the bound's 1e-14.
    torch.testing.assert_close(
        all_gradients(lstm, actual, x), all_gradients(lstm, expected, x), rtol=1e-14, atol=1e-14
    )


# zoneout and recurrent dropout


def masks(lstm, seed, T=T, B=B):
    """The masks a one-layer LSTM draws after manual_seed(seed), drawn again in the documented order."""
    torch.manual_seed(seed)
    shape = (T, B, lstm.hidden_size)
    keep_h = torch.rand(shape) < lstm.zoneout[0] if lstm.zoneout[0] else 0.0
    keep_c = torch.rand(shape) < lstm.zoneout[1] if lstm.zoneout[1] else 0.0
    p = lstm.recurrent_dropout
    dropout_g = F.dropout(torch.ones(shape, dtype=lstm.weight_hh_l0.dtype), p) if p else None
    return dict(keep_h=keep_h, keep_c=keep_c, dropout_g=dropout_g)


@pytest.mark.parametrize(
    "options",
    [
        dict(zoneout=0.3),
        dict(zoneout=(0.3, 0.0)),
        dict(zoneout=(0.0, 0.5)),
        dict(recurrent_dropout=0.4),
        dict(zoneout=(0.2, 0.1), recurrent_dropout=0.25),
    ],
    ids=str,
)
def test_masks_are_those_of_the_reference(options):
    lstm = nn.LSTM(I, H, dtype=DOUBLE, **options)
    x = randn(T, B, I)
    state = torch.zeros(B, H, dtype=DOUBLE)
    xg = F.linear(x, lstm.weight_ih_l0, lstm.bias_ih_l0 + lstm.bias_hh_l0)
    drawn = masks(lstm, seed=5)
    torch.manual_seed(5)
    output, (_, c_n) = lstm(x, lengths=LENGTHS)
    h, c = reference.lstm(xg, lstm.weight_hh_l0, state, state, lengths=LENGTHS, **drawn)
    torch.testing.assert_close(output, h, **TIGHT)
    last = c.gather(0, (LENGTHS - 1).clamp(min=0).view(1, B, 1).expand(1, B, H))
    torch.testing.assert_close(c_n, torch.where(LENGTHS.view(1, B, 1) > 0, last, 0.0), **TIGHT)
    # Other draws, other results; the same seed, the same.
    assert not torch.equal(lstm(x, lengths=LENGTHS)[0], output)
    torch.manual_seed(5)
    assert torch.equal(lstm(x, lengths=LENGTHS)[0], output)


def test_zoneout_keeps_old_values_and_nothing_else():
    """The kept share is the probability, and every element is the old value or the plain new one."""
    p_h, p_c = 0.3, 0.6
    lstm = nn.LSTM(I, 64, zoneout=(p_h, p_c))
    plain = nn.LSTM(I, 64)
    plain.load_state_dict(lstm.state_dict())
    x, hx = torch.randn(1, 500, I), (torch.randn(1, 500, 64), torch.randn(1, 500, 64))
    for new, old, plain_new, p in zip(lstm(x, hx)[1], hx, plain(x, hx)[1], (p_h, p_c), strict=True):
        kept = new == old
        torch.testing.assert_close(torch.where(kept, plain_new, new), plain_new)
        # 32,000 draws: the standard deviation of the share is below 0.003.
        assert kept.float().mean().item() == pytest.approx(p, abs=0.015)


def test_zoneout_evaluates_the_expectation():
    p_h, p_c = 0.25, 0.5
    lstm = nn.LSTM(I, H, zoneout=(p_h, p_c), dtype=DOUBLE).eval()
    plain = nn.LSTM(I, H, dtype=DOUBLE)
    plain.load_state_dict(lstm.state_dict())
    x = randn(3, B, I)
    h = c = torch.zeros(1, B, H, dtype=DOUBLE)
    for t in range(3):
        _, (h_new, c_new) = plain(x[t : t + 1], (h, c))
        h, c = p_h * h + (1 - p_h) * h_new, p_c * c + (1 - p_c) * c_new
    torch.testing.assert_close(values(lstm(x))[1:], (h, c), **TIGHT)
    # One step in training, averaged over draws, comes to the same: E[k old + (1-k) new].
    lstm.train()
    wide, (h0, c0) = x[:1].repeat(1, 4000, 1), (randn(1, B, H).repeat(1, 4000, 1) for _ in range(2))
    trained = [s.view(4000, B, H) for s in lstm(wide, (h0, c0))[1]]
    evaluated = [s.view(4000, B, H)[0] for s in lstm.eval()(wide, (h0, c0))[1]]
    for samples, expected in zip(trained, evaluated, strict=True):
        error = (samples.mean(0) - expected).abs()
        assert (error <= 5 * samples.std(0) / 4000**0.5 + 1e-12).all()


def test_recurrent_dropout_drops_the_candidate_only():
    p = 0.4
    lstm = nn.LSTM(I, 64, recurrent_dropout=p)
    plain = nn.LSTM(I, 64)
    plain.load_state_dict(lstm.state_dict())
    x, zero = torch.randn(1, 500, I), torch.zeros(1, 500, 64)
    # From c = 0 the new cell is i * g: dropped, it is 0, else 1 / (1-p) times as large.
    c = lstm(x, (torch.randn(1, 500, 64), zero))[1][1]
    dropped = c == 0
    assert dropped.float().mean().item() == pytest.approx(p, abs=0.015)
    # What was stored in the cell survives whatever is dropped.
    hx = (zero, torch.full_like(zero, 3.0))
    c, c_plain = lstm(x, hx)[1][1], plain(x, hx)[1][1]
    xg = F.linear(x, plain.weight_ih_l0, plain.bias_ih_l0 + plain.bias_hh_l0)
    i, f, g, _ = xg.chunk(4, -1)
    kept, new = f.sigmoid() * 3.0, i.sigmoid() * g.tanh()
    torch.testing.assert_close(kept + new, c_plain)
    is_kept = (c - kept).abs() <= 1e-6
    torch.testing.assert_close(c, torch.where(is_kept, kept, kept + new / (1 - p)))
    assert is_kept.float().mean().item() == pytest.approx(p, abs=0.03)
    lstm.eval()
    torch.testing.assert_close(lstm(x, hx), plain(x, hx))


def test_limits_of_the_probabilities():
    x, hx = torch.randn(T, B, I), (torch.randn(1, B, H), torch.randn(1, B, H))
    output, (h_n, c_n) = nn.LSTM(I, H, zoneout=1)(x, hx)
    assert torch.equal(output, hx[0].expand(T, B, H))
    assert torch.equal(h_n, hx[0])
    assert torch.equal(c_n, hx[1])
    lstm = nn.LSTM(I, H, recurrent_dropout=1.0)
    assert (lstm(x)[1][1] == 0).all()


@pytest.mark.parametrize(
    "options", [dict(layer_norm=True), dict(zoneout=0.2), dict(recurrent_dropout=0.3)], ids=str
)
def test_options_work_with_everything_else(options):
    """All forms of input, states carried over, and gradients that gradgradcheck accepts."""
    lstm = nn.LSTM(2, 3, num_layers=2, bidirectional=True, proj_size=2, dropout=0.2, dtype=DOUBLE, **options)
    x = randn(4, 3, 2)
    lengths = torch.tensor([4, 1, 2])
    lstm.eval()
    output, states = lstm(x, lengths=lengths)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output2, states2 = lstm(packed)
    torch.testing.assert_close(pad_packed_sequence(output2)[0], output, **TIGHT)
    torch.testing.assert_close(states2, states, **TIGHT)
    one, one_states = lstm(x[:, 0])
    torch.testing.assert_close(one, output[:, 0], **TIGHT)
    torch.testing.assert_close(one_states[0], states[0][:, 0], **TIGHT)

    lstm.train()
    x.requires_grad_()

    def run(x):
        torch.manual_seed(0)
        return values(lstm(x, lengths=lengths))

    assert torch.autograd.gradcheck(run, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, x, fast_mode=True)


def test_states_carried_over_are_one_long_sequence():
    for options in ({}, dict(layer_norm=True), dict(zoneout=0.5)):
        lstm = nn.LSTM(I, H, num_layers=2, **options).eval()
        x = torch.randn(T, B, I)
        with torch.no_grad():
            whole, states = lstm(x)
            first, carried = lstm(x[:2])
            second, carried = lstm(x[2:], carried)
        torch.testing.assert_close(torch.cat([first, second]), whole, **FLOAT)
        torch.testing.assert_close(carried, states, **FLOAT)

"""The lstm_packed op: all layers in one call are the ops of one layer at a time, bit for bit; one step."""

import pytest
import torch
from test_ops_lstm import make_masks

from lrcn_fast import ops, reference
from lrcn_fast.ops_layer import lstm_cell_packed, lstm_layer_pack, lstm_packed

I, H = 11, 33  # noqa: E741
DTYPES = [torch.float32, torch.bfloat16, torch.int8]
# layers, directions, size of h (0: no projection), bias, batch_first
LAYERS = [(1, 1, 0, True, False), (2, 1, 7, False, False), (2, 2, 0, True, True), (1, 2, 7, True, False)]


def weights(L, D, I, H, P, bias):  # noqa: E741
    """w_ih, w_hh, bias, w_hr of each layer and direction."""
    generator = torch.Generator().manual_seed(L + D + P)
    layers = []
    for layer in range(L):
        for _ in range(D):
            shapes = [(4 * H, I if layer == 0 else D * (P or H)), (4 * H, P or H), (4 * H,), (P, H)]
            w = [torch.randn(*shape, generator=generator) * shape[-1] ** -0.5 for shape in shapes]
            layers.append((w[0], w[1], w[2] if bias else None, w[3] if P else None))
    return layers


def pack(layers, dtype):
    """The list that lstm_packed takes."""
    return [lstm_layer_pack(w_ih, w_hh, w_hr, bias, dtype=dtype) for w_ih, w_hh, bias, w_hr in layers]


def packed_layers(L, D, I, H, P, dtype, bias):  # noqa: E741
    return pack(weights(L, D, I, H, P, bias), dtype)


def layer_by_layer(x, layers, dtype, D, h0, c0, lengths=None, cont=None):
    """Time-major x through ops.linear and ops.lstm; the last states picked row by row."""
    h_n, c_n = h0.clone(), c0.clone()
    for first in range(0, len(layers), D):
        outputs = []
        for i, (w_ih, w_hh, bias, w_hr) in enumerate(layers[first : first + D], first):
            reverse = i > first
            xg = ops.linear(x, ops.linear_pack(w_ih, dtype=dtype), bias, len(w_ih))
            packed = ops.lstm_pack(w_hh, w_hr, dtype=dtype)
            masks = {"lengths": lengths, "cont": cont, "reverse": reverse}
            h, c = ops.lstm(xg, w_hh, h0[i], c0[i], w_hr=w_hr, packed=packed, **masks)
            for b in range(x.shape[1]):
                length = len(x) if lengths is None else int(lengths[b])
                if length > 0:
                    h_n[i, b], c_n[i, b] = (s[0 if reverse else length - 1, b] for s in (h, c))
            outputs.append(h)
        x = torch.cat(outputs, -1)
    return x, h_n, c_n


def case(L, D, P, T, B):
    generator = torch.Generator().manual_seed(T + B)
    shapes = (T, B, I), (L * D, B, P or H), (L * D, B, H)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("L", "D", "P", "bias", "batch_first"), LAYERS)
def test_all_layers_are_each_layer(L, D, P, bias, batch_first, dtype, masked):
    layers = weights(L, D, I, H, P, bias)
    sizes = dict(hidden_size=H, proj_size=P, bidirectional=D == 2, batch_first=batch_first)
    for T, B in ((4, 6), (1, 1), (3, 50)):
        x, h0, c0 = case(L, D, P, T, B)
        masks = make_masks(T, B, True, True) if masked else {}
        y, *states = layer_by_layer(x, layers, dtype, D, h0, c0, **masks)
        given = x.transpose(0, 1) if batch_first else x
        actual = lstm_packed(given, pack(layers, dtype), h0, c0, **sizes, **masks)
        assert_same(actual, (y.transpose(0, 1) if batch_first else y, *states))
        zero = lstm_packed(given, pack(layers, dtype), h0 * 0, c0 * 0, **sizes, **masks)
        assert_same(lstm_packed(given, pack(layers, dtype), None, None, **sizes, **masks), zero)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("L", "D", "P", "bias", "batch_first"), LAYERS)
def test_packed_sequences_are_padded_ones(L, D, P, bias, batch_first, dtype):
    batch_sizes = torch.tensor([4, 4, 2, 1, 1])
    place, lengths = reference.packed_places(batch_sizes)
    packs = packed_layers(L, D, I, H, P, dtype, bias)
    sizes = dict(hidden_size=H, proj_size=P, bidirectional=D == 2)
    x, h0, c0 = case(L, D, P, 5, 4)
    y, *states = lstm_packed(x, packs, h0, c0, lengths=lengths, **sizes)
    rows = x.flatten(0, 1)[place]
    actual = lstm_packed(rows, packs, h0, c0, batch_sizes=batch_sizes, batch_first=batch_first, **sizes)
    assert_same(actual, (y.flatten(0, 1)[place], *states))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_step_of_one_layer_is_a_sequence_of_one(dtype, bias):
    packs = packed_layers(1, 1, I, H, 0, dtype, bias)
    for B in (0, 1, 50):
        x, h0, c0 = case(1, 1, 0, 1, B)
        for start in ((h0, c0), (h0 * 0, c0), (h0, c0 * 0)):
            before = start[0].clone(), start[1].clone()
            _, h, c = lstm_packed(x, packs, *start, hidden_size=H)
            assert_same(lstm_cell_packed(x[0], packs[0], start[0][0], start[1][0]), (h[0], c[0]))
            assert_same(start, before)


def test_padding_is_not_read_and_inputs_are_not_written():
    packs = packed_layers(2, 2, I, H, 0, torch.float32, True)
    x, h0, c0 = case(2, 2, 0, 4, 3)
    lengths = torch.tensor([4, 0, 2])
    before = h0.clone(), c0.clone()
    expected = lstm_packed(x, packs, h0, c0, hidden_size=H, bidirectional=True, lengths=lengths)
    x[:, 1] = x[2:, 2] = float("nan")
    actual = lstm_packed(x, packs, h0, c0, hidden_size=H, bidirectional=True, lengths=lengths)
    assert_same(actual, expected)
    assert_same((h0, c0), before)
    assert_same(actual[1][:, 1], h0[:, 1])
    assert not actual[0][:, 1].any()


@pytest.mark.parametrize(("T", "B"), [(0, 2), (3, 0), (0, 0)])
def test_nothing_to_do(T, B):
    packs = packed_layers(1, 2, I, H, 0, torch.float32, True)
    x, h0, c0 = case(1, 2, 0, T, B)
    y, *states = lstm_packed(x, packs, h0, c0, hidden_size=H, bidirectional=True)
    assert y.shape == (T, B, 2 * H)
    assert_same(states, [h0, c0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.zeros(3, I)), r"x must be \[T, B, I\], got \[3, 11\]"),
        (dict(x=torch.zeros(3, I), batch_first=True), r"x must be \[B, T, I\], got \[3, 11\]"),
        (dict(x=torch.zeros(3, 2, I).double()), "x must be float32, got Double"),
        (
            dict(x=torch.zeros(3, 2, 9)),
            r"packed must be packed from a weight of \[132, 9\], got one of \[",
        ),
        (dict(hidden_size=32), r"h0 must be \[L\*D, B, H\] = \[1, 2, 32\], got \[1, 2, 33\]"),
        (dict(hidden_size=0), "hidden_size must be positive, got 0"),
        (dict(proj_size=-1), "proj_size must not be negative, got -1"),
        (dict(bidirectional=True), "packed must be one for each layer and direction, got 1"),
        (dict(packed=[]), "packed must be one for each layer and direction, got 0"),
        (dict(packed=[torch.zeros(99, dtype=torch.uint8)]), "packed is no packed weight of this op"),
        (dict(h0=None), "h0 and c0 must both be given, or both be None"),
        (dict(c0=torch.zeros(1, 3, H)), r"c0 must be \[L\*D, B, H\] = \[1, 2, 33\], got \[1, 3, 33\]"),
        (dict(lengths=torch.tensor([3, 4])), "lengths must be within 0..T = 0..3, got 4 at row 1"),
        (dict(cont=torch.zeros(2, 3)), r"cont must be \[T, B\] = \[3, 2\], got \[2, 3\]"),
        (
            dict(x=torch.zeros(5, I), batch_sizes=torch.tensor([2, 3])),
            "batch_sizes must fall from B = 2, got 3",
        ),
        (
            dict(x=torch.zeros(5, I), batch_sizes=torch.tensor([2, 2, 1]), h0=None, c0=None),
            "h0 and c0 must be given with batch_sizes, got None",
        ),
        (
            dict(x=torch.zeros(5, I), batch_sizes=torch.tensor([2, 2, 1]), lengths=torch.tensor([3, 2])),
            "lengths and cont must be None with batch_sizes, got a tensor",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_the_argument(change, message):
    packed = packed_layers(1, 1, I, H, 0, torch.float32, True)
    x, h0, c0 = case(1, 1, 0, 3, 2)
    arguments = dict(x=x, packed=packed, h0=h0, c0=c0, hidden_size=H) | change
    with pytest.raises(ValueError, match=f"lstm_packed: {message}"):
        lstm_packed(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(w_ih=torch.zeros(20)), r"w_ih must be \[4H, I\], got \[20\]"),
        (dict(w_ih=torch.zeros(16, 3)), r"w_ih must be \[4H, I\] = \[20, 3\], got \[16, 3\]"),
        (dict(w_hh=torch.zeros(20, 4)), r"w_hh must be \[4H, H\] = \[20, 5\], got \[20, 4\]"),
        (dict(w_hh=torch.zeros(18, 5)), r"w_hh must be \[4H, P\], got \[18, 5\]"),
        (dict(w_hh=torch.zeros(20, 5).double()), "w_hh must be float32, got Double"),
        (dict(w_ih=torch.zeros(20, 3).half()), "w_ih must have the dtype of w_hh, Float, got Half"),
        (dict(w_hr=torch.zeros(4, 5)), r"w_hr must be \[P, H\] = \[5, 5\], got \[4, 5\]"),
        (dict(bias=torch.zeros(19)), r"bias must be \[4H\] = \[20\], got \[19\]"),
        (dict(dtype=torch.float16), "dtype must be float32, bfloat16 or int8, got Half"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_of_packing(change, message):
    arguments = dict(w_ih=torch.zeros(20, 3), w_hh=torch.zeros(20, 5)) | change
    with pytest.raises(ValueError, match=f"lstm_layer_pack: {message}"):
        lstm_layer_pack(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.zeros(1, 2, I)), r"x must be \[B, I\], got \[1, 2, 11\]"),
        (dict(x=torch.zeros(2, I).double()), "x must be float32, got Double"),
        (
            dict(x=torch.zeros(2, 9)),
            r"packed must be packed from a weight of \[132, 9\], got one of \[132, 11\]",
        ),
        (dict(x=torch.zeros(3, I)), r"h0 must be \[B, H\] = \[3, 33\], got \[2, 33\]"),
        (dict(h0=torch.zeros(2, 32)), r"h0 must be \[B, H\] = \[2, 33\], got \[2, 32\]"),
        (dict(h0=torch.zeros(2, H).double()), "h0 must have the dtype of x, Float, got Double"),
        (dict(c0=torch.zeros(H)), r"c0 must be \[B, H\], got \[33\]"),
        (dict(c0=torch.zeros(2, 32)), r"h0 must be \[B, H\] = \[2, 32\], got \[2, 33\]"),
        (dict(packed=torch.zeros(99, dtype=torch.uint8)), "packed is no packed weight of this op"),
        (
            dict(packed=packed_layers(1, 1, I, H, 7, torch.float32, True)[0]),
            r"packed must be packed from a weight of \[132, 11\], got one of \[132, 11\] with w_hr to 7",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_of_one_step_name_the_argument(change, message):
    x, h0, c0 = case(1, 1, 0, 1, 2)
    packed = packed_layers(1, 1, I, H, 0, torch.float32, True)[0]
    arguments = dict(x=x[0], packed=packed, h0=h0[0], c0=c0[0]) | change
    with pytest.raises(ValueError, match=f"lstm_cell_packed: {message}"):
        lstm_cell_packed(**arguments)

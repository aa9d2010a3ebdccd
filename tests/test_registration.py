"""Every operator under torch.library.opcheck, in every dtype; and sizes as tracing knows them."""

import random

import pytest
import torch
from test_ops_decoder import BOS, EOS, FAMILIES, PAD, Model
from test_ops_layer import layer_inputs
from test_ops_lstm import make_inputs, make_masks, op_arguments
from test_ops_lstm_bidirectional import make_pair
from test_ops_packed import packed_layers
from test_ops_packed import weights as layer_weights
from torch.fx.experimental.proxy_tensor import make_fx

from lrcn_fast import ops, ops_decode

FLOATING = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
PACKED = [torch.float32, torch.bfloat16, torch.int8]
SIZES = (1, 2, 3, 4, 5, 15, 16, 17, 31, 63, 64, 65, 130)  # around every boundary of the packed layouts

native = torch.ops.lrcn_fast


def opcheck(name, *arguments, **tolerance):
    torch.library.opcheck(getattr(native, name).default, arguments, **tolerance)


def test_every_operator_is_checked_here():
    registered = {n for n in torch._C._dispatch_get_all_op_names() if n.startswith("lrcn_fast::")}
    names = ["lstm", "lstm_backward", "lstm_bidirectional", "lstm_bidirectional_backward", "lstm_packed"]
    names += ["lstm_layer", "lstm_layer_backward", "lstm_layer_pack", "lstm_pack", "linear", "linear_pack"]
    names += ["lstm_cell_packed", "decode_pack", "decode_beam", "decode_sample"]
    assert registered == {f"lrcn_fast::{name}" for name in names}
    for name in names:
        assert f"test_{name}" in globals()


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("P", [None, 3])
@pytest.mark.parametrize("dtype", FLOATING)
def test_lstm(dtype, P, requires_grad):
    inputs = make_inputs(3, 2, 5, dtype, P=P, requires_grad=requires_grad)
    # Gradients, eager and traced: measured equal; 4 eps for a torch that adds in another order.
    tolerance = dict.fromkeys(("rtol", "atol"), 4 * torch.finfo(dtype).eps)
    for options in ({}, {**make_masks(3, 2, True, True), "reverse": True}):
        opcheck("lstm", *op_arguments(inputs, **options, save_gates=requires_grad), **tolerance)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("P", [None, 3])
@pytest.mark.parametrize("dtype", FLOATING)
def test_lstm_bidirectional(dtype, P, requires_grad):
    tolerance = dict.fromkeys(("rtol", "atol"), 4 * torch.finfo(dtype).eps)  # as above
    xg, w_hh, h0, c0, *w_hr = zip(*make_pair(3, 2, 5, dtype, P, requires_grad), strict=True)
    arguments = [list(t) for t in (xg, w_hh, w_hr[0] if w_hr else (), h0, c0)]
    for lengths in (None, torch.tensor([2, 3])):
        opcheck("lstm_bidirectional", *arguments, lengths, requires_grad, **tolerance)


@pytest.mark.parametrize("packed_dtype", PACKED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lstm_with_a_packed_weight(dtype, packed_dtype):
    inputs = make_inputs(3, 2, 5, dtype, P=3)
    packed = ops.lstm_pack(inputs[1].float(), inputs[4].float(), dtype=packed_dtype)
    opcheck("lstm", *op_arguments(inputs, packed=packed, save_gates=False))


@pytest.mark.parametrize("P", [None, 3])
@pytest.mark.parametrize("dtype", FLOATING)
def test_lstm_backward(dtype, P):
    inputs = make_inputs(3, 2, 5, dtype, P=P)
    for options in ({}, make_masks(3, 2, True, True)):
        _, w_hh, w_hr, _, c0, lengths, cont, *_ = arguments = op_arguments(inputs, **options)
        h, c, gates = native.lstm(*arguments)
        for d_gates in (None, torch.randn_like(gates)):
            tensors = [torch.randn_like(h), torch.randn_like(c), d_gates, w_hh, w_hr, gates, c0, c]
            opcheck("lstm_backward", *tensors, lengths, cont, False)


@pytest.mark.parametrize("P", [None, 3])
@pytest.mark.parametrize("dtype", FLOATING)
def test_lstm_bidirectional_backward(dtype, P):
    xg, w_hh, h0, c0, *w_hr = (list(t) for t in zip(*make_pair(3, 2, 5, dtype, P), strict=True))
    w_hr = w_hr[0] if w_hr else []
    for lengths in (None, torch.tensor([2, 3])):
        outputs = native.lstm_bidirectional(xg, w_hh, w_hr, h0, c0, lengths, True)
        h, c, gates = ([*outputs[i : i + 2]] for i in (0, 2, 4))
        for d_gates in ([], [torch.randn_like(t) for t in gates]):
            grads = [torch.randn_like(t) for t in h], [torch.randn_like(t) for t in c], d_gates
            opcheck("lstm_bidirectional_backward", *grads, w_hh, w_hr, gates, c0, c, lengths)


def layer_cases(dtype, P, **options):
    """Arguments of the op lstm_layer up to cont: plain, with masks, and of packed sequences."""
    for lengths, cont, batch_sizes in (
        (None, None, None),
        (torch.tensor([3, 1]), torch.tensor([[1, 1], [1, 0], [0, 1]], dtype=torch.bool), None),
        (None, None, torch.tensor([2, 2, 1])),
    ):
        rows = None if batch_sizes is None else 5
        *inputs, h0, c0 = layer_inputs(3, 2, 5, dtype, P=P, packed_rows=rows, **options)[:6]
        w_hr = None if P is None else torch.zeros(P, 5, dtype=dtype)
        yield *inputs, w_hr, h0, c0, lengths, batch_sizes, cont


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("P", [None, 3])
@pytest.mark.parametrize("dtype", FLOATING)
def test_lstm_layer(dtype, P, requires_grad):
    tolerance = dict.fromkeys(("rtol", "atol"), 4 * torch.finfo(dtype).eps)
    for arguments in layer_cases(dtype, P, requires_grad=requires_grad):
        opcheck("lstm_layer", *arguments, True, requires_grad, **tolerance)


@pytest.mark.parametrize("P", [None, 3])
@pytest.mark.parametrize("dtype", FLOATING)
def test_lstm_layer_backward(dtype, P):
    for x, w_ih, w_hh, _, w_hr, h0, c0, *masks in layer_cases(dtype, P):
        states = native.lstm_layer(x, w_ih, w_hh, None, w_hr, h0, c0, *masks, False, True)
        for d_gates, needed in ((None, True), (torch.randn_like(states[2]), False)):
            gradients = (torch.randn_like(states[0]), None, d_gates)
            arguments = (*gradients, x, w_ih, w_hh, w_hr, h0, c0, *masks, *states)
            opcheck("lstm_layer_backward", *arguments, False, needed, needed)


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("P", [0, 3])
def test_lstm_packed(P, dtype):
    lengths, cont = torch.tensor([3, 1]), torch.tensor([[True, True], [False, True], [True, False]])
    for D, batch_first in ((1, False), (1, True), (2, False), (2, True)):
        packed = packed_layers(2, D, 11, 5, P, dtype, batch_first)
        x = torch.randn(*((2, 3) if batch_first else (3, 2)), 11)
        states = torch.randn(2 * D, 2, P or 5), torch.randn(2 * D, 2, 5)
        sizes = (5, P, D == 2)
        opcheck("lstm_packed", x, packed, None, None, None, None, None, *sizes, batch_first)
        opcheck("lstm_packed", x, packed, *states, lengths, None, cont, *sizes, batch_first)
        rows = x.flatten(0, 1)[:5]
        opcheck("lstm_packed", rows, packed, *states, None, torch.tensor([2, 2, 1]), None, *sizes, False)


@pytest.mark.parametrize("dtype", PACKED)
def test_lstm_cell_packed(dtype):
    (packed,) = packed_layers(1, 1, 11, 5, 0, dtype, True)
    opcheck("lstm_cell_packed", torch.randn(2, 11), packed, torch.randn(2, 5), torch.randn(2, 5))


@pytest.mark.parametrize("P", [None, 3])
@pytest.mark.parametrize("dtype", PACKED)
def test_lstm_pack(dtype, P):
    _, w_hh, _, _, *w_hr = make_inputs(1, 1, 5, P=P)
    opcheck("lstm_pack", w_hh, w_hr[0] if w_hr else None, dtype)


@pytest.mark.parametrize("P", [0, 3])
@pytest.mark.parametrize("dtype", PACKED)
def test_lstm_layer_pack(dtype, P):
    for bias in (False, True):
        w_ih, w_hh, b, w_hr = layer_weights(1, 1, 11, 5, P, bias)[0]
        opcheck("lstm_layer_pack", w_ih, w_hh, w_hr, b, dtype)


@pytest.mark.parametrize("dtype", PACKED)
def test_linear_pack(dtype):
    opcheck("linear_pack", torch.randn(70, 33), dtype)


@pytest.mark.parametrize("dtype", PACKED)
def test_linear(dtype):
    packed = ops.linear_pack(torch.randn(70, 33), dtype=dtype)
    for bias in (None, torch.randn(70)):
        opcheck("linear", torch.randn(2, 3, 33), packed, bias, 70)


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("family", FAMILIES)
def test_decode_pack(family, dtype, table):
    opcheck("decode_pack", *Model(**FAMILIES[family]).pack_arguments(dtype, table))


def search_arguments(dtype):
    model = Model(hidden=(5, 6), F=2, static_layer=1)
    for prefix in (None, torch.tensor([[3, 4], [5, 6]])):
        yield model.pack(dtype), model.features(2), 2, prefix, True, BOS, EOS, PAD, 5, 0, 0, 1.0, [3]


@pytest.mark.parametrize("dtype", PACKED)
def test_decode_beam(dtype):
    for arguments in search_arguments(dtype):
        for in_slot in (False, True):
            opcheck("decode_beam", *arguments, 3, 2, 0.5, 1, in_slot)


@pytest.mark.parametrize("dtype", PACKED)
def test_decode_sample(dtype):
    for arguments in search_arguments(dtype):
        for uniforms in (None, torch.rand(2, 3, 5, dtype=torch.float64)):
            opcheck("decode_sample", *arguments, uniforms, 0.5, 1.0, 0, 1.0)


# ---- lrcn_fast/_packed_sizes.py against csrc --------------------------------------------------------------


def assert_traced_size(name, *arguments):
    op = getattr(native, name)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        traced = op(*arguments)
    assert traced.shape == op(*arguments).shape, arguments


@pytest.mark.parametrize("dtype", PACKED)
def test_tracing_knows_the_size_of_packed_layers(dtype):
    for N in SIZES:
        for K in SIZES:
            assert_traced_size("linear_pack", torch.zeros(N, K), dtype)
            assert_traced_size("lstm_pack", torch.zeros(4 * N, N), None, dtype)
            assert_traced_size("lstm_pack", torch.zeros(4 * N, K), torch.zeros(K, N), dtype)
            w_ih = torch.zeros(4 * N, K)
            assert_traced_size("lstm_layer_pack", w_ih, torch.zeros(4 * N, N), None, None, dtype)
            assert_traced_size("lstm_layer_pack", w_ih, torch.zeros(4 * N, 3), torch.zeros(3, N), None, dtype)


@pytest.mark.parametrize("dtype", PACKED)
def test_tracing_knows_the_size_of_packed_decoders(dtype):
    draw = random.Random(0)
    for _ in range(150):
        kind = draw.choice(["none", "static", "first"])
        hidden = draw.choices(SIZES, k=draw.choice([1, 1, 2, 3]))
        V, E, F = draw.choices(SIZES, k=3)
        options = dict(V=V, E=E, hidden=hidden, bias=draw.random() < 0.5, image_first=kind == "first")
        if kind == "static":
            options |= dict(F=F, static_layer=draw.randrange(len(hidden)))
        assert_traced_size("decode_pack", *Model(**options).pack_arguments(dtype, draw.random() < 0.5))


def test_packing_traces_for_any_vocabulary():
    model = Model(hidden=(5,), F=2, static_layer=0)

    def size(embedding, projection, projection_bias):
        packed = ops_decode.decode_pack(
            embedding, model.w_ih, model.w_hh, model.bias, projection, projection_bias, static_layer=0
        )
        return packed.shape[0]

    arguments = (model.embedding, model.projection, model.projection_bias)
    graph = make_fx(size, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*arguments)
    for V in (3, 23, 64, 200):
        other = Model(V=V, hidden=(5,), F=2, static_layer=0)
        assert graph(other.embedding, other.projection, other.projection_bias) == other.pack().shape[0]

"""nn.LSTM under PyTorch's tools: compile, export, autocast, copies, DDP, replace_lstm."""

import copy
import datetime
import io
import pickle
import warnings

import pytest
import torch
from small_lstm import FLOAT, LENGTHS, B, H, I, T, gradients, inputs, make
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from lrcn_fast import nn

# torch.compile and torch.export


@pytest.mark.parametrize(
    ("options", "with_lengths"),
    [
        (dict(num_layers=2, bidirectional=True), True),
        (dict(proj_size=3), False),
        (dict(layer_norm=True, zoneout=0.2, recurrent_dropout=0.1), True),
    ],
    ids=str,
)
def test_compile_in_one_graph(options, with_lengths):
    lstm, x = nn.LSTM(I, H, **options), inputs()[:2]
    kwargs = dict(lengths=LENGTHS.clamp(max=2)) if with_lengths else {}
    torch._dynamo.reset()
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    for mode in (True, False):
        lstm.train(mode)
        results = []
        for function in (lstm, compiled):
            torch.manual_seed(3)
            result = function(x, **kwargs)
            results.append((*result, gradients(lstm, result)))
        torch.testing.assert_close(*results, **FLOAT)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, **kwargs), lstm(x, **kwargs), **FLOAT)


def test_compile_follows_new_shapes():
    lstm = make()
    torch._dynamo.reset()
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    for steps, rows in ((5, 3), (7, 2), (9, 4)):
        x = torch.randn(steps, rows, I)
        torch.testing.assert_close(compiled(x), lstm(x), **FLOAT)


def test_compile_with_packed_sequences():
    lstm, x = make(bidirectional=True), inputs()
    packed = pack_padded_sequence(x, LENGTHS.clamp(min=1), enforce_sorted=False)
    torch._dynamo.reset()
    output, states = torch.compile(lstm, fullgraph=True, backend="aot_eager")(packed)
    expected, expected_states = lstm(packed)
    torch.testing.assert_close((output.data, states), (expected.data, expected_states), **FLOAT)


def test_compiled_module_checks_lengths():
    lstm, x = make(), inputs()
    torch._dynamo.reset()
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        compiled(x, lengths=LENGTHS)
        with pytest.raises(ValueError, match=r"lengths"):
            compiled(x, lengths=LENGTHS + 1)


def test_compile_with_inductor():
    lstm, cell, x = make(), nn.LSTMCell(I, H), inputs()
    torch._dynamo.reset()

    def step(x, lengths, cont):
        output, states = lstm(x, lengths=lengths, cont=cont)
        return output, states, cell(x[0], (output[1], states[1][0]))

    cont = torch.ones(T, B)
    cont[2, 0] = 0
    compiled = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(compiled(x, LENGTHS, cont), step(x, LENGTHS, cont), **FLOAT)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_compiled_module_reads_prepared_packs(dtype):
    lstm, x = make().eval(), inputs()
    torch._dynamo.reset()
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        compiled(x)
        lstm.prepare(dtype)
        torch.testing.assert_close(compiled(x), lstm(x), rtol=0, atol=0)
        # New weights, new packs, no stale graph.
        lstm.weight_hh_l0.mul_(2)
        lstm.prepare(dtype)
        torch.testing.assert_close(compiled(x), lstm(x), rtol=0, atol=0)
        # Dropped packs are not missed: packing becomes part of the graph.
        lstm.weight_ih_l1.mul_(2)
        lstm.eval()
        torch.testing.assert_close(compiled(x), lstm(x), **FLOAT)
        # Other parameters than those that were packed.
        lstm.prepare(dtype)
        torch._dynamo.reset()
        call = torch.compile(
            lambda p, x: torch.func.functional_call(lstm, p, (x,)), fullgraph=True, backend="aot_eager"
        )
        other = {name: p * 2 for name, p in lstm.named_parameters()}
        torch.testing.assert_close(call(other, x), torch.func.functional_call(lstm, other, (x,)), **FLOAT)
        assert not torch.allclose(call(other, x)[0], lstm(x)[0])


@pytest.mark.parametrize("prepared", [None, "float32", "bfloat16"])
def test_export(prepared):
    lstm, x = make(bidirectional=True, batch_first=True).eval(), inputs().transpose(0, 1).contiguous()
    if prepared:
        lstm.prepare(prepared)
    rows, steps = torch.export.Dim("rows", min=2), torch.export.Dim("steps", min=2)
    program = torch.export.export(
        lstm,
        (x,),
        {"lengths": LENGTHS},
        dynamic_shapes={"input": {0: rows, 1: steps}, "lengths": {0: rows}},
    )
    assert not program.constants  # a pack belongs to one machine
    more = torch.randn(4, 9, I)
    lengths = torch.tensor([9, 3, 0, 1])
    with torch.no_grad():
        torch.testing.assert_close(
            program.module()(more, lengths=lengths), lstm(more, lengths=lengths), **FLOAT
        )
    assert set(program.state_dict) == set(lstm.state_dict())


# Precision


def test_autocast():
    lstm, cell, x = make(bidirectional=True), nn.LSTMCell(I, H), inputs()
    expected = lstm(x)[0]
    for train in (True, False):
        lstm.train(train)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, (h_n, c_n) = lstm(x)
            assert {output.dtype, h_n.dtype, c_n.dtype} == {torch.bfloat16}
            assert lstm(x.bfloat16(), (h_n, c_n))[0].dtype == torch.bfloat16
            h, c = cell(x[0])
            assert torch.isfinite(cell(x[0], (h, c))[0]).all()
        # Two layers, inputs, weights and outputs rounded to 8 bits. Worst seen over 20 seeds: 0.0016.
        torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.004)
    lstm.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = lstm(x, lengths=LENGTHS)[0].float().square().sum()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in lstm.parameters())
    double = make().double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert double(x.double())[0].dtype == torch.float64


def test_autocast_rounds_what_a_layer_returns():
    torch.manual_seed(0)
    lstm, x = nn.LSTM(I, H, bidirectional=True), inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, states = lstm(x, lengths=LENGTHS)
    full, full_states = lstm(x, lengths=LENGTHS)
    for actual, expected in zip((y, *states), (full, *full_states), strict=True):
        torch.testing.assert_close(actual, expected.bfloat16(), rtol=0, atol=0)
    weights, d_y = list(lstm.parameters()), torch.randn(T, B, 2 * H).bfloat16()
    actual = torch.autograd.grad(y, weights, d_y)
    torch.testing.assert_close(actual, torch.autograd.grad(full, weights, d_y.float()), rtol=0, atol=0)


def test_autocast_of_custom_cells():
    lstm, x = make(layer_norm=True, zoneout=0.1), inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = lstm(x, lengths=LENGTHS)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert lstm.ln_c_weight_l1.grad.dtype == torch.float32


def test_moves_between_precisions():
    lstm, x = make().eval(), inputs()
    with torch.no_grad():
        expected = lstm(x)[0]
        # Worst seen over 20 seeds: 5e-8, 2e-4, 1.4e-3.
        for dtype, tolerance in ((torch.float64, 2e-7), (torch.float16, 6e-4), (torch.bfloat16, 4e-3)):
            moved = copy.deepcopy(lstm).to(dtype)
            output = moved(x.to(dtype))[0]
            assert output.dtype == dtype
            torch.testing.assert_close(output.float(), expected, rtol=0, atol=tolerance)


# Copies, checkpoints, functional calls


def test_copies_share_no_packs():
    lstm, x = make(zoneout=0.0).eval().prepare("bfloat16"), inputs()
    file = io.BytesIO()
    with torch.no_grad():
        expected = lstm(x)
        assert lstm._packs
        torch.save(lstm, file)
        file.seek(0)
        copies = [copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm)), copy.copy(lstm)]
        copies.append(torch.load(file, weights_only=False))
        for other in copies:
            assert not other._packs
            torch.testing.assert_close(other(x), expected, rtol=0, atol=0)  # the choice of bfloat16 stays
            assert other._packs
        copies[0].weight_hh_l0.mul_(2)
        assert not torch.equal(copies[0](x)[0], expected[0])
        torch.testing.assert_close(lstm(x), expected, rtol=0, atol=0)
    cell = pickle.loads(pickle.dumps(nn.LSTMCell(I, H)))
    assert cell(x[0])[0].shape == (B, H)


def test_checkpoints_go_both_ways():
    ours, theirs = (
        make(bidirectional=True, proj_size=2),
        torch.nn.LSTM(I, H, 2, bidirectional=True, proj_size=2),
    )
    x = inputs()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), **FLOAT)
    torch.nn.init.normal_(theirs.weight_hr_l1_reverse)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), **FLOAT)


def test_functional_calls():
    lstm, x = make(), inputs()
    parameters = {name: p.detach() * 1.5 for name, p in lstm.named_parameters()}
    other = make()
    other.load_state_dict(parameters)
    for mode in (True, False):
        lstm.train(mode)
        with torch.no_grad():
            lstm(x)  # makes packs of the module's own parameters
            torch.testing.assert_close(torch.func.functional_call(lstm, parameters, (x,)), other(x), **FLOAT)
            torch.testing.assert_close(lstm(x)[0], make()(x)[0], **FLOAT)

    def loss(parameters):
        return torch.func.functional_call(lstm, parameters, (x,))[0].square().sum()

    grads = torch.func.grad(loss)(parameters)
    expected = torch.autograd.grad(other(x)[0].square().sum(), list(other.parameters()))
    torch.testing.assert_close(list(grads.values()), list(expected), rtol=1e-6, atol=1e-6)

    # Gradients per row, and two models in one call.
    def row_loss(parameters, x):
        return torch.func.functional_call(lstm, parameters, (x,))[0].square().sum()

    per_row = torch.func.vmap(torch.func.grad(row_loss), in_dims=(None, 1))(parameters, x)
    sums = [g.sum(0) for g in per_row.values()]
    torch.testing.assert_close(sums, list(expected), rtol=1e-6, atol=1e-6)
    stacked, _ = torch.func.stack_module_state([make().eval(), other.eval()])
    both = torch.func.vmap(lambda p: torch.func.functional_call(lstm, p, (x,))[0])(stacked)
    torch.testing.assert_close(both, torch.stack([make()(x)[0], other(x)[0]]), **FLOAT)
    h, c = torch.randn(B, H), torch.randn(B, H)
    cell = nn.LSTMCell(I, H)
    jacobian = torch.func.jacrev(lambda h: cell(x[0], (h, c))[0])(h)
    expected = torch.autograd.functional.jacobian(lambda h: cell(x[0], (h, c))[0], h)
    torch.testing.assert_close(jacobian, expected, **FLOAT)


def test_activation_checkpoints_repeat_the_masks():
    lstm, x = make(dropout=0.3, zoneout=0.2, recurrent_dropout=0.2), inputs(requires_grad=True)

    def run(x):
        return lstm(x)[0]

    results = []
    for function in (run, lambda x: checkpoint(run, x, use_reentrant=False)):
        torch.manual_seed(4)
        output = function(x)
        results.append((output, *torch.autograd.grad(output.square().sum(), (x, *lstm.parameters()))))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_data_parallel_replicas():
    lstm, x = make(batch_first=True), inputs().transpose(0, 1)
    torch.testing.assert_close(torch.nn.DataParallel(lstm)(x), lstm(x), rtol=0, atol=0)
    replica = lstm._replicate_for_data_parallel()
    for name, p in lstm.named_parameters():  # as DataParallel does: plain tensors in place of parameters
        setattr(replica, name, p * 1.0)
    torch.testing.assert_close(replica(x), lstm(x), rtol=0, atol=0)


def _train_in_process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    model = torch.nn.parallel.DistributedDataParallel(make(bidirectional=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(T, 4, I, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        optimizer.zero_grad()
        lengths = torch.tensor([5, 1, 3, 2])[2 * rank : 2 * rank + 2]
        model(x[:, 2 * rank : 2 * rank + 2], lengths=lengths)[0].square().sum().backward()
        optimizer.step()
    torch.save(model.module.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel(tmp_path):
    # Rank 0 in a process of its own, rank 1 here: one import of torch less.
    other = torch.multiprocessing.spawn(_train_in_process, (str(tmp_path),), nprocs=1, join=False)
    _train_in_process(1, str(tmp_path))
    other.join()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    lstm = make(bidirectional=True)
    optimizer = torch.optim.SGD(lstm.parameters(), lr=0.1)
    x = torch.randn(T, 4, I, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        optimizer.zero_grad()
        (lstm(x, lengths=torch.tensor([5, 1, 3, 2]))[0].square().sum() / 2).backward()
        optimizer.step()
    for name, value in lstm.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)


# replace_lstm


class Tagger(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(I, H, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.again = self.lstm  # one module in two places
        self.cells = torch.nn.ModuleList([torch.nn.LSTMCell(2 * H, H, bias=False) for _ in range(2)])
        self.cells[1].weight_ih = self.cells[0].weight_ih  # tied
        self.gru = torch.nn.GRU(H, H)

    def forward(self, x):
        y, _ = self.again(x)
        state = None
        for cell in self.cells:
            state = cell(y[:, 0], state)
        return self.gru(state[0])[0]


def test_replace_lstm():
    model, x = Tagger().eval(), torch.randn(B, T, I)
    before = model(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = dict(model.named_parameters())
    state = torch.random.get_rng_state()
    assert nn.replace_lstm(model) is model
    assert torch.equal(torch.random.get_rng_state(), state)
    assert isinstance(model.lstm, nn.LSTM)
    assert model.again is model.lstm
    assert all(isinstance(cell, nn.LSTMCell) for cell in model.cells)
    assert model.cells[0].weight_ih is model.cells[1].weight_ih
    assert type(model.gru) is torch.nn.GRU
    assert not model.lstm.training
    after = dict(model.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is parameters[name] for name in parameters)
    torch.testing.assert_close(model(x), before, **FLOAT)
    model.train()
    model(x).sum().backward()
    optimizer.step()
    assert not torch.allclose(model.eval()(x), before)
    assert nn.replace_lstm(model) is model  # nothing left to do


def test_replace_lstm_returns_a_new_module_for_a_bare_one():
    theirs = torch.nn.LSTM(I, H, dropout=0.0).eval().requires_grad_(False)
    ours = nn.replace_lstm(theirs)
    assert isinstance(ours, nn.LSTM)
    assert ours.weight_hh_l0 is theirs.weight_hh_l0
    assert not ours.training
    assert isinstance(nn.replace_lstm(torch.nn.LSTMCell(I, H)), nn.LSTMCell)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear = torch.nn.Linear(1, 1)
        assert nn.replace_lstm(linear) is linear


def test_replace_lstm_keeps_hooks():
    theirs = torch.nn.LSTM(I, H)
    calls = []
    handle = theirs.register_forward_hook(lambda module, args, output: calls.append(type(module)))
    ours = nn.replace_lstm(theirs)
    ours(inputs())
    assert calls == [nn.LSTM]
    handle.remove()
    ours(inputs())
    assert calls == [nn.LSTM]


def test_replace_lstm_leaves_subclasses_alone():
    class Mine(torch.nn.LSTM):
        pass

    model = torch.nn.ModuleDict({"mine": Mine(I, H)})
    nn.replace_lstm(model)
    assert type(model["mine"]) is Mine
    assert isinstance(nn.LSTM.from_torch(model["mine"]), nn.LSTM)  # when asked for by name


def test_replace_lstm_is_all_or_nothing():
    model = torch.nn.Sequential(torch.nn.LSTM(I, H), torch.nn.LSTM(H, H))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still what many checkpoints use
        torch.nn.utils.weight_norm(model[1], "weight_hh_l0")
    with pytest.raises(ValueError, match="from_torch: module must hold weight_hh_l0 as plain parameters"):
        nn.replace_lstm(model)
    assert type(model[0]) is torch.nn.LSTM


def test_replace_lstm_refuses_parametrizations():
    model = torch.nn.Sequential(torch.nn.LSTM(I, H), torch.nn.LSTM(H, H))
    parametrizations.weight_norm(model[1], "weight_hh_l0")
    with pytest.raises(ValueError, match="got a ParametrizedLSTM with weight_norm, pruning or a param"):
        nn.replace_lstm(model)
    assert type(model[0]) is torch.nn.LSTM


def test_meta_device():
    y, (h, c) = nn.LSTM(I, H, 2, device="meta")(torch.empty(4, 3, I, device="meta"))
    assert (y.shape, h.shape, c.shape, y.device.type) == ((4, 3, H), (2, 3, H), (2, 3, H), "meta")
    h, c = nn.LSTMCell(I, H, device="meta")(torch.empty(3, I, device="meta"))
    assert (h.shape, c.shape) == ((3, H), (3, H))


def test_errors_of_from_torch():
    with pytest.raises(ValueError, match=r"from_torch: torch_lstm must be a torch.nn.LSTM, got GRU"):
        nn.LSTM.from_torch(torch.nn.GRU(1, 1))
    with pytest.raises(ValueError, match=r"from_torch: torch_cell must be a torch.nn.LSTMCell, got LSTM"):
        nn.LSTMCell.from_torch(torch.nn.LSTM(1, 1))
    normed = parametrizations.weight_norm(torch.nn.LSTM(I, H), "weight_hh_l0")
    with pytest.raises(ValueError, match="got a ParametrizedLSTM with weight_norm, pruning or a param"):
        nn.LSTM.from_torch(normed)


def test_parametrized_weights():
    """Weights that are computed anew on every call must never be served from a pack."""
    lstm, x = make(), inputs()
    parametrizations.weight_norm(lstm, "weight_hh_l0")
    lstm.eval()
    with torch.no_grad():
        before = lstm(x)[0]
        lstm.parametrizations.weight_hh_l0.original0.data.mul_(2)
        after = lstm(x)[0]
        assert not torch.allclose(before, after)
        lstm.train()
        torch.testing.assert_close(lstm(x)[0], after, **FLOAT)

"""Decoding on a GPU where it differs from the CPU: what it refuses, when it stops, graphs that are kept."""

import threading

import pytest
import torch
from test_ops_decoder import BOS, EOS, PAD, Model, compare, run

from lrcn_fast import ops_decode

pytestmark = pytest.mark.needs_cuda


def test_what_it_refuses():
    model = Model(hidden=(5,), F=3, static_layer=0)
    packed, ids = model.pack(device="cuda"), dict(bos_id=BOS, eos_id=EOS, pad_id=PAD)
    with pytest.raises(ValueError, match="uniforms must be on the device of packed"):
        ops_decode.decode_sample(packed, torch.zeros(2, 3).cuda(), torch.rand(2, 1, 20).double(), **ids)
    with pytest.raises(ValueError, match="features must be on the device of packed"):
        ops_decode.decode_beam(packed, torch.zeros(2, 3), **ids)
    with pytest.raises(ValueError, match="packed must come from decode_pack on CUDA"):
        ops_decode.decode_beam(model.pack(), torch.zeros(2, 3).cuda(), **ids)
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16 or float16 on CUDA, got Char"):
        model.pack(torch.int8, "cuda")


@pytest.mark.parametrize("max_new", [1, 3, 4, 5, 12, 64])
def test_it_stops_when_all_images_are_done(max_new):
    model = Model(V=40, hidden=(9,), F=4, static_layer=0, scale=1.0)
    model.projection_bias[EOS] += 4.0  # captions end early
    compare(model, 3, num_beams=3, num_return_sequences=3, max_new_tokens=max_new, device="cuda")


def test_a_real_size():
    model = Model(V=8801, E=1000, hidden=(1000, 1000), F=1000, static_layer=1, scale=0.5)
    compare(model, 8, num_beams=5, max_new_tokens=6, device="cuda")


def test_sampling_in_several_portions():
    """More rows than logits are kept of: the draws of 700 images, 12288 words."""
    model = Model(V=12288, hidden=(9,), F=4, static_layer=0, scale=0.7)
    uniforms = torch.rand(700, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    options = dict(do_sample=True, num_return_sequences=2, max_new_tokens=2, top_k=50)
    features = model.features(700)
    expected = run(model, model.pack(), features, 700, uniforms=uniforms, **options)
    actual = run(model, model.pack(device="cuda"), features, 700, uniforms=uniforms, **options)
    # Where rounding decides a number falls on the other side of a border: about one of 1e5, here of 2800.
    assert (actual[0] == expected[0]).all(-1).float().mean() > 0.998


# Of each kind of search one that needs several segments and ends at different times.
SEARCHES = {
    "beams": dict(num_beams=3, num_return_sequences=3),
    "rules": dict(num_beams=4, no_repeat_ngram_size=2, repetition_penalty=1.3, min_new_tokens=6),
    "caffe": dict(num_beams=3, compat="caffe"),
    "greedy": dict(num_beams=1),
    "sampling": dict(do_sample=True, num_return_sequences=2, top_k=20, repetition_penalty=1.2),
}


def make(name, images=8, words=14, seed=0):
    """A model, its pack on the GPU, and ``search(rows)``: the search ``name`` over some of the images."""
    model = Model(V=150, hidden=(9, 12), F=4, static_layer=1, scale=1.0, seed=seed)
    model.projection_bias[EOS] += 3.0
    packed, features = model.pack(device="cuda"), model.features(images)
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(images, 2, words, dtype=torch.float64, generator=generator)

    def search(rows, packed=packed, **options):
        rows = list(rows)
        given = uniforms[rows] if name == "sampling" else None
        options = {"max_new_tokens": words, **SEARCHES[name], **options}
        return run(model, packed, features[rows], len(rows), uniforms=given, **options)

    return model, packed, search


def same(actual, expected):
    return all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("name", SEARCHES)
def test_a_graph_serves_other_images(name):
    """Calls of 5 to 8 images share a graph and its memory: bit for bit what each image's first call gave."""
    _, _, search = make(name)
    alone = [search([image]) for image in range(8)]
    calls = [range(8), range(5), [7, 6, 5, 4, 3, 2], range(1, 8), [0] * 5, range(8)]
    for rows in [*calls, *calls]:
        assert same(search(rows), [torch.cat(parts) for parts in zip(*(alone[i] for i in rows), strict=True)])


@pytest.mark.parametrize("name", ["beams", "sampling"])
def test_a_graph_serves_other_rules(name):
    """Banned words and the exponent of lengths are no part of a graph."""
    _, _, search = make(name)
    rules = [{}, {"suppress_tokens": tuple(range(3, 60))}, {"length_penalty": 2.0}, {"length_penalty": 0.5}]
    first = [search(range(8), **options) for options in rules]
    assert not any(same(a, b) for i, a in enumerate(first) for b in first[:i])
    for i in (3, 0, 2, 1, 1):
        assert same(search(range(8), **rules[i]), first[i])


def test_more_searches_than_are_kept():
    _, _, search = make("beams")
    first = {words: search(range(6), max_new_tokens=words) for words in range(1, 15)}
    for words in [*range(14, 0, -1), *range(1, 15)]:
        assert same(search(range(6), max_new_tokens=words), first[words])


def test_other_weights_at_the_same_address():
    """A graph holds the address of the weights, not the weights."""
    _, packed, search = make("beams")
    before = search(range(8))
    other = make("beams", seed=1)[1]
    expected = search(range(8), packed=other)
    packed.copy_(other)
    assert same(search(range(8)), expected)
    assert not same(before, expected)


def test_a_failed_search_leaves_its_graph_usable():
    model, packed, search = make("beams")
    expected, broken = search(range(8)), torch.zeros(8, 4)
    broken[7, 3] = torch.nan
    with pytest.raises(ValueError, match="features must be finite, got 1 values"):
        run(model, packed, broken, 8, max_new_tokens=14, **SEARCHES["beams"])
    assert same(search(range(8)), expected)


@pytest.mark.parametrize("name", ["beams", "sampling"])
def test_on_side_streams(name):
    _, _, search = make(name)
    expected = search(range(8))
    for _ in range(3):
        with torch.cuda.stream(torch.cuda.Stream()):
            assert same(search(range(8)), expected)
        assert same(search(range(8)), expected)


def test_threads_do_not_share_a_search():
    """Four threads, two of them on the default stream, with one decoder and images of their own."""
    _, _, search = make("beams")
    rows = [[0, 1, 2, 3, 4], [7, 6, 5, 4, 3], [1, 3, 5, 7, 0, 2], [6] * 8]
    expected = [search(r) for r in rows]
    wrong = []

    def work(thread):
        stream = torch.cuda.default_stream() if thread < 2 else torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(30):
                if not same(search(rows[thread]), expected[thread]):
                    wrong.append(thread)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

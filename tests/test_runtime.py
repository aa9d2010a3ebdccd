"""The numpy runtime: without torch, and with the same results as with it."""

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lrcn_fast import runtime
from lrcn_fast.runtime import Decoder, LayerWeights, LstmStream

EOS, BOS, PAD = 0, 1, 0


def randn(seed, *shape, scale=1.0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(scale)


def at_the_same_time(calls, action):
    """What each of `calls` threads, which start together, gets from `action`."""
    barrier = threading.Barrier(calls)

    def start(_):
        barrier.wait()
        return action()

    with ThreadPoolExecutor(calls) as pool:
        return list(pool.map(start, range(calls)))


def lstm_step(x, h, c, w_ih, w_hh, bias):
    """One step in float64."""
    z = x.astype(np.float64) @ w_ih.T + h @ w_hh.T + bias
    i, f, g, o = np.split(z, 4, axis=1)
    c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
    return np.tanh(c) / (1 + np.exp(-o)), c


@pytest.mark.skipif("LRCN_TEST_LIBRARIES" in os.environ, reason="a new process takes the installed libraries")
def test_runtime_does_not_import_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from lrcn_fast.runtime import Decoder, LstmStream\n"
        "z = lambda *s: np.zeros(s, np.float32)\n"
        "decoder = Decoder(z(5, 3), [(z(16, 3), z(16, 4))], z(5, 4))\n"
        "print(decoder.generate(max_new_tokens=2).tokens(0), LstmStream(z(8, 2)).step(z(1, 8)).shape)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[0] (1, 2)"


# ---------------------------------------------------------------- stream


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("H", [1, 15, 33])
def test_stream_follows_the_equation(B, H):
    I = 7  # noqa: E741
    w_ih, w_hh, bias = randn(1, 4 * H, I, scale=0.4), randn(2, 4 * H, H, scale=H**-0.5), randn(3, 4 * H)
    gates, frames = LstmStream(w_hh, B), LstmStream(w_hh, B, w_ih=w_ih, bias=bias)
    h = c = np.zeros((B, H))
    for t in range(6):
        x = randn(10 + t, B, I)
        h, c = lstm_step(x, h, c, w_ih, w_hh, bias)
        # 6 steps of sums of up to 40 terms: measured 4e-7.
        np.testing.assert_allclose(frames.step(x), h, atol=2e-6)
        np.testing.assert_allclose(gates.step(x @ w_ih.T + bias), h, atol=2e-6)
        np.testing.assert_allclose(frames.state[1], c, atol=2e-6)


def test_stream_state_can_be_saved_reset_and_restored():
    stream = LstmStream(randn(1, 20, 5), 2, w_ih=randn(2, 20, 3))
    x, y = randn(3, 2, 3), randn(4, 2, 3)
    first = stream.step(x)
    saved = stream.state
    second = stream.step(y)
    stream.set_state(*saved)
    np.testing.assert_array_equal(stream.step(y), second)
    stream.reset()
    np.testing.assert_array_equal(stream.state[0], 0)
    np.testing.assert_array_equal(stream.step(x), first)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_stream_with_reduced_weights(dtype):
    w_ih, w_hh = randn(1, 80, 9, scale=0.3), randn(2, 80, 20, scale=0.2)
    x = randn(3, 1, 9)
    exact = LstmStream(w_hh, w_ih=w_ih).step(x)
    np.testing.assert_allclose(LstmStream(w_hh, w_ih=w_ih, dtype=dtype).step(x), exact, atol=0.02)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (
            lambda s: s.step(randn(0, 2, 40)),
            r"LstmStream.step: xg \[B, 4H\] must have shape \(2, 80\), got \(2, 40\)",
        ),
        (lambda s: s.step(randn(0, 80)), r"must have shape \(2, 80\), got \(80,\)"),
        (lambda s: s.step(np.zeros((2, 80))), r"xg \[B, 4H\] must be float32, got float64"),
        (
            lambda s: s.step(randn(0, 80, 2).T),
            r"must be C-contiguous, got other strides; use np.ascontiguousarray",
        ),
        (lambda s: s.step([[0.0] * 80] * 2), r"step: xg \[B, 4H\] must be float32, got list"),
        (lambda s: s.step(None), r"step: xg \[B, 4H\] must be float32, got NoneType"),
        (lambda s: s.set_state(randn(0, 2, 20), randn(0, 1, 20)), r"c \[B, H\] must have shape \(2, 20\)"),
        (lambda s: s.set_state(1.0, randn(0, 2, 20)), r"set_state: h \[B, H\] must be float32, got float"),
        (
            lambda s: LstmStream(randn(0, 81, 20)),
            r"w_hh \[4H, H\] must have shape \(80, 20\), got \(81, 20\)",
        ),
        (lambda s: LstmStream(randn(0, 80)), r"w_hh \[4H, H\] must have 2 dimensions, got shape \(80,\)"),
        (lambda s: LstmStream("w"), r"w_hh \[4H, H\] must be an array, got str"),
        (lambda s: LstmStream(randn(0, 0, 0)), r"w_hh \[4H, H\] must have H of at least 1, got 0"),
        *(
            (
                lambda s, batch=batch: LstmStream(randn(0, 80, 20), batch=batch),
                rf"LstmStream: batch must be an integer in 1\.\.2147483647, got {batch}$",
            )
            for batch in (0, -1, 1.5, True, None, 10**20)
        ),
        (lambda s: LstmStream(randn(0, 80, 20), np.ones(999, int)), r"1\.\.2147483647, got int64$"),
        (
            lambda s: LstmStream(randn(0, 80, 20), dtype="half"),
            r"dtype must be float32, bfloat16 or int8, got 'half'",
        ),
        (lambda s: LstmStream(randn(0, 80, 20), dtype=32), r"float32, bfloat16 or int8, got 32"),
        (lambda s: LstmStream(randn(0, 80, 20), bias=randn(0, 80)), r"bias must be None without w_ih"),
        (
            lambda s: LstmStream(randn(0, 80, 20), w_ih=randn(0, 79, 3)),
            r"w_ih \[4H, I\] must have shape \(80, 3\), got \(79, 3\)",
        ),
        (lambda s: LstmStream(randn(0, 80, 20), w_ih=randn(0, 80, 0)), r"must have I of at least 1, got 0"),
    ],
)
def test_stream_errors_name_the_argument(action, message):
    with pytest.raises(ValueError, match=message):
        action(LstmStream(randn(0, 80, 20), 2))


def test_one_stream_from_many_threads():
    # Each step is one step, whoever asks: the same number of steps gives the same state.
    w_hh, x = randn(1, 256, 64, scale=0.1), randn(2, 1, 256)
    alone, shared = LstmStream(w_hh), LstmStream(w_hh)
    for _ in range(200):
        alone.step(x)
    at_the_same_time(4, lambda: [shared.step(x) for _ in range(50)])
    np.testing.assert_array_equal(shared.state[0], alone.state[0])


# ---------------------------------------------------------------- decoder


def weights(V=40, E=7, hidden=(9, 12), F=5, static_layer=1, image_first=False):
    layers, below = [], E
    for layer, H in enumerate(hidden):
        width = below + (F if layer == static_layer else 0)
        layers.append(
            LayerWeights(
                randn(10 + layer, 4 * H, width, scale=0.5),
                randn(20 + layer, 4 * H, H, scale=0.5),
                randn(30 + layer, 4 * H, scale=0.3),
                randn(40 + layer, 4 * H, scale=0.3),
            )
        )
        below = H
    return dict(
        embedding=randn(1, V, E),
        layers=layers,
        projection=randn(2, V, hidden[-1]),
        projection_bias=randn(3, V),
        static_layer=static_layer,
        image_first=image_first,
    )


def make(**options):
    return Decoder(**weights(**options), bos_id=BOS, eos_id=EOS, pad_id=PAD)


FAMILIES = {
    "2f": {},
    "1u": dict(hidden=(9,), static_layer=0),
    "image-first": dict(static_layer=None, image_first=True),
    "no-image": dict(static_layer=None),
}
OPTIONS = {
    "beam": dict(num_beams=4, num_return_sequences=3, length_penalty=0.5),
    "caffe": dict(num_beams=4, num_return_sequences=3, compat="caffe"),
    "rules": dict(
        num_beams=4, repetition_penalty=1.3, no_repeat_ngram_size=2, suppress_tokens=[4], min_new_tokens=2
    ),
    "greedy": dict(num_beams=1),
    "prefix": dict(num_beams=3, prefix_ids=[3, 4]),
    "prefixes": dict(num_beams=1, prefix_ids=[[3], [4]]),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_same_captions_as_the_torch_ops(family, options):
    torch = pytest.importorskip("torch")
    from lrcn_fast import ops_decode

    values, options = weights(**FAMILIES[family]), dict(OPTIONS[options])
    decoder = make(**FAMILIES[family])
    features = None if decoder.feature_dim is None else randn(7, 2, decoder.feature_dim)
    actual = decoder.generate(features, batch_size=2, max_new_tokens=8, **options)

    tensor = torch.from_numpy
    packed = ops_decode.decode_pack(
        tensor(values["embedding"]),
        [tensor(layer.weight_ih) for layer in values["layers"]],
        [tensor(layer.weight_hh) for layer in values["layers"]],
        [tensor(layer.bias_ih + layer.bias_hh) for layer in values["layers"]],
        tensor(values["projection"]),
        tensor(values["projection_bias"]),
        static_layer=values["static_layer"],
        image_first=values["image_first"],
    )
    if "prefix_ids" in options:
        options["prefix"] = torch.tensor(options.pop("prefix_ids")).expand(2, -1)
    common = dict(batch_size=2, bos_id=BOS, eos_id=EOS, pad_id=PAD, max_new_tokens=8)
    features = None if features is None else tensor(features)
    if options["num_beams"] > 1:
        expected = ops_decode.decode_beam(packed, features, **common, **options)
    else:
        del options["num_beams"]
        expected = ops_decode.decode_sample(packed, features, None, **common, **options)
    found = (actual.sequences, actual.lengths, actual.scores, actual.token_logprobs)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


def test_sampling_uses_the_generator_and_sorts_by_score():
    decoder, features = make(), randn(7, 3, 5)
    options = dict(do_sample=True, num_return_sequences=10, max_new_tokens=6, top_k=20, temperature=1.2)
    one = decoder.generate(features, generator=np.random.default_rng(5), **options)
    two = decoder.generate(features, generator=np.random.default_rng(5), **options)
    other = decoder.generate(features, generator=np.random.default_rng(6), **options)
    np.testing.assert_array_equal(one.sequences, two.sequences)
    assert not np.array_equal(one.sequences, other.sequences)
    assert (np.diff(one.scores, axis=1) <= 0).all()
    np.testing.assert_allclose(one.scores, one.token_logprobs.sum(-1), rtol=1e-5)


def test_cold_sampling_is_greedy():
    decoder, features = make(), randn(7, 3, 5)
    cold = decoder.generate(features, do_sample=True, temperature=1e-4)
    hot = decoder.generate(features, do_sample=True, temperature=1e4, compat="caffe")
    greedy = decoder.generate(features, num_beams=1)
    np.testing.assert_array_equal(cold.sequences, greedy.sequences)
    np.testing.assert_array_equal(hot.sequences, greedy.sequences)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_decoder_with_reduced_weights(dtype):
    values, features = weights(), randn(7, 3, 5)
    exact = Decoder(**values, bos_id=BOS).generate(features, num_beams=1, max_new_tokens=1)
    close = Decoder(**values, bos_id=BOS, dtype=dtype).generate(features, num_beams=1, max_new_tokens=1)
    np.testing.assert_allclose(close.token_logprobs, exact.token_logprobs, atol=0.15)


def test_many_threads_share_a_decoder():
    decoder, features = make(V=300, hidden=(40, 40)), randn(7, 4, 5)
    expected = decoder.generate(features).sequences
    found = at_the_same_time(8, lambda: decoder.generate(features).sequences)
    assert len(found) == 8
    assert all(np.array_equal(sequences, expected) for sequences in found)


def test_the_arrays_may_change_afterwards():
    values = weights()
    decoder, features = Decoder(**values, bos_id=BOS), randn(7, 2, 5)
    before = decoder.generate(features).sequences
    for array in (values["embedding"], values["projection"], *values["layers"][0][:2]):
        array.fill(0)
    np.testing.assert_array_equal(decoder.generate(features).sequences, before)


def test_sizes():
    decoder = make()
    assert (decoder.vocab_size, decoder.feature_dim) == (40, 5)
    assert make(static_layer=None).feature_dim is None
    assert decoder.generate(randn(0, 0, 5)).sequences.shape == (0, 1, 20)


def test_the_instruction_set_is_the_one_asked_for():
    emulated = " (emulated)" if "LRCN_TEST_LIBRARIES" in os.environ else ""
    forced = os.environ.get("LRCN_FAST_ISA")
    best = ["generic", "avx2", "avx512", "avx512_vnni", "avx512_bf16"]
    assert runtime.isa() in [isa + emulated for isa in ([forced] if forced else best)]


def raised(error, call, message):
    """One line, of a length that fits one, that names function and argument and says what came."""
    with pytest.raises(error, match=message) as caught:
        call()
    text = str(caught.value)
    assert text.startswith(("generate: ", "Decoder: "))
    assert " must " in text
    assert ", got " in text
    assert "\n" not in text
    assert len(text) < 250


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (randn(0, 2, 6), r"features must be \[B, F\] = \[B, 5\], got an array of shape \[2, 6\]"),
        (randn(0, 5), r"features must be \[B, F\] = \[B, 5\], got an array of shape \[5\]"),
        (randn(0, 2, 5).tolist(), r"features must be \[B, F\] = \[B, 5\], got list"),
        (None, r"features must be \[B, F\] = \[B, 5\], got None"),
        (np.zeros((2, 5)), r"features \[B, F\] must be float32, got float64"),
        (np.full((2, 5), np.nan, np.float32), r"features must be finite, got nan in row 0"),
    ],
)
def test_bad_features(features, message):
    raised(ValueError, lambda: make().generate(features), message)


def test_features_of_a_language_model():
    decoder = make(static_layer=None)
    message = r"features must be None without static_layer and image_first, got an array of shape \[2, 5\]"
    raised(ValueError, lambda: decoder.generate(randn(0, 2, 5)), message)
    raised(ValueError, lambda: decoder.generate(batch_size=1.5), "batch_size must be an integer .*got 1.5")


def test_features_in_any_order():
    features = randn(7, 4, 10)
    want = make().generate(np.ascontiguousarray(features[::2, ::2]))
    for other in (features[::2, ::2], np.asfortranarray(features[::2, ::2])):
        np.testing.assert_array_equal(make().generate(other).sequences, want.sequences)


# Each is refused here in the words in which CaptionDecoder refuses it.
BAD_OPTIONS = [
    dict(num_beams=0), dict(num_beams=2000), dict(num_beams=2.5), dict(num_beams=True), dict(num_beams="a"),
    dict(num_return_sequences=6), dict(num_return_sequences=1.5),
    dict(do_sample=True, num_return_sequences=0),
    dict(max_new_tokens=0), dict(max_new_tokens=1.5), dict(max_new_tokens=10**20),
    dict(min_new_tokens=21), dict(min_new_tokens=None),
    dict(length_penalty="a"), dict(length_penalty=float("nan")), dict(length_penalty=True),
    dict(length_penalty=1e9), dict(early_stopping="soon"), dict(early_stopping=1), dict(early_stopping=None),
    dict(do_sample="x"), dict(do_sample=1), dict(temperature=0.0), dict(temperature="1"),
    dict(top_k=-3), dict(top_k=10**20), dict(do_sample=True, top_p=1.5), dict(top_p=None),
    dict(no_repeat_ngram_size=10**20), dict(no_repeat_ngram_size=-1), dict(repetition_penalty=0),
    dict(suppress_tokens=("a",)), dict(suppress_tokens=5), dict(suppress_tokens=[40]),
    dict(suppress_tokens=[-1]), dict(suppress_tokens=range(40)), dict(suppress_tokens=[0.5]),
    dict(prefix_ids=[99]), dict(prefix_ids=[-1]), dict(prefix_ids=[EOS]), dict(prefix_ids=[[1], [2], [3]]),
    dict(prefix_ids=[1.5]), dict(prefix_ids=[[1, 2], [3]]), dict(prefix_ids=5), dict(prefix_ids="ab"),
    dict(prefix_ids=[10**20]),
    dict(num_beam_groups=3), dict(num_beam_groups=6), dict(num_beam_groups=5, diversity_penalty=-0.5),
    dict(num_beam_groups=2, num_beams=1), dict(diversity_penalty=0.5), dict(num_beam_groups=0),
    dict(num_beam_groups=5),
    dict(compat="nope"), dict(compat=None), dict(compat="fairseq"), dict(compat=["hf"]),
    dict(compat="caffe", length_penalty=1.0), dict(compat="caffe", early_stopping=True),
    dict(batch_size=3), dict(batch_size=True), dict(batch_size="a"),
]  # fmt: skip


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_same_errors_as_torch(options):
    torch = pytest.importorskip("torch")
    from torch import nn

    from lrcn_fast import CaptionDecoder

    model = CaptionDecoder(
        nn.Embedding(40, 7),
        [nn.LSTM(7, 9), nn.LSTM(14, 12)],
        nn.Linear(12, 40),
        static_layer=1,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=PAD,
    )
    with pytest.raises((ValueError, NotImplementedError)) as expected:
        model.generate(torch.zeros(2, 5), **options)
    message = f"^{re.escape(str(expected.value))}$"
    raised(type(expected.value), lambda: make().generate(randn(0, 2, 5), **options), message)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(num_beams=2.5), ValueError, r"num_beams must be an integer in 1\.\.1024, got 2\.5"),
        (dict(suppress_tokens=("a",)), ValueError, r"must be a sequence of token ids, got \('a',\)"),
        (dict(prefix_ids=[EOS]), ValueError, r"prefix_ids must not hold the end of sentence, got eos_id = 0"),
        (dict(prefix_ids=[[1, 2], [3]]), ValueError, r"\[B, P\], got \[\[1, 2\], \[3\]\]"),
        (dict(compat="nope"), ValueError, "compat must be one of hf, caffe, ruotianluo, .* got 'nope'"),
        (dict(compat="fairseq"), NotImplementedError, "presets that work so far, hf, caffe, got 'fairseq'"),
        (dict(num_beam_groups=5), NotImplementedError, "num_beam_groups must be 1 .* got 5"),
        (dict(generator=3), ValueError, r"generator must be a numpy\.random\.Generator, got 3"),
    ],
)
def test_errors_of_options(options, error, message):
    raised(error, lambda: make().generate(randn(0, 2, 5), **options), message)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("embedding", np.zeros((40, 7)), r"embedding \[V, E\] must be float32, got float64"),
        ("embedding", None, r"embedding \[V, E\] must be an array, got NoneType"),
        ("projection", randn(0, 40, 11), r"projection \[V, H\] must have shape \(40, 12\), got \(40, 11\)"),
        ("projection_bias", randn(0, 41), r"projection_bias \[V\] must have shape \(40,\), got \(41,\)"),
        ("projection_bias", 1.5, r"projection_bias \[V\] must be float32, got float"),
        (
            "layers",
            [(randn(0, 36, 7), randn(0, 37, 9))],
            r"w_hh\[0\] \[4H, H\] must have shape \(36, 9\), got \(37, 9\)",
        ),
        ("layers", [], r"w_hh must hold at least one layer, got none"),
        ("layers", 5, r"layers must be a sequence of LayerWeights, got int"),
        ("layers", [(randn(0, 36, 7),)], r"layers\[0\] must be \(weight_ih, .* got 1 values"),
        (
            "layers",
            [(randn(0, 36, 7), randn(0, 36, 9), randn(0, 36), randn(0, 1))],
            r"layers\[0\] must have biases of one shape .* shape \[36\] and an array of shape \[1\]",
        ),
        (
            "layers",
            [(randn(0, 36, 7), randn(0, 36, 9), None, randn(0, 1))],
            r"bias\[0\] \[4H\] must have shape \(36,\), got \(1,\)",
        ),
        ("static_layer", 2, r"static_layer must be None or in 0\.\.1, got 2"),
        ("static_layer", True, r"static_layer must be None or in 0\.\.1, got True"),
        ("image_first", 1, r"image_first must be True or False, got 1"),
        ("feed_bos", False, r"feed_bos must be True unless image_first=True, got False"),
        ("bos_id", True, r"bos_id must be an integer, got True"),
        ("eos_id", 1.5, r"eos_id must be an integer, got 1\.5"),
        ("eos_id", 40, r"eos_id must be in 0\.\.39, got 40"),
        ("pad_id", None, r"pad_id must be an integer, got None"),
        ("pad_id", 2**63, r"pad_id must be an integer of 64 bits, got 9223372036854775808"),
        ("dtype", "half", r"dtype must be float32, bfloat16 or int8, got 'half'"),
        ("dtype", 8, r"dtype must be float32, bfloat16 or int8, got 8"),
        ("table_limit", 1.5, r"table_limit must be an integer in 0\.\..*, got 1\.5"),
    ],
)
def test_errors_of_constructors(name, value, message):
    values = {**weights(static_layer=None), name: value}
    raised(ValueError, lambda: Decoder(**values), message)

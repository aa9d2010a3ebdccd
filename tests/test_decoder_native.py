"""Native decoding against the plain PyTorch search, word for word."""

import itertools
import random

import pytest
import torch
from torch import nn

from lrcn_fast import CaptionDecoder, reference

EOS = 0


def random_decoder(rng, vocab=None):
    """A small decoder of any kind. Returns it and its feature size (None: no image)."""
    V = vocab or rng.choice([2, 3, 5, 17, 64, 65, 130])
    E, features = rng.choice([1, 4, 16, 19]), rng.choice([1, 3, 16])
    hidden = [rng.choice([1, 3, 16, 17, 33]) for _ in range(rng.choice([1, 1, 2, 2, 3]))]
    image = rng.choice(["static", "static", "static", "first", "only", "none"])
    static = rng.randrange(len(hidden)) if image == "static" else None
    sizes = [E, *hidden[:-1]]
    bias = rng.random() < 0.8
    layers = [
        rng.choice([nn.LSTM, nn.LSTMCell])(sizes[k] + (features if k == static else 0), hidden[k], bias=bias)
        for k in range(len(hidden))
    ]
    decoder = CaptionDecoder(
        nn.Embedding(V, E),
        layers,
        nn.Linear(hidden[-1], V, bias=bias),
        static_layer=static,
        image_first=image in ("first", "only"),
        feed_bos=image != "only",
        bos_id=rng.choice([0, V - 1]),
        eos_id=EOS,
        pad_id=rng.choice([0, -1, 7]),
    ).eval()
    scale = rng.choice([0.4, 0.8, 1.5])
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(std=scale)
    return decoder, {"static": features, "first": E, "only": E, "none": None}[image]


def random_options(rng, V, images):
    """Settings of a search over V words."""
    options = {"max_new_tokens": rng.choice([1, 2, 7, 20])}
    options["min_new_tokens"] = rng.choice([0, 0, 0, min(3, options["max_new_tokens"])])
    if rng.random() < 0.3:
        options["no_repeat_ngram_size"] = rng.choice([1, 2, 3])
    if rng.random() < 0.3:
        options["repetition_penalty"] = rng.choice([0.7, 1.4])
    if rng.random() < 0.3:
        options["suppress_tokens"] = rng.sample(range(V), rng.randrange(V - 1)) if V > 2 else [EOS]
        if set(range(V)) - {EOS} <= set(options["suppress_tokens"]):
            options["min_new_tokens"] = 0
    if V > 2 and rng.random() < 0.3:
        shape = (images, 2) if rng.random() < 0.5 else (3,)
        options["prefix_ids"] = torch.randint(1, V, shape)
    kind = rng.choice(["greedy", "beam", "beam", "beam", "beam", "caffe", "sample"])
    if kind == "greedy":
        options["num_beams"] = 1
    elif kind == "sample":
        options |= {"do_sample": True, "num_return_sequences": rng.choice([1, 4])}
        options |= {
            "temperature": rng.choice([0.5, 1.0, 1.7]),
            "top_k": rng.choice([0, 3]),
            "top_p": rng.choice([1.0, 0.8]),
        }
    else:
        options["num_beams"] = rng.choice([2, 3, 5, 5, 10, 40])
        options["num_return_sequences"] = rng.randint(1, options["num_beams"])
    if kind == "caffe":
        options["compat"] = "caffe"
    else:
        options["length_penalty"] = rng.choice([0.0, 0.0, 1.0, 2.0, -1.0])
    if kind == "beam":
        options["early_stopping"] = rng.choice([False, False, True, "never"])
    return options


def generate(decoder, features, device, **options):
    """The native result, made where ``device`` says; the decoder stays on the CPU."""
    result = decoder.to(device).generate(None if features is None else features.to(device), **options)
    decoder.cpu()
    return type(result)(*(tensor.cpu() for tensor in vars(result).values()))


def run_all(decoder, features, images, options, seed=0, device="cpu"):
    """The native result, and the reference's in float32 and in float64."""
    if features is None:
        options = {**options, "batch_size": images}

    def seeded():
        return {**options, "generator": torch.Generator().manual_seed(seed)}

    native = generate(decoder, features, device, **seeded())
    single = reference.generate(decoder, features, **seeded())
    decoder.double()
    double = reference.generate(decoder, None if features is None else features.double(), **seeded())
    decoder.float()
    return native, single, double


def assert_same(native, expected):
    assert torch.equal(native.lengths, expected.lengths)
    assert torch.equal(native.sequences, expected.sequences)
    torch.testing.assert_close(native.token_logprobs, expected.token_logprobs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(native.scores, expected.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", range(10))
def test_the_same_words_as_the_reference_on_random_models(block, device):
    unsettled = 0
    for seed in range(20 * block, 20 * block + 20):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        decoder, size = random_decoder(rng)
        images = rng.choice([1, 2, 5])
        options = random_options(rng, decoder.vocab_size, images)
        features = None if size is None else torch.randn(images, size)
        native, single, double = run_all(decoder, features, images, options, seed, device)
        if not torch.equal(single.sequences, double.sequences):
            unsettled += 1  # two hypotheses closer than float32 can tell
            continue
        assert_same(native, double)
    assert unsettled <= 1


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_what_exhaustive_search_finds(seed, length_penalty, device):
    V, L, n = 4, 4, 8
    torch.manual_seed(seed)
    decoder, size = random_decoder(random.Random(seed), V)
    features = None if size is None else torch.randn(1, size)
    result = generate(
        decoder, features, device, num_beams=V**L, num_return_sequences=n, max_new_tokens=L,
        early_stopping="never", length_penalty=length_penalty,
    )  # fmt: skip

    found = []
    decoder.double()
    for length in range(1, L + 1):
        for words in itertools.product(range(V), repeat=length):
            if EOS in words[:-1] or (words[-1] != EOS and length < L):
                continue
            image = None if features is None else features.double()
            score = decoder.log_likelihood(torch.tensor([words]), image, torch.tensor([length]))
            found.append((score.item() / length**length_penalty, words))
    found.sort(key=lambda item: -item[0])
    for rank, (score, words) in enumerate(found[:n]):
        assert tuple(result.tokens(0, rank)) == words
        assert result.scores[0, rank].item() == pytest.approx(score, rel=1e-4)


def twins(decoder, gap):
    """Make word v + gap a copy of word v, so that whole hypotheses tie."""
    with torch.no_grad():
        decoder.embedding.weight[gap:] = decoder.embedding.weight[:gap]
        decoder.projection.weight[gap:] = decoder.projection.weight[:gap]
        if decoder.projection.bias is not None:
            decoder.projection.bias[gap:] = decoder.projection.bias[:gap]


@pytest.mark.parametrize("compat", ["hf", "caffe"])
@pytest.mark.parametrize("vocab", [8, 128, 150])
def test_ties_are_broken_as_the_reference_does(vocab, compat, device):
    for seed in range(6):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        decoder, size = random_decoder(rng, vocab)
        twins(decoder, vocab // 2)
        features = None if size is None else torch.randn(3, size)
        for K in (1, 2, 5, 12):
            options = {"num_beams": K, "num_return_sequences": K, "max_new_tokens": 5, "compat": compat}
            native, _, double = run_all(decoder, features, 3, options, device=device)
            assert_same(native, double)


@pytest.mark.parametrize("compat", ["hf", "caffe"])
@pytest.mark.parametrize("K", [1, 2, 7, 30])
def test_when_everything_ties(K, compat, device):
    decoder, _ = random_decoder(random.Random(0), 9)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
    size = decoder.feature_dim
    features = None if size is None else torch.randn(2, size)
    options = {"num_beams": K, "num_return_sequences": K, "max_new_tokens": 4, "compat": compat}
    native, single, _ = run_all(decoder, features, 2, options, device=device)
    assert_same(native, single)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 5, "num_return_sequences": 3},
        {"num_beams": 5, "num_return_sequences": 5, "length_penalty": 1.0, "no_repeat_ngram_size": 2},
        {"num_beams": 4, "compat": "caffe"},
        {"num_beams": 1},
        {"num_beams": 3, "early_stopping": True},
    ],
    ids=str,
)
def test_an_image_does_not_depend_on_the_rest_of_its_batch(options, device):
    for seed in range(4):
        torch.manual_seed(seed)
        decoder, size = random_decoder(random.Random(seed), 130)
        if size is None:
            continue
        features = torch.randn(9, size)
        whole = generate(decoder, features, device, max_new_tokens=12, **options)
        order = torch.tensor([4, 0, 8, 2])
        for rows in (order, order[:1], torch.tensor([7, 7])):
            part = generate(decoder, features[rows], device, max_new_tokens=12, **options)
            for name in ("sequences", "lengths", "scores", "token_logprobs"):
                assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name


def test_threads_change_nothing():
    torch.manual_seed(0)
    decoder, size = random_decoder(random.Random(3), 130)
    features = None if size is None else torch.randn(9, size)
    batch = 9 if size is None else None
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(decoder.generate(features, batch_size=batch, num_return_sequences=5))
    assert torch.equal(results[0].sequences, results[1].sequences)
    assert torch.equal(results[0].token_logprobs, results[1].token_logprobs)


def test_the_widest_beam(device):
    torch.manual_seed(0)
    decoder, size = random_decoder(random.Random(1), 17)
    features = None if size is None else torch.randn(1, size)
    options = {"num_beams": 1024, "num_return_sequences": 1024, "max_new_tokens": 3}
    native, _, double = run_all(decoder, features, 1, options, device=device)
    # A thousand hypotheses lie closer together than float32 tells: the same set of scores, each its own.
    torch.testing.assert_close(native.scores, double.scores, rtol=1e-4, atol=1e-4)
    assert len({tuple(native.tokens(0, k)) for k in range(1024)}) == 1024

"""pairwise_log_likelihood: every pair against the plain per-pair definition in float64."""

import resource

import pytest
import torch
from test_decoder_model import MODELS, V, make

from lrcn_fast import CaptionDecoder

# float32 against float64: |error| <= ERROR * steps * eps * (1 + |score|). Worst of 8 seeds of MODELS: 0.19.
ERROR = 0.6

# Shared prefixes, one the beginning of another, one twice, one word, empty, with and without end of sentence.
CAPTIONS = [
    [3, 4, 5, 0],
    [3, 4, 6, 0],
    [3, 4],
    [3, 4, 5],
    [9, 0],
    [],
    [3, 4, 5, 0],
    [7, 8, 1, 1, 2, 10, 0],
    [0],
]


def images(size, B, dtype=torch.float32):
    generator = torch.Generator().manual_seed(B)
    return None if size is None else torch.randn(B, size, generator=generator, dtype=torch.float64).to(dtype)


def per_pair(decoder, captions, features):
    """One caption of one image at a time."""
    rows = [None] if features is None else features.split(1)
    scores = [
        [decoder.log_likelihood(torch.tensor([c]), row, torch.tensor([len(c)])).item() if c else 0.0
         for c in captions]
        for row in rows
    ]  # fmt: skip
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1024])
@pytest.mark.parametrize("name", MODELS)
def test_every_pair_scores_as_alone(name, batch_size):
    decoder, size = make(name)
    double, _ = make(name, dtype=torch.float64)
    features = images(size, 4)
    expected = per_pair(double, CAPTIONS, None if features is None else features.double())
    actual = decoder.pairwise_log_likelihood(CAPTIONS, features, batch_size=batch_size)
    assert actual.shape == (1 if size is None else 4, len(CAPTIONS))
    assert actual.dtype == torch.float32
    steps = max(map(len, CAPTIONS))
    bound = ERROR * steps * torch.finfo(torch.float32).eps
    torch.testing.assert_close(actual.double(), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("name", ["2f", "image-only"])
def test_float64_stays_float64(name):
    decoder, size = make(name, dtype=torch.float64)
    features = images(size, 2, torch.float64)
    actual = decoder.pairwise_log_likelihood(CAPTIONS, features, batch_size=5)
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, per_pair(decoder, CAPTIONS, features), rtol=1e-13, atol=1e-13)


def test_bfloat16_scores_are_float32_sums():
    decoder, size = make("2f")
    expected = decoder.pairwise_log_likelihood(CAPTIONS, images(size, 2))
    actual = decoder.bfloat16().pairwise_log_likelihood(CAPTIONS, images(size, 2).bfloat16())
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.1)  # 8 bits, 7 steps


def test_progress_counts_pairs():
    decoder, size = make("2f")
    seen = []
    decoder.pairwise_log_likelihood(
        CAPTIONS, images(size, 5), batch_size=4, progress=lambda done, total: seen.append((done, total))
    )
    assert [t for _, t in seen] == [5 * len(CAPTIONS)] * len(seen)
    done = [d for d, _ in seen]
    assert len(done) > 2
    assert done == sorted(set(done))
    assert done[-1] == 5 * len(CAPTIONS)


def test_nothing_to_score():
    decoder, size = make("2f")
    assert decoder.pairwise_log_likelihood([], images(size, 2)).shape == (2, 0)
    assert decoder.pairwise_log_likelihood(CAPTIONS, images(size, 0)).shape == (0, len(CAPTIONS))
    assert decoder.pairwise_log_likelihood([[], []], images(size, 2)).tolist() == [[0, 0], [0, 0]]


def test_an_impossible_word_is_minus_infinity_and_touches_no_other_caption():
    decoder, size = make("2f")
    features = images(size, 2)
    before = decoder.pairwise_log_likelihood(CAPTIONS, features)
    with torch.no_grad():
        decoder.projection.bias[5] = -torch.inf
    after = decoder.pairwise_log_likelihood(CAPTIONS, features)
    has = torch.tensor([5 in c for c in CAPTIONS])
    assert torch.isneginf(after[:, has]).all()
    assert torch.isfinite(after[:, ~has]).all()
    assert (after[:, ~has] >= before[:, ~has]).all()


def test_memory_does_not_grow_with_the_pairs():
    """50 x 400 pairs of 4 of 2,000 words: their logits would be 0.6 GB."""
    torch.manual_seed(0)
    decoder = CaptionDecoder(
        torch.nn.Embedding(2000, 8), [torch.nn.LSTM(8, 8), torch.nn.LSTM(16, 8)], torch.nn.Linear(8, 2000),
        static_layer=1,
    ).eval()  # fmt: skip
    captions = [torch.randint(1, 2000, (int(n),)).tolist() for n in torch.randint(3, 6, (400,))]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    decoder.pairwise_log_likelihood(captions, torch.randn(50, 8), batch_size=256)
    # 256 rows of 2 V + 24 H numbers are 5 MB; the allocator keeps a few of them.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60e3


def test_errors():
    decoder, size = make("2f")
    features = images(size, 2)
    with pytest.raises(ValueError, match=rf"captions\[1\] must hold token ids in 0\.\.{V - 1}, got 2\.\.{V}"):
        decoder.pairwise_log_likelihood([[1], [2, V]], features)
    with pytest.raises(ValueError, match="captions must be lists of token ids, got 'float' object"):
        decoder.pairwise_log_likelihood([[1.5]], features)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        decoder.pairwise_log_likelihood(CAPTIONS, features, batch_size=0)
    with pytest.raises(ValueError, match=r"features must be \[B, F\] = \[B, 5\], got None"):
        decoder.pairwise_log_likelihood(CAPTIONS, None)

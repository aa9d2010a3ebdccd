"""Data sets and the order of batches."""

from itertools import chain

import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from lrcn_fast.data import (  # noqa: E402
    CaptionDataset,
    CaptionItem,
    CaptionSet,
    EpochBatchSampler,
    Vocabulary,
    language_model_windows,
)

PHOTOS = CaptionSet([
    CaptionItem("x", ("a cat sits", "a cat"), "train"),
    CaptionItem("y", ("two dogs run in a park",), "train"),
])  # fmt: skip
VOCABULARY = Vocabulary.from_captions(PHOTOS.captions(), min_count=1)


def test_items_and_batches():
    features = torch.arange(6.0).reshape(2, 3)
    data = CaptionDataset(PHOTOS, VOCABULARY, features=features, max_words=5)
    assert len(data) == 3
    batch = data.collate([data[0], data[1], data[2]])
    assert batch.tokens.shape == (3, 5)
    assert batch.lengths.tolist() == [4, 3, 5]
    assert batch.photos.tolist() == [0, 0, 1]
    assert torch.equal(batch.features, features[[0, 0, 1]])
    assert VOCABULARY.decode(batch.tokens[1]) == "A cat."
    assert batch.tokens[2, -1] != VOCABULARY.eos_id  # cut at five words
    text = CaptionDataset(PHOTOS, VOCABULARY)
    assert text.collate([text[0]]).features is None


def test_random_views_depend_on_the_draw_only(tmp_path):
    files = [tmp_path / "x.jpg", tmp_path / "y.jpg"]
    photos = CaptionSet(
        CaptionItem(item.id, item.captions, image=file) for item, file in zip(PHOTOS, files, strict=True)
    )

    def transform(path, generator):
        assert path in map(str, files)
        return torch.rand(3, 2, 2, generator=generator)

    data = CaptionDataset(photos, VOCABULARY, transform=transform)

    def epoch(number, start=0, workers=0):
        sampler = EpochBatchSampler(len(data), 2, seed=4)
        sampler.set_position(number, start)
        loader = DataLoader(data, batch_sampler=sampler, collate_fn=data.collate, num_workers=workers)
        return list(loader)

    first, again, other = epoch(0), epoch(0, workers=2), epoch(1)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.features, two.features)
        assert torch.equal(one.tokens, two.tokens)
    assert not torch.equal(first[0].features, other[0].features)
    (resumed,) = epoch(0, start=1)
    assert torch.equal(resumed.features, first[1].features)


def draws(sampler):
    return [[draw.item for draw in batch] for batch in sampler]


def test_sampler_order():
    sampler = EpochBatchSampler(10, 4, seed=0)
    batches = draws(sampler)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(chain(*batches)) == list(range(10))
    assert draws(sampler) == batches
    sampler.set_position(1)
    assert draws(sampler) != batches
    sampler.set_position(0, 2)
    assert len(sampler) == 1
    assert draws(sampler) == batches[2:]
    assert draws(EpochBatchSampler(10, 4, seed=1)) != batches
    assert draws(EpochBatchSampler(5, 2, shuffle=False)) == [[0, 1], [2, 3], [4]]


def test_sampler_shares():
    shares = [draws(EpochBatchSampler(11, 2, seed=3, rank=rank, world_size=2)) for rank in range(2)]
    assert [len(batch) for batch in shares[0]] == [len(batch) for batch in shares[1]] == [2, 2, 1]
    items = [*chain(*shares[0], *shares[1])]
    assert len(set(items)) == len(items) == 10


def test_language_model_windows():
    captions = [f"a cat {'sits ' * n}" for n in range(12)]

    def windows(epoch):
        return list(language_model_windows(captions, VOCABULARY, streams=3, steps=5, seed=1, epoch=epoch))

    first, again, other = windows(0), windows(0), windows(1)
    assert all(
        (x == y).all() for one, two in zip(first, again, strict=True) for x, y in zip(one, two, strict=True)
    )
    assert any((one.input != two.input).any() for one, two in zip(first, other, strict=False))
    assert first[0].input.shape == (5, 3)


def test_errors():
    features = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"features must be \[photos, F\] = \[2, F\], got \[3, 4\]"):
        CaptionDataset(PHOTOS, VOCABULARY, features=features)
    with pytest.raises(ValueError, match="must not both be given"):
        CaptionDataset(PHOTOS, VOCABULARY, features=features[:2], transform=lambda *a: None)
    with pytest.raises(ValueError, match="photos must have files, got none for 'x'"):
        CaptionDataset(PHOTOS, VOCABULARY, transform=lambda *a: None)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        EpochBatchSampler(3, 0)
    with pytest.raises(ValueError, match=r"rank must be in \[0, world_size = 2\), got 2"):
        EpochBatchSampler(3, 1, rank=2, world_size=2)
    with pytest.raises(ValueError, match="size must be at least world_size = 2, got 1"):
        EpochBatchSampler(1, 1, world_size=2)
    with pytest.raises(ValueError, match=r"batch be in \[0, 3\], got 0 and 4"):
        EpochBatchSampler(3, 1).set_position(0, 4)

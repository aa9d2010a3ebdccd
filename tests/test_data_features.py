"""The feature cache under damage and concurrency, and batch extraction."""

import multiprocessing
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lrcn_fast.data import FeatureCache, extract_features, file_key  # noqa: E402

DIM = 6


class ToyEncoder(torch.nn.Module):
    """Reads a file's bytes as pixels; counts what it computes."""

    feature_dim = DIM
    name = "toy"

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3 * 4 * 4, DIM)
        self.dropout = torch.nn.Dropout()
        self.computed = 0

    def fingerprint(self):
        return "toy"

    def preprocess(self, path):
        values = np.frombuffer(Path(path).read_bytes(), np.uint8).astype(np.float32) / 255
        return torch.from_numpy(values.reshape(3, 4, 4))

    def forward(self, images):
        self.computed += len(images)
        return self.dropout(self.linear(images.flatten(1)))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for number in range(7):
        (folder / f"{number}.bin").write_bytes(rng.integers(0, 256, 48, np.uint8).tobytes())
    return sorted(folder.iterdir())


def direct(encoder, photos):
    with torch.no_grad():
        return encoder.linear(torch.stack([encoder.preprocess(photo) for photo in photos]).flatten(1))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_extraction(photos, batch_size):
    encoder = ToyEncoder().train()
    seen = []
    features = extract_features(encoder, photos, batch_size=batch_size, progress=lambda *a: seen.append(a))
    torch.testing.assert_close(features, direct(encoder, photos))
    assert encoder.training
    assert seen[-1] == (7, 7)
    assert [done for done, _ in seen] == sorted({min(7, batch_size * n) for n in range(1, len(seen) + 1)})
    assert extract_features(encoder, []).shape == (0, DIM)


def test_cache_returns_the_same_bits(photos, tmp_path):
    encoder = ToyEncoder()
    first = extract_features(encoder, photos[:4], cache=tmp_path / "cache", batch_size=3)
    assert encoder.computed == 4
    again = extract_features(encoder, photos, cache=tmp_path / "cache")
    assert encoder.computed == 7
    assert torch.equal(first, again[:4])
    renamed = photos[0].rename(photos[0].with_name("other.bin"))
    assert torch.equal(extract_features(encoder, [renamed], cache=tmp_path / "cache")[0], first[0])
    assert encoder.computed == 7
    renamed.write_bytes(bytes(48))  # other content under the same name
    extract_features(encoder, [renamed], cache=tmp_path / "cache")
    assert encoder.computed == 8


def test_tags_and_encoders_are_kept_apart(photos, tmp_path):
    encoder = ToyEncoder()
    cache = FeatureCache(tmp_path, "toy", DIM)
    plain = extract_features(encoder, photos, cache=cache)
    dark = extract_features(
        encoder, photos, cache=cache, preprocess=lambda p: encoder.preprocess(p) / 2, tag="dark"
    )
    assert encoder.computed == 14
    assert not torch.equal(plain, dark)
    assert torch.equal(
        extract_features(encoder, photos, cache=FeatureCache(tmp_path, "toy", DIM), tag=""), plain
    )
    assert not FeatureCache(tmp_path, "other", DIM).get([file_key(photos[0])])[1].any()
    with pytest.raises(ValueError, match="tag must name preprocess where a cache is used, got none"):
        extract_features(encoder, photos, cache=cache, preprocess=encoder.preprocess)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def foreign(path):
    path.write_bytes(b"PK\x03\x04" + bytes(100))


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, foreign])
def test_damaged_shards_are_recomputed(photos, tmp_path, damage):
    encoder = ToyEncoder()
    expected = extract_features(encoder, photos[:3], cache=tmp_path / "cache")
    (shard,) = (tmp_path / "cache" / "toy").iterdir()
    extract_features(encoder, photos[3:], cache=tmp_path / "cache")
    damage(shard)
    with pytest.warns(UserWarning, match=f"{shard.name} is damaged .*computed again") as caught:
        features = extract_features(encoder, photos, cache=tmp_path / "cache")
    assert len(caught) == 1
    torch.testing.assert_close(features[:3], expected)
    assert encoder.computed == 7 + 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(extract_features(encoder, photos, cache=tmp_path / "cache"), features)
    assert encoder.computed == 7 + 3


def test_another_feature_size_is_damage_not_a_crash(photos, tmp_path):
    FeatureCache(tmp_path, "toy", 2).put([file_key(photos[0])], np.zeros((1, 2), np.float32))
    with pytest.warns(UserWarning, match=r"features must be \[1, 6\], got \[1, 2\]"):
        assert len(FeatureCache(tmp_path, "toy", DIM)) == 0


def _fill(folder, worker):
    cache = FeatureCache(folder, "shared", DIM)
    for number in range(30):
        key = file_key_of(f"{number % 20}")
        _, found = cache.get([key])
        if not found[0]:
            cache.put([key], np.full((1, DIM), number % 20, np.float32))


def file_key_of(text):
    import hashlib

    return hashlib.sha256(text.encode()).digest()


def test_concurrent_writers(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(tmp_path, n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    cache = FeatureCache(tmp_path, "shared", DIM)
    features, found = cache.get([file_key_of(f"{n}") for n in range(20)])
    assert found.all()
    assert (features == np.arange(20)[:, None]).all()
    assert not list((tmp_path / "shared").glob(".*.tmp"))


def test_a_kill_while_writing_leaves_a_good_cache(tmp_path):
    script = """
import os, sys, numpy as np
from lrcn_fast.data import FeatureCache
cache = FeatureCache(sys.argv[1], "toy", 6)
cache.put([bytes(32)], np.ones((1, 6), np.float32))
os.fsync = lambda descriptor: os.kill(os.getpid(), 9)
cache.put([bytes([1]) * 32], np.ones((1, 6), np.float32))
"""
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert run.returncode == -9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = FeatureCache(tmp_path, "toy", DIM)
        assert cache.get([bytes(32), bytes([1]) * 32])[1].tolist() == [True, False]


def test_errors(photos, tmp_path):
    cache = FeatureCache(tmp_path, "toy", DIM)
    with pytest.raises(ValueError, match=r"features must be \[N, F\] = \[1, 6\], got \[1, 5\]"):
        cache.put([bytes(32)], np.zeros((1, 5), np.float32))
    with pytest.raises(ValueError, match="features must be finite, got NaN or infinity"):
        cache.put([bytes(32)], np.full((1, DIM), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"fingerprint must be letters, digits, - and _ only, got '../x'"):
        FeatureCache(tmp_path, "../x", DIM)
    with pytest.raises(ValueError, match="feature_dim must be at least 1, got 0"):
        FeatureCache(tmp_path, "x", 0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        extract_features(ToyEncoder(), photos, batch_size=0)
    with pytest.raises(FileNotFoundError):
        extract_features(ToyEncoder(), [tmp_path / "none"], cache=cache)

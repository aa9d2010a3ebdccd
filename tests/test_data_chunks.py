"""The release's HDF5 chunks of captions: round trips, a chunk written by hand, the -1 of padded inputs."""

import hashlib
import sys

import numpy as np
import pytest

from lrcn_fast.data.caption_chunks import (
    image_hash,
    read_caption_chunks,
    read_image_list,
    write_caption_chunks,
)
from lrcn_fast.data.sequences import aligned, unaligned
from lrcn_fast.importers import read_caffemodel

h5py = pytest.importorskip("h5py")

CAPTIONS = [[5, 6, 7], list(range(2, 30)), [4], [9, 1, 2, 2]]  # one is longer than 20 words
PHOTOS = [f"images/train2014/{n}.jpg" for n in range(4)]


def assert_equal(window, expected):
    for name in ("input", "target", "cont"):
        np.testing.assert_array_equal(getattr(window, name), getattr(expected, name), name)
        assert getattr(window, name).dtype == getattr(expected, name).dtype


@pytest.mark.parametrize("release_padding", [False, True])
def test_aligned_round_trip(tmp_path, release_padding):
    windows = [aligned(CAPTIONS), aligned(CAPTIONS[::-1]), aligned([[3]] * 4)]
    images = [PHOTOS, PHOTOS[::-1], PHOTOS[:1] * 4]
    folder = tmp_path / "chunks"
    chunks = write_caption_chunks(folder, windows, images, chunk_steps=50, release_padding=release_padding)
    assert [chunk.name for chunk in chunks] == ["batch_0.h5", "batch_1.h5"]
    assert (folder / "hdf5_chunk_list.txt").read_text() == "".join(f"{chunk}\n" for chunk in chunks)
    found = list(read_caption_chunks(folder))
    assert len(found) == 3
    for (window, hashes), expected, row in zip(found, windows, images, strict=True):
        assert_equal(window, expected)
        np.testing.assert_array_equal(hashes, [[image_hash(path) for path in row]] * 20)
    assert read_image_list(folder) == [path for row in images for path in row]
    with_hashes = folder / "image_list.with_dummy_labels.txt"
    assert read_image_list(with_hashes) == read_image_list(folder)
    assert with_hashes.read_text().splitlines()[1] == f"{PHOTOS[1]} {image_hash(PHOTOS[1])}"


def test_unaligned_round_trip(tmp_path):
    windows = list(unaligned(CAPTIONS * 2, streams=3, steps=7))
    write_caption_chunks(tmp_path, windows)
    found = list(read_caption_chunks(tmp_path / "batch_0.h5", steps=7))
    for (window, hashes), expected in zip(found, windows, strict=True):
        assert_equal(window, expected)
        assert not hashes.any()
    assert not (tmp_path / "image_list.txt").exists()
    # Rows are what counts: other windows hold the same ones.
    for name in ("input", "target", "cont"):
        again = [getattr(c.window, name) for c in read_caption_chunks(tmp_path, steps=4)]
        np.testing.assert_array_equal(
            np.concatenate(again), np.concatenate([getattr(w, name) for w in windows])
        )


def by_hand(path, captions, max_words=20, **changes):
    """A chunk straight from the description of the release (lists, one caption a column)."""
    columns = {
        name: [] for name in ("input_sentence", "target_sentence", "cont_sentence", "stage_indicators")
    }
    for words in captions:
        pad = max(0, max_words - (len(words) + 1))
        columns["input_sentence"].append(([0, *words] + [-1] * pad)[:max_words])
        columns["target_sentence"].append(([*words, 0] + [-1] * pad)[:max_words])
        columns["cont_sentence"].append(([0] + [1] * len(words) + [0] * pad)[:max_words])
        columns["stage_indicators"].append(([1] * (len(words) + 1) + [0] * pad)[:max_words])
    columns["hashed_image_path"] = [[n] * max_words for n in range(len(captions))]
    columns["cont"] = [[0] + [1] * (max_words - 1)] * len(captions)
    arrays = {name: np.array(rows, np.float64).T for name, rows in columns.items()}
    arrays["buffer_size"] = np.array([len(captions)])
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            if values is not None:
                file.create_dataset(name, data=values)
    return arrays


def test_chunk_as_the_release_writes_it(tmp_path):
    expected = by_hand(tmp_path / "batch_0.h5", CAPTIONS)
    (tmp_path / "hdf5_chunk_list.txt").write_text("./examples/coco_caption/h5_data/batch_0.h5\n")
    ((window, hashes),) = read_caption_chunks(tmp_path)  # the list's path is not there: found by name
    assert_equal(window, aligned(CAPTIONS))
    assert hashes[0].tolist() == [0, 1, 2, 3]
    assert (expected["input_sentence"] == -1).any()
    assert window.input.min() == 0
    # Writing with the release's padding gives the same arrays, value for value.
    write_caption_chunks(tmp_path / "own", [aligned(CAPTIONS)], [PHOTOS], release_padding=True)
    with h5py.File(tmp_path / "own" / "batch_0.h5") as file:
        assert set(file) == set(expected)
        for name in set(expected) - {"hashed_image_path"}:
            np.testing.assert_array_equal(file[name], expected[name], name)
            assert file[name].dtype == (np.int64 if name == "buffer_size" else np.float64)
    write_caption_chunks(tmp_path / "safe", [aligned(CAPTIONS)])
    with h5py.File(tmp_path / "safe" / "batch_0.h5") as file:
        assert file["input_sentence"][()].min() == 0
        np.testing.assert_array_equal(file["target_sentence"], expected["target_sentence"])


def test_hash_of_the_release():
    assert image_hash("a.jpg") == int(hashlib.sha1(b"a.jpg").hexdigest(), 16) % 100000


def test_bad_windows_leave_nothing(tmp_path):
    good = aligned(CAPTIONS)
    for windows, images, problem in (
        ([], None, "windows must hold at least one, got none"),
        (
            [good, aligned(CAPTIONS[:2])],
            None,
            r"\[T, 4\] with T in 1..100000, got \[20, 2\] for window 1",
        ),
        ([good], [PHOTOS[:3]], "images must name 4 photos for window 0, got 3"),
        ([good, good], [PHOTOS], "images must name 4 photos for window 1, got 0"),
    ):
        with pytest.raises(ValueError, match=problem):
            write_caption_chunks(tmp_path, windows, images)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"T in 1..10, got \[20, 4\]"):
        write_caption_chunks(tmp_path, [good], chunk_steps=10)


def put(value):
    def change(array):
        array[3, 1] = value
        return array

    return change


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"input_sentence": lambda a: None}, "no dataset input_sentence"),
        ({"input_sentence": lambda a: a[0]}, r"shapes that are not all \[steps, N\]: input_sentence \[4\]"),
        ({"target_sentence": lambda a: a[1:]}, r"target_sentence \[19, 4\]"),
        ({"input_sentence": put(-2)}, r"input_sentence below -1 \(step 3, column 1\)"),
        ({"target_sentence": put(-7)}, r"target_sentence below -1 \(step 3, column 1\)"),
        ({"input_sentence": put(-1)}, r"input_sentence -1 at a word \(step 3, column 1\)"),
        ({"cont_sentence": put(2)}, "cont_sentence other than 0 and 1"),
        ({"target_sentence": put(1.5)}, "target_sentence that are not whole numbers"),
        ({"target_sentence": put(np.nan)}, "target_sentence that are not word indices"),
        ({"hashed_image_path": lambda a: a.astype("S3")}, "hashed_image_path that are not word indices"),
    ],
)
def test_damaged_chunks(tmp_path, changes, problem):
    by_hand(tmp_path / "batch_0.h5", CAPTIONS, **changes)
    with pytest.raises(ValueError, match=problem) as error:
        list(read_caption_chunks(tmp_path / "batch_0.h5"))
    assert "batch_0.h5 must be a chunk of captions (HDF5), got" in str(error.value)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"hdf5_chunk_list.txt must be a file"):
        list(read_caption_chunks(tmp_path))
    (tmp_path / "hdf5_chunk_list.txt").write_text("gone.h5\n")
    with pytest.raises(FileNotFoundError, match=r"gone.h5 must be a chunk of captions \(HDF5\), got no such"):
        list(read_caption_chunks(tmp_path))
    (tmp_path / "hdf5_chunk_list.txt").write_text("\n")
    with pytest.raises(ValueError, match="must name chunks, one a line"):
        list(read_caption_chunks(tmp_path))
    (tmp_path / "x.h5").write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match=r"x.h5 must be a chunk of captions \(HDF5\), got"):
        list(read_caption_chunks(tmp_path / "x.h5"))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        list(read_caption_chunks(tmp_path, steps=0))


@pytest.mark.parametrize("module", ["lrcn_fast.data.caption_chunks", "lrcn_fast.importers.caffe_hdf5"])
def test_without_h5py_the_error_names_the_command(monkeypatch, tmp_path, module):
    monkeypatch.setitem(sys.modules, "h5py", None)
    path = tmp_path / "x.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 90)
    read = read_caffemodel if "importers" in module else (lambda p: list(read_caption_chunks(p)))
    with pytest.raises(ImportError, match=r"h5py is missing. pip install 'lrcn_fast\[caffe\]'"):
        read(path)

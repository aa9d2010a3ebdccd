"""Atomic writing: readers see the old files or the new ones, and nothing is left behind."""

import json
import os

import pytest
import torch

from lrcn_fast._files import atomic_path, read_json, staged_folder, write_json
from lrcn_fast.models._weights import read_arrays, read_state_dict, write_state_dict


def test_atomic_path_replaces_on_success(tmp_path):
    target = tmp_path / "new folder" / "a.txt"
    for text in ("first", "second"):
        with atomic_path(target) as temporary:
            temporary.write_text(text)
            assert not target.exists() or target.read_text() == "first"
        assert target.read_text() == text
    assert os.listdir(target.parent) == ["a.txt"]


def test_atomic_path_keeps_the_old_file_on_failure(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def interrupted():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_written_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("")
    write_json(tmp_path / "ours", 1)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_staged_folder_moves_all_or_nothing(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in ("a", "other"):
        (folder / name).write_text("old")

    def failing():
        with staged_folder(folder) as stage:
            (stage / "a").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert (folder / "a").read_text() == "old"
    with staged_folder(folder) as stage:
        for name in ("a", "b"):
            (stage / name).write_text("new")
    assert {p.name: p.read_text() for p in folder.iterdir()} == {"a": "new", "b": "new", "other": "old"}


def test_json_round_trip(tmp_path):
    value = {"words": ["café", "naïve"], "n": 3}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json", caller="f", what="a test") == value
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "bytes", "deep"]
)
def test_broken_json_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"load: .*config\.json must be a model \(JSON\), got .+") as caught:
        read_json(path, caller="load", what="a model")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"load: .*none must be a model \(JSON\), got no such file"):
        read_json(tmp_path / "none", caller="load", what="a model")


def test_state_dict_round_trip_with_shared_and_strided_tensors(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": base, "b": base, "t": base.T, "half": base.bfloat16(), "empty": torch.zeros(0, 3)}
    write_state_dict(tmp_path / "w.safetensors", tensors)
    loaded = read_state_dict(tmp_path / "w.safetensors", caller="f")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_read_arrays_needs_no_torch_and_agrees_with_it(tmp_path):
    path = tmp_path / "w.safetensors"
    tensors = {
        "f": torch.randn(3, 4),
        "bf": torch.randn(5, 2).bfloat16(),
        "half": torch.randn(7).half(),
        "q": torch.arange(-4, 4, dtype=torch.int8).reshape(2, 4),
        "n": torch.tensor(3),
        "none": torch.zeros(0, 3),
    }
    write_state_dict(path, tensors)
    arrays = read_arrays(path, caller="f", what="weights")
    assert arrays.keys() == tensors.keys()
    for name, tensor in tensors.items():
        want = tensor.float() if tensor.is_floating_point() else tensor
        assert torch.equal(torch.from_numpy(arrays[name].copy()), want), name


def header(**entry):
    text = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry}).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "unpack_from requires"),
        (b"\x80\x04" * 50, "truncated or foreign"),
        (header() + b"1234", "w ends beyond the file"),
        (header(shape=[3]) + bytes(8), r"w has 8 bytes for F32 \[3\]"),
        (header(dtype="Q4") + bytes(8), "Q4"),
        (header(data_offsets=[-8, 0]) + bytes(8), "w ends beyond the file"),
        ((3).to_bytes(8, "little") + b"[1]", "truncated or foreign"),
    ],
    ids=["empty", "pickle", "truncated", "size", "type", "offset", "list"],
)
def test_broken_arrays_are_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    expected = (
        r"Captioner: .*weights\.safetensors must be a model \(safetensors\), got a truncated or foreign "
    )
    with pytest.raises(ValueError, match=expected) as caught:
        read_arrays(path, caller="Captioner", what="a model")
    with pytest.raises(ValueError, match=message):
        raise caught.value
    assert "\n" not in str(caught.value)

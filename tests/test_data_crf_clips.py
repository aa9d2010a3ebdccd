"""Clips as CRF outputs: the JSON lines, every rule of their validator, and the made-up kitchen corpus."""

import json

import numpy as np
import pytest

from lrcn_fast.data import CrfClip, CrfSet, kitchen_clips, read_crf_clips, write_crf_clips

NODES = {"activity": ("cut", "peel"), "object": ("carrot", "egg", "none")}


def record(**changes):
    return {
        "clip_id": "a", "split": "train", "sentence": "He cuts.",
        "crf": [
            {"node": "activity", "labels": ["cut", "peel"], "probs": [0.3, 0.7]},
            {"node": "object", "labels": ["carrot", "egg", "none"], "probs": [0.5, 0.25, 0.25]},
        ],
        "map": ["cut", "egg"],
        **changes,
    }  # fmt: skip


def write(path, *records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return path


def test_round_trip(tmp_path):
    probs = ((0.3, 0.7), (0.5, 0.25, 0.25))
    clips = [
        CrfClip("a", probs, ("cut", "egg"), ("He cuts.", "Ein Ei wird geschält."), "train"),
        CrfClip("b", ((1.0, 0.0), (0.0, 0.0, 1.0)), ("peel", "none")),
    ]
    path = tmp_path / "clips.jsonl"
    write_crf_clips(path, CrfSet(NODES, clips))
    found = read_crf_clips(path)
    assert found.nodes == NODES
    assert list(found) == clips
    assert found.references() == {"a": ["He cuts.", "Ein Ei wird geschält."]}
    assert [clip.id for clip in found.split("train")] == ["a"]
    with pytest.raises(ValueError, match=r"names must be among \['', 'train'\] of clips.jsonl, got 'val'"):
        found.split("val")


def test_optional_fields(tmp_path):
    bare = record()
    del bare["split"], bare["sentence"], bare["map"]
    (clip,) = read_crf_clips(write(tmp_path / "c.jsonl", bare))
    assert clip == CrfClip("a", ((0.3, 0.7), (0.5, 0.25, 0.25)), ("peel", "carrot"))


def node(**changes):
    return record(
        crf=[{"node": "activity", "labels": ["cut", "peel"], "probs": [0.3, 0.7], **changes}], map=["cut"]
    )


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "line 2 must be a JSON object, got: "),
        ("[" * 100_000, "line 2 must be a JSON object, got: "),
        ("[1]", r"line 2 must be a JSON object, got \[1\]"),
        (record(clip_id=""), "line 2: clip_id must be text, got ''"),
        (record(clip_id=7), "line 2: clip_id must be text, got 7"),
        (record(sentence=["a"]), "line 2: sentence must be text"),
        (record(split=None), "line 2: split must be text, got None"),
        (record(crf={}), r"line 2: crf must be a list of nodes, got \{\}"),
        (record(crf=[1]), r'line 2: crf\[0\] must be an object with "node", "labels" and "probs", got 1'),
        (node(labels=["cut", ""]), r"line 2: crf\[0\].labels must be a list of texts"),
        (node(labels=["cut", "cut"]), r"line 2: crf\[0\].labels must be distinct"),
        (node(probs=[1.0]), r"line 2: crf\[0\].probs must be 2 numbers, got \[1.0\]"),
        (node(probs=[1.5, -0.5]), r"line 2: crf\[0\].probs must be probabilities, got 1.5"),
        (node(probs=[float("nan"), 1]), r"line 2: crf\[0\].probs must be probabilities, got nan"),
        (node(probs=[0.5, 0.4]), r"line 2: crf\[0\].probs must add up to 1, got 0.9"),
        (node(), r"line 2: crf must have the nodes and labels of the first line \(activity, object\), got"),
        (record(crf=record()["crf"][:1] * 2), "line 2: crf must have distinct nodes"),
        (record(map=["cut"]), r"line 2: map must be 2 labels, got \['cut'\]"),
        (record(map=["cut", "knife"]), r"line 2: map\[1\] must be a label of 'object', got 'knife'"),
        (record(split="test"), "line 2: clip_id must be new, or its split, crf and map those of the lines"),
    ],
)  # fmt: skip
def test_errors_name_file_line_and_field(tmp_path, bad, message):
    path = write(tmp_path / "clips.jsonl", record(), bad)
    with pytest.raises(ValueError, match=f"read_crf_clips: .*clips.jsonl {message}"):
        read_crf_clips(path)


def test_empty_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match="must have at least one clip, got none"):
        read_crf_clips(write(tmp_path / "c.jsonl", ""))
    with pytest.raises(FileNotFoundError):
        read_crf_clips(tmp_path / "absent.jsonl")


# ---- the kitchen ------------------------------------------------------------------------------


def test_kitchen_is_a_function_of_its_seed():
    assert list(kitchen_clips(30)) == list(kitchen_clips(30))
    other = kitchen_clips(30, seed=1)
    assert list(other) != list(kitchen_clips(30))
    assert {s: len(other.split(s)) for s in ("train", "val", "test")} == {"train": 21, "val": 3, "test": 6}
    noisy = kitchen_clips(30, noise=(1.0, 1.0))
    assert [c.sentences for c in noisy] == [c.sentences for c in kitchen_clips(30)]
    assert all(len(c.sentences) == 3 and "{" not in "".join(c.sentences) for c in noisy)


def test_kitchen_marginals_are_calibrated(tmp_path):
    """A label of probability p is true in p of the cases; without noise MAP is the truth."""
    clips = kitchen_clips(600)
    truth = [c.labels for c in kitchen_clips(600, noise=(0.02, 0.02))]
    for n, labels in enumerate(clips.nodes.values()):
        confidence = np.array([max(c.marginals[n]) for c in clips])
        right = np.array([c.labels[n] == t[n] for c, t in zip(clips, truth, strict=True)])
        # Three deviations of a mean over 600 clips: 3 * 0.5 / sqrt(600).
        assert abs(confidence.mean() - right.mean()) < 0.062
        assert right.mean() < 0.95
        assert {t[n] for t in truth} <= set(labels)
    write_crf_clips(tmp_path / "k.jsonl", clips)
    assert list(read_crf_clips(tmp_path / "k.jsonl")) == list(clips)


def test_kitchen_errors():
    with pytest.raises(ValueError, match="clips must be at least 10, got 9"):
        kitchen_clips(9)
    with pytest.raises(ValueError, match=r"noise must be 0 < lowest <= highest, got \(0, 1\)"):
        kitchen_clips(10, noise=(0, 1))

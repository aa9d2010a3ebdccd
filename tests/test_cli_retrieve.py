"""``lrcn-fast retrieve``: both directions on a small model and synthetic photos."""

# ruff: noqa: F401, F811  (the fixtures of test_cli)

import json
from pathlib import Path

import numpy as np
import pytest
from test_cli import bundle, data_set, photos, run

from lrcn_fast.evaluation.retrieval import normalize_log_likelihood
from lrcn_fast.models import Captioner

SENTENCES = ["a red square", "a blue stripe on grey", "there is a square", "grey"]


def scores(bundle, photos, captions, **options):
    return Captioner.from_pretrained(bundle).log_likelihood(photos, captions, **options).double().numpy()


def test_photos_of_a_caption(run, bundle, photos):
    expected = scores(bundle, photos, ["a red square"], end_marker=False)[:, 0]
    order = np.argsort(-expected)
    folder = str(Path(photos[0]).parent)
    status, out, err = run("retrieve", "a red square", folder, "--model", bundle, "--top-k", 3)
    assert (status, err) == (0, "")
    lines = [line.split("\t") for line in out.splitlines()]
    assert [name for name, _ in lines] == [photos[i] for i in order[:3]]
    assert [float(s) for _, s in lines] == pytest.approx(expected[order[:3]], abs=2e-3)
    status, out, _ = run("retrieve", "a red square", *photos, "--model", bundle, "--json", "--end-marker")
    expected = np.sort(scores(bundle, photos, ["a red square"])[:, 0])[::-1]
    record = json.loads(out)
    assert record["caption"] == "a red square"
    assert [r["score"] for r in record["images"]] == pytest.approx(expected[:5], abs=1e-4)


def test_captions_of_a_photo(run, bundle, photos, tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("\n".join(["", *SENTENCES]))
    call = (
        "retrieve",
        "--image",
        photos[0],
        "--image",
        photos[1],
        "--captions",
        path,
        "--model",
        bundle,
        "--json",
    )
    plain = scores(bundle, photos, SENTENCES, end_marker=False)
    others = normalize_log_likelihood(np.concatenate([plain[:1], plain]))[0]
    for more, expected in (((), plain[0]), (("--against", Path(photos[0]).parent), others)):
        status, out, err = run(*call, *more, "--top-k", 2)
        assert (status, err) == (0, "")
        first, second = map(json.loads, out.splitlines())
        assert (first["image"], second["image"]) == (photos[0], photos[1])
        order = np.argsort(-expected)[:2]
        assert [c["caption"] for c in first["captions"]] == [SENTENCES[i] for i in order]
        assert [c["score"] for c in first["captions"]] == pytest.approx(expected[order], abs=1e-4)


@pytest.mark.parametrize("caption", ["", " ", "quokkas"])
def test_a_caption_without_known_words(run, bundle, photos, caption):
    status, out, err = run("retrieve", caption, *photos, "--model", bundle)
    assert (status, out) == (1, "")
    assert err == f"lrcn-fast: CAPTION must have a word that the model knows, got {caption!r}\n"


def test_one_bad_photo_among_good_ones(run, bundle, photos, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photo")
    status, out, err = run("retrieve", "a red square", photos[0], bad, photos[1], "--model", bundle)
    assert status == 1
    assert len(out.splitlines()) == 2
    assert len(err.splitlines()) == 1
    assert "bad.jpg must be an image" in err
    status, out, err = run("retrieve", "a red square", bad, "--model", bundle)
    assert (status, out, len(err.splitlines())) == (1, "", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a dog"], "give a caption and photos"),
        ([], "give a caption and photos"),
        (["--image", "a.jpg"], "--image goes with --captions"),
        (["a dog", "b.jpg", "--captions", "c.txt"], "go with --image"),
        (["a dog", "b.jpg", "--image", "c.jpg", "--captions", "c.txt"], "no other caption or photo"),
    ],
)
def test_usage_errors(run, arguments, message):
    status, out, err = run("retrieve", *arguments)
    assert (status, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())


def test_captions_file_errors(run, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    for path, got in ((empty, "got none"), (tmp_path / "absent.txt", "No such file")):
        status, _, err = run("retrieve", "--image", "a.jpg", "--captions", path)
        assert status == 1
        assert f"--captions: {path} must be a text file with one caption a line" in err
        assert got in err

"""Words, indices and training sequences."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from lrcn_fast.data import Vocabulary, tokenize
from lrcn_fast.data.sequences import IGNORE, aligned, unaligned


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        pytest.param("A man rides.", ["a", "man", "rides"], id="final-stop-dropped"),
        pytest.param("  A man rides .", ["a", "man", "rides"], id="spaced-stop"),
        pytest.param("a man's hat", ["a", "man", "'", "s", "hat"], id="apostrophe-splits"),
        pytest.param("Stop... now..", ["stop", "...", "now", ".."], id="runs-are-tokens"),
        pytest.param('He said "hi."', ["he", "said", '"', "hi", '."'], id="only-a-lone-stop"),
        pytest.param("U.S. flag", ["u", ".", "s", ".", "flag"], id="inner-stop"),
        pytest.param("2 cats, foo_bar", ["2", "cats", ",", "foo_bar"], id="digits-underscore"),
        pytest.param("un café noir", ["un", "caf", "é", "noir"], id="non-ascii-separates"),
        pytest.param("", [], id="empty"),
        pytest.param(" . ", [], id="only-stop"),
    ],
)
def test_tokenize(text, tokens):
    assert tokenize(text) == tokens


def test_from_captions_counts_and_orders():
    captions = ["b a.", "a b c", "c a d"]
    assert Vocabulary.from_captions(captions, min_count=2).words == ("<eos>", "<unk>", "a", "b", "c")
    assert Vocabulary.from_captions(captions, min_count=1).words[2:] == ("a", "b", "c", "d")
    assert Vocabulary.from_captions([]).words == ("<eos>", "<unk>")


def test_coco_vocabulary_has_the_published_order(data_dir):
    path = data_dir("coco_val2014_captions", "captions_val2014_5refs.json.gz")
    photos = json.loads(gzip.decompress(path.read_bytes()))
    vocabulary = Vocabulary.from_captions(c for captions in list(photos.values())[:12000] for c in captions)
    # The released vocabulary of COCO's training captions; the validation captions agree on its head.
    head = "<unk> a on of the in with and is man to sitting an two"
    assert " ".join(vocabulary.words[1:15]) == head


def test_encode_and_decode():
    vocabulary = Vocabulary.from_words(["a", "man", "riding"])
    assert vocabulary.encode("A man riding a <eos> horse.") == [2, 3, 4, 2, 1, 1, 1, 1]
    assert vocabulary.encode("a man riding", max_words=2) == [2, 3]
    assert vocabulary.encode_target("a man") == [2, 3, 0]
    assert vocabulary.encode_target("a man riding", max_words=3) == [2, 3, 4]
    assert vocabulary.decode([2, 3, 4, 0, 2]) == "A man riding."
    assert vocabulary.decode(np.array([2, 3])) == "A man..."
    assert vocabulary.decode([2, 3, 0], plain=True) == "a man"
    assert vocabulary.decode([0]) == ""
    with pytest.raises(ValueError, match=r"Vocabulary.decode: ids must be in \[0, words\) = \[0, 5\), got 5"):
        vocabulary.decode([5])


def test_separate_special_entries():
    vocabulary = Vocabulary(
        ["<pad>", "<start>", "<end>", "<unk>", "cat"], pad_id=0, bos_id=1, eos_id=2, unk_id=3
    )
    assert vocabulary.encode("cat dog") == [4, 3]
    assert vocabulary.decode([1, 4, 2, 0, 0]) == "Cat."
    closed = Vocabulary(["<eos>", "cat"], unk_id=None)
    with pytest.raises(ValueError, match=r"Vocabulary.index: word must be one of 2"):
        closed.encode("dog")


def test_from_words_accepts_the_released_list_and_a_saved_one():
    plain = Vocabulary.from_words(["a", "b"])
    assert Vocabulary.from_words(["<unk>", "a", "b"]) == plain
    assert Vocabulary.from_words(plain.words) == plain
    with pytest.raises(ValueError, match="from_words: words must be a list of words, got 'abc'"):
        Vocabulary.from_words("abc")
    with pytest.raises(ValueError, match=r"from_words: words\[1\] must be a str, got 2"):
        Vocabulary.from_words(["a", 2])
    assert plain != Vocabulary.from_words(["b", "a"])
    assert plain != Vocabulary(plain.words, unk_id=None)
    assert hash(plain) == hash(Vocabulary.from_words(["a", "b"]))
    assert plain != "a"


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["<eos>", "a", "a"], {}, "Vocabulary: words must be distinct, got 'a' 2 times"),
        (["<eos>", ""], {}, "Vocabulary: words must not be empty"),
        (["<eos>", "<unk>"], {"eos_id": 2}, r"Vocabulary: eos_id must be in \[0, words\) = \[0, 2\), got 2"),
        (["<eos>"], {}, r"Vocabulary: unk_id must be in \[0, words\) = \[0, 1\), got 1"),
        (["<eos>", 3], {}, "Vocabulary: words must be a list of str"),
        ("words", {}, "Vocabulary: words must be a list of str"),
    ],
)
def test_constructor_errors(words, options, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(words, **options)


def test_method_errors():
    with pytest.raises(ValueError, match="captions must be a list of str, got one str"):
        Vocabulary.from_captions("a cat")
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        Vocabulary.from_captions(["a"], min_count=0)
    with pytest.raises(ValueError, match="max_words must be at least 1, got 0"):
        Vocabulary.from_words(["a"]).encode_target("a", 0)
    with pytest.raises(ValueError, match="max_words must not be negative, got -1"):
        Vocabulary.from_words(["a"]).encode("a", max_words=-1)


def test_save_and_load(tmp_path):
    vocabulary = Vocabulary(["é", "<unk>", '"."', "x"], eos_id=3, bos_id=2, pad_id=1)
    path = tmp_path / "new" / "vocabulary.json"
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    assert [entry.name for entry in path.parent.iterdir()] == ["vocabulary.json"]


def test_load_errors(tmp_path):
    path = tmp_path / "vocabulary.json"
    with pytest.raises(FileNotFoundError, match=r"Vocabulary.load: .*vocabulary.json must be a file"):
        Vocabulary.load(path)
    Vocabulary.from_words(["a"]).save(path)
    content = path.read_text()
    bad = {
        "line 9 column .* must be JSON": content[: content.index('"words"') + 12],
        'must be a JSON object with "kind"': "[1, 2]",
        "must have format 1, got 2": content.replace('"format": 1', '"format": 2'),
        "must have bos_id, eos_id, pad_id, unk_id, words": content.replace("eos_id", "other"),
        "words must be distinct": content.replace('"<unk>"', '"a"'),
    }
    for message, text in bad.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            Vocabulary.load(path)
        assert "vocabulary.json" in str(caught.value)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="line 1 must be UTF-8 text, got byte 0xff"):
        Vocabulary.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "vocabulary.json"
    old = Vocabulary.from_words(["a"])
    old.save(path)

    def broken(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        Vocabulary.from_words(["b"]).save(path)
    assert Vocabulary.load(path) == old
    assert json.loads(path.read_text())["format"] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_aligned_sequences():
    window = aligned([[5, 6], [], [1, 2, 3, 4, 5]], max_words=4)
    assert window.input.T.tolist() == [[0, 5, 6, 0], [0, 0, 0, 0], [0, 1, 2, 3]]
    assert window.target.T.tolist() == [[5, 6, 0, IGNORE], [0, IGNORE, IGNORE, IGNORE], [1, 2, 3, 4]]
    assert window.cont.T.tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]]
    exact = aligned([[1, 2, 3, 4]], max_words=4)  # as long as the window: no room for EOS
    assert exact.target.T.tolist() == [[1, 2, 3, 4]]
    with pytest.raises(ValueError, match="aligned: max_words must be at least 1, got 0"):
        aligned([[1]], max_words=0)


def test_unaligned_streams():
    windows = list(unaligned([[5, 6], [7], [8, 9, 10], []], streams=2, steps=3, bos_id=1, eos_id=2))
    inputs = np.concatenate([w.input for w in windows])
    targets = np.concatenate([w.target for w in windows])
    cont = np.concatenate([w.cont for w in windows])
    # Stream 0: captions 0 and 3; stream 1: captions 1 and 2, which comes when 1 ends at step 2.
    assert inputs[:, 0].tolist() == [1, 5, 6, 1, 1, 1]
    assert targets[:, 0].tolist() == [5, 6, 2, 2, IGNORE, IGNORE]
    assert cont[:, 0].tolist() == [0, 1, 1, 0, 0, 0]
    assert inputs[:, 1].tolist() == [1, 7, 1, 8, 9, 10]
    assert targets[:, 1].tolist() == [7, 2, 8, 9, 10, 2]
    assert cont[:, 1].tolist() == [0, 1, 0, 1, 1, 1]
    assert list(unaligned([], streams=2, steps=3)) == []
    with pytest.raises(ValueError, match="streams and steps must be at least 1, got 0 and 3"):
        next(unaligned([[1]], streams=0, steps=3))


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_unaligned_streams_hold_every_word_once(steps):
    rng = np.random.default_rng(steps)
    captions = [rng.integers(2, 50, rng.integers(0, 15)).tolist() for _ in range(60)]
    windows = list(unaligned(captions, streams=5, steps=steps))
    target = np.concatenate([w.target for w in windows])
    kept = target[target != IGNORE]
    assert len(kept) == sum(len(caption) + 1 for caption in captions)
    assert sorted(kept.tolist()) == sorted([w for c in captions for w in [*c, 0]])
    # Nothing but padding comes after a stream's padding.
    padding = target == IGNORE
    assert (np.diff(padding.astype(int), axis=0) >= 0).all()


def test_no_torch_needed():
    """The numpy runtime and the command line's ``eval`` read captions and score them without torch."""
    script = """
import sys
sys.modules["torch"] = None
from lrcn_fast.data import Vocabulary, read_captions, photo_names
from lrcn_fast.evaluation import caption_metrics, retrieval_metrics
print(Vocabulary.from_captions(["a cat"], min_count=1).words)
try:
    from lrcn_fast.data import FeatureCache
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "('<eos>', '<unk>', 'a', 'cat')",
        "lrcn_fast.data.features needs torch and safetensors: pip install 'lrcn_fast[torch]'",
    ]

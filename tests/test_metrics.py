"""Caption metrics against pycocoevalcap, its Java tokenizer, and small cases worked out by hand."""

import gzip
import json
import math
import random
import shutil

import numpy as np
import pytest

from lrcn_fast.data import read_captions
from lrcn_fast.evaluation import (
    CaptionScorer,
    caption_metrics,
    diversity_metrics,
    normalize_log_likelihood,
    ptb_tokenize,
    retrieval_metrics,
)
from lrcn_fast.evaluation._ngrams import common_subsequence
from lrcn_fast.evaluation.ptb import PUNCTUATION

NAMES = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]


def pycocoevalcap_scores(references, candidates):
    """The scorers of pycocoevalcap 1.2 that are Python, on tokenised text."""
    pytest.importorskip("pycocoevalcap", reason="needs pip install 'lrcn_fast[eval]'")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    results = {key: [text] for key, text in candidates.items()}
    bleu, _ = Bleu(4).compute_score(references, results, verbose=0)
    rouge, _ = Rouge().compute_score(references, results)
    cider, each = Cider().compute_score(references, results)
    return dict(zip(NAMES, [*bleu, rouge, cider], strict=True)), each


def random_sentences(rng, photos, references, words):
    """Text with many repeated n-grams, of lengths 1 to 25."""

    def sentence():
        return " ".join(rng.choice(words) for _ in range(rng.randint(1, 25)))

    return (
        {str(n): [sentence() for _ in range(rng.randint(1, references))] for n in range(photos)},
        {str(n): sentence() for n in range(photos)},
    )


@pytest.mark.parametrize(
    ("photos", "words"),
    [
        pytest.param(2, "a b", id="two-photos"),
        pytest.param(1, "a b c", id="one-photo"),
        pytest.param(40, "a b c d e", id="few-words"),
        pytest.param(40, "the a man dog is on in red ball grass runs with two of and", id="more-words"),
    ],
)
def test_golden_on_random_text(photos, words):
    for seed in range(5):
        references, candidates = random_sentences(random.Random(seed), photos, 5, words.split())
        expected, each = pycocoevalcap_scores(references, candidates)
        scorer = CaptionScorer(references, tokenize=False)
        assert scorer.score(candidates) == pytest.approx(expected, abs=1e-6)
        assert list(scorer.cider_d(candidates).values()) == pytest.approx(each.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("references", "candidates"),
    [
        pytest.param({"1": ["a b c d"], "2": ["e f"]}, {"1": "x y z", "2": "w"}, id="nothing-in-common"),
        pytest.param(
            {"1": ["a b c", "a"], "2": ["e f"]}, {"1": "a b", "2": "e"}, id="tie-of-reference-lengths"
        ),
        pytest.param({"1": ["a a a b"], "2": ["b a"]}, {"1": "a a a a a", "2": "a b"}, id="clipping"),
        pytest.param({"1": ["a b c d e f"], "2": ["g"]}, {"1": "a b c d e f", "2": "g"}, id="perfect"),
        pytest.param({"1": ["a b c d"], "2": ["a b c d"]}, {"1": "a b c d", "2": "a"}, id="same-references"),
    ],
)
def test_golden_on_edge_cases(references, candidates):
    expected, _ = pycocoevalcap_scores(references, candidates)
    assert caption_metrics(references, candidates, tokenize=False) == pytest.approx(expected, abs=1e-6)


def leave_one_out(data_dir, count):
    """Human captions of COCO scored against the others of their photo."""
    path = data_dir("coco_val2014_captions", "captions_val2014_5refs.json.gz")
    photos = list(json.loads(gzip.decompress(path.read_bytes())).items())[:count]
    return {key: texts[1:] for key, texts in photos}, {key: texts[0] for key, texts in photos}


def test_golden_on_coco(data_dir):
    references, candidates = leave_one_out(data_dir, 500)
    tokenised = {key: [" ".join(ptb_tokenize(t)) for t in texts] for key, texts in references.items()}
    answers = {key: " ".join(ptb_tokenize(text)) for key, text in candidates.items()}
    expected, _ = pycocoevalcap_scores(tokenised, answers)
    scores = caption_metrics(references, candidates)
    assert list(scores) == NAMES
    assert scores == pytest.approx(expected, abs=1e-6)
    assert caption_metrics(tokenised, answers, tokenize=False) == scores
    assert 0.7 < scores["cider_d"] < 1.0  # people agree with people about this much


def test_worked_example():
    scores = caption_metrics({"1": ["a b c d"], "2": ["a x"]}, {"1": "a b c", "2": "a x"}, tokenize=False)
    # Five of five words match, 5 words against 6: the brevity penalty is exp(1 - 6/5).
    assert scores["bleu_1"] == pytest.approx(math.exp(-0.2), abs=1e-6)
    assert scores["bleu_2"] == pytest.approx(math.exp(-0.2), abs=1e-6)
    # Photo 1: P = 1, R = 3/4, beta = 1.2; photo 2: 1.
    f = (1 + 1.44) * 0.75 / (0.75 + 1.44)
    assert scores["rouge_l"] == pytest.approx((f + 1) / 2, abs=1e-12)
    # CIDEr-D of photo 2: "a" is in both photos, idf 0; "x" and "a x" match fully, orders 3 and 4 are empty.
    each = CaptionScorer({"1": ["a b c d"], "2": ["a x"]}, tokenize=False).cider_d({"1": "a b c", "2": "a x"})
    assert each["2"] == pytest.approx(10 * 2 / 4, abs=1e-12)


def test_order_of_ids_does_not_matter():
    references, candidates = random_sentences(random.Random(9), 20, 3, list("abcdef"))
    backwards = caption_metrics(dict(reversed(references.items())), dict(reversed(candidates.items())))
    assert backwards == pytest.approx(caption_metrics(references, candidates), rel=1e-12)


def test_empty_candidates_match_nothing():
    references = {"1": ["a cat sits there"], "2": ["two dogs run home"]}
    one = caption_metrics(references, {"1": "", "2": "two dogs run home"})
    assert one["rouge_l"] == 0.5
    assert one["cider_d"] == pytest.approx(5.0)
    assert one["bleu_1"] == pytest.approx(math.exp(-1), abs=1e-6)
    nothing = caption_metrics(references, {"1": "", "2": " . "})
    assert all(value == pytest.approx(0, abs=1e-6) for value in nothing.values())


@pytest.mark.parametrize(
    ("references", "candidates", "message"),
    [
        ({}, {}, "references must have at least one photo, got none"),
        ({"1": []}, {"1": "a"}, "references of '1' must be a list of one or more str"),
        ({"1": "a cat"}, {"1": "a"}, "references of '1' must be a list of one or more str, got 'a cat'"),
        ({"1": ["a"]}, {"1": ["a"]}, r"candidates\['1'\] must be a str, got \['a'\]"),
        (
            {"1": ["a"], "2": ["b"]},
            {"1": "a"},
            r"ids of the references = 2, got 1 missing and 0 unknown \(first: mis",
        ),
        ([["a"]], {"1": "a"}, "references must be a mapping by photo id, got list"),
        ({"1": ["a"]}, ["a"], "candidates must be a mapping by photo id, got list"),
        ({"1": ["a"]}, {"1": "a", "x": "b"}, r"got 0 missing and 1 unknown \(first: unknown 'x'\)"),
    ],
)
def test_errors(references, candidates, message):
    with pytest.raises(ValueError, match=f"caption_metrics: .*{message}"):
        caption_metrics(references, candidates)


def test_unknown_extra():
    with pytest.raises(ValueError, match="extra must name meteor or spice, got 'bertscore'"):
        caption_metrics({"1": ["a"]}, {"1": "a"}, extra=["bertscore"])


def test_common_subsequence():
    def by_table(a, b):
        row = [0] * (len(b) + 1)
        for x in a:
            above = row[:]
            for j, y in enumerate(b):
                row[j + 1] = above[j] + 1 if x == y else max(row[j], above[j + 1])
        return row[-1]

    rng = random.Random(0)
    for _ in range(300):
        a, b = ([rng.choice("abcd") for _ in range(rng.randint(0, 30))] for _ in range(2))
        assert common_subsequence(a, b) == by_table(a, b)


# --- the tokenizer ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A man can't ride.", "a man ca n't ride"),
        ("The dog's boys' ball", "the dog 's boys ball"),
        ("I cannot see, gonna wait", "i can not see gon na wait"),
        ("black-and-white sink/toilet", "black-and-white sink/toilet"),
        ('He said "hello" & left...', "he said hello & left"),
        ("a (small) [dog] {x}", "a -lrb- small -rrb- -lsb- dog -rsb- -lcb- x -rcb-"),
        ("Mr. Smith of Washington D.C. at St. Paul's", "mr. smith of washington d.c. at st. paul 's"),
        ("no. 2 is no.", "no. 2 is no"),
        ("It is 6:53 p.m. for $3.50, 50%", "it is 6:53 p.m. for $ 3.50 50 %"),
        ("1:42pm 20mph 3D 2x4 1/2 1 1/2", "1:42 pm 20mph 3d 2x4 1/2 1\u00a01/2"),
        ("rock 'n' roll in the '50s", "rock 'n' roll in the '50s"),
        ("Travis d'Arnaud at 6 o'clock", "travis d'arnaud at 6 o'clock"),
        ("stop--now - wait; here: ok!", "stop now wait here ok"),
        ("what?! no!!", "what ?! no !!"),
        ("parked.A bus", "parked.a bus"),
        ("a road., b", "a road. b"),
        (
            "caf\u00e9 \u201cr\u00e9sum\u00e9\u201d it\u2019s \u2014 fine",
            "caf\u00e9 r\u00e9sum\u00e9 it 's fine",
        ),
        ("a dog \U0001f600 \u200bruns", "a dog runs"),
        ("visit www.foo.com/a?b=c now", "visit www.foo.com/a?b=c now"),
        ("", ""),
        (" ... ", ""),
    ],
)
def test_ptb_tokenize(text, tokens):
    assert ptb_tokenize(text) == [token for token in tokens.split(" ") if token]


@pytest.mark.parametrize("text", ["a", "it's a U.S. dog", "1 1/2 cups (large)", "\u00bd caf\u00e9"])
def test_tokens_hold_no_spaces_and_no_lone_punctuation(text):
    for token in ptb_tokenize(text):
        assert not any(c.isspace() for c in token.replace("\u00a0", ""))
        assert token not in PUNCTUATION


def java_tokens(captions):
    """The tokens of pycocoevalcap's PTBTokenizer.

    It joins all captions and looks past their ends: a caption that ends in "K." loses the stop if the next
    one starts with "A". A neutral word between them makes every caption stand for itself, as it does here.
    """
    pytest.importorskip("pycocoevalcap", reason="needs pip install 'lrcn_fast[eval]'")
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    asked = {n: [{"caption": caption}, {"caption": "x"}] for n, caption in enumerate(captions)}
    return [pair[0] for pair in PTBTokenizer().tokenize(asked).values()]


def tricky(captions):
    """Those with anything but plain words, commas and a final stop."""
    plain = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ,")
    return [c for c in captions if not set(c.rstrip(". ")) <= plain]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["tricky", "all"])
def test_tokens_equal_java_on_real_captions(data_dir, every):
    """Measured: all 202,654 COCO and all 39,830 Flickr8k captions give equal tokens."""
    coco = data_dir("coco_val2014_captions", "captions_val2014_5refs.json.gz")
    captions = [c for texts in json.loads(gzip.decompress(coco.read_bytes())).values() for c in texts]
    captions = [" ".join(caption.split()) for caption in captions]
    flickr = read_captions(data_dir("flickr8k_text", "captions.csv.gz")).captions()
    chosen = (
        captions + flickr if every else tricky(captions) + captions[:2000] + tricky(flickr) + flickr[:1000]
    )
    assert len(chosen) > 10_000
    for caption, expected in zip(chosen, java_tokens(chosen), strict=True):
        assert " ".join(ptb_tokenize(caption)) == expected, caption


def test_tokens_equal_java_on_made_up_text():
    marks = "!\"#$%&'()*+,-./:;=?@[]^_`{|}~"
    texts = [
        form.format(mark)
        for mark in marks
        for form in (
            "x road.{0} y", "x road{0} y", "x road{0}side y", "x {0}side y", "x {0} y", "x 45{0} y",
            "x 45{0}67 y", "x 45{0}side y", "x side{0}67 y", "x {0}{0} y", "x {0}{0}{0} y", "a{0}b{0}c",
        )
    ]  # fmt: skip
    texts = [text.replace("{", "(").replace("}", ")") if "{{{" in text else text for text in texts]
    texts += [
        "Don't DON'T isn't shan't should've they'RE", "y'all y'know ma'am e'er", "the A's and O'Neil's",
        "AT&T R&B m&m M&M's A+B C++", "U.K.'s St.'s T.V.s Ph.D. e.g., i.e. a.k.a.", "K. The K. the K. Foo",
        "5 p.m. 5p.m. 10:30p.m. -5 +5 .5 10-29-2011", "mother-in-law's 70's-era pre-war", ":) ;-) :D =P ^_^",
        "Ave. Blvd. Ark. ark. La. la. fig. 3 fig.", "\u00a33 \u20ac2 5\u00b0 \u00bd \u2026 \u2013",
        "a_b-c a/b-c a-b/c 1/2-inch x@y.com #tag @me", "kitchen.; road., end.) (end.)",
        "'Tis 'twas 'em 'cause",
    ]  # fmt: skip
    for text, expected in zip(texts, java_tokens(texts), strict=True):
        assert " ".join(ptb_tokenize(text)) == expected, text


# --- METEOR and SPICE ---------------------------------------------------------------------------


@pytest.mark.slow
def test_meteor(data_dir):
    pytest.importorskip("pycocoevalcap", reason="needs pip install 'lrcn_fast[eval]'")
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    from pycocoevalcap.meteor.meteor import Meteor

    references, candidates = leave_one_out(data_dir, 20)
    references["x"], candidates["x"] = ["a ||| b"], ""
    scores = caption_metrics(references, candidates, extra=["meteor"])
    tokenised = {k: [" ".join(ptb_tokenize(t)).replace("|||", "") for t in v] for k, v in references.items()}
    results = {k: [" ".join(ptb_tokenize(t))] for k, t in candidates.items()}
    expected, _ = Meteor().compute_score(tokenised, results)
    assert list(scores) == [*NAMES, "meteor"]
    assert scores["meteor"] == pytest.approx(expected, abs=1e-9)


def test_meteor_reports_what_java_says(monkeypatch, tmp_path):
    pytest.importorskip("pycocoevalcap", reason="needs pip install 'lrcn_fast[eval]'")
    fake = tmp_path / "java"
    fake.write_text("#!/bin/sh\necho 'no heap today' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(RuntimeError, match="METEOR's Java program failed: no heap today"):
        caption_metrics({"1": ["a"]}, {"1": "a"}, extra=["meteor"])


def test_meteor_without_java_or_package(monkeypatch, tmp_path):
    pytest.importorskip("pycocoevalcap", reason="needs pip install 'lrcn_fast[eval]'")
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("meteor", "spice"):
        with pytest.raises(
            RuntimeError, match=f"{name.upper()} needs Java, and there is no java on the PATH"
        ):
            caption_metrics({"1": ["a"]}, {"1": "a"}, extra=[name])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"METEOR needs pycocoevalcap: pip install 'lrcn_fast\[eval\]'"):
        caption_metrics({"1": ["a"]}, {"1": "a"}, extra=["meteor"])


def test_spice_says_what_to_download(monkeypatch, tmp_path):
    package = tmp_path / "pycocoevalcap"
    (package / "spice" / "lib").mkdir(parents=True)
    monkeypatch.setattr("lrcn_fast.evaluation._java._package", lambda metric: package)
    with pytest.raises(RuntimeError, match=r"SPICE needs Stanford CoreNLP 3.6.0, a download of 384 MB"):
        caption_metrics({"1": ["a"]}, {"1": "a"}, extra=["spice"])


def test_spice_runs_its_program(monkeypatch, tmp_path):
    """With a stand-in for Java: what is sent, what is read, and what a failure says."""
    package = tmp_path / "pycocoevalcap"
    (package / "spice" / "lib").mkdir(parents=True)
    (package / "spice" / "lib" / "stanford-corenlp-3.6.0-models.jar").touch()
    monkeypatch.setattr("lrcn_fast.evaluation._java._package", lambda metric: package)
    fake = tmp_path / "java"
    result = [{"scores": {"All": {"f": 0.25}}}, {"scores": {"All": {"f": 0.75}}}]
    fake.write_text(f'#!/bin/sh\ncp "$4" {tmp_path}/sent.json\necho \'{json.dumps(result)}\' > "$6"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    scores = caption_metrics({"1": ["A cat."], "2": ["b"]}, {"1": "cat", "2": "b"}, extra=["spice"])
    assert scores["spice"] == 0.5
    sent = json.loads((tmp_path / "sent.json").read_text())
    assert sent[0] == {"image_id": "0", "test": "cat", "refs": ["a cat"]}
    fake.write_text("#!/bin/sh\necho 'bad class' >&2\nexit 1\n")
    with pytest.raises(RuntimeError, match=r"SPICE's Java program failed .*: bad class"):
        caption_metrics({"1": ["a"]}, {"1": "a"}, extra=["spice"])


# --- diversity ----------------------------------------------------------------------------------


def test_diversity():
    captions = ["A cat sits.", "a cat sits", "a dog"]
    result = diversity_metrics(captions, training_captions=["A dog.", "x"], vocabulary_size=8)
    assert result == {
        "mean_length": 8 / 3,
        "vocabulary": 4.0,
        "distinct_1": 4 / 8,
        "distinct_2": 3 / 5,
        "unique": 2 / 3,
        "vocabulary_share": 0.5,
        "novel": 2 / 3,
    }
    assert diversity_metrics([""])["distinct_1"] == 0.0
    with pytest.raises(ValueError, match="captions must have at least one caption, got none"):
        diversity_metrics([])
    with pytest.raises(ValueError, match="captions must be a list of str, got one str"):
        diversity_metrics("a cat")
    with pytest.raises(ValueError, match="vocabulary_size must be at least 1, got 0"):
        diversity_metrics(["a"], vocabulary_size=0)


# --- retrieval ----------------------------------------------------------------------------------


def test_retrieval_by_hand():
    # Captions 0, 1 belong to photo 0 and 2, 3 to photo 1.
    scores = [[-1.0, -5.0, -2.0, -9.0], [-3.0, -4.0, -1.0, -8.0]]
    result = retrieval_metrics(scores, normalize=False)
    assert result["image_to_caption"] == {"r1": 1.0, "r5": 1.0, "r10": 1.0, "median_rank": 1.0}
    # Caption 1 is likelier for photo 1; the others are found.
    assert result["caption_to_image"] == {"r1": 0.75, "r5": 1.0, "r10": 1.0, "median_rank": 1.0}


def test_normalisation_removes_a_prior_on_captions():
    rng = np.random.default_rng(0)
    match = np.where(np.eye(6, dtype=bool), -1.0, -3.0) + 0.1 * rng.standard_normal((6, 6))
    prior = np.array([0.0, -40, -900, -20, -5000, -60])  # would underflow without log-sum-exp
    result = retrieval_metrics(match + prior)
    assert result["image_to_caption"]["r1"] == 1.0
    assert retrieval_metrics(match + prior, normalize=False)["image_to_caption"]["r1"] < 1.0
    np.testing.assert_allclose(
        normalize_log_likelihood(match + prior), match - np.log(np.exp(match).mean(0)), atol=1e-9
    )
    both = [retrieval_metrics(match + prior, normalize=flag)["caption_to_image"] for flag in (True, False)]
    assert both[0] == both[1]


def test_ties_count_against_the_model():
    result = retrieval_metrics(np.zeros((20, 20)), normalize=False)
    assert result["image_to_caption"] == {"r1": 0.0, "r5": 0.0, "r10": 0.0, "median_rank": 20.0}
    # The correct items of one photo do not compete with each other.
    assert retrieval_metrics(np.zeros((1, 5)))["image_to_caption"]["r1"] == 1.0


def test_impossible_captions():
    scores = np.array([[-1.0, -np.inf], [-np.inf, -np.inf]])
    result = retrieval_metrics(scores)
    assert np.isfinite(list(result["caption_to_image"].values())).all()
    assert result["caption_to_image"]["r1"] == 0.5


def test_retrieval_inputs():
    scores = np.array([[0.0, -1, -2], [-1.0, 0, 0]])
    expected = retrieval_metrics(scores, [0, 1, 1])
    torch = pytest.importorskip("torch")
    assert retrieval_metrics(torch.from_numpy(scores).requires_grad_(), torch.tensor([0, 1, 1])) == expected
    assert retrieval_metrics(scores, [0, 1, 1], ks=(2,))["caption_to_image"].keys() == {"r2", "median_rank"}


@pytest.mark.parametrize(
    ("scores", "owner", "message"),
    [
        (np.zeros(3), None, r"log_likelihood must be \[images, captions\], neither 0, got \[3\]"),
        (np.zeros((0, 3)), None, r"neither 0, got \[0, 3\]"),
        (np.full((2, 2), np.nan), None, "log_likelihood must not be NaN, got 4 NaN entries"),
        ("abc", None, "log_likelihood must be numbers"),
        ([[1, 2], [3]], None, "log_likelihood must be numbers"),
        (
            np.zeros((2, 3)),
            None,
            "must have a multiple of 2 captions where caption_image is not given, got 3",
        ),
        (np.zeros((2, 3)), [0, 1], r"caption_image must be \[captions\] = \[3\] integers, got \[2\]"),
        (np.zeros((2, 3)), [0, 1, 2], r"caption_image must be in \[0, images\) = \[0, 2\), got 0..2"),
        (np.zeros((2, 3)), [0, 0, 0], "every image must have a caption, got none for image 1"),
    ],
)
def test_retrieval_errors(scores, owner, message):
    with pytest.raises(ValueError, match=f"retrieval_metrics: .*{message}"):
        retrieval_metrics(scores, owner)


def test_retrieval_ks():
    with pytest.raises(ValueError, match=r"ks must be at least 1, got \[0\]"):
        retrieval_metrics(np.zeros((2, 2)), ks=[0])

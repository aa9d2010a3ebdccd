"""Caption files in every known shape, what is wrong with them, and splits."""

import gzip
import json
import warnings

import pytest

from lrcn_fast.data import CaptionItem, CaptionSet, photo_names, read_captions

EXPECTED = {"a.jpg": ["A cat.", "One cat"], "b.jpg": ["Two, dogs"]}

COCO = {
    "images": [
        {"id": 7, "file_name": "a.jpg"},
        {"id": 8, "file_name": "b.jpg"},
        {"id": 9, "file_name": "c.jpg"},
    ],
    "annotations": [
        {"image_id": 7, "caption": "A cat."},
        {"image_id": 8, "caption": "Two, dogs"},
        {"image_id": 7, "caption": " One  cat\n"},
        {"image_id": 9, "caption": "  "},
    ],
}
KARPATHY = {
    "dataset": "x",
    "images": [
        {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A cat."}, {"tokens": ["One", "cat"]}]},
        {
            "filename": "b.jpg",
            "split": "val",
            "filepath": "val2014",
            "cocoid": 5,
            "sentences": [{"raw": "Two, dogs"}],
        },
    ],
}
FILES = {
    "karpathy.json": json.dumps(KARPATHY),
    "results.token": "a.jpg#0\tA cat.\nb.jpg#0\tTwo, dogs\n\na.jpg#1\tOne cat\n",
    "records.json": json.dumps(
        [
            {"file": "a.jpg", "split": "train", "sentences": ["A cat.", "One cat"]},
            {"file": "b.jpg", "split": "val", "sentences": ["Two, dogs"]},
        ]
    ),
    "pairs.json": json.dumps(
        [
            {"image": "a.jpg", "caption": "A cat."},
            {"image": "b.jpg", "caption": "Two, dogs"},
            {"image": "a.jpg", "caption": "One cat"},
        ]
    ),
    "numbered.json": json.dumps(
        [
            {"file_name": "a.jpg", "caption_0": "A cat.", "caption_1": "One cat"},
            {"file_name": "b.jpg", "caption_0": "Two, dogs", "caption_1": ""},
        ]
    ),
    "metadata.jsonl": '{"file_name": "a.jpg", "text": ["A cat.", "One cat"]}\n'
    '{"file_name": "b.jpg", "text": "Two, dogs"}\n',
    "mapping.json": json.dumps({"a.jpg": ["A cat.", "One cat"], "b.jpg": "Two, dogs"}),
    "header.csv": 'image,caption\na.jpg,A cat.\nb.jpg,"Two, dogs"\na.jpg,One cat\n',
    "bare.csv": "a.jpg,A cat.\nb.jpg,Two, dogs\na.jpg,One cat\n",
    "windows.csv": '\ufeffFile_Name,Split,Caption\r\na.jpg,train,A cat.\r\nb.jpg,val,"Two, dogs"\r\n'
    "a.jpg,train,One cat\r\n",
    "wide.csv": 'file_name,caption_0,caption_1\na.jpg,A cat.,One cat\nb.jpg,"Two, dogs",\n',
    "bars.csv": "image_name| comment_number| comment\na.jpg| 0| A cat.\nb.jpg| 0| Two, dogs\n"
    "a.jpg| 1| One cat\n",
    "tabs.tsv": "image\ttext\na.jpg\tA cat.\nb.jpg\tTwo, dogs\na.jpg\tOne cat\n",
    "numbered.csv": 'image,caption\na.jpg#0,A cat.\nb.jpg#0,"Two, dogs"\na.jpg#1,One cat\n',
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_formats_are_recognised(tmp_path, name, compressed):
    content = FILES[name].encode()
    path = tmp_path / (name + ".gz" if compressed else name)
    path.write_bytes(gzip.compress(content) if compressed else content)
    captions = read_captions(path)
    names = {"5": "b.jpg"}
    assert {names.get(item.id, item.id): list(item.captions) for item in captions} == EXPECTED
    assert all(item.image is None for item in captions)
    has_splits = name in ("karpathy.json", "records.json", "windows.csv")
    assert captions.splits == ({"train": 1, "val": 1} if has_splits else {"": 2})


@pytest.mark.parametrize("ending", ["", "\n"])
def test_one_record_is_no_mapping(tmp_path, ending):
    path = tmp_path / "one.jsonl"
    path.write_text('{"image": "a.jpg", "caption": "a red dog", "split": "train"}' + ending)
    assert [(c.id, c.captions, c.split) for c in read_captions(path)] == [("a.jpg", ("a red dog",), "train")]
    path.write_text('{"Image_id": 3, "sentence 1": "a dog", "sentence 2": "a red dog"}' + ending)
    assert [(c.id, c.captions) for c in read_captions(path)] == [("3", ("a dog", "a red dog"))]
    # Photos may have such names: captions are lists, the name of a photo is not.
    path.write_text('{"image": ["a red dog"], "caption": ["a cat"]}' + ending)
    assert [c.id for c in read_captions(path)] == ["image", "caption"]


def test_coco(tmp_path):
    path = tmp_path / "captions_val2014.json"
    path.write_text(json.dumps(COCO))
    with pytest.warns(
        UserWarning, match=r"1 photos of .* have empty captions only \(first: c\.jpg\); they are"
    ):
        captions = read_captions(path)
    assert captions.references() == {"7": ["A cat.", "One cat"], "8": ["Two, dogs"]}
    assert captions.splits == {"val": 2}
    path.write_text(json.dumps({**COCO, "annotations": COCO["annotations"][:3]}))
    assert read_captions(path, split="mine").splits == {"mine": 2}  # nobody said anything of 9
    assert photo_names(captions) == {"7", "8"}


def test_photos_are_found(tmp_path):
    (tmp_path / "images").mkdir()
    for name in EXPECTED:
        (tmp_path / "images" / name).touch()
    (tmp_path / "captions.csv").write_text(FILES["header.csv"])
    for source, options in [
        (tmp_path, {}),
        (tmp_path / "captions.csv", {}),
        (tmp_path / "captions.csv", {"images": tmp_path / "images"}),
    ]:
        captions = read_captions(source, **options)
        assert [item.image for item in captions] == [tmp_path / "images" / name for name in EXPECTED]
        assert photo_names(captions) == {"a", "a.jpg", "b", "b.jpg"}


def test_photos_in_subfolders(tmp_path):
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "b.jpg").touch()
    (tmp_path / "a.jpg").touch()
    (tmp_path / "dataset.json").write_text(json.dumps(KARPATHY))
    captions = read_captions(tmp_path)
    assert [item.image for item in captions] == [tmp_path / "a.jpg", tmp_path / "val2014" / "b.jpg"]


def test_missing_photos_are_reported_once(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text(FILES["header.csv"] + "c.jpg,x\n")
    (tmp_path / "b.jpg").touch()
    with pytest.warns(
        UserWarning, match=r"2 of 3 photos of captions.csv are not in .*first: a.jpg"
    ) as caught:
        assert [item.id for item in read_captions(path)] == ["b.jpg"]
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = read_captions(path, missing="keep")
    assert [item.image is None for item in kept] == [True, False, True]
    with pytest.raises(ValueError, match="images must hold the photos; 2 of 3 photos"):
        read_captions(path, missing="error")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ValueError, match="images must hold the photos; 3 of 3 photos"):
        read_captions(path, images=tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="images must be a folder"):
        read_captions(path, images=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", '[{"image": "a.jpg",\n "caption": "x"', r"x.json line 2 column \d+ must be JSON"),
        ("x.jsonl", '{"image": "a", "caption": "b"}\n{"image": \n', "x.jsonl line 2 must be a JSON object"),
        ("x.json", '{"a": 1}', r"must be captions in JSON \(COCO, Karpathy, a list of records"),
        ("x.json", '{"a.jpg": [1]}', "'a.jpg' must be a caption or a list of captions, got"),
        ("x.json", "[]", "x.json must have at least one caption, got none"),
        ("x.json", '["a"]', "record 1 must be an object with an image and captions, got 'a'"),
        ("x.json", '[{"caption": "a"}]', "record 1 must be an image column"),
        ("x.json", '[{"image": "a.jpg"}]', "record 1 must be a caption column"),
        ("x.json", '[{"image": "a.jpg", "caption": 5}]', "record 1, 'caption' must be a caption or a list"),
        ("x.json", '[{"image": [], "caption": "a"}]', "record 1, 'image' must be a file name or an id"),
        (
            "x.json",
            '{"images": [{"id": 1}], "annotations": []}',
            r'images\[0\] must be an object with "id" and "file_name"',
        ),
        (
            "x.json",
            '{"images": [], "annotations": [{"image_id": 3, "caption": "x"}]}',
            r'annotations\[0\] must be an "image_id" that is in "images", got 3',
        ),
        ("x.json", '{"images": 3, "annotations": []}', "x.json images must be a list, got 3"),
        (
            "x.json",
            '{"images": [{"filename": "a"}]}',
            r'images\[0\] must be an object with "filename" and "sent',
        ),
        (
            "x.json",
            '{"images": [{"filename": "a", "sentences": [{}]}]}',
            r'images\[0\].sentences\[0\] must be an object with "raw" or "tokens"',
        ),
        (
            "x.token",
            "a.jpg#0\tA cat\nb.jpg A dog\n",
            "x.token line 2 must be name.jpg#k<TAB>caption, got 'b.jpg A dog'",
        ),
        (
            "x.csv",
            "image,caption,split\na.jpg,A cat\n",
            r"line 2 must be 3 columns \(image, caption, split\), got '2'",
        ),
        ("x.csv", "image,caption\n,A cat\n", "line 2 must be a value in column 'image'"),
        ("x.csv", "some text\nmore\n", "line 1 must be a header with an image and a caption column"),
        ("x.csv", "image,size\na.jpg,3\n", "line 1 must be a caption column"),
        ("x.csv", "", "x.csv must have at least one caption, got an empty file"),
        ("x.csv", b"image,caption\na.jpg,caf\xe9\n", "line 2 must be UTF-8 text, got byte 0xe9"),
        (
            "x.csv.gz",
            gzip.compress(b"image,caption\na.jpg,A cat\n", mtime=0)[:-9],
            "must be a whole gzip file",
        ),
        ("x.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF", "line 1 must be UTF-8 text, got byte 0xff"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read_captions(path)
    assert str(caught.value).startswith(f"read_captions: {path}")
    assert "\n" not in str(caught.value)


def test_bad_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"read_captions: .*nothing.csv must be a file"):
        read_captions(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match=r"must hold one caption file \(captions.csv.*\), got none"):
        read_captions(tmp_path)
    (tmp_path / "captions.csv").write_text(FILES["header.csv"])
    (tmp_path / "metadata.jsonl").write_text(FILES["metadata.jsonl"])
    with pytest.raises(ValueError, match=r"got captions.csv, metadata.jsonl"):
        read_captions(tmp_path)
    with pytest.raises(ValueError, match="format must be one of auto, coco"):
        read_captions(tmp_path / "captions.csv", format="xml")
    with pytest.raises(ValueError, match='missing must be "drop", "keep" or "error"'):
        read_captions(tmp_path / "captions.csv", missing="ignore")
    with pytest.raises(ValueError, match="must be of format coco, got records"):
        read_captions(tmp_path / "metadata.jsonl", format="coco")
    with pytest.raises(ValueError, match="line 1 must start a JSON object or list"):
        read_captions(tmp_path / "captions.csv", format="coco")
    with pytest.raises(ValueError, match=r"line 1 must be name.jpg#k<TAB>caption"):
        read_captions(tmp_path / "captions.csv", format="flickr")


def make_set(count=20, split="train"):
    return CaptionSet(CaptionItem(f"{n}.jpg", (f"caption {n}",), split) for n in range(count))


def test_caption_set():
    captions = make_set(3) + CaptionSet([CaptionItem("x", ("one", "two"), "val")])
    assert captions.splits == {"train": 3, "val": 1}
    assert len(captions[1:]) == 3
    assert captions[-1].captions == ("one", "two")
    assert captions.split("val").captions() == ["one", "two"]
    assert len(captions.split("train", "val")) == 4
    assert "4 photos, 5 captions; train: 3, val: 1" in repr(captions)
    with pytest.raises(ValueError, match=r"CaptionSet.split: names must be among \['train', 'val'\]"):
        captions.split("test")
    with pytest.raises(ValueError, match="must have distinct ids, got 'x' twice"):
        CaptionSet([CaptionItem("x", ("a",)), CaptionItem("x", ("b",))])
    with pytest.raises(ValueError, match="must have a caption, got none for 'x'"):
        CaptionSet([CaptionItem("x", ())])


def test_exclude_by_any_name():
    captions = make_set(4)
    assert [item.id for item in captions.exclude(["1.jpg", "images/2.jpg"])] == ["0.jpg", "3.jpg"]
    assert [item.id for item in captions.exclude({"3"})] == ["0.jpg", "1.jpg", "2.jpg"]
    with pytest.raises(ValueError, match=r"names must be a collection of str, got '1.jpg'"):
        captions.exclude("1.jpg")


def test_with_splits():
    captions = make_set(4)
    split = captions.with_splits({"train": ["0.jpg", "1"], "test": ["2.jpg", "9.jpg"]})
    assert [(item.id, item.split) for item in split] == [
        ("0.jpg", "train"),
        ("1.jpg", "train"),
        ("2.jpg", "test"),
    ]
    with pytest.raises(ValueError, match="splits must not overlap, got '1' in 'train' and 'test'"):
        captions.with_splits({"train": ["1.jpg"], "test": ["1"]})
    with pytest.raises(ValueError, match="splits must name photos of captions, got none of them"):
        captions.with_splits({"train": ["77.jpg"]})


def test_hold_out():
    captions = make_set(20)
    held = captions.hold_out(5, name="val", seed=1)
    assert held.splits == {"train": 15, "val": 5} or held.splits == {"val": 5, "train": 15}
    chosen = {item.id for item in held.split("val")}
    backwards = CaptionSet(reversed(captions.items)).hold_out(5, name="val", seed=1)
    assert {item.id for item in backwards.split("val")} == chosen
    assert chosen < {item.id for item in captions.hold_out(8, name="val", seed=1).split("val")}
    assert chosen != {item.id for item in captions.hold_out(5, name="val", seed=2).split("val")}
    assert captions.hold_out(0.25).splits["held_out"] == 5
    for count in (0, 20, 0.0, -1):
        with pytest.raises(ValueError, match="count must be between 1 and 19 photos of 'train'"):
            captions.hold_out(count)
    with pytest.raises(ValueError, match="name must be a new split, got 'train'"):
        captions.hold_out(5, name="train")


def test_msvd_lines(tmp_path):
    path = tmp_path / "sents_val_lc_nopunc.txt"
    path.write_text("vid1201\ta man is cooking\nvid1202\ta cat\n\nvid1201\ta cook\tstirs\n")
    clips = read_captions(path)
    assert [(c.id, c.captions, c.split, c.image) for c in clips] == [
        ("vid1201", ("a man is cooking", "a cook stirs"), "val", None),
        ("vid1202", ("a cat",), "val", None),
    ]
    assert [c.split for c in read_captions(path, split="mine")] == ["mine", "mine"]
    path.write_text("vid1\ta man\nno tab\n")
    with pytest.raises(
        ValueError, match=r"sents_val.* line 2 must be vid<number><TAB>sentence, got 'no tab'"
    ):
        read_captions(path)


def test_msvd(data_dir):
    sets = [
        read_captions(data_dir("msvd_captions", f"sents_{s}_lc_nopunc.txt")) for s in ("train", "val", "test")
    ]
    assert [(len(s), s[0].split, len(s.captions())) for s in sets] == [
        (1200, "train", 48774), (100, "val", 4290), (670, "test", 27763),
    ]  # fmt: skip


def test_flickr8k_small(data_dir):
    captions = read_captions(data_dir("flickr8k_small"))
    assert captions.splits == {"train": 753, "dev": 113}
    assert all(len(item.captions) == 5 and item.image.is_file() for item in captions)


def test_text_of_evaluated_photos_can_be_kept_out(data_dir):
    """The text of all Flickr8k photos contains the captions of the dev photos of the small set."""
    dev = read_captions(data_dir("flickr8k_small")).split("dev")
    path = data_dir("flickr8k_text", "captions.csv.gz")
    everything = read_captions(path)
    assert len(everything) == 7966
    leaked = set(dev.captions())
    assert leaked & set(everything.captions())
    clean = read_captions(path, exclude=photo_names(dev))
    assert len(everything) - len(clean) == len({i.id for i in dev} & {i.id for i in everything}) > 100
    assert not {item.id for item in clean} & {item.id for item in dev}
    # What remains equal is a sentence that somebody wrote about another photo too.
    assert len(leaked & set(clean.captions())) < 10


def test_official_splits(data_dir):
    lists = json.loads(data_dir("flickr8k_text", "official_splits.json").read_text())
    captions = read_captions(data_dir("flickr8k_text", "captions.csv.gz")).with_splits(lists)
    assert captions.splits.keys() == {"train", "dev", "test"}
    assert captions.splits["train"] > 5900

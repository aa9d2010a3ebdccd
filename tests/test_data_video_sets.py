"""Labelled videos: the official UCF101 lists, folders of classes, list files, splits along groups."""

import numpy as np
import pytest
from conftest import data_dir

from lrcn_fast.data import (
    VideoItem,
    VideoSet,
    read_ucf101,
    read_ut_interaction,
    read_video_folders,
    read_video_list,
)

CLASSES = ["ApplyEyeMakeup", "HandstandPushups", "YoYo"]


def clip(name, group, number):
    folder = name
    if name == "HandstandPushups":
        name = "HandStandPushups"
    return f"{folder}/v_{name}_g{group:02d}_c{number:02d}"


@pytest.fixture
def ucf(tmp_path):
    """Lists as distributed (CRLF, 1-based labels), and empty files of the videos."""
    lists = tmp_path / "lists"
    lists.mkdir()
    text = "".join(f"{n} {name}\r\n" for n, name in enumerate(CLASSES, 1))
    (lists / "classInd.txt").write_bytes(text.encode())
    train, test = [], []
    for n, name in enumerate(CLASSES, 1):
        for group in range(1, 11):
            for number in range(1, 3):
                entry = clip(name, group, number) + ".avi"
                if group <= 3:
                    test.append(entry)
                else:
                    train.append(f"{entry} {n}")
                path = tmp_path / "videos" / entry
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    (lists / "trainlist01.txt").write_bytes("\r\n".join([*train, ""]).encode())
    (lists / "testlist01.txt").write_bytes("\r\n".join([*test, ""]).encode())
    return tmp_path


# ---- UCF101 -----------------------------------------------------------------------------------


def test_ucf101(ucf):
    videos = read_ucf101(ucf / "videos", ucf / "lists")
    assert videos.classes == tuple(CLASSES)
    assert videos.splits == {"train": 42, "test": 18}
    assert repr(videos) == "VideoSet(UCF101 split 1: 60 videos, 3 classes; train: 42, test: 18)"
    item = next(item for item in videos if "HandStand" in item.id)
    assert item.id == "HandstandPushups/v_HandStandPushups_g04_c01"
    assert (item.label, item.split, item.group) == (1, "train", "g04")
    assert item.path == ucf / "videos" / "HandstandPushups" / "v_HandStandPushups_g04_c01.avi"
    assert set(videos.split("train").groups).isdisjoint(videos.split("test").groups)
    assert videos.labels.tolist() == [n for n in range(3) for _ in range(14)] + [
        n for n in range(3) for _ in range(6)
    ]


def test_ucf101_in_other_case_flat_and_as_frames(ucf):
    (ucf / "videos" / "HandstandPushups").rename(ucf / "videos" / "handStandPushups")
    assert len(read_ucf101(ucf / "videos", ucf / "lists")) == 60
    flat, frames = ucf / "flat", ucf / "frames"
    flat.mkdir()
    for path in (ucf / "videos").glob("*/*.avi"):
        (flat / path.name.replace("Stand", "stand")).touch()
        (frames / path.parent.name / path.stem).mkdir(parents=True)
    assert {item.path.parent for item in read_ucf101(flat, ucf / "lists")} == {flat}
    assert all(item.path.is_dir() for item in read_ucf101(frames, ucf / "lists"))


def test_ucf101_without_or_with_few_videos(ucf):
    assert read_ucf101(None, ucf / "lists")[0].path.as_posix() == clip("ApplyEyeMakeup", 4, 1) + ".avi"
    (ucf / "videos" / (clip("YoYo", 1, 1) + ".avi")).unlink()
    (ucf / "videos" / (clip("YoYo", 1, 2) + ".avi")).unlink()
    with pytest.raises(ValueError, match=r"got no YoYo/v_YoYo_g01_c01.avi and no 1 others"):
        read_ucf101(ucf / "videos", ucf / "lists")
    with pytest.warns(UserWarning, match="left out"):
        assert len(read_ucf101(ucf / "videos", ucf / "lists", missing="drop")) == 58


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classInd.txt", "1 A\n3 B\n", r'classInd.txt line 2 must be "2 <class>", got .3 B.'),
        ("trainlist01.txt", "YoYo/v_YoYo_g01_c01.avi\n", r"trainlist01.txt line 1 must be .* <label>"),
        ("trainlist01.txt", "YoYo/v_YoYo_g01_c01.avi 2\n", r"line 1 must be a class and its number"),
        ("trainlist01.txt", "Skiing/v_Skiing_g01_c01.avi 1\n", r"line 1 must be a class and its number"),
        ("testlist01.txt", "\nYoYo/yoyo.avi\n", r"testlist01.txt line 2 must be .*gXX_cYY.avi., got"),
        ("testlist01.txt", b"\xff\xfe\x00", r"testlist01.txt line 1 must be UTF-8 text"),
    ],
)
def test_ucf101_foreign_lists(ucf, name, content, message):
    (ucf / "lists" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_ucf101(None, ucf / "lists")


def test_ucf101_missing_lists(ucf):
    with pytest.raises(FileNotFoundError, match=r"trainlist02.txt must be a file"):
        read_ucf101(None, ucf / "lists", split=2)
    with pytest.raises(ValueError, match="split must be 1, 2 or 3, got 0"):
        read_ucf101(None, ucf / "lists", split=0)


# ---- splits -----------------------------------------------------------------------------------


def test_hold_out_keeps_groups_whole(ucf):
    videos = read_ucf101(None, ucf / "lists")
    drawn = set()
    for seed in range(5):
        parts = videos.hold_out(1 / 3, seed=seed)
        assert parts.splits == {"train": 30, "val": 12, "test": 18}  # 2 of 7 groups are nearer than 3
        val = parts.split("val")
        assert set(val.groups).isdisjoint(parts.split("train").groups)
        assert sorted(np.bincount(val.labels)) == [4, 4, 4]
        assert parts.split("test").items == videos.split("test").items
        drawn.add(tuple(val.groups))
    assert len(drawn) > 1
    shuffled = VideoSet(videos.items[::-1], videos.classes).hold_out(1 / 3, seed=4)
    assert {i.id for i in shuffled.split("val")} == {i.id for i in val}


def test_hold_out_without_groups_is_stratified():
    items = [VideoItem(f"v{n}", f"v{n}", n % 3, "train") for n in range(30)]
    parts = VideoSet(items, "abc").hold_out(0.2)
    assert np.bincount(parts.split("val").labels).tolist() == [2, 2, 2]


def test_hold_out_errors(ucf):
    videos = read_ucf101(None, ucf / "lists")
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\), got 1"):
        videos.hold_out(1)
    with pytest.raises(ValueError, match="name must be a new split, got 'test'"):
        videos.hold_out(0.5, name="test")
    with pytest.raises(ValueError, match="must leave both parts of the 7 groups of 'train' with videos"):
        videos.hold_out(0.01)
    with pytest.raises(ValueError, match=r"among .'test', 'train'. of UCF101 split 1, got 'val'"):
        videos.split("val")


def test_folds():
    items = [VideoItem(f"{g}{n}", "x", n, group=g) for g in ("s2", "s10", "s1") for n in range(2)]
    folds = list(VideoSet(items, "ab").folds())
    assert [group for group, _, _ in folds] == ["s1", "s2", "s10"]
    for group, train, test in folds:
        assert len(train) == 4
        assert {item.group for item in test} == {group}
    with pytest.raises(ValueError, match="at least 2 groups, got 1 groups and 1 videos without"):
        list(VideoSet([items[0], VideoItem("z", "z", 0)], "ab").folds())


def test_sets_check_their_items():
    with pytest.raises(ValueError, match="distinct ids, got 'a' twice"):
        VideoSet([VideoItem("a", "a", 0), VideoItem("a", "b", 0)], ["x"])
    with pytest.raises(ValueError, match="labels of v must be 0 to 0, got 1 for 'a'"):
        VideoSet([VideoItem("a", "a", 1)], ["x"], "v")
    assert len(VideoSet([VideoItem(n, n, 0) for n in "abc"], ["x"])[1:]) == 2


# ---- the other readers ------------------------------------------------------------------------


def test_ut_interaction():
    videos = read_ut_interaction(data_dir("ut_interaction_set1"))
    assert len(videos) == 60
    assert np.bincount(videos.labels).tolist() == [10] * 6
    # Sequence 6 has no punching clip, sequence 8 has two.
    assert {group: len(test) for group, _, test in videos.folds()} == {
        str(group): {6: 5, 8: 7}.get(group, 6) for group in range(1, 11)
    }
    assert videos[1].path.name == "1_1_2.avi"
    assert videos.classes[videos[1].label] == "kicking"


def test_folders_of_classes(tmp_path):
    for name in ("wave/2.mp4", "wave/10.mp4", "run/a.avi", "run/notes.txt", ".hidden/x.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "run" / "frames").mkdir()
    (tmp_path / "run" / "frames" / "1.jpg").touch()
    videos = read_video_folders(tmp_path)
    assert videos.classes == ("run", "wave")
    assert [(i.id, i.label, i.split) for i in videos] == [
        ("run/a", 0, ""), ("run/frames", 0, ""), ("wave/2", 1, ""), ("wave/10", 1, ""),
    ]  # fmt: skip


def test_folders_with_splits(tmp_path):
    for name in ("train/a/1.mp4", "train/b/2.mp4", "test/b/3.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    videos = read_video_folders(tmp_path)
    assert videos.splits == {"test": 1, "train": 2}
    assert [(i.id, i.label) for i in videos.split("test")] == [("test/b/3", 1)]


def test_folders_errors(tmp_path):
    with pytest.raises(ValueError, match="must hold a folder for each class, got none"):
        read_video_folders(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="a must hold videos or folders of frames, got none"):
        read_video_folders(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere must be a folder"):
        read_video_folders(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"must hold videos <number>_<sequence>_<class>.avi"):
        read_ut_interaction(tmp_path)


def test_list_files(tmp_path):
    for name in ("a b.mp4", "c/d.avi", "c/e.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "f").mkdir()
    (tmp_path / "list.txt").write_text("a b.mp4 2\r\n\r\nc/d.avi 0\nc/e 1\nf 120 1\n")
    videos = read_video_list(tmp_path / "list.txt", split="train")
    assert [(i.id, i.path.name, i.label) for i in videos] == [
        ("a b", "a b.mp4", 2), ("c/d", "d.avi", 0), ("c/e", "e.avi", 1), ("f", "f", 1),
    ]  # fmt: skip
    assert videos.classes == ("0", "1", "2")
    assert videos.splits == {"train": 4}
    (tmp_path / "classes.txt").write_text("run\nhand shaking\nwave\n")
    (tmp_path / "named.txt").write_text("a b.mp4 hand shaking\nc/d.avi 2\n")
    named = read_video_list(tmp_path / "named.txt", classes=tmp_path / "classes.txt")
    assert [(i.id, named.classes[i.label]) for i in named] == [("a b", "hand shaking"), ("c/d", "wave")]


def test_list_errors(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a.mp4 1\nb.mp4\n")
    with pytest.raises(ValueError, match=r'list.txt line 2 must be "path label" with label 0, 1, ..., got'):
        read_video_list(path)
    path.write_text("a.mp4 1\n")
    with pytest.raises(ValueError, match=r'line 1 must be "path label" with label one of 1 classes'):
        read_video_list(path, classes=["x"])
    with pytest.raises(ValueError, match=r"must hold the videos of list.txt, got no a.mp4$"):
        read_video_list(path)
    with pytest.raises(ValueError, match='missing must be "error" or "drop"'):
        read_video_list(path, missing="keep")
    path.write_text("\n")
    with pytest.raises(ValueError, match='must have lines "path label", got none'):
        read_video_list(path)

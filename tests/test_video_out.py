"""What recognition draws: labels on frames, annotated videos, timelines."""

import numpy as np
import pytest
from synthetic_video import number_of, numbered

from lrcn_fast._video_out import annotated_video, draw_labels, draw_timeline
from lrcn_fast.data import open_video

pytest.importorskip("PIL")

LABELS = [("hand shaking", 0.75), ("hugging", 0.25)]


def test_labels_are_bars_in_proportion():
    frame = np.full((480, 640, 3), 200, np.uint8)
    before = frame.copy()
    drawn = draw_labels(frame, LABELS, "1.0 s")
    np.testing.assert_array_equal(frame, before)
    assert drawn.shape == frame.shape
    np.testing.assert_array_equal(drawn[:380], frame[:380])  # only the foot is covered
    blue = drawn[:, :, 2].astype(int) - drawn[:, :, 0]
    first = blue[:, 630] == 0
    bar = (blue > 30) & first[:, None]
    widths = bar.sum(1)
    assert widths.max() == pytest.approx(0.75 * 640, abs=8)


def test_small_frames_are_enlarged():
    assert draw_labels(np.zeros((48, 64, 3), np.uint8), LABELS).shape == (240, 320, 3)
    assert draw_labels(np.zeros((1, 9, 3), np.uint8), LABELS).shape == (240, 2160, 3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_annotated_video(tmp_path, suffix):
    pytest.importorskip("av")
    path = tmp_path / f"out{suffix}"
    with annotated_video(path, 12.5) as out:
        for frame in numbered(9, 49, 65):
            out.add(frame)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with open_video(path) as video:
        assert [number_of(frame) for frame in video] == list(range(9))
        assert (video.height, video.width) == (48, 64)
        assert video.fps == pytest.approx(12.5, rel=0.01)


def write(path, frames):
    with annotated_video(path, 30) as out:
        for frame in frames:
            out.add(frame)


def damaged():
    yield from numbered(2)
    raise ValueError("damaged")


def test_annotated_video_leaves_nothing_behind(tmp_path):
    pytest.importorskip("av")
    with pytest.raises(ValueError, match="damaged"):
        write(tmp_path / "a.mp4", damaged())
    with pytest.raises(ValueError, match=r"--annotate: .*a.txt must end in .mp4, .mkv or .webm"):
        write(tmp_path / "a.txt", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("thumbnails", [0, 3])
def test_timeline(tmp_path, thumbnails):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    probabilities = np.random.default_rng(0).dirichlet(np.ones(5), 40).astype(np.float32)
    strip = [(n, frame) for n, frame in enumerate(numbered(thumbnails))]
    draw_timeline(tmp_path / "t.png", probabilities, list("abcde"), 10.0, strip, title="a.mp4")
    with image.open(tmp_path / "t.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width == 1100
    assert [p.name for p in tmp_path.iterdir()] == ["t.png"]

"""Videos: exact counts and frames by number from every kind of source, samplers, broken files."""

import doctest
import subprocess
import sys

import numpy as np
import pytest
from conftest import data_dir
from synthetic_video import HEIGHT, WIDTH, encode, encoded, number_of, numbered

from lrcn_fast.data import clip_indices, open_video, sliding_indices, uniform_indices
from lrcn_fast.data._video_sources import PyavVideo

pytest.importorskip("av")

KINDS = {
    "mp4": {},
    "mp4-one-keyframe": {"gop": 1000},
    "mp4-variable-rate": {"skip": (3, 4, 20, 21, 22)},
    "mkv": {"format": "matroska"},
    "webm": {"format": "webm", "codec": "libvpx", "b_frames": 0},
    "avi-mpeg4": {"format": "avi", "codec": "mpeg4"},
    "avi-mjpeg": {"format": "avi", "codec": "mjpeg"},
    "mpegts": {"format": "mpegts"},
}


@pytest.fixture(scope="module", params=KINDS)
def content(request):
    return encoded(**KINDS[request.param])


def numbers(frames):
    return [number_of(frame) for frame in frames]


# ---- files ------------------------------------------------------------------------------------


def test_count_and_streaming(content):
    with open_video(content) as video:
        assert len(video) == 60
        assert (video.height, video.width) == (HEIGHT, WIDTH)
        assert video.fps == pytest.approx(30, rel=0.1)
        assert video.backend.startswith("pyav ")
        assert numbers(video) == list(range(60))
        assert numbers(video) == list(range(60))


def test_frames_by_number(content):
    with open_video(content) as video:
        everything = np.stack(list(video))
        for seed in range(3):
            indices = np.random.default_rng(seed).integers(0, 60, 15)
            frames = video.frames(indices)
            assert numbers(frames) == indices.tolist()
            np.testing.assert_array_equal(frames, everything[indices])
        for index in (59, 0, 30, 29, 31, 12, 13, 11):  # one at a time, to and fro
            np.testing.assert_array_equal(video.frames([index])[0], everything[index])


def test_shapes_of_indices(content):
    video = open_video(content)
    assert video.frames(clip_indices(60)).shape == (8, 16, HEIGHT, WIDTH, 3)
    assert video.frames([]).shape == (0, HEIGHT, WIDTH, 3)
    assert video.frames(7).shape == (HEIGHT, WIDTH, 3)


def test_seeking_skips_what_lies_before(monkeypatch):
    """A frame far into a file with many keyframes costs a few decoded frames, not all before it."""
    video = open_video(encoded(120))
    len(video)
    decoded = []
    original = PyavVideo._decode

    def counting(self, container, whole=False):
        for frame in original(self, container, whole):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(PyavVideo, "_decode", counting)
    assert numbers(video.frames([100, 102])) == [100, 102]
    assert len(decoded) <= 12 + 3
    assert numbers(video.frames([110])) == [110]  # goes on from where it is
    assert len(decoded) <= 24
    assert video._seekable


def test_seeking_that_lies_is_found_out(monkeypatch):
    """Where a seek yields another picture, the file is decoded from its start, with the right result."""
    video = open_video(encoded(60))
    keyframes = list(video._index().keyframes)
    assert len(keyframes) > 3
    times = video._index().times
    times[keyframes[2]], times[keyframes[3]] = times[keyframes[3]], times[keyframes[2]]
    wanted = [keyframes[2] + 1, keyframes[3] + 2]
    assert numbers(video.frames(wanted)) == wanted
    assert not video._seekable


def test_closing_frees_and_reading_reopens(tmp_path):
    path = tmp_path / "a.mp4"
    encode(numbered(20), str(path))
    with open_video(path) as video:
        assert numbers(video.frames([3])) == [3]
    assert video._container is None
    assert numbers(video.frames([5])) == [5]
    assert str(path) in repr(video)


def test_rotation_is_applied():
    """A phone's upright video: stored lying, with a matrix in the track header that turns it."""
    content = bytearray(encoded(6))
    at = content.index(b"tkhd") + 4 + 4 + 20 + 16  # version 0: the matrix follows 16 bytes after the duration
    assert content[at : at + 4] == (0x10000).to_bytes(4, "big")
    turn = [0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000]  # 90 degrees clockwise
    content[at : at + 36] = np.array(turn, ">i4").tobytes()
    lying, upright = open_video(encoded(6)), open_video(bytes(content))
    assert (upright.height, upright.width) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(upright.frames([5])[0], np.rot90(lying.frames([5])[0], -1))


def test_key_is_of_the_content(tmp_path):
    a, b = encoded(10), encoded(11)
    path = tmp_path / "renamed.mp4"
    path.write_bytes(a)
    assert open_video(a).key() == open_video(path).key() != open_video(b).key()
    assert open_video(a).key("flow") != open_video(a).key()
    assert len(open_video(a).key()) == 32


def test_real_videos():
    """These AVI files announce two frames more than a decoder yields (packets of one byte)."""
    folder = data_dir("ut_interaction_set1")
    for name in ("0_1_4.avi", "53_9_1.avi"):
        video = open_video(folder / name)
        everything = np.stack(list(video))
        assert len(video) == len(everything)
        indices = np.random.default_rng(0).permutation(len(video))[:5]
        np.testing.assert_array_equal(video.frames(indices), everything[indices])
    assert len(open_video(folder / "0_1_4.avi")) == 108


# ---- arrays and folders -----------------------------------------------------------------------


def test_arrays():
    frames = numbered(20)
    video = open_video(frames, fps=12.5)
    assert (len(video), video.height, video.width, video.fps) == (20, HEIGHT, WIDTH, 12.5)
    np.testing.assert_array_equal(video.frames([[3, 1], [1, 19]]), frames[[[3, 1], [1, 19]]])
    np.testing.assert_array_equal(np.stack(list(video)), frames)
    assert video.key() != open_video(frames[:, :, ::-1].copy()).key()
    with pytest.raises(ValueError, match=r"array must be uint8 \[N, H, W, 3\].*got float64 \[2, 3, 4, 3\]"):
        open_video(np.zeros((2, 3, 4, 3)))


def write_folder(folder, frames):
    image = pytest.importorskip("PIL.Image")
    folder.mkdir()
    for number, frame in enumerate(frames, 1):
        image.fromarray(frame).save(folder / f"frame_{number}.png")
    (folder / "notes.txt").write_text("no frame")


def test_folders_in_natural_order(tmp_path):
    write_folder(tmp_path / "v", numbered(12))
    video = open_video(tmp_path / "v")
    assert numbers(video) == list(range(12))
    assert numbers(video.frames([10, 1, 9])) == [10, 1, 9]
    assert len(video) == 12
    assert video.fps == 30
    assert video.key() == open_video(tmp_path / "v").key()


def test_broken_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty must hold frames \(.jpg, .*got none"):
        open_video(tmp_path / "empty")
    write_folder(tmp_path / "v", numbered(3))
    write_folder(tmp_path / "w", numbered(1, 8, 8))
    (tmp_path / "w" / "frame_1.png").rename(tmp_path / "v" / "frame_4.png")
    video = open_video(tmp_path / "v")
    with pytest.raises(ValueError, match=r"frame_4.png must be 64 x 48 as the frames before it, got 8 x 8"):
        video.frames([3])


# ---- errors -----------------------------------------------------------------------------------


def whole(content):
    return len(open_video(content))


@pytest.mark.parametrize("kind", ["mp4", "avi-mpeg4", "avi-mjpeg"])
def test_truncated_files(kind, tmp_path):
    content = encoded(**KINDS[kind])
    path = tmp_path / "cut.video"
    for share in (0.001, 0.1, 0.5, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match=r"cut.video must be a whole video file, got") as caught:
            whole(path)
        assert "\n" not in str(caught.value)


def test_truncated_with_the_table_in_front(tmp_path):
    import av

    path = tmp_path / "fast.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for frame in numbered(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    content = path.read_bytes()
    assert whole(content) == 40
    path.write_bytes(content[:-50])
    with pytest.raises(ValueError, match=r"fast.mp4 must be a whole video file, got a truncated one"):
        open_video(path)


@pytest.mark.parametrize(
    ("content", "got"),
    [(b"", "an empty file"), (b"no video at all" * 100, "something else"), (b"\0" * 5000, "something else")],
    ids=["empty", "text", "zeros"],
)
def test_foreign_files(content, got, tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"open_video: .*x.mp4 must be a whole video file, got {got}"):
        open_video(path)
    with pytest.raises(ValueError, match=rf"video of {len(content)} bytes must be a whole .* got {got}"):
        open_video(content)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi-mpeg4", "mpegts"])
def test_damaged_files_are_read_or_refused(kind):
    """Bytes changed at random: the frames that are counted are those that come, or one ValueError."""
    content = encoded(20, **KINDS[kind])
    refused = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        damaged = bytearray(content)
        for _ in range(random.choice([1, 3, 20])):
            damaged[random.integers(len(content))] = random.integers(256)
        try:
            video = open_video(bytes(damaged))
            count = len(video)
            assert len(list(video)) == count
            video.frames([count - 1, 0, count // 2])
        except ValueError as error:
            refused.append(str(error))
    assert 0 < len(refused) < 40
    assert all("must be a whole video file, got" in text and "\n" not in text for text in refused)


def test_audio_is_no_video(tmp_path):
    import wave

    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 100, "NONE", ""))
        sound.writeframes(b"\0\0" * 100)
    with pytest.raises(ValueError, match="got a file without a video stream"):
        open_video(tmp_path / "a.wav")


def test_wrong_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.mp4 must be a video or a folder of frames"):
        open_video(tmp_path / "nowhere.mp4")
    with pytest.raises(ValueError, match=r'backend must be "auto", "pyav" or "torchcodec", got .vlc.'):
        open_video("a.mp4", backend="vlc")
    with pytest.raises(ValueError, match=r"source must be a path, bytes or a uint8 array .* got int"):
        open_video(3)
    with pytest.raises(ValueError, match="fps must be above 0, got 0"):
        open_video(numbered(2), fps=0)
    video = open_video(numbered(5))
    with pytest.raises(IndexError, match="indices must be 0 to 4 for array of 5 frames, got -1 to 2"):
        video.frames([-1, 2])
    with pytest.raises(IndexError, match="got 5 to 5"):
        video.frames([5])
    with pytest.raises(ValueError, match="indices must be integers, got float64"):
        video.frames([0.5])


def test_missing_extra_names_the_install():
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from lrcn_fast.data import open_video\n"
        "open_video(b'x', backend='pyav')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ImportError: open_video: video files need PyAV: pip install 'lrcn_fast[video]'"


# ---- torchcodec -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mp4", "mp4-one-keyframe", "mp4-variable-rate", "mkv", "webm"])
def test_torchcodec_gives_the_same_frames(kind):
    """Containers with a time stamp on every packet; in AVI and MPEG-TS torchcodec miscounts B-frames."""
    pytest.importorskip("torchcodec")
    content = encoded(**KINDS[kind])
    try:
        video = open_video(content, backend="torchcodec")
    except ImportError as error:
        pytest.skip(str(error))
    assert len(video) == 60
    assert (video.height, video.width) == (HEIGHT, WIDTH)
    assert numbers(video) == list(range(60))
    assert numbers(video.frames([30, 2, 59])) == [30, 2, 59]
    assert video.backend.startswith("torchcodec ")
    assert video.key() != open_video(content).key()
    with pytest.raises(ValueError, match="must be a whole video file"):
        open_video(content[:100], backend="torchcodec")


# ---- samplers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "starts"),
    [(16, [0, 0]), (17, [0, 1, 1]), (23, [0, 7, 7]), (24, [0, 8, 8]), (25, [0, 8, 9, 9]),
     (32, [0, 8, 16, 16]), (33, [0, 8, 16, 17, 17]), (85, [0, 8, 16, 24, 32, 40, 48, 56, 64, 69, 69])],
)  # fmt: skip
def test_clips_of_the_paper(frames, starts):
    clips = clip_indices(frames)
    assert clips.dtype == np.int64
    np.testing.assert_array_equal(clips, np.array(starts)[:, None] + np.arange(16))


def test_clip_rule_for_every_length():
    """The rule of the release, spelt out: a clip that reaches the end or beyond is the last 16 frames."""
    for frames in range(16, 200):
        last = list(range(frames - 16, frames))
        expected = [
            list(range(start, start + 16)) if start + 16 < frames else last for start in range(0, frames, 8)
        ]
        assert clip_indices(frames).tolist() == expected


def test_short_videos_hold_their_last_frame():
    assert clip_indices(3, clip_length=5).tolist() == [[0, 1, 2, 2, 2]]
    assert clip_indices(1).tolist() == [[0] * 16]
    assert sliding_indices(3, 5).tolist() == [[0, 1, 2, 2, 2]]


def test_examples_in_the_docstrings():
    from lrcn_fast.data import video

    assert doctest.testmod(video) == (0, 4)


def test_other_clips():
    assert clip_indices(10, clip_length=4, stride=4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [6, 7, 8, 9]]


def test_uniform():
    assert uniform_indices(8, 8).tolist() == list(range(8))
    assert uniform_indices(100, 1).tolist() == [50]
    assert uniform_indices(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    for frames in range(1, 60):
        for n in range(1, 20):
            indices = uniform_indices(frames, n)
            assert indices.min() >= 0
            assert indices.max() < frames
            assert (np.diff(indices) >= 0).all()
            expected = [int((i + 0.5) * frames / n + 1e-9) for i in range(n)]
            assert indices.tolist() == expected


def test_sliding():
    assert sliding_indices(6, 3, 2).tolist() == [[0, 1, 2], [2, 3, 4]]
    assert sliding_indices(5, 5).tolist() == [[0, 1, 2, 3, 4]]
    assert sliding_indices(6, 5).tolist() == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]


def test_sampler_errors():
    with pytest.raises(ValueError, match="clip_indices: num_frames must be at least 1, got 0"):
        clip_indices(0)
    with pytest.raises(ValueError, match="uniform_indices: n must be at least 1, got 0"):
        uniform_indices(5, 0)
    with pytest.raises(ValueError, match="sliding_indices: step must be at least 1, got -1"):
        sliding_indices(5, 2, -1)

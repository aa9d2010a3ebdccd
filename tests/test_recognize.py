"""``lrcn-fast recognize``: files, folders, fusion with flow, streams, pictures, bad files among good ones."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from synthetic_video import encode, number_of, numbered

pytest.importorskip("typer")
pytest.importorskip("av")
pytest.importorskip("cv2")
from lrcn_fast import _recognize, cli
from lrcn_fast.data import open_video
from lrcn_fast.data.flow import flow_images, optical_flow

CLASSES = ("even", "odd", "never")


def parity(frame):
    """Probabilities of a frame of a numbered video."""
    odd = number_of(frame) % 2
    return np.array([0.8 - 0.6 * odd, 0.15 + 0.6 * odd, 0.05], np.float32)


class Parity:
    """Tells even from odd numbers; counts what it is shown."""

    classes = CLASSES

    def __init__(self, probabilities=parity, stream_kind="rgb"):
        self.probabilities = probabilities
        self.stream_kind = stream_kind
        self.seen = []

    def recognize(self, video, crops):
        assert crops == "centre"
        frames = np.stack([self.probabilities(frame) for frame in video])
        return SimpleNamespace(probabilities=frames.mean(0), frame_probabilities=frames)

    def stream(self):
        return self

    def push(self, frame):
        self.seen.append(frame)
        return self.probabilities(frame)


def brightness(picture):
    """Probabilities of a flow picture: class "odd" as far as something moves."""
    moving = min(1.0, float(np.abs(picture[..., 2].astype(int) - 128).mean()) / 64)
    return np.array([1 - moving, moving, 0], np.float32)


@pytest.fixture
def models(monkeypatch):
    """What --model rgb and --model flow load."""
    found = {"rgb": Parity(), "flow": Parity(brightness, "flow")}
    monkeypatch.setattr(
        "lrcn_fast.models.ActivityRecognizer.from_pretrained",
        lambda name, device: found[name],
    )
    return found


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, count in (("v2.mp4", 21), ("v10.mp4", 40)):
        encode(numbered(count), str(folder / name), fps=10)
    return folder


@pytest.fixture
def run(capsys):
    """Run the command in this process -> (exit status, lines of stdout, stderr)."""

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(["recognize", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return stop.value.code, out.splitlines(), err

    return call


def fused(path, weight):
    """Probabilities of the frames of a video as late fusion has them."""
    with open_video(path) as video:
        rgb = np.stack([parity(frame) for frame in video])
        flow = np.stack([brightness(picture) for picture in flow_images(optical_flow(video))])
    both = rgb.copy()
    both[1:] = (1 - weight) * rgb[1:] + weight * flow
    return both, (1 - weight) * rgb.mean(0) + weight * flow.mean(0)


# ---- files ------------------------------------------------------------------------------------


def test_files_folders_and_globs(run, models, videos):
    first, second = videos / "v2.mp4", videos / "v10.mp4"
    expected = [f"{first}\t0.514\teven", f"{second}\t0.500\teven"]
    assert run(first, second, "--model", "rgb") == (0, expected, "")
    assert run(videos, "--model", "rgb") == (0, expected, "")
    assert run(videos / "*.mp4", "--model", "rgb") == (0, expected, "")


def test_top_k_and_json(run, models, videos):
    path = videos / "v2.mp4"
    status, lines, _ = run(path, "--model", "rgb", "--top-k", 2)
    assert (status, lines) == (0, [f"{path}\t0.514\teven", f"{path}\t0.436\todd"])
    status, (line,), _ = run(path, "--model", "rgb", "--top-k", 9, "--json")
    record = json.loads(line)
    assert (record["video"], record["frames"]) == (str(path), 21)
    assert [c["label"] for c in record["classes"]] == ["even", "odd", "never"]
    assert sum(c["probability"] for c in record["classes"]) == pytest.approx(1)


def test_a_folder_of_frames_is_a_video(run, models, tmp_path):
    image = pytest.importorskip("PIL.Image")
    for number, frame in enumerate(numbered(5)):
        image.fromarray(frame).save(tmp_path / f"{number}.png")
    assert run(tmp_path, "--model", "rgb") == (0, [f"{tmp_path}\t0.560\teven"], "")


def test_bad_files_among_good_ones(run, models, videos, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes((videos / "v2.mp4").read_bytes()[:1000])
    missing, empty = tmp_path / "missing.mp4", tmp_path / "empty"
    empty.mkdir()
    status, lines, err = run(bad, videos / "v2.mp4", missing, empty, "--model", "rgb")
    assert (status, lines) == (1, [f"{videos / 'v2.mp4'}\t0.514\teven"])
    problems = err.splitlines()
    assert len(problems) == 3
    assert all(line.startswith("lrcn-fast recognize: ") for line in problems)
    assert "empty: must hold videos" in problems[0]
    assert "bad.mp4 must be a whole video file" in problems[1]
    assert "missing.mp4 must be a video or a folder of frames, got no such file" in problems[2]
    short = tmp_path / "short.mp4"
    encode(numbered(1), str(short), fps=10)
    wanted = f"{short} must have at least 2 frames for optical flow, got"
    assert run(short, "--model", "flow") == (1, [], f"lrcn-fast recognize: {wanted} 1\n")
    assert run(short, "--model", "flow", "--stream") == (1, [], f"lrcn-fast: {wanted} too few\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.mp4",), "--model"),
        (("a.mp4", "b.mp4", "--stream", "--model", "rgb"), "--stream takes one VIDEO, got 2"),
        (("a.mp4", "--max-frames", 3, "--model", "rgb"), "--max-frames needs --stream"),
        (("a.mp4", "b.mp4", "--timeline", "t.png", "--model", "rgb"), "take one video, got 2"),
        (("a.mp4", "--stream", "--crops", "ten", "--model", "rgb"), "are for whole files, not for --stream"),
        (("a.mp4", "--stream", "--cache", "x", "--model", "rgb"), "are for whole files, not for --stream"),
        (("a.mp4", "--flow-weight", 2, "--model", "rgb"), "--flow-weight"),
        (("a.mp4", "--flow-weight", 0, "--model", "rgb"), "--flow-weight goes with --flow-model"),
        (("a.mp4", "--flow-weight", "nan", "--model", "rgb"), "--flow-weight"),
        (("a.mp4", "--flow-method", "raft", "--model", "rgb"), "--flow-method"),
    ],
)
def test_wrong_usage(run, models, arguments, message):
    status, lines, err = run(*arguments)
    assert (status, lines) == (2, [])
    assert message in " ".join(err.replace("│", " ").split())


# ---- flow -------------------------------------------------------------------------------------


def test_late_fusion(run, models, videos, tmp_path):
    path = videos / "v2.mp4"
    for weight in (0.5, 2 / 3, 0.0, 1.0):
        _, (line,), _ = run(
            path, "--model", "rgb", "--flow-model", "flow", "--flow-weight", weight, "--json", "--top-k", 3
        )
        found = {c["label"]: c["probability"] for c in json.loads(line)["classes"]}
        np.testing.assert_allclose([found[c] for c in CLASSES], fused(path, weight)[1], atol=1e-6)
    assert run(path, "--model", "rgb", "--flow-model", "flow", "--cache", tmp_path)[0] == 0
    (kept,) = tmp_path.iterdir()
    assert len(list(kept.iterdir())) == 20
    message = "--cache must come with a model that reads flow, got only one of frames"
    assert run(path, "--model", "rgb", "--cache", tmp_path) == (1, [], f"lrcn-fast: {message}\n")


@pytest.mark.parametrize("stream", [False, True])
def test_flow_alone(run, models, videos, tmp_path, stream):
    path, picture = videos / "v2.mp4", tmp_path / "out.png"
    more = ("--stream",) if stream else ()
    status, lines, _ = run(
        path,
        "--model",
        "flow",
        "--json",
        "--top-k",
        3,
        "--timeline",
        picture,
        "--annotate",
        tmp_path / "o.mp4",
        *more,
    )
    assert status == 0
    with open_video(path) as video:
        expected = np.stack([brightness(p) for p in flow_images(optical_flow(video))])
    found = {c["label"]: c["probability"] for c in json.loads(lines[-1])["classes"]}
    np.testing.assert_allclose([found[c] for c in CLASSES], expected.mean(0), atol=1e-6)
    with open_video(path) as video, open_video(tmp_path / "o.mp4") as annotated:
        assert len(annotated) == len(video)
    assert picture.stat().st_size


def test_models_of_the_wrong_kind(run, models, videos):
    status, _, err = run(videos / "v2.mp4", "--model", "flow", "--flow-model", "flow")
    assert (status, err) == (1, "lrcn-fast: --model must be a model that reads rgb, got flow\n")
    status, _, err = run(videos / "v2.mp4", "--model", "rgb", "--flow-model", "rgb")
    assert (status, err) == (1, "lrcn-fast: --flow-model must be a model that reads flow, got rgb\n")


def test_fusion_needs_the_same_classes(run, models, videos):
    models["flow"].classes = ("odd", "even", "never")
    status, _, err = run(videos / "v2.mp4", "--model", "rgb", "--flow-model", "flow")
    assert status == 1
    assert (
        err
        == "lrcn-fast: --flow-model must have the classes of --model, got 3 and 3 of other names or order\n"
    )


# ---- a model from disk --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch = pytest.importorskip("torch")
    from lrcn_fast.models import ActivityRecognizer

    torch.manual_seed(0)
    model = ActivityRecognizer("timm/test_resnet", classes=CLASSES, hidden_size=8, encoder_weights=None)
    folder = tmp_path_factory.mktemp("bundle")
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    model.eval().save_pretrained(folder)
    return folder


def test_model_from_disk(run, bundle, videos):
    from lrcn_fast.models import ActivityRecognizer

    path = videos / "v2.mp4"
    model = ActivityRecognizer.from_pretrained(bundle)
    for crops in ("ten", "mirror", "centre"):
        expected = model.recognize(path, crops=crops)
        status, (line,), _ = run(path, "--model", bundle, "--json", "--top-k", 3, "--crops", crops)
        assert status == 0
        assert [(c["label"], c["probability"]) for c in json.loads(line)["classes"]] == expected.top(3)
    _, (line,), _ = run(path, "--model", bundle)
    label, probability = expected.top()[0]
    assert line == f"{path}\t{probability:.3f}\t{label}"


def test_stream_of_a_model_from_disk(run, bundle, videos):
    """The state is kept: the stream gives what the LSTM gives over the whole video at once."""
    import torch

    from lrcn_fast.models import ActivityRecognizer

    model = ActivityRecognizer.from_pretrained(bundle)
    with open_video(videos / "v2.mp4") as video, torch.no_grad():
        frames = torch.stack([model.encoder.preprocess(frame) for frame in video])
        expected = model(frames[None])[0].softmax(-1).numpy()
    _, lines, _ = run(videos / "v2.mp4", "--stream", "--model", bundle, "--json", "--top-k", 3)
    for number, record in enumerate(map(json.loads, lines[:-1])):
        found = {c["label"]: c["probability"] for c in record["classes"]}
        window = expected[max(0, number - 15) : number + 1].mean(0)
        np.testing.assert_allclose([found[c] for c in CLASSES], window, atol=1e-5)


def test_no_such_model(run, videos, tmp_path):
    status, lines, err = run(videos / "v2.mp4", "--model", tmp_path / "nowhere")
    assert (status, lines) == (1, [])
    assert len(err.splitlines()) == 1
    assert "nowhere" in err


# ---- streams ----------------------------------------------------------------------------------


def test_stream_is_frame_by_frame(run, models, videos):
    status, lines, _ = run(videos / "v10.mp4", "--stream", "--model", "rgb", "--json", "--top-k", 3)
    assert status == 0
    *frames, last = map(json.loads, lines)
    assert [number_of(frame) for frame in models["rgb"].seen] == list(range(40))
    assert [record["frame"] for record in frames] == list(range(40))
    assert frames[10]["seconds"] == pytest.approx(1.0)
    assert all(record["latency_ms"] > 0 for record in frames)
    for number in (0, 1, 20, 39):  # the mean of the last 16
        window = [parity(numbered(40)[k]) for k in range(max(0, number - 15), number + 1)]
        found = {c["label"]: c["probability"] for c in frames[number]["classes"]}
        np.testing.assert_allclose([found[c] for c in CLASSES], np.mean(window, 0), atol=1e-6)
    assert (last["video"], last["frames"]) == (str(videos / "v10.mp4"), 40)
    assert last["classes"][0]["probability"] == pytest.approx(0.5)


def test_stream_prints_a_line_a_second(run, models, videos):
    status, lines, _ = run(videos / "v10.mp4", "--stream", "--model", "rgb")
    assert status == 0
    assert [line.split("\t")[0] for line in lines] == ["0.0 s", "1.0 s", "2.0 s", "3.0 s", "40 frames"]
    assert lines[0].split("\t")[1:3] == ["0.800", "even"]
    assert all(line.endswith(" ms") for line in lines)
    _, lines, _ = run(videos / "v10.mp4", "--stream", "--model", "rgb", "--max-frames", 5)
    assert [line.split("\t")[0] for line in lines] == ["0.0 s", "5 frames"]


def test_stream_with_flow(run, models, videos):
    path = videos / "v2.mp4"
    status, lines, _ = run(path, "--stream", "--model", "rgb", "--flow-model", "flow", "--json", "--top-k", 3)
    assert status == 0
    found = {c["label"]: c["probability"] for c in json.loads(lines[-1])["classes"]}
    np.testing.assert_allclose([found[c] for c in CLASSES], fused(path, 0.5)[0].mean(0), atol=1e-6)


def test_cameras(run, models, monkeypatch, tmp_path):
    class Camera:
        def __init__(self, number):
            assert number == 3
            self.left = list(numbered(6)[..., ::-1])

        def isOpened(self):
            return True

        def get(self, _):
            return 0.0

        def read(self):
            if not self.left:
                raise KeyboardInterrupt
            return True, self.left.pop(0)

        def release(self):
            self.left = None

    monkeypatch.setattr("cv2.VideoCapture", Camera)
    monkeypatch.chdir(tmp_path)
    status, lines, _ = run(3, "--stream", "--model", "rgb", "--annotate", "out.mp4")
    assert status == 0
    assert lines[-1].startswith("6 frames\t0.500\teven\t")
    assert len(open_video("out.mp4")) == 6
    Camera.isOpened = lambda self: False
    status, _, err = run(3, "--stream", "--model", "rgb")
    assert (status, err) == (1, "lrcn-fast: --stream: 3 must be a camera that can be opened, got none\n")


# ---- pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_annotated_video_and_timeline(run, models, videos, tmp_path, stream, monkeypatch):
    drawn = []
    monkeypatch.setattr(_recognize, "draw_timeline", lambda *given: drawn.append(given))
    out = tmp_path / "out.mp4"
    status, _, err = run(
        videos / "v10.mp4", "--model", "rgb", "--annotate", out, "--timeline", tmp_path / "t.png", *stream
    )
    assert (status, err) == (0, "")
    with open_video(out) as annotated:
        assert len(annotated) == 40
        assert (annotated.height, annotated.width) == (240, 320)
        assert annotated.fps == pytest.approx(10)
        assert [number_of(frame[:120]) for frame in annotated] == list(range(40))
    ((path, probabilities, classes, fps, thumbnails, top_k, _),) = drawn
    assert (path, tuple(classes), fps, top_k) == (tmp_path / "t.png", CLASSES, 10.0, 3)
    np.testing.assert_allclose(probabilities, [parity(frame) for frame in numbered(40)], atol=1e-6)
    assert len(thumbnails) == 8
    assert all(number_of(frame) == number for number, frame in thumbnails)
    assert set(np.diff([number for number, _ in thumbnails])) <= {4, 5, 6, 8}

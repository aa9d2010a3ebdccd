"""Training of activity recognizers: clips, resuming, and runs on videos that only order tells apart."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

import lrcn_fast.training.loop as loop
from lrcn_fast.data import read_video_folders
from lrcn_fast.evaluation import confusion_matrix, late_fusion, recognition_metrics
from lrcn_fast.models import ActivityRecognizer, create_encoder
from lrcn_fast.models.encoders import _PREPROCESSING
from lrcn_fast.training import load_config, parse_config, train
from lrcn_fast.training.clips import ClipStream, VideoFeatures, VideoReader
from lrcn_fast.training.recognition import read_videos

COLOURS = np.array([[230, 30, 30], [30, 200, 60]], np.uint8)
N = 10


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Folders of frames: red then green, and green then red; mean and single frames are the same."""
    root = tmp_path_factory.mktemp("videos")
    for label, name in enumerate(("falling", "rising")):
        for v in range(4):
            folder = root / name / f"{v}"
            folder.mkdir(parents=True)
            rng = np.random.default_rng(10 * label + v)
            for t in range(N):
                picture = rng.integers(0, 25, (24, 32, 3)).astype(np.uint8)
                picture += COLOURS[(t >= N // 2) ^ label]
                Image.fromarray(picture).save(folder / f"{t}.png")
    return root


def config(videos, phase=None, model=None, **changes):
    return {
        "task": "recognition",
        "seed": 4,
        "model": {
            "encoder": "timm/test_resnet", "encoder_weights": None, "encoder_mode": "pad",
            "encoder_resize": 160, "hidden_size": 12, "sampling": "uniform", "clip_length": 5,
            "feature_norm": "standardize", "feature_projection": 8, **(model or {}),
        },
        "data": {"videos": str(videos), "validation_fraction": 0.25},
        "phases": [
            {"name": "train", "encoder": "cached", "steps": 60, "batch_size": 6, "evaluate_every": 30,
             "clip_norm": 5, "ema": 0.9, "optimizer": {"lr": 0.02},
             "dropout": {"features": 0.1, "output": 0.1}, **(phase or {})}
        ],
        "checkpoint_every": 2,
        **changes,
    }  # fmt: skip


def weights_hash(out):
    return hashlib.sha256((out / "model" / "weights.safetensors").read_bytes()).hexdigest()


def test_order_is_learned_by_the_lstm_only(tmp_path, videos):
    cache = {"videos": str(videos), "validation_fraction": 0.25, "cache": str(tmp_path / "cache")}
    summary = train(parse_config(config(videos, data=cache)), tmp_path / "lstm", device="cpu")
    assert summary["best"]["accuracy"] == 1.0
    assert summary["history"][-1]["validation_loss"] < 0.3
    single = config(videos, model={"recurrent": False}, data=cache)
    summary = train(parse_config(single), tmp_path / "single", device="cpu")
    # The frames of both classes are the same: no better than a coin, whatever the threshold.
    assert summary["history"][-1]["validation_loss"] > 0.6
    model = ActivityRecognizer.from_pretrained(tmp_path / "lstm" / "model")
    assert model.classes == ("falling", "rising")
    assert model.recognize(videos / "rising" / "2").top()[0][0] == "rising"
    assert model.details["validation"]["accuracy"] == 1.0


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, videos, monkeypatch):
    values = config(
        videos, {"steps": 7, "encoder": "train", "evaluate_every": 4, "batch_size": 2, "accumulate": 2,
         "mixup": 0.4},
        {"sampling": "clips", "clip_length": 2, "clip_stride": 4, "feature_norm": "none"},
    )  # fmt: skip
    train(parse_config(values), tmp_path / "whole", device="cpu")

    def fail(schedule, step, total):
        if step == 5:
            raise KeyboardInterrupt
        return 1.0

    with monkeypatch.context() as patch:
        patch.setattr(loop, "schedule_factor", fail)
        with pytest.raises(KeyboardInterrupt):
            train(parse_config(values), tmp_path / "cut", device="cpu")
    train(parse_config(values), tmp_path / "cut", device="cpu")
    assert weights_hash(tmp_path / "cut") == weights_hash(tmp_path / "whole")
    for name in ("history.json", "log.jsonl"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()
    tuned = ActivityRecognizer.from_pretrained(tmp_path / "whole" / "model")
    torch.manual_seed(0)
    second = config(
        videos,
        {"steps": 1, "batch_size": 2, "encoder": "frozen"},
        {"init_from": str(tmp_path / "whole" / "model")},
    )
    train(parse_config(second), tmp_path / "second", device="cpu")
    started = ActivityRecognizer.from_pretrained(tmp_path / "second" / "model")
    for a, b in zip(tuned.encoder.parameters(), started.encoder.parameters(), strict=True):
        assert torch.equal(a, b)


def test_flow_is_trained_on_pictures_of_flow(tmp_path, videos):
    pytest.importorskip("cv2")
    values = config(
        videos, {"steps": 2, "evaluate_every": 2}, {"stream": "flow", "clip_length": 4, "encoder_mode": "own"}
    )
    train(parse_config(values), tmp_path, device="cpu")
    assert len(list((tmp_path / "flow").iterdir())) == 8
    assert ActivityRecognizer.from_pretrained(tmp_path / "model").stream_kind == "flow"


# ---- clips ------------------------------------------------------------------------------------


def recognizer(**options):
    return ActivityRecognizer(create_encoder("timm/test_resnet", weights=None), 2, **options)


def test_clips_have_one_view_random_starts_and_no_position():
    model = recognizer(clip_length=16)
    stream = ClipStream([40, 16, 5, 99], model, 4, (1, 0), mirror=True, crop=True)
    starts, views = set(), []
    for n in range(200):
        clips = stream[n]
        assert sorted(c.video for c in clips) == [0, 1, 2, 3]
        for c in clips:
            length = [40, 16, 5, 99][c.video]
            assert len(c.frames) == 16
            assert c.frames.max() < length
            assert (np.diff(c.frames) == 1).all() or length < 16
            views.append(c.view)
            if c.video == 0:
                starts.add(int(c.frames[0]))
    assert starts == set(range(25))
    # 800 fair coins: 5 deviations are 71.
    assert abs(sum(v.mirror for v in views) - 400) < 71
    assert not any(v.warp for v in views)
    again = ClipStream([40, 16, 5, 99], model, 4, (1, 0), mirror=True, crop=True)[137]
    assert [(c.video, c.view, c.frames.tolist()) for c in again] == [
        (c.video, c.view, c.frames.tolist()) for c in stream[137]
    ]
    assert again[2].frames.tolist() != stream[138][2].frames.tolist() or again[2].view != stream[138][2].view


def test_the_release_squashes_what_it_does_not_mirror_and_skips_frame_one():
    model = recognizer(clip_length=16, caffe_release=True)
    stream = ClipStream([20], model, 1, (1, 0), mirror=True, crop=True)
    clips = [stream[n][0] for n in range(100)]
    assert {int(c.frames[0]) for c in clips} == {1, 2, 3, 4}
    assert all(c.view.warp != c.view.mirror for c in clips)


def test_jitter_stays_in_its_place_and_the_middle_is_the_test_clip():
    model = recognizer(sampling="uniform", clip_length=6)
    plain = ClipStream([90], model, 1, (1,), mirror=False, crop=False)
    assert plain[3][0].frames.tolist() == model.clips(90)[0].tolist()
    stream = ClipStream([90], model, 1, (1,), mirror=False, crop=False, jitter=3)
    seen = np.stack([stream[n][0].frames for n in range(60)])
    assert [sorted(set(column)) for column in seen.T.tolist()] == [
        [15 * k + o for o in (2, 7, 12)] for k in range(6)
    ]


def test_processes_share_the_global_batch():
    model = recognizer()
    whole = ClipStream([20] * 9, model, 4, (2,), mirror=True, crop=True)[5]
    shares = [
        ClipStream([20] * 9, model, 4, (2,), mirror=True, crop=True, rank=r, world=2)[5] for r in (0, 1)
    ]
    assert sorted(c.video for c in whole) == sorted(c.video for s in shares for c in s)
    with pytest.raises(ValueError, match="batch_size must give each of 4 processes a clip, got 2 clips"):
        ClipStream([20] * 9, model, 2, (2,), mirror=True, crop=True, world=4)
    with pytest.raises(ValueError, match="must hold at least one video"):
        ClipStream([], model, 2, (2,), mirror=True, crop=True)


def test_cached_features_are_those_of_the_pixels(tmp_path, videos):
    model = recognizer(sampling="uniform", clip_length=4).eval()
    items = list(read_video_folders(videos))[:2]
    reader = VideoReader(model, items, tmp_path / "flow", "dis")
    assert reader.lengths == [N, N]
    numbers = [np.arange(N)] * 2
    cached = [
        VideoFeatures(model, reader, numbers, tmp_path / "f", mirror=True, batch_size=4) for _ in range(2)
    ]
    clips = ClipStream(reader.lengths, model, 2, (0,), mirror=True, crop=False)[0]
    clips += ClipStream(reader.lengths, model, 2, (0,), mirror=True, crop=False)[1]
    assert {c.view.mirror for c in clips} == {True, False}
    with torch.no_grad():
        direct = model.encoder(reader.pixels(clips).flatten(0, 1)).view(4, 4, -1)
    # Other batch sizes choose other kernels: a few float32 roundings.
    torch.testing.assert_close(cached[0].clips(clips), direct, rtol=1e-4, atol=1e-5)
    assert torch.equal(cached[0].all(), cached[1].all())


# ---- scores, configurations -------------------------------------------------------------------


def test_scores_by_hand():
    p = [[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]
    scores = recognition_metrics([0, 0, 1, 2], p)
    assert scores["accuracy"] == 0.5
    assert scores["mean_class_accuracy"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert scores["top_5_accuracy"] == 1.0
    assert scores["log_loss"] == pytest.approx(-np.log([0.7, 0.3, 0.5, 0.1]).mean())
    assert confusion_matrix([0, 0, 1, 2], [0, 2, 1, 0], 3).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]
    np.testing.assert_allclose(late_fusion([0.9, 0.1], [0.3, 0.7], 2 / 3), [0.5, 0.5])


def test_bad_scores():
    with pytest.raises(
        ValueError, match=r"probabilities must be \[N, K\] and labels \[N\], N >= 1, got \[0\]"
    ):
        recognition_metrics([], [])
    with pytest.raises(ValueError, match="probabilities must be finite, got NaN or infinity for video 1"):
        recognition_metrics([0, 1], [[1, 0], [float("nan"), 0]])
    with pytest.raises(ValueError, match="labels must be integers, got float64"):
        recognition_metrics([0.7], [[1, 0]])
    with pytest.raises(ValueError, match="labels must be 0 to 1, got 0 to 2"):
        recognition_metrics([0, 2], [[1, 0], [0, 1]])
    with pytest.raises(ValueError, match="predictions must be as many as labels, 2, got 1"):
        confusion_matrix([0, 1], [0], 2)
    with pytest.raises(ValueError, match="classes must be 0 to 1, got 0 to 3"):
        confusion_matrix([0, 1], [0, 3], 2)
    with pytest.raises(ValueError, match=r"flow must have the shape of rgb, \[2\], got \[3\]"):
        late_fusion([1, 0], [1, 0, 0])
    with pytest.raises(ValueError, match=r"flow_weight must be in \[0, 1\], got 2"):
        late_fusion([1, 0], [1, 0], 2)


def test_the_last_phase_may_be_an_earlier_one(videos):
    values = config(videos)
    values["phases"].append({"name": "tune", "steps": 1, "encoder": "train"})
    assert [p.name for p in parse_config(values).phases] == ["train", "tune"]
    cut = parse_config({**values, "last_phase": "train"})
    assert [p.name for p in cut.phases] == ["train"]
    assert parse_config(cut.to_dict()).to_dict() == cut.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phases": [{"name": "a", "steps": 1, "jitter": 2}]}, r"phases\[0\]\.jitter must be odd, got 2"),
        ({"model": {"stream": "depth"}}, r"model\.stream must be one of rgb, flow, got 'depth'"),
        (
            {"data": {"videos": "x", "format": "list"}},
            r"data\.lists must be given with format 'list', got null",
        ),
        (
            {"data": {"videos": "x", "held_out_groups": ["1"], "validation_fraction": 0.5}},
            "must set at most one of validation_splits, held_out_groups and validation_fraction, got 2",
        ),
        ({"last_phase": "end"}, "last_phase must be one of train, got 'end'"),
        (
            {"model": {}, "phases": [{"name": "a", "steps": 1, "jitter": 3}]},
            "jitter must be 1 with sampling 'clips'",
        ),
    ],
)
def test_bad_configurations(videos, change, message):
    with pytest.raises(ValueError, match=message):
        parse_config({**config(videos), **change})


def test_groups_that_are_not_there(videos):
    values = config(videos, data={"videos": str(videos), "held_out_groups": ["7"]})
    with pytest.raises(ValueError, match=r"data\.held_out_groups must be among none, got '7'"):
        read_videos(parse_config(values).data, 0)


def test_recipes_hold_the_settings_of_the_release():
    rgb, flow = load_config("ucf101_lrcn_rgb"), load_config("ucf101_lrcn_flow")
    for c, hidden, clip, step, steps in ((rgb, 256, 5, 10000, 30000), (flow, 1024, 15, 20000, 70000)):
        phase = c.phases[0]
        assert (c.model.hidden_size, phase.clip_norm, phase.schedule.step_size, phase.steps) == (
            hidden, clip, step, steps,
        )  # fmt: skip
        assert (phase.batch_size, c.model.clip_length, phase.optimizer.weight_decay) == (24, 16, 0.005)
        assert (phase.dropout.features, phase.dropout.output, c.model.encoder_features) == (0.9, 0.5, "fc6")
    single = load_config("ucf101_single_flow")
    assert (single.phases[0].steps, single.phases[0].batch_size, single.model.recurrent) == (
        50000,
        128,
        False,
    )


@pytest.mark.parametrize("name", ["single_rgb", "single_flow", "lrcn_rgb", "lrcn_flow"])
def test_recipes_cut_frames_as_the_release_does(name):
    """227 x 227 of the 240 x 320 frame, rows from 6 and columns from 46 in tests; nothing is squashed."""
    chosen = load_config(f"ucf101_{name}").model
    held = _PREPROCESSING["hybrid"]
    preprocessing = dataclasses.replace(held, mode=chosen.encoder_mode, resize=chosen.encoder_resize)
    frame = np.random.default_rng(0).integers(0, 256, (240, 320, 3)).astype(np.uint8)
    expected = frame[6:233, 46:273, ::-1].astype(np.float32) - np.array(held.mean, np.float32)
    np.testing.assert_allclose(preprocessing(frame), expected.transpose(2, 0, 1), atol=1e-4)

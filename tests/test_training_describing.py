"""Training of video describers on frames: data, cached features, resuming, and what only the order tells."""

import fnmatch
import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_training_recognition import COLOURS, N

from lrcn_fast.data import read_video_captions
from lrcn_fast.models import VideoDescriber, create_encoder
from lrcn_fast.training import describing, load_config, parse_config, train

SENTENCES = (
    ["red slowly turns green", "the picture becomes green"],
    ["green slowly turns red", "the picture becomes red"],
)


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    """JSON lines about folders of frames: red, then green, and the other way round; the mean is the same."""
    root = tmp_path_factory.mktemp("videos")
    lines = []
    for number in range(8):
        label = number % 2
        folder = root / "clips" / str(number)
        folder.mkdir(parents=True)
        rng = np.random.default_rng(number)
        for t in range(N):
            picture = rng.integers(0, 25, (24, 32, 3)).astype(np.uint8)
            Image.fromarray(picture + COLOURS[(t >= N // 2) ^ label]).save(folder / f"{t}.png")
        split = "val" if number >= 6 else "train"
        lines.append({"video": f"clips/{number}", "captions": SENTENCES[label], "split": split})
    path = root / "captions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def config(captions, phase=None, model=None, **changes):
    return {
        "task": "describing",
        "seed": 4,
        "model": {
            "architecture": "frame_lstm", "encoder": "timm/test_resnet", "encoder_weights": None,
            "encoder_mode": "pad", "encoder_resize": 160, "num_frames": 4, "embed_dim": 8,
            "hidden_size": 16, "feature_norm": "standardize", "feature_projection": 8, **(model or {}),
        },
        "data": {"captions": [str(captions)]},
        "phases": [
            {"name": "describe", "steps": 60, "batch_size": 6, "evaluate_every": 30, "mirror": True,
             "keep": "last", "optimizer": {"lr": 0.02}, **(phase or {})}
        ],
        "checkpoint_every": 1,
        **changes,
    }  # fmt: skip


def test_order_is_described_by_the_lstm_only(tmp_path, captions):
    cache = {"captions": str(captions), "cache": str(tmp_path / "cache")}
    best = train(parse_config(config(captions, data=cache)), tmp_path / "lstm", device="cpu")["best"]
    assert best["bleu_4"] == pytest.approx(1, abs=1e-3)  # both clips
    model = VideoDescriber.from_pretrained(tmp_path / "lstm" / "model")
    for number in (6, 7):
        [[found]] = model.describe([captions.parent / "clips" / str(number)], num_beams=3)
        assert found.text.rstrip(".").lower() in SENTENCES[number % 2]
    assert model.details["clips"] == 6
    mean = config(captions, model={"architecture": "mean_pool"}, data=cache)
    mean = train(parse_config(mean), tmp_path / "mean", device="cpu")["best"]
    # The mean of both is the same: it cannot know more than the words that both have.
    assert mean["validation_loss"] > best["validation_loss"] + 0.2


def test_training_resumes_bit_for_bit(tmp_path, captions, monkeypatch):
    short = {"steps": 4, "evaluate_every": 2}
    c = parse_config(config(captions, short, model={"dropout": 0.2}))
    train(c, tmp_path / "whole", device="cpu")
    scores, calls = describing.DescribingTask._scores, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scores(*args)

    monkeypatch.setattr(describing.DescribingTask, "_scores", killed)
    with pytest.raises(KeyboardInterrupt):
        train(c, tmp_path / "killed", device="cpu")
    train(c, tmp_path / "killed", device="cpu")
    whole, resumed = (VideoDescriber.from_pretrained(tmp_path / n / "model") for n in ("whole", "killed"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_cached_features_are_those_that_describe_computes(tmp_path, captions):
    from lrcn_fast.training import Trainer

    task = Trainer(parse_config(config(captions)), tmp_path / "out", device="cpu").task
    task.stage(0)
    model, clips = task.model.eval(), task.validation_clips
    assert clips.ids == ["clips/6", "clips/7"]
    [_, second] = clips.inputs([0, 1])
    expected = model.features(captions.parent / "clips" / "7")
    # Other batch sizes choose other kernels: a few float32 roundings.
    torch.testing.assert_close(second, expected, rtol=1e-4, atol=1e-5)
    plain, mirrored = task.train_clips.inputs([2, 2], [False, True])
    assert plain.shape == mirrored.shape
    assert not torch.equal(plain, mirrored)


# ---- data -------------------------------------------------------------------------------------


def test_msvd_names(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("-4wsuPCjDBc_5_15.avi", "b_0_9.mp4"):
        (tmp_path / "videos" / name).touch()
    (tmp_path / "mapping.txt").write_text("-4wsuPCjDBc_5_15 vid1\nb_0_9 vid2\n")
    sentences = tmp_path / "sents_val_lc_nopunc.txt"
    sentences.write_text("vid1\ta dog runs\nvid2\ta man cooks\nvid1\tan animal is running\n")
    found = read_video_captions(sentences, tmp_path / "videos", names=tmp_path / "mapping.txt")
    assert [(item.id, item.split, item.image.name) for item in found] == [
        ("vid1", "val", "-4wsuPCjDBc_5_15.avi"),
        ("vid2", "val", "b_0_9.mp4"),
    ]
    assert found[0].captions == ("a dog runs", "an animal is running")
    (tmp_path / "videos" / "b_0_9.mp4").unlink()
    with pytest.raises(ValueError, match=r"must hold the videos of sents_val_lc_nopunc\.txt, got no b_0_9"):
        read_video_captions(sentences, tmp_path / "videos", names=tmp_path / "mapping.txt")
    (tmp_path / "mapping.txt").write_text("b_0_9 vid2\n")
    with pytest.raises(ValueError, match=r"mapping\.txt must name the video of 'vid1', got no such line"):
        read_video_captions(sentences, tmp_path / "videos", names=tmp_path / "mapping.txt")
    (tmp_path / "mapping.txt").write_text("b_0_9\n")
    with pytest.raises(ValueError, match="line 1 must be two names, got 'b_0_9'"):
        read_video_captions(sentences, tmp_path / "videos", names=tmp_path / "mapping.txt")


def test_msvd_sentences_are_those_of_the_data_set(data_dir, tmp_path):
    folder = data_dir("msvd_captions")
    names = [line.split()[0] for line in (folder / "youtube_video_to_id_mapping.txt").open()]
    for name in names:
        (tmp_path / f"{name}.avi").touch()
    found = read_video_captions(
        folder / "sents_train_lc_nopunc.txt", tmp_path, names=folder / "youtube_video_to_id_mapping.txt"
    )
    assert repr(found) == ("CaptionSet(sents_train_lc_nopunc.txt: 1200 photos, 48774 captions; train: 1200)")
    assert found[0].image.name == "-4wsuPCjDBc_5_15.avi"


# ---- configurations ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {}}, r"data\.captions must be given with 'frame_lstm', got none"),
        (
            {"data": {"captions": "a", "clips": "b"}},
            r"data\.clips must not be given with 'frame_lstm', got 'b'",
        ),
        (
            {"model": {"architecture": "decoder_max"}},
            r"data\.captions must not be given with 'decoder_max', got \['a'\]",
        ),
        (
            {"model": {"architecture": "decoder_max"}, "data": {}},
            r"phases\[0\]\.mirror must be false with 'decoder_max', got true",
        ),
    ],
)
def test_bad_configurations(change, message):
    with pytest.raises(ValueError, match=message):
        parse_config({**config("a"), **change})


def test_a_resize_below_the_square(tmp_path, captions):
    with pytest.raises(ValueError, match=r"model\.encoder_resize must be >= 160, got 100"):
        train(parse_config(config(captions, model={"encoder_resize": 100})), tmp_path, device="cpu")


def test_sentences_without_a_split(tmp_path, captions):
    records = [json.loads(line) for line in captions.read_text().splitlines()]
    for record in records:
        del record["split"]
    path = captions.parent / "no_split.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(
        ValueError,
        match=r"data\.train_splits must be among '' of no_split\.jsonl; '' is what has no split, got 'train'",
    ):
        train(parse_config(config(path)), tmp_path / "a", device="cpu")
    data = {"captions": [str(path)], "train_splits": [""], "validation_splits": []}
    values = config(path, {"steps": 1, "evaluate_every": 0}, data=data)
    train(parse_config(values), tmp_path / "b", device="cpu")
    assert VideoDescriber.from_pretrained(tmp_path / "b" / "model").details["clips"] == 8


@pytest.mark.parametrize("name", ["mean_pool", "frame_lstm"])
def test_recipes_name_parameters_that_are_there(name):
    recipe = load_config(f"msvd_{name}")
    encoder = create_encoder("timm/test_resnet", weights=None)
    model = VideoDescriber(name, ["a"], encoder=encoder, embed_dim=2, hidden_size=2)
    parameters = [n for n, _ in model.named_parameters()]
    for pattern in recipe.phases[0].optimizer.multipliers:
        assert fnmatch.filter(parameters, pattern), pattern
    assert (recipe.model.hidden_size, recipe.model.encoder_features) == (1000, "fc7")
    assert load_config("videos_mean_pool").model.architecture == "mean_pool"

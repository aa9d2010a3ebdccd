"""The four systems of the paper from the command line: train, be killed and resume, evaluate, use."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from synthetic_photos import write_data_set
from test_cli import run  # noqa: F401
from test_training_recognition import COLOURS

from lrcn_fast.data import kitchen_clips, write_crf_clips
from lrcn_fast.evaluation import caption_metrics, recognition_metrics, retrieval_metrics
from lrcn_fast.models import load_pretrained
from lrcn_fast.training.loop import Trainer

# ruff: noqa: F811  (the fixture of test_cli)

CLASSES = ("falling", "rising")
FRAMES = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Photos with captions, folders of videos, sentences about these, and outputs of a CRF."""
    root = tmp_path_factory.mktemp("data")
    write_data_set(root / "photos", copies=1)
    lines = []
    for label, name in enumerate(CLASSES):
        for v in range(3):
            folder = root / "videos" / name / str(v)
            folder.mkdir(parents=True)
            rng = np.random.default_rng(10 * label + v)
            for t in range(FRAMES):
                picture = rng.integers(0, 25, (24, 32, 3)).astype(np.uint8)
                Image.fromarray(picture + COLOURS[(t >= FRAMES // 2) ^ label]).save(folder / f"{t}.png")
            record = {"video": f"{name}/{v}", "captions": [f"the colour is {name}", f"it is {name} now"]}
            lines.append(json.dumps({**record, "split": "val" if v == 2 else "train"}))
    (root / "videos" / "captions.jsonl").write_text("\n".join(lines))
    write_crf_clips(root / "crf.jsonl", kitchen_clips(30))
    return root


CNN = {"encoder": "timm/test_resnet", "encoder_weights": None}
SIZES = {"embed_dim": 8, "hidden_size": 8}
CNN_OF_FRAMES = {**CNN, "encoder_mode": "pad", "encoder_resize": 160, "feature_norm": "standardize"}


def recipe(system, data):
    """A few steps of each."""
    phase = {"name": "train", "steps": 4, "batch_size": 4, "evaluate_every": 2, "optimizer": {"lr": 0.01}}
    if system == "captions":
        more = {
            "model": {**CNN, **SIZES, "variant": "2f"},
            "data": {
                "captions": str(data / "photos" / "captions.json"),
                "min_count": 1,
                "validation_fraction": 0.25,
            },
        }
        phase |= {"num_beams": 1, "max_new_tokens": 6, "dropout": {"lstm": 0.2}}
    elif system == "recognition":
        more = {
            "model": {**CNN_OF_FRAMES, "hidden_size": 8, "sampling": "uniform", "clip_length": 3},
            "data": {"videos": str(data / "videos"), "validation_fraction": 0.3},
        }
        phase |= {"encoder": "cached", "dropout": {"output": 0.2}}
    else:
        frames = system == "description of frames"
        model = {"architecture": "decoder_prob", "dropout": 0.2, **SIZES}
        more = {
            "model": model
            | ({**CNN_OF_FRAMES, "architecture": "frame_lstm", "num_frames": 3} if frames else {}),
            "data": {"captions": str(data / "videos" / "captions.jsonl")}
            if frames
            else {"clips": str(data / "crf.jsonl")},
        }
        phase |= {"num_beams": 1, "max_new_tokens": 8, "mirror": frames}
    task = "captioning" if system == "captions" else system.split()[0].replace("description", "describing")
    return {"task": task, "seed": 5, "checkpoint_every": 1, "phases": [phase], **more}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of the runs, which several tests look at."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def model(run, runs, data, request):
    """Train a system once -> folder of its model."""

    def of(system):
        config, out = runs / f"{system}.yaml", runs / system
        if not (out / "model").exists():
            config.write_text(yaml.safe_dump(recipe(system, data)))
            status, printed, err = run("train", "--config", config, "--out", out, "--device", "cpu", "--json")
            assert (status, err) == (0, "")
            assert json.loads(printed)["model"] == str(out / "model")
        return out / "model"

    return of


TRAINED = ["captions", "recognition", "description of frames", "description of CRF outputs"]


REFERENCES = {
    "captions": "photos/captions.json", "recognition": "videos",
    "description of frames": "videos/captions.jsonl", "description of CRF outputs": "crf.jsonl",
}  # fmt: skip


@pytest.mark.parametrize("system", TRAINED)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(run, model, runs, data, system, monkeypatch):
    whole, out = model(system), runs / f"{system}, killed"
    command = ("train", "--config", runs / f"{system}.yaml", "--out", out, "--device", "cpu")
    evaluate, calls = Trainer._evaluate, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*args)

    monkeypatch.setattr(Trainer, "_evaluate", killed)
    assert run(*command)[0] == 130
    assert not (out / "model").exists()
    monkeypatch.setattr(Trainer, "_evaluate", evaluate)
    assert run(*command)[0] == 0
    for name in ("weights.safetensors", "config.json"):
        assert (out / "model" / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.needs_cuda
@pytest.mark.parametrize("system", TRAINED)
def test_on_a_gpu(run, model, runs, data, system):
    model(system)  # on the CPU
    out = runs / f"{system}, GPU"
    status, _, err = run("train", "--config", runs / f"{system}.yaml", "--out", out, "--device", "cuda")
    assert (status, err) == (0, "")
    call = ("eval", "--references", data / REFERENCES[system], "--model", out / "model", "--json")
    scores = [json.loads(run(*call, "--device", device)[1]) for device in ("cuda", "cpu")]
    assert scores[0].keys() == scores[1].keys()
    assert np.isfinite([value for value in scores[0].values() if isinstance(value, float)]).all()


def test_captions(run, model, data, tmp_path):
    folder, photos = model("captions"), data / "photos"
    given = ("--model", folder, "--max-new-tokens", 6, "--json")
    call = ("eval", "--references", photos / "captions.json", *given, "--out", tmp_path / "said.json")
    status, out, err = run(*call)
    assert (status, err) == (0, "")
    said = json.loads((tmp_path / "said.json").read_text())
    people = {r["file"]: r["sentences"] for r in json.loads((photos / "captions.json").read_text())}
    assert json.loads(out) == {"photos": 8, **caption_metrics(people, said)}
    records = [json.loads(line) for line in run("caption", photos / "images", *given)[1].splitlines()]
    assert {r["image"].rpartition("/")[2]: r["captions"][0]["text"] for r in records} == said


def test_retrieval(run, model, data, tmp_path):
    folder, photos = model("captions"), data / "photos"
    call = ("eval", "--references", photos / "captions.json", "--model", folder, "--retrieval")
    status, out, err = run(*call, "--json", "--out", tmp_path / "said.json")
    assert (status, err) == (0, "")
    said = json.loads((tmp_path / "said.json").read_text())
    expected = retrieval_metrics(said["log_likelihood"])  # two captions for every photo, in order
    assert json.loads(out) == {"photos": 8, "captions": 16} | {
        f"{way}_{name}": value for way, scores in expected.items() for name, value in scores.items()
    }
    assert json.loads(run(*call, "--json", "--end-marker")[1]) != json.loads(out)
    # What `retrieve` puts first for a caption is the photo of the largest entry of its column.
    caption = said["captions"][5]
    status, out, err = run("retrieve", caption, photos / "images", "--model", folder, "--top-k", 1)
    assert (status, err) == (0, "")
    column = [row[5] for row in said["log_likelihood"]]
    name, score = out.split("\t")
    assert name.rpartition("/")[2] == said["images"][int(np.argmax(column))]
    assert float(score) == pytest.approx(max(column), abs=1e-3)


def test_recognition(run, model, data, tmp_path):
    folder, videos = model("recognition"), data / "videos"
    call = ("eval", "--references", videos, "--model", folder, "--out", tmp_path / "said.json")
    status, out, err = run(*call, "--json")
    assert (status, err) == (0, "")
    scores = json.loads(out)
    said = json.loads((tmp_path / "said.json").read_text())["videos"]
    labels = [CLASSES.index(video["label"]) for video in said.values()]
    probabilities = [video["probabilities"] for video in said.values()]
    assert scores == {"videos": 6, **recognition_metrics(labels, probabilities)} | {
        key: scores[key] for key in ("per_class", "classes", "confusion")
    }
    assert np.sum(scores["confusion"], 1).tolist() == [3, 3]
    assert np.mean(list(scores["per_class"].values())) == pytest.approx(scores["mean_class_accuracy"])
    for name, video in said.items():
        status, out, _ = run("recognize", videos / name, "--model", folder)
        best = int(np.argmax(video["probabilities"]))
        assert out.split("\t")[1:] == [f"{video['probabilities'][best]:.3f}", f"{CLASSES[best]}\n"]
    lines = run(*call, "--crops", "mirror")[1].splitlines()
    assert lines[0] == "videos\t6"
    assert lines[-3] == "class\tvideos\taccuracy\tas falling\tas rising"
    assert lines[-1].startswith("rising\t3\t")
    # The same videos as a list.
    (tmp_path / "list.txt").write_text("".join(f"{n} {CLASSES.index(n.split('/')[0])}\n" for n in said))
    call = ("eval", "--references", tmp_path / "list.txt", "--videos", videos, "--model", folder, "--json")
    assert json.loads(run(*call)[1]) == scores


@pytest.mark.parametrize("system", ["description of frames", "description of CRF outputs"])
def test_description(run, model, data, tmp_path, system):
    folder, frames = model(system), "frames" in system
    references = data / REFERENCES[system]
    given = ("--model", folder, "--max-new-tokens", 8, "--json")
    call = ("eval", "--references", references, "--split", "val", *given, "--out", tmp_path / "said.json")
    status, out, err = run(*call)
    assert (status, err) == (0, "")
    said = json.loads((tmp_path / "said.json").read_text())
    people = {}
    for line in references.read_text().splitlines():
        record = json.loads(line)
        name, sentences = record.get("video") or record["clip_id"], record.get("captions", [])
        people.setdefault(name, []).extend(sentences or [record["sentence"]])
    assert json.loads(out) == {
        "clips": len(said), **caption_metrics({name: people[name] for name in said}, said),
    }  # fmt: skip
    inputs = [data / "videos" / name for name in said] if frames else [references]
    records = [json.loads(line) for line in run("describe", *inputs, *given)[1].splitlines()]
    found = {r["clip_id"]: r["sentences"][0]["text"] for r in records}
    assert {name: found[str(data / "videos" / name) if frames else name] for name in said} == said


@pytest.mark.parametrize(
    ("system", "arguments", "message"),
    [
        ("captions", ("--crops", "ten"), "--crops does not go with a captioner"),
        ("captions", ("--retrieval", "--beam", "2"), "--num-beams does not go with --retrieval"),
        ("captions", ("--end-marker",), "--end-marker does not go with a captioner"),
        ("captions", ("--flow-weight", "0"), "--flow-weight does not go with a captioner"),
        ("recognition", ("--flow-weight", "0"), "--flow-weight goes with --flow-model"),
        ("recognition", ("--list", "2"), "--list goes with --format ucf101, got folders"),
        ("recognition", ("--videos", "x"), "--videos goes with --format ucf101 or list, got folders"),
        ("recognition", ("--retrieval",), "--retrieval does not go with an activity recognizer"),
        ("recognition", ("--split", "test"), "--split must be one of"),
        ("recognition", ("--group", "1"), "--group must be one of none, got '1'"),
        (
            "description of CRF outputs",
            ("--videos", "x"),
            "--images/--videos does not go with a video describer of CRF outputs",
        ),
        ("description of CRF outputs", ("--list", "2"), "--list does not go with a video describer"),
    ],
)
def test_eval_usage_errors(run, model, data, system, arguments, message):
    references = data / REFERENCES[system]
    status, out, err = run("eval", "--references", references, "--model", model(system), *arguments)
    assert (status, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())


def test_eval_errors(run, model, data, tmp_path):
    folder = model("recognition")
    other = tmp_path / "other" / "sinking" / "0"
    other.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(other / "0.png")
    status, _, err = run("eval", "--references", tmp_path / "other", "--model", folder)
    assert status == 1
    assert "--model must know the classes of other, got none called 'sinking'" in err
    # A video that cannot be read is left out, and said.
    bad = tmp_path / "bad"
    for name in CLASSES:
        (bad / name / "0").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(bad / name / "0" / "0.png")
    (bad / "rising" / "0" / "0.png").write_bytes(b"nothing")
    status, out, err = run("eval", "--references", bad, "--model", folder, "--json")
    assert (status, json.loads(out)["videos"], len(err.splitlines())) == (1, 1, 1)
    with pytest.raises(ValueError, match="device must be cpu or cuda, got 'tpu9'"):
        load_pretrained(folder, device="tpu9")
    (tmp_path / "config.json").write_text('{"kind": "another"}')
    status, _, err = run("eval", "--references", bad, "--model", tmp_path)
    assert status == 1
    assert "must describe one of a captioner, an activity recognizer, a video describer, got kind" in err

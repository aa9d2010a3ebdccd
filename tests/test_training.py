"""Training: configurations, batches, optimizers, checkpoints, and whole runs on synthetic photos."""

import copy
import dataclasses
import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from synthetic_photos import tiny_config, write_data_set
from torch import nn

from lrcn_fast.data import Vocabulary
from lrcn_fast.training import load_config, parse_config, recipe_names, train
from lrcn_fast.training.checkpoint import load_checkpoint, random_state, save_checkpoint, set_random_state
from lrcn_fast.training.config import OptimizerConfig, ScheduleConfig
from lrcn_fast.training.data import BatchStream, CaptionData, read_splits, read_text
from lrcn_fast.training.optim import (
    CaffeSGD,
    WeightAverage,
    make_optimizer,
    schedule_factor,
    select_parameters,
)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("shapes"))


def weights_hash(out):
    return hashlib.sha256((out / "model" / "weights.safetensors").read_bytes()).hexdigest()


# ---- configuration ----------------------------------------------------------------------------


def test_yaml_and_dataclass_are_the_same(tmp_path, captions):
    config = parse_config(tiny_config(captions))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    assert load_config(path) == config


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid(name):
    assert load_config(name).phases


def test_recipes_hold_the_settings_of_the_release():
    config = load_config("coco_caffenet_2f")
    frozen, tuned = config.phases
    assert (config.model.embed_dim, config.model.hidden_size, config.model.init_scale) == (1000, 1000, 0.08)
    assert (frozen.optimizer.name, frozen.optimizer.lr, frozen.optimizer.momentum) == ("caffe_sgd", 0.01, 0.9)
    assert (frozen.schedule.step_size, frozen.schedule.gamma, frozen.steps) == (20000, 0.5, 110000)
    assert (frozen.clip_norm, frozen.loss_weight, frozen.batch_size, frozen.optimizer.weight_decay) == (
        10,
        20,
        100,
        0,
    )
    assert (tuned.optimizer.lr, tuned.steps, tuned.clip_norm) == (0.001, 50000, 25)
    assert (config.data.min_count, config.data.max_words, config.seed) == (5, 20, 1701)
    vgg = load_config("coco_vgg16_2f").phases[1]
    assert (vgg.batch_size, vgg.accumulate) == (50, 2)


def test_overrides_reach_nested_keys(captions, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_config(captions)))
    config = load_config(path, ["phases.1.optimizer.lr=1e-4", "model.hidden_size=20"])
    assert config.phases[1].optimizer.lr == 1e-4
    assert config.model.hidden_size == 20


def changed(captions, key, value):
    values = tiny_config(captions)
    at = values
    *parents, last = key
    for part in parents:
        at = at.setdefault(part, {}) if isinstance(at, dict) else at[part]
    at[last] = value
    return values


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (["phases", 1, "optimizer", "lr"], -1, r"run\.yaml: phases\[1\]\.optimizer\.lr must be > 0, got -1"),
        (["model", "variant"], "3f", r"run\.yaml: model\.variant must be one of 1u, 2u, 2f, got '3f'"),
        (["model", "colour"], 1, r"run\.yaml: model\.colour must be one of encoder, .*, got an unknown key"),
        (["model", "hidden_size"], "big", r"run\.yaml: model\.hidden_size must be an integer, got 'big'"),
        (["phases", 0, "steps"], True, r"run\.yaml: phases\[0\]\.steps must be an integer, got True"),
        (["phases", 0, "epochs"], 2, r"must set exactly one of epochs and steps, got epochs 2, steps 6"),
        (["phases", 0, "encoder"], "train", r"encoder must be cached or frozen for text, got 'train'"),
        (["phases", 1, "dropout", "lstm"], 1.0, r"phases\[1\]\.dropout\.lstm must be >= 0 and < 1, got 1\.0"),
        (["phases", 1, "captions_per_image"], 3, r"must be a multiple of captions_per_image = 3, got 8"),
        (["model", "tie_weights"], True, r"embed_dim must be hidden_size = 16 with tie_weights, got 12"),
        (["phases"], [], r"phases must hold at least one phase"),
        (["phases"], {}, r"run\.yaml: phases must be a list, got \{\}"),
        (["task"], "painting", r"run\.yaml: task must be one of captioning, .*got 'painting'"),
        (["format"], 9, r"run\.yaml: format must be 1, got 9"),
        (["data"], {}, r"run\.yaml: data\.captions must be given, got nothing"),
        (["data"], None, r"run\.yaml: data must be a mapping, got None"),
    ],
)  # fmt: skip
def test_bad_configurations_name_file_and_key(tmp_path, captions, key, value, message):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(changed(captions, key, value)))
    with pytest.raises(ValueError, match=message):
        load_config(path)


def test_unreadable_configurations(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: [1, 2")
    with pytest.raises(ValueError, match=r"run\.yaml: must be YAML, got .*line 1"):
        load_config(path)
    with pytest.raises(
        FileNotFoundError, match=r"source must be a YAML file or one of the recipes .*, got 'nope'"
    ):
        load_config("nope")
    with pytest.raises(ValueError, match=r"^data\.captions\.0: environment variable UNSET must be set"):
        load_config("videos_mean_pool", ["data.captions=$UNSET/a.jsonl"]).check_environment()
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"run\.yaml: must be a mapping, got \[\]"):
        load_config(path)
    with pytest.raises(ValueError, match="overrides must be key=value, got 'seed'"):
        load_config(path, ["seed"])


# ---- batches ----------------------------------------------------------------------------------


def stream(rank=0, world=1, k=1, batch_size=6, photos=10):
    words = [[[i + 2] * (1 + j) + [0] for j in range(3)] for i in range(photos)]
    return BatchStream(CaptionData(words, True), batch_size, k, (1, 2), 0, rank, world)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_an_epoch_sees_each_caption_once(k):
    batches = stream(k=k)
    assert batches.batches_per_epoch == 5
    for epoch in range(2):
        seen = []
        for n in range(5 * epoch, 5 * epoch + 5):
            b = batches[n]
            for row, length, slot in zip(b.tokens, b.lengths, b.photo_of, strict=True):
                words = row[: int(length)].tolist()
                assert words[0] == b.photos[int(slot)] + 2
                seen.append(tuple(words))
            assert b.total_words == int(b.lengths.sum())
        assert len(seen) == len(set(seen)) == 30


def test_batches_do_not_depend_on_order_and_differ_between_epochs():
    a, b = stream(), stream()
    late = b[7].tokens
    assert torch.equal(a[7].tokens, late)
    assert a[0].photos != a[5].photos


def test_processes_share_the_global_batch():
    whole = stream()[3]
    shares = [stream(rank, 2)[3] for rank in range(2)]
    assert {p for s in shares for p in s.photos} == set(whole.photos)
    assert sum(int(s.lengths.sum()) for s in shares) == whole.total_words
    assert {s.total_words for s in shares} == {whole.total_words}
    with pytest.raises(
        ValueError, match="batch_size must give each of 4 processes a photo, got 2 captions, 2 photos"
    ):
        stream(0, 4, batch_size=2)


def test_text_never_holds_captions_of_held_out_photos(tmp_path, captions):
    config = parse_config(tiny_config(captions))
    train_set, validation, held_out = read_splits(config.data, config.seed)
    assert len(train_set) == 12
    assert len(validation) == 4
    assert not {i.id for i in train_set} & {i.id for i in validation}
    rows = ["image,caption"] + [f"{item.id},{item.id} words" for item in [*train_set, *validation]]
    path = tmp_path / "text.csv"
    path.write_text("\n".join(rows))
    source = parse_config(
        changed(captions, ["data", "vocabulary_text"], [{"path": str(path)}])
    ).data.vocabulary_text[0]
    assert read_text(source, held_out, 0) == [f"{item.id} words" for item in train_set]


# ---- optimizers -------------------------------------------------------------------------------


def test_caffe_sgd_keeps_the_rate_in_its_history():
    # v = m v + lr (g + d w); w -= v, by hand for two rates.
    w = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = CaffeSGD([w], lr=0.5, momentum=0.9, weight_decay=0.1)
    by_hand, v = 2.0, 0.0
    for lr, g in ((0.5, 1.0), (0.05, -3.0), (0.05, 0.25)):
        optimizer.param_groups[0]["lr"] = lr
        w.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        v = 0.9 * v + lr * (g + 0.1 * by_hand)
        by_hand -= v
        # Both are float64 and differ by the order of one multiply-add.
        assert abs(w.item() - by_hand) < 1e-14


def test_multipliers_scale_freeze_and_must_match():
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    selected = select_parameters(net.named_parameters(), {"b.bias": 2.0, "b.*": 1.0, "a.*": 0.0})
    assert [(n, f) for n, _, f in selected] == [("b.weight", 1.0), ("b.bias", 2.0)]
    assert not net["a"].weight.requires_grad
    groups = make_optimizer(selected, OptimizerConfig(lr=0.1, weight_decay=0.5)).param_groups
    assert [(g["base_lr"], g["weight_decay"]) for g in groups] == [(0.1, 0.5), (0.2, 0.0)]
    with pytest.raises(ValueError, match=r"multipliers must name trainable parameters, got 'c\.\*'"):
        select_parameters(net.named_parameters(), {"c.*": 1.0})
    with pytest.raises(ValueError, match="must leave something to train"):
        select_parameters(net.named_parameters(), {"*": 0.0})


def test_schedules():
    step = ScheduleConfig(name="step", step_size=10, gamma=0.5)
    assert [schedule_factor(step, n, 100) for n in (0, 9, 10, 25)] == [1, 1, 0.5, 0.25]
    cosine = ScheduleConfig(name="cosine", warmup_steps=4, final=0.1)
    assert [schedule_factor(cosine, n, 104) for n in (0, 3, 4)] == [0.25, 1, 1]
    assert schedule_factor(cosine, 54, 104) == pytest.approx(0.55, abs=1e-12)
    assert schedule_factor(cosine, 104, 104) == pytest.approx(0.1, abs=1e-12)


def test_weight_average_follows_its_formula():
    w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    average = WeightAverage([("w", w, 1.0)], 0.3)
    expected = 0.0
    for n, value in enumerate((1.0, 2.0, -1.0)):
        w.data.fill_(value)
        average.update()
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    average.swap()
    assert w.item() == pytest.approx(expected, abs=1e-15)
    average.swap()
    assert w.item() == -1.0


# ---- checkpoints ------------------------------------------------------------------------------


def test_random_states_come_back(tmp_path):
    save_checkpoint(tmp_path / "c.pt", {"phase": 0, "random": random_state()})
    first = (random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist())  # noqa: NPY002
    set_random_state(load_checkpoint(tmp_path / "c.pt")["random"])
    assert (random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()) == first  # noqa: NPY002


@pytest.mark.parametrize("broken", ["truncated", "foreign", "empty", "pickle"])
def test_broken_checkpoints_name_the_file(tmp_path, broken):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"phase": 0, "x": torch.zeros(1000)})
    if broken == "truncated":
        path.write_bytes(path.read_bytes()[:1500])
    elif broken == "foreign":
        torch.save({"state_dict": {}}, path)
    elif broken == "empty":
        path.write_bytes(b"")
    else:
        torch.save({"format": 1, "phase": 0, "call": os.system}, path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: must be .* training checkpoint"):
        load_checkpoint(path)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"phase": 1})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(path, {"phase": 2, "bad": lambda: None})
    assert load_checkpoint(path)["phase"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


# ---- runs -------------------------------------------------------------------------------------


def command(config_path, out, *more):
    return [sys.executable, "-m", "lrcn_fast.training", "--config", str(config_path), "--out", str(out),
            "--device", "cpu", *more]  # fmt: skip


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def test_a_run_writes_model_log_and_history(tmp_path, captions):
    from lrcn_fast.models import Captioner, Generation

    config = parse_config(tiny_config(captions) | {"generation": {"num_beams": 2, "length_penalty": 0.5}})
    summary = train(config, tmp_path, device="cpu")
    assert [e["step"] for e in summary["history"]] == [3, 6, 4, 8, 10]
    best = max((e for e in summary["history"] if e["phase"] == "caption"), key=lambda e: e["cider_d"])
    assert summary["best"] == best
    assert json.loads((tmp_path / "history.json").read_text()) == summary
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == summary["history"]
    assert list((tmp_path / "tensorboard").iterdir())
    model = Captioner.from_pretrained(tmp_path / "model")
    assert model.details["validation"]["cider_d"] == best["cider_d"]
    # A model that is given away names its data, and nobody's folders.
    assert model.details["training"]["data"]["captions"] == [Path(config.data.captions[0]).name]
    assert str(tmp_path.parent) not in (tmp_path / "model" / "config.json").read_text()
    assert isinstance(model.vocabulary, Vocabulary)
    assert model.generation == Generation(**dataclasses.asdict(config.generation))
    # A finished run is not trained again, and says the same.
    before = weights_hash(tmp_path)
    assert train(config, tmp_path, device="cpu") == summary
    assert weights_hash(tmp_path) == before


def test_overfits_four_photos(tmp_path):
    captions = write_data_set(tmp_path / "data", copies=1)
    records = [r for r in json.loads(captions.read_text()) if "square" in r["file"]]
    for r in records:
        r["sentences"] = r["sentences"][1:]
    captions.write_text(json.dumps(records))
    values = tiny_config(captions)
    values["data"]["validation_splits"] = ["train"]
    values["phases"] = [
        {"name": "caption", "steps": 150, "batch_size": 4, "evaluate_every": 50, "optimizer": {"lr": 0.02},
         "max_new_tokens": 10}
    ]  # fmt: skip
    values["checkpoint_every"] = 1000
    summary = train(parse_config(values), tmp_path / "out", device="cpu")
    assert summary["history"][-1]["validation_loss"] < 0.05
    assert summary["best"]["bleu_4"] > 0.99


def test_fine_tuning_changes_the_cnn_and_stores_it(tmp_path, captions):
    from lrcn_fast.models import Captioner

    values = tiny_config(captions)
    values["phases"] = [
        {"name": "frozen", "encoder": "frozen", "steps": 1, "batch_size": 4, "augment": True},
        {"name": "tune", "encoder": "train", "steps": 2, "batch_size": 4, "captions_per_image": 2,
         "augment": True, "accumulate": 2,
         "optimizer": {"name": "caffe_sgd", "lr": 0.01, "multipliers": {"encoder.*": 0.1}}},
    ]  # fmt: skip
    train(parse_config(values), tmp_path / "out", device="cpu")
    tuned = Captioner.from_pretrained(tmp_path / "out" / "model")
    one = copy.deepcopy(values)
    one["phases"] = one["phases"][:1]
    train(parse_config(one), tmp_path / "one", device="cpu")
    frozen = Captioner.from_pretrained(tmp_path / "one" / "model")
    pairs = zip(tuned.encoder.parameters(), frozen.encoder.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_progress_is_silent_unless_asked(tmp_path, captions, capfd):
    values = tiny_config(captions)
    values["phases"] = [{"name": "caption", "steps": 2, "batch_size": 4, "max_new_tokens": 4}]
    train(parse_config(values), tmp_path / "quiet", device="cpu")
    assert capfd.readouterr() == ("", "")
    train(parse_config(values), tmp_path / "shown", device="cpu", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "caption step 2" in err


def test_mixed_precision_learns_too(tmp_path, captions):
    values = tiny_config(captions)
    values["precision"] = "bf16"
    values["phases"] = [
        {"name": "caption", "steps": 40, "batch_size": 12, "evaluate_every": 20, "optimizer": {"lr": 0.02},
         "max_new_tokens": 4}
    ]  # fmt: skip
    summary = train(parse_config(values), tmp_path / "out", device="cpu")
    first, last = (e["validation_loss"] for e in summary["history"])
    assert last < first < 3
    assert last < 1.5


def test_early_stopping(tmp_path, captions):
    values = tiny_config(captions)
    # A rate too small to change a caption: no evaluation after the first is better.
    values["phases"] = [
        {"name": "caption", "steps": 50, "batch_size": 4, "evaluate_every": 2, "patience": 2,
         "optimizer": {"lr": 1e-12}, "max_new_tokens": 4}
    ]  # fmt: skip
    summary = train(parse_config(values), tmp_path / "out", device="cpu")
    assert [e["step"] for e in summary["history"]] == [2, 4, 6]


# One process that imports once and trains in forked children, so that every kill falls into training.
KILLER = """
import os, random, shutil, signal, sys, time
from pathlib import Path
from lrcn_fast.training import load_config, train
import accelerate, timm, lrcn_fast.models.captioner, lrcn_fast.evaluation, torch.utils.tensorboard

config, folder, kills = load_config(sys.argv[1]), Path(sys.argv[2]), 0

def start(out):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(config, out, device="cpu")
            status = 0
        finally:
            os._exit(status)
    return child

began = time.monotonic()
assert os.waitpid(start(folder / "whole"), 0)[1] == 0
took = time.monotonic() - began
rng = random.Random(int(sys.argv[3]))
while kills < 4:
    child = start(folder / "killed")
    time.sleep(took * rng.random())
    if os.waitpid(child, os.WNOHANG) != (0, 0):
        # It ended first (the first run was slower: cold caches). Start anew, kill sooner.
        shutil.rmtree(folder / "killed")
        took, kills = took / 2, 0
        continue
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
assert os.waitpid(start(folder / "killed"), 0)[1] == 0
print(kills)
"""


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path, captions):
    values = tiny_config(captions)
    values["phases"][1]["steps"] = 40
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(config), str(tmp_path), str(time.time_ns())],
        env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 0
    assert weights_hash(tmp_path / "killed") == weights_hash(tmp_path / "whole")
    for name in ("history.json", "log.jsonl"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, captions):
    # The same global batches: gradients differ by the order of summation only. No dropout, whose
    # random numbers are each process's own.
    values = tiny_config(captions)
    values["phases"] = [
        {"name": "caption", "steps": 4, "batch_size": 8, "evaluate_every": 4, "max_new_tokens": 6,
         "optimizer": {"name": "caffe_sgd", "lr": 0.05}}
    ]  # fmt: skip
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(values))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, *command(config, tmp_path / "two")[1:]],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    train(parse_config(values), tmp_path / "one", device="cpu")
    from lrcn_fast.models import Captioner

    one, two = (Captioner.from_pretrained(tmp_path / n / "model").state_dict() for n in ("one", "two"))
    for name in one:
        # 4 steps of rate 0.05 on gradients below 1: a few float32 roundings of weights below 1.
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=2e-6, msg=name)


def test_another_configuration_does_not_resume(tmp_path, captions):
    values = tiny_config(captions)
    values["phases"] = [{"name": "caption", "steps": 1, "batch_size": 4, "max_new_tokens": 4}]
    train(parse_config(values), tmp_path, device="cpu")
    values["phases"][0]["batch_size"] = 8
    with pytest.raises(ValueError, match=r"checkpoint\.pt must be of this configuration, got another "
                       r"phases\[0\]\.batch_size \(4 there, 8 here\)"):  # fmt: skip
        train(parse_config(values), tmp_path, device="cpu")
    broken = {**values, "data": {**values["data"], "captions": str(tmp_path / "nothing.json")}}
    with pytest.raises(FileNotFoundError):
        train(parse_config(broken), tmp_path, device="cpu", restart=True)
    assert (tmp_path / "model" / "config.json").exists()
    train(parse_config(values), tmp_path, device="cpu", restart=True)


def test_errors_of_a_run(tmp_path, captions):
    config = parse_config(tiny_config(captions))
    with pytest.raises(ValueError, match="device must be cpu or cuda, got 'tpu'"):
        train(config, tmp_path, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device must be cpu without an NVIDIA GPU"):
            train(config, tmp_path, device="cuda")
    text_only = tmp_path / "text.json"
    text_only.write_text(
        json.dumps([{"file": f"{i}.jpg", "split": "train", "sentences": ["a dog"]} for i in range(9)])
    )
    values = tiny_config(text_only)
    values["phases"] = values["phases"][1:]
    with pytest.raises(
        ValueError, match=r"data\.images must be the folder of the photos, got no file for '[0-9]\.jpg'"
    ):
        train(parse_config(values), tmp_path / "no_photos", device="cpu")

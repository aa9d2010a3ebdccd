"""Activity recognition on UT-Interaction set 1: leave one sequence out, ten folds, the same settings for all.

    python benchmarks/ut_interaction.py           every system, three seeds; goes on where it stopped
    python benchmarks/ut_interaction.py --table   gather into results/ut_interaction-*.json and .md

Systems: LRCN and the single-frame baseline on frames and on optical flow, LRCN on shuffled frames (in
training and in tests), LRCN without one of its settings at a time (one step: the LSTM sees the mean of all
frames, once), late fusion with 1/2 and 2/3 for flow, and controls without an LSTM: linear probes, and a
classifier that sees nothing but the shape of the crop, which tells something about the class.

Settings were chosen by the accuracy on sequences 1 to 5 (each held out in turn), which are optimistic by that
choice; so 6 to 10 are given on their own. Their accuracy was printed beside it in each of about sixty trials:
they took no part in the choice, but nobody was blind to them.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch

LRCN, SINGLE = "ut_interaction_lrcn_{}", "ut_interaction_single_{}"
# Name -> recipe, changes to it, whether frames are shuffled.
SYSTEMS: dict[str, tuple[str, list[str], bool]] = {
    "lrcn_rgb": (LRCN.format("rgb"), [], False),
    "lrcn_flow": (LRCN.format("flow"), [], False),
    "single_rgb": (SINGLE.format("rgb"), [], False),
    "single_flow": (SINGLE.format("flow"), [], False),
    "lrcn_rgb_shuffled": (LRCN.format("rgb"), [], True),
    "lrcn_flow_shuffled": (LRCN.format("flow"), [], True),
    "lrcn_rgb_one_step": (LRCN.format("rgb"), ["model.frames_per_step=24"], False),
    "lrcn_rgb_uniform_weights": (LRCN.format("rgb"), ["model.frame_weights=uniform"], False),
    "lrcn_rgb_no_change": (LRCN.format("rgb"), ["model.feature_change=none"], False),
    "lrcn_rgb_no_mixup": (LRCN.format("rgb"), ["phases.0.mixup=0"], False),
}
CONFUSED = ("lrcn_rgb", "lrcn_rgb + 1/2 lrcn_flow")
SEEDS = (1, 2, 3)
CHOSEN_ON = ("1", "2", "3", "4", "5")


def videos(data: Path) -> Any:
    """The 60 clips."""
    from lrcn_fast.data import read_ut_interaction

    return read_ut_interaction(data / "ut_interaction_set1")


def run_system(name: str, seed: int, args: argparse.Namespace) -> None:
    """Train ten models and write the probabilities of the clips each has not seen."""
    from lrcn_fast.training import Trainer, load_config

    recipe, changes, shuffled = SYSTEMS[name]
    path = args.out / f"{name}-{seed}.json"
    if path.exists():
        return
    items = videos(args.data)
    found, start = {}, time.perf_counter()
    for group in items.groups:
        config = load_config(
            recipe,
            [
                *changes,
                f"data.held_out_groups=['{group}']",
                f"seed={seed}",
                f"data.cache={args.out / 'cache'}",
            ],
        )
        trainer = Trainer(config, args.out / "runs" / f"{name}-{seed}-{group}", device="cpu", restart=True)
        if shuffled:
            shuffle_frames(trainer.task, seed)
        trainer.run()
        found |= trainer.task.predictions(use_cache=True)
    ids = [item.id for item in items]
    path.write_text(
        json.dumps({"seconds": time.perf_counter() - start, "probabilities": [found[i] for i in ids]})
    )
    print(name, seed, accuracy(np.array([found[i] for i in ids]), items.labels), flush=True)


def shuffle_frames(task: Any, seed: int) -> None:
    """Put the frames of every clip in random order, in training and in tests."""
    model, generator = task.model, torch.Generator().manual_seed(seed)
    forward = model.forward

    def shuffled(frames: Any, *rest: Any, **options: Any) -> Any:
        order = torch.stack([torch.randperm(frames.shape[1], generator=generator) for _ in frames])
        return forward(frames[torch.arange(len(frames))[:, None], order], *rest, **options)

    model.forward = shuffled


def accuracy(probabilities: Any, labels: Any) -> float:
    """Share of clips whose likeliest class is true."""
    return float((np.asarray(probabilities).argmax(1) == labels).mean())


# ---- controls ---------------------------------------------------------------------------------


def ridge(features: Any, items: Any, weight: float = 1.0) -> Any:
    """Scores [60, 6] of a linear classifier (ridge regression), each sequence by the other nine."""
    groups = np.array([item.group for item in items])
    scores = np.zeros((len(items), len(items.classes)))
    for group in items.groups:
        test = groups == group
        x, y = features[~test], np.eye(len(items.classes))[items.labels[~test]]
        mean, std = x.mean(0), x.std(0)
        std = np.maximum(std, max(1e-3 * std.mean(), 1e-9))
        a, b = (x - mean) / std, (features[test] - mean) / std
        kernel = a @ a.T / a.shape[1]
        solution = np.linalg.solve(kernel + weight * np.eye(len(a)), y - y.mean(0))
        scores[test] = b @ a.T / a.shape[1] @ solution + y.mean(0)
    return scores


def controls(args: argparse.Namespace) -> dict[str, Any]:
    """Scores [60, 6] of the shape of the crop, and of linear probes of 8 frames."""
    from lrcn_fast.data import open_video, uniform_indices
    from lrcn_fast.training import load_config
    from lrcn_fast.training.config import task_class
    from lrcn_fast.training.report import Reporter
    from lrcn_fast.training.tasks import Context

    items = videos(args.data)
    shapes = []
    for item in items:
        with open_video(item.path) as video:
            shapes.append(np.log(video.width / video.height))
    ratio = np.array(shapes)[:, None]
    # One number: its powers, so that a class may be in the middle.
    scores = {"aspect ratio only": ridge(ratio ** np.arange(1, 5), items, 1e-3)}

    class Alone:
        device, process_index, num_processes = torch.device("cpu"), 0, 1

        @staticmethod
        def main_process_first() -> Any:
            import contextlib

            return contextlib.nullcontext()

    for stream in ("rgb", "flow"):
        config = load_config(
            LRCN.format(stream), ["data.held_out_groups=[]", f"data.cache={args.out / 'cache'}"]
        )
        task = task_class("recognition", 1)(config, Context(args.out, Alone, Reporter(args.out, False)))
        features = task._cached(True, 1, True)
        x = np.stack([features.video(i)[0].numpy() for i in range(len(items))])
        eight = x[:, uniform_indices(x.shape[1], 8)]
        scores[f"linear probe of {stream}, mean of 8 frames"] = ridge(eight.mean(1), items)
        scores[f"linear probe of {stream}, 8 frames in order"] = ridge(eight.reshape(len(x), -1), items)
    return scores


# ---- results ----------------------------------------------------------------------------------


def summary(probabilities: Any, items: Any) -> dict[str, Any]:
    """Scores of one system. probabilities: [seeds, 60, 6]."""
    from lrcn_fast.evaluation import confusion_matrix

    labels, groups = items.labels, np.array([item.group for item in items])
    right = probabilities.argmax(-1) == labels
    unseen = ~np.isin(groups, CHOSEN_ON)
    confusion = sum(confusion_matrix(labels, p.argmax(-1), len(items.classes)) for p in probabilities)
    return {
        "accuracy": float(right.mean()),
        "seeds": right.mean(1).tolist(),
        "sequences 1-5": float(right[:, ~unseen].mean()),
        "sequences 6-10": float(right[:, unseen].mean()),
        "folds": {g: float(right[:, groups == g].mean()) for g in items.groups},
        "confusion": np.asarray(confusion).tolist(),
    }


def table_stage(args: argparse.Namespace) -> None:
    """Write the results file and its tables."""
    from lrcn_fast.evaluation import late_fusion
    from lrcn_fast.training import load_config

    items = videos(args.data)
    found = {}
    for name in SYSTEMS:
        paths = [args.out / f"{name}-{seed}.json" for seed in args.seeds]
        if all(p.exists() for p in paths):
            found[name] = np.array([json.loads(p.read_text())["probabilities"] for p in paths])
    if {"lrcn_rgb", "lrcn_flow"} <= set(found):
        for key, weight in (("1/2", 0.5), ("2/3", 2 / 3)):
            found[f"lrcn_rgb + {key} lrcn_flow"] = late_fusion(found["lrcn_rgb"], found["lrcn_flow"], weight)
    if {"single_rgb", "single_flow"} <= set(found):
        found["single_rgb + 1/2 single_flow"] = late_fusion(found["single_rgb"], found["single_flow"], 0.5)
    report = {
        "environment": harness.environment(),
        "data": "UT-Interaction set 1: 60 clips, 6 classes; each of 10 sequences held out in turn",
        "settings": "the same for all folds, chosen by the accuracy on sequences 1 to 5",
        "classes": list(items.classes),
        "seeds": args.seeds,
        "recipes": {n: _recipe(load_config(*SYSTEMS[n][:2])) for n in found if n in SYSTEMS},
        "controls": {name: summary(p[None], items) for name, p in controls(args).items()},
        "systems": {name: summary(p, items) for name, p in found.items()},
    }
    path = harness.save(args.results, "ut_interaction", report)
    (args.results / "ut_interaction.md").write_text(markdown(report))
    print(f"written to {path}", file=sys.stderr)


def _recipe(config: Any) -> dict[str, Any]:
    """The settings, without where this machine keeps its data."""
    values: dict[str, Any] = config.to_dict()
    values["data"]["videos"] = Path(values["data"]["videos"]).name
    return values


def systems_table(report: dict[str, Any]) -> str:
    """Accuracy of every system and control, in Markdown."""
    lines = ["| system | accuracy, % | seeds | sequences 1-5 | sequences 6-10 |", "|---|---|---|---|---|"]
    for name, s in [*report["systems"].items(), *report["controls"].items()]:
        seeds = ", ".join(map(_percent, s["seeds"])) if len(s["seeds"]) > 1 else ""
        cells = (_percent(s[k]) for k in ("sequences 1-5", "sequences 6-10"))
        lines.append(f"| {name} | {_percent(s['accuracy'])} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown(report: dict[str, Any]) -> str:
    """Tables: systems, folds, confusion."""
    systems, classes = report["systems"], report["classes"]
    groups = list(next(iter(systems.values()))["folds"])
    lines = [
        "# UT-Interaction set 1",
        "",
        f"{report['data']}. Mean of {len(report['seeds'])} seeds. Settings: {report['settings']}.",
        "",
        systems_table(report),
        "",
        "Per fold (the sequence held out), %:",
        "",
        f"| system | {' | '.join(groups)} |",
        "|---" * (len(groups) + 1) + "|",
    ]
    for name, s in systems.items():
        lines.append(f"| {name} | {' | '.join(_percent(s['folds'][g]) for g in groups)} |")
    for name in CONFUSED:
        lines += ["", f"Confusion of {name}, clips of all seeds (rows: true class):", ""]
        lines += [f"| | {' | '.join(classes)} |", "|---" * (len(classes) + 1) + "|"]
        for label, row in zip(classes, systems[name]["confusion"], strict=True):
            lines.append(f"| {label} | {' | '.join(map(str, row))} |")
    return "\n".join([*lines, ""])


def _percent(x: float) -> str:
    return f"{100 * x:.1f}"


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).resolve().parent
    data = Path(os.environ.get("LRCN_DATA", root.parent.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--out", type=Path, default=Path("out") / "ut_interaction")
    parser.add_argument("--results", type=Path, default=root / "results")
    parser.add_argument("--system", nargs="*", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--table", action="store_true", help="only gather what has been run")
    args = parser.parse_args()
    os.environ["LRCN_DATA"] = str(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.table:
        for seed in args.seeds:
            for name in args.system:
                run_system(name, seed, args)
    table_stage(args)


if __name__ == "__main__":
    main()

"""Activity recognition on UT-Interaction set 1: leave one sequence out, ten folds, the same settings for all.

    python benchmarks/ut_interaction.py           every system, three seeds; goes on where it stopped
    python benchmarks/ut_interaction.py --table   gather into results/ut_interaction-*.json and .md

Systems: LRCN and the single-frame baseline on frames and on optical flow, LRCN on shuffled frames (in
training and in tests), late fusion with 1/2 and 2/3 for flow, and controls without an LSTM: linear probes,
and a classifier that sees nothing but the shape of the crop, which tells something about the class.

Settings were chosen by the accuracy on sequences 1 to 5 alone (each held out in turn): those are optimistic
by that choice; sequences 6 to 10 took no part in it and are given on their own as well.
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

SYSTEMS = {
    "lrcn_rgb": ("ut_interaction_lrcn_rgb", False),
    "lrcn_flow": ("ut_interaction_lrcn_flow", False),
    "single_rgb": ("ut_interaction_single_rgb", False),
    "single_flow": ("ut_interaction_single_flow", False),
    "lrcn_rgb_shuffled": ("ut_interaction_lrcn_rgb", True),
    "lrcn_flow_shuffled": ("ut_interaction_lrcn_flow", True),
}
SEEDS = (1, 2, 3)
CHOSEN_ON = ("1", "2", "3", "4", "5")


def videos(data: Path) -> Any:
    """The 60 clips."""
    from lrcn_fast.data import read_ut_interaction

    return read_ut_interaction(data / "ut_interaction_set1")


def run_system(name: str, seed: int, args: argparse.Namespace) -> None:
    """Train ten models and write the probabilities of the clips each has not seen."""
    from lrcn_fast.training import Trainer, load_config

    recipe, shuffled = SYSTEMS[name]
    path = args.out / f"{name}-{seed}.json"
    if path.exists():
        return
    items = videos(args.data)
    found, start = {}, time.perf_counter()
    for group in items.groups:
        config = load_config(
            recipe, [f"data.held_out_groups=['{group}']", f"seed={seed}", f"data.cache={args.out / 'cache'}"]
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


def controls(args: argparse.Namespace) -> dict[str, float]:
    """Accuracy of the shape of the crop, and of linear probes of 8 frames."""
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
    scores = {"aspect ratio only": accuracy(ridge(ratio ** np.arange(1, 5), items, 1e-3), items.labels)}

    class Alone:
        device, process_index, num_processes = torch.device("cpu"), 0, 1

        @staticmethod
        def main_process_first() -> Any:
            import contextlib

            return contextlib.nullcontext()

    config = load_config(
        "ut_interaction_lrcn_rgb", ["data.held_out_groups=[]", f"data.cache={args.out / 'cache'}"]
    )
    task = task_class("recognition", 1)(config, Context(args.out, Alone, Reporter(args.out, False)))
    features = task._cached(True, 1, True)
    x = np.stack([features.video(i)[0].numpy() for i in range(len(items))])
    eight = x[:, uniform_indices(x.shape[1], 8)]
    scores["linear probe, mean of 8 frames"] = accuracy(ridge(eight.mean(1), items), items.labels)
    scores["linear probe, 8 frames in order"] = accuracy(
        ridge(eight.reshape(len(x), -1), items), items.labels
    )
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
        "settings": "the same for all folds; chosen on sequences 1 to 5, see benchmarks/ut_interaction.py",
        "classes": list(items.classes),
        "seeds": args.seeds,
        "recipes": {n: load_config(SYSTEMS[n][0]).to_dict() for n in found if n in SYSTEMS},
        "controls": controls(args),
        "systems": {name: summary(p, items) for name, p in found.items()},
    }
    path = harness.save(args.results, "ut_interaction", report)
    (args.results / "ut_interaction.md").write_text(markdown(report))
    print(f"written to {path}", file=sys.stderr)


def markdown(report: dict[str, Any]) -> str:
    """Tables: systems, folds, confusion."""

    def percent(x: float) -> str:
        return f"{100 * x:.1f}"

    systems, classes = report["systems"], report["classes"]
    lines = [
        "# UT-Interaction set 1",
        "",
        f"{report['data']}. Accuracy in %, mean of {len(report['seeds'])} seeds.",
        "",
    ]
    lines += [
        "Settings are the same for all folds, chosen on sequences 1-5; 6-10 took no part in it.", "",
        "| system | all | seeds | sequences 1-5 | sequences 6-10 |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, s in systems.items():
        seeds = ", ".join(map(percent, s["seeds"]))
        cells = (percent(s[k]) for k in ("sequences 1-5", "sequences 6-10"))
        lines.append(f"| {name} | {percent(s['accuracy'])} | {seeds} | {' | '.join(cells)} |")
    lines += [f"| {name} | {percent(value)} | | | |" for name, value in report["controls"].items()]
    groups = list(next(iter(systems.values()))["folds"])
    lines += ["", "Per fold (the sequence held out):", "", f"| system | {' | '.join(groups)} |"]
    lines.append("|---" * (len(groups) + 1) + "|")
    for name, s in systems.items():
        lines.append(f"| {name} | {' | '.join(percent(s['folds'][g]) for g in groups)} |")
    for name in [n for n in systems if n in ("lrcn_rgb", "lrcn_rgb + 1/2 lrcn_flow")]:
        lines += ["", f"Confusion of {name}, all seeds (rows: true class):", ""]
        lines += [f"| | {' | '.join(classes)} |", "|---" * (len(classes) + 1) + "|"]
        for label, row in zip(classes, systems[name]["confusion"], strict=True):
            lines.append(f"| {label} | {' | '.join(map(str, row))} |")
    return "\n".join([*lines, ""])


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

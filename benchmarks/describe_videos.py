"""Description of real video: does the order of the frames tell which sentence is right?

UT-Interaction set 1 has 60 real clips of 6 classes, and no sentences. **The sentences here are made up from
the labels**: every clip of a class has the four of TEMPLATES below as references, so that a model which
recognises the class and has learned the grammar scores a BLEU-4 of 100 %. Two of the ten sequences are held
out at a time (1 and 2, 3 and 4, ...), with the same settings for all five folds: the packaged recipe
videos_mean_pool, from three seeds. Systems:

    mean_pool            the mean of the frames' CNN features at every step of the decoder
    frame_lstm           the last state of an LSTM over them
    frame_lstm shuffled  the same with the frames of every clip in random order, in training and in tests,
                         drawn anew each time: without the order, and a training clip is never the same twice

Scores: BLEU-4 over the clips held out, all folds together, and the share of sentences whose first verb is
one of the class's (chance: 1 in 6). Sentences are kept in --out: called again, it goes on where it stopped.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import harness
import torch

RECIPE = "videos_mean_pool"

TEMPLATES = {
    "hand shaking": (
        "two people shake hands",
        "one person shakes the hand of another",
        "a man and another person are shaking hands",
        "they greet each other with a handshake",
    ),
    "hugging": (
        "two people hug each other",
        "one person hugs another",
        "a man and another person are hugging",
        "they embrace and hug each other",
    ),
    "kicking": (
        "one person kicks another",
        "a person is kicking someone",
        "someone gets kicked by another person",
        "one lifts a leg and kicks the other",
    ),
    "pointing": (
        "one person points at something",
        "a person is pointing somewhere",
        "someone points with a stretched arm",
        "one lifts an arm and points at something",
    ),
    "punching": (
        "one person punches another",
        "a person is punching someone",
        "someone gets punched by another person",
        "one swings a fist and punches the other",
    ),
    "pushing": (
        "one person pushes another",
        "a person is pushing someone",
        "someone gets pushed by another person",
        "one stretches both arms and pushes the other",
    ),
}
VERBS = {
    "hand shaking": {"shake", "shakes", "shaking", "handshake"},
    "hugging": {"hug", "hugs", "hugging", "embrace"},
    "kicking": {"kicks", "kicking", "kicked"},
    "pointing": {"points", "pointing"},
    "punching": {"punches", "punching", "punched"},
    "pushing": {"pushes", "pushing", "pushed"},
}
SYSTEMS = {
    "mean_pool": ("mean_pool", False),
    "frame_lstm": ("frame_lstm", False),
    "frame_lstm shuffled": ("frame_lstm", True),
}
HELD_OUT = [(str(n), str(n + 1)) for n in range(1, 11, 2)]


def write_captions(data: Path, held_out: tuple[str, ...], path: Path) -> None:
    """JSON lines of all 60 clips, as ``read_video_captions`` takes them; "test": the sequences held out."""
    from lrcn_fast.data import read_ut_interaction

    videos = read_ut_interaction(data / "ut_interaction_set1")
    records = [
        {
            "video": str(item.path.resolve()),
            "captions": TEMPLATES[videos.classes[item.label]],
            "split": "test" if item.group in held_out else "train",
        }
        for item in videos
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def shuffle_frames(model: Any, seed: int) -> None:
    """Make a model see the frames of every clip in random order."""
    generator = torch.Generator().manual_seed(seed)
    features = model.features

    def shuffled(clip: Any) -> Any:
        found = features(clip)
        return found[torch.randperm(len(found), generator=generator)]

    model.features = shuffled


def sentences(system: str, seed: int, held_out: tuple[str, ...], args: argparse.Namespace) -> Path:
    """File of the sentences of a fold."""
    out: Path = args.out
    return out / f"{system.replace(' ', '_')}-{seed}-{held_out[0]}.json"


def run_fold(system: str, seed: int, held_out: tuple[str, ...], args: argparse.Namespace) -> dict[str, str]:
    """Train without two sequences; return {video: sentence} of their clips."""
    from lrcn_fast.training import Trainer, load_config

    architecture, shuffled = SYSTEMS[system]
    path = sentences(system, seed, held_out, args)
    name = path.stem
    if not path.exists():
        captions = args.out / f"captions-{held_out[0]}.jsonl"
        write_captions(args.data, held_out, captions)
        settings = [
            f"data.captions={captions}",
            f"data.cache={args.out / 'cache'}",
            "data.validation_splits=[]",
            f"model.architecture={architecture}",
            f"seed={seed}",
            *args.set,
        ]
        trainer = Trainer(load_config(RECIPE, settings), args.out / "runs" / name, device="cpu", restart=True)
        if shuffled:
            shuffle_frames(trainer.model, seed)
        trainer.run()
        from lrcn_fast.data import read_video_captions
        from lrcn_fast.training.describing_data import VideoClips

        task: Any = trainer.task
        test = VideoClips(
            read_video_captions(captions).split("test"),
            args.out / "cache" / "features",
            task.config.encode_batch,
        )
        test.prepare(task.model, task.context, mirror=False)
        found = task.model.eval().describe(test.inputs(range(len(test.ids))))
        texts = {Path(i).stem: best[0].text for i, best in zip(test.ids, found, strict=True)}
        path.write_text(json.dumps(texts, indent=1))
        print(name, verbs(texts), file=sys.stderr, flush=True)
    texts: dict[str, str] = json.loads(path.read_text())
    return texts


def label(video: str) -> str:
    """Class of a clip, from the name of its file."""
    return list(TEMPLATES)[int(video.rpartition("_")[2])]


def verbs(texts: dict[str, str]) -> float:
    """Share of sentences whose first verb is one of the true class's."""
    every = set().union(*VERBS.values())
    said = {
        video: [w for w in text.lower().rstrip(".").split() if w in every] for video, text in texts.items()
    }
    return statistics.mean(bool(words) and words[0] in VERBS[label(v)] for v, words in said.items())


def score(texts: dict[str, str]) -> dict[str, float]:
    """Of the sentences of all 60 clips."""
    from lrcn_fast.evaluation import caption_metrics

    references = {video: TEMPLATES[label(video)] for video in texts}
    return {"bleu_4": float(caption_metrics(references, texts)["bleu_4"]), "right_verbs": verbs(texts)}


def markdown(report: dict[str, Any]) -> str:
    """One row per system: means, and each seed."""
    rows = ["| | BLEU-4 | seeds | right verb | seeds |", "|---|---|---|---|---|"]
    for name in SYSTEMS:
        runs = [run for run in report["runs"] if run["system"] == name]
        cells = [name]
        for key in ("bleu_4", "right_verbs"):
            values = [100 * run[key] for run in runs]
            cells += [f"{statistics.mean(values):.1f}", " ".join(f"{v:.1f}" for v in values)]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).resolve().parent
    data = Path(os.environ.get("LRCN_DATA", root.parent.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=data, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="working folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--table", action="store_true", help="only gather what has been run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="where the JSON goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "environment": harness.environment(),
        "data": "UT-Interaction set 1, 60 clips, 2 of 10 sequences held out; sentences made up from labels",
        "recipe": RECIPE,
        "runs": [],
    }
    for seed in args.seeds:
        for system in SYSTEMS:
            texts: dict[str, str] = {}
            if args.table and not all(sentences(system, seed, h, args).exists() for h in HELD_OUT):
                continue
            for held_out in HELD_OUT:
                texts |= run_fold(system, seed, held_out, args)
            report["runs"].append({"system": system, "seed": seed, **score(texts), "sentences": texts})
    path = harness.save(args.results, "describe_videos", report)
    print(markdown(report))
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()

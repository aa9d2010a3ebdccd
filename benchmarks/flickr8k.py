"""Captioning quality on the small Flickr8k: variants, decoding rules, frozen and fine-tuned CNN, baseline.

Stages, each of which can run alone (and on another machine), all below one working folder:

    train     python benchmarks/flickr8k.py --stage train --variant 2f --cnn frozen --out runs
              Called again it continues; the packaged recipe flickr8k_small_<variant>[_<cnn>] is trained.
    evaluate  every run found in the folder (or --variant and --cnn), on the dev photos; or one --bundle
    baseline  nearest neighbour: the first caption of the training photo with the most similar features
    table     gathers what the stages wrote into results/flickr8k-<machine>-<date>.json and flickr8k.md

Dev photos are used for nothing but these scores: stopping and settings look at photos cut from train.
"""

import argparse
import json
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
import torch
import torch.nn.functional as F

VARIANTS = ("1u", "2u", "2f")
CNNS = ("frozen", "finetuned", "finetuned_from_shipped")
BEAMS = (1, 2, 3, 4, 5, 10)
# (draws, factor on the logits), as the paper's tables name them; T = 1 is the model's own distribution.
DRAWS = ((1, 2.0), (10, 2.0), (25, 2.0), (100, 1.0), (100, 1.5), (100, 2.0))
METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")


def read_data(data: Path) -> tuple[Any, Any]:
    """Training and dev photos."""
    from lrcn_fast.data import read_captions

    everything = read_captions(data / "flickr8k_small" / "captions.json")
    return everything.split("train"), everything.split("dev")


def run_name(variant: str, cnn: str) -> str:
    return f"{variant}_{cnn}"


def train_stage(args: argparse.Namespace) -> None:
    import os

    from lrcn_fast.training import load_config, recipe_names, train

    os.environ["LRCN_DATA"] = str(args.data)
    for variant in args.variant or VARIANTS:
        for cnn in args.cnn or CNNS:
            recipe = f"flickr8k_small_{variant}" + ("" if cnn == "frozen" else f"_{cnn}")
            if recipe not in recipe_names():
                print(f"no recipe {recipe}", file=sys.stderr)
                continue
            config = load_config(recipe, [f"data.cache={args.out / 'features'}", *args.set])
            out = args.out / run_name(variant, cnn)
            start = time.perf_counter()
            summary = train(config, out, device=args.device)
            seconds = time.perf_counter() - start
            print(json.dumps({"run": out.name, "seconds": seconds, "best": summary["best"]}), flush=True)


def decodings(own: Any, max_new_tokens: int, generator_seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and options of every way to decode, the model's own (its ``Generation``) first."""
    yield f"own: beam {own.num_beams}, length penalty {own.length_penalty:g}", {}
    plain = {"length_penalty": 0.0, "max_new_tokens": max_new_tokens}
    for beams in BEAMS:
        yield ("greedy" if beams == 1 else f"beam {beams}"), {"num_beams": beams, **plain}
    for draws, factor in DRAWS:
        options = {"do_sample": True, "num_return_sequences": draws, "temperature": factor, "compat": "caffe"}
        yield (
            f"sample N={draws} T={factor:g}",
            {**plain, **options, "generator": torch.Generator().manual_seed(generator_seed)},
        )


def evaluate_bundle(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Scores of one model for every way to decode, and agreement with the search in PyTorch."""
    from lrcn_fast import reference_decoder
    from lrcn_fast.evaluation import CaptionScorer, diversity_metrics
    from lrcn_fast.models import Captioner

    train, dev = read_data(args.data)
    model = Captioner.from_pretrained(folder, device=args.device or "cpu").prepare("float32")
    features = model.features([item.image for item in dev])
    scorer = CaptionScorer(dev.references())
    rows = {}
    for name, options in decodings(model.generation, args.max_new_tokens, args.seed):
        start = time.perf_counter()
        found = model.caption(features=features, **options)
        seconds = time.perf_counter() - start
        texts = {item.id: captions[0].text for item, captions in zip(dev, found, strict=True)}
        scores = scorer.score(texts)
        variety = diversity_metrics(
            texts.values(), training_captions=train.captions(), vocabulary_size=len(model.vocabulary)
        )
        rows[name] = {**scores, **variety, "ms_per_photo": 1e3 * seconds / len(dev)}
    static = model.condition(features)
    same = 0
    for i in range(len(dev)):
        options = {"num_beams": 5, "max_new_tokens": args.max_new_tokens}
        ours = model.decoder.generate(static[i : i + 1], **options)
        eager = reference_decoder.generate(model.decoder, static[i : i + 1], **options)
        same += int(torch.equal(ours.sequences, eager.sequences))
    return {
        "environment": harness.environment(),
        "parameters": sum(p.numel() for n, p in model.named_parameters() if not n.startswith("encoder.")),
        "words": len(model.vocabulary),
        "dev_photos": len(dev),
        "photos_with_the_tokens_of_the_pytorch_search": same,
        "validation": model.details.get("validation", {}),
        "decoding": rows,
    }


def evaluate_stage(args: argparse.Namespace) -> None:
    if args.bundle:
        bundles = {args.bundle.name: args.bundle}
    else:
        names = [run_name(v, c) for v in args.variant or VARIANTS for c in args.cnn or CNNS]
        bundles = {
            n: args.out / n / "model" for n in names if (args.out / n / "model" / "config.json").is_file()
        }
    if not bundles:
        raise ValueError(f"evaluate: --out must hold trained runs, got none in {args.out}")
    for name, folder in bundles.items():
        report = evaluate_bundle(folder, args)
        write(args.out / f"{name}.scores.json", report)
        best = max(report["decoding"].items(), key=lambda kv: kv[1]["cider_d"])
        print(f"{name}: best CIDEr-D {best[1]['cider_d']:.3f} with {best[0]}", flush=True)


def baseline_stage(args: argparse.Namespace) -> None:
    """Nearest neighbour by cosine, on the features as they are and standardised over the training photos."""
    from lrcn_fast.data import extract_features
    from lrcn_fast.evaluation import caption_metrics
    from lrcn_fast.models import create_encoder

    train, dev = read_data(args.data)
    encoder = create_encoder("efficientnet_lite0").to(args.device or "cpu")
    cache = args.out / "features"
    a, b = (extract_features(encoder, [i.image for i in part], cache=cache).double() for part in (train, dev))
    report = {}
    mean, std = a.mean(0), a.std(0).clamp_min(1e-6)
    for name, x, y in (("cosine", a, b), ("cosine, standardised", (a - mean) / std, (b - mean) / std)):
        nearest = (F.normalize(y, dim=1) @ F.normalize(x, dim=1).T).argmax(1).tolist()
        texts = {item.id: train[j].captions[0] for item, j in zip(dev, nearest, strict=True)}
        report[name] = caption_metrics(dev.references(), texts)
        print(f"nearest neighbour ({name}): CIDEr-D {report[name]['cider_d']:.3f}", flush=True)
    write(args.out / "baseline.scores.json", report)


def write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def markdown(
    report: dict[str, Any], metrics: Sequence[str] = METRICS, decodings: Collection[str] | None = None
) -> str:
    """The table: one row per model and way to decode (of those named, or all)."""
    rows = ["| model | CNN | decoding | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 3) + "|"]

    def line(model: str, cnn: str, how: str, scores: dict[str, float]) -> str:
        return f"| {model} | {cnn} | {how} | " + " | ".join(f"{scores[m]:.3f}" for m in metrics) + " |"

    for how, scores in report["baseline"].items():
        rows.append(line("nearest neighbour", "frozen", how, scores))
    for name, run in report["runs"].items():
        variant, _, cnn = name.partition("_")
        rows += [
            line(f"LRCN_{variant}" if cnn else name, cnn, how, scores)
            for how, scores in run["decoding"].items()
            if decodings is None or how.partition(":")[0] in decodings
        ]
    return "\n".join(rows) + "\n"


def table_stage(args: argparse.Namespace) -> None:
    baseline = args.out / "baseline.scores.json"
    report: dict[str, Any] = {
        "environment": harness.environment(),
        "data": "Flickr8k small: 753 training photos, scores on the 113 dev photos with 5 references each",
        "baseline": json.loads(baseline.read_text()) if baseline.is_file() else {},
        "runs": {},
    }
    for path in sorted(args.out.glob("*.scores.json")):
        if path != baseline:
            report["runs"][path.name.removesuffix(".scores.json")] = json.loads(path.read_text())
    path = harness.save(args.results, "flickr8k", report)
    (args.results / "flickr8k.md").write_text(markdown(report))
    print(f"written to {path}", file=sys.stderr)


STAGES = {"train": train_stage, "evaluate": evaluate_stage, "baseline": baseline_stage, "table": table_stage}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    parser.add_argument("--stage", action="append", choices=list(STAGES), help="default: all, in order")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="default: all")
    parser.add_argument("--cnn", action="append", choices=CNNS, help="default: all")
    parser.add_argument("--out", type=Path, required=True, help="working folder")
    parser.add_argument(
        "--data", type=Path, default=default, help="folder with flickr8k_small and flickr8k_text"
    )
    parser.add_argument("--bundle", type=Path, help="evaluate this model instead of the runs in --out")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU for training, else the CPU")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--max-new-tokens", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="where the table goes")
    args = parser.parse_args()
    for stage in args.stage or list(STAGES):
        STAGES[stage](args)


if __name__ == "__main__":
    main()

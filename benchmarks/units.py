"""The paper's RNN beside its LSTM, the rows "RNN, 2f" of its tables 5 and 6, on the small Flickr8k.

Both are LRCN_2f on a frozen CNN, trained by the caption phase of the packaged recipes flickr8k_small_2f_rnn
and flickr8k_small_2f, which differ in the unit alone. What the runs change in these recipes, for both units
alike, so that several seeds are affordable on one CPU core (CHANGES):

    no language-model phase before it, which the paper's models did not have either, and no words in the
        vocabulary that occur in its text alone
    half of the embedding and hidden size
    12 epochs instead of 25, with three seeds; with one seed the 25 too (SEEDS)
    no random crops (one view a photo instead of 12)

The dev photos are scored after every epoch, for the curves; nothing is chosen by them, the last weights stay.
Runs are kept in --out and continued when called again.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import flickr8k
import harness
import torch

RECIPES = {"rnn": "flickr8k_small_2f_rnn", "lstm": "flickr8k_small_2f"}
CHANGES = {
    "model.embed_dim": 256,
    "model.hidden_size": 256,
    "data.vocabulary_text": [],
    "data.validation_splits": ["dev"],
    "phases.1.views": 1,
    "phases.1.num_beams": 1,
}
SEEDS = {12: (1, 2, 3), 25: (1,)}  # by epochs
WAYS = ("greedy", *(f"beam {k}" for k in flickr8k.BEAMS[1:]), "sample N=100 T=1.5")
CURVES = ("step", "train_loss", "validation_loss", "cider_d", "bleu_4")


def load(unit: str, epochs: int, seed: int, args: argparse.Namespace) -> Any:
    """The configuration of a run."""
    from lrcn_fast.training import load_config

    cache = str(args.out / "features")
    changes = {"seed": seed, "data.cache": cache, "phases.1.epochs": epochs, **CHANGES}
    settings = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    config: Any = load_config(RECIPES[unit], [*settings, *args.set])
    del config.phases[0]
    return config


def run(unit: str, epochs: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one captioner and score it on the dev photos: captions (table 6) and retrieval (table 5)."""
    from lrcn_fast.data import extract_features
    from lrcn_fast.evaluation import CaptionScorer, retrieval_metrics
    from lrcn_fast.models import Captioner
    from lrcn_fast.training import train

    out = args.out / f"{unit}-{epochs}-{seed}"
    done = out / "scores.json"
    if done.is_file():
        return dict(json.loads(done.read_text()))
    summary = train(load(unit, epochs, seed, args), out, device="cpu")
    model = Captioner.from_pretrained(out / "model")
    _, dev = flickr8k.read_data(args.data)
    features = extract_features(model.encoder, [item.image for item in dev], cache=args.out / "features")
    scorer = CaptionScorer(dev.references())
    decoding = {}
    for name, options in flickr8k.decodings(model.generation, 20, seed):
        if name in WAYS:
            found = model.caption(features=features, **options)
            texts = {item.id: captions[0].text for item, captions in zip(dev, found, strict=True)}
            decoding[name] = {k: v for k, v in scorer.score(texts).items() if k in flickr8k.METRICS}
    owner = [i for i, item in enumerate(dev) for _ in item.captions]
    scores = model.log_likelihood(None, dev.captions(), features=features, end_marker=False)
    row = {
        "unit": unit,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.decoder.parameters()),
        "words": len(model.vocabulary),
        "epochs": [{k: entry[k] for k in CURVES} for entry in summary["history"]],
        "decoding": decoding,
        "retrieval": retrieval_metrics(scores, owner),
    }
    flickr8k.write(done, row)
    cider = decoding["greedy"]["cider_d"]
    print(f"{out.name}: CIDEr-D {cider:.3f} greedy", file=sys.stderr, flush=True)
    return row


def groups(report: dict[str, Any]) -> list[tuple[str, int, list[dict[str, Any]]]]:
    """Unit, epochs and the runs of the two, one per seed."""
    trained = sorted({len(run["epochs"]) for run in report["runs"]})
    found = (
        (unit, n, [r for r in report["runs"] if (r["unit"], len(r["epochs"])) == (unit, n)])
        for n in trained
        for unit in RECIPES
    )
    return [group for group in found if group[2]]


def _row(unit: str, epochs: int, runs: list[dict[str, Any]], cells: list[str]) -> str:
    return f"| {unit.upper()} | {epochs} | {len(runs)} | " + " | ".join(cells) + " |"


def _cell(values: list[float]) -> str:
    """Mean, and the range where there are several."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}-{max(values):.3f})"


def captions_markdown(report: dict[str, Any]) -> str:
    """Table 6: one row per unit, one column per way to decode."""
    parts = []
    for metric, name in {"cider_d": "CIDEr-D", "bleu_4": "BLEU-4"}.items():
        heads = [f"{name}: unit", "epochs", "seeds", *WAYS]
        parts += ["", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        parts += [
            _row(unit, n, runs, [_cell([r["decoding"][way][metric] for r in runs]) for way in WAYS])
            for unit, n, runs in groups(report)
        ]
    return "\n".join(parts[1:])


def retrieval_markdown(report: dict[str, Any]) -> str:
    """Table 5: one row per unit, and what the model has learned of the words."""
    rows = [
        "| unit | epochs | seeds | caption to image R@1 / 5 / 10, median rank | image to caption "
        "| loss of a training word, dropout on | of a dev word |",
        "|---" * 7 + "|",
    ]
    for unit, n, runs in groups(report):
        cells = []
        for way in ("caption_to_image", "image_to_caption"):
            found = [r["retrieval"][way] for r in runs]
            recalls = [f"{100 * statistics.mean(f[k] for f in found):.1f}" for k in ("r1", "r5", "r10")]
            cells.append(f"{' / '.join(recalls)}, {statistics.mean(f['median_rank'] for f in found):.1f}")
        cells += [_cell([r["epochs"][-1][k] for r in runs]) for k in ("train_loss", "validation_loss")]
        rows.append(_row(unit, n, runs, cells))
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    parser.add_argument("--out", type=Path, required=True, help="working folder")
    parser.add_argument("--data", type=Path, default=default, help="folder with flickr8k_small")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="where the JSON goes")
    args = parser.parse_args()
    os.environ["LRCN_DATA"] = str(args.data)
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "environment": harness.environment(),
        "recipes": RECIPES,
        "phase": "caption",
        "changes": CHANGES,
        "runs": [],
    }
    for epochs, seeds in SEEDS.items():
        for seed in seeds:
            for unit in RECIPES:
                report["runs"].append(run(unit, epochs, seed, args))
                path = harness.save(args.results, "units", report)
    print(captions_markdown(report))
    print(retrieval_markdown(report))
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()

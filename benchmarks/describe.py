"""The paper's three ways to describe video, side by side on the made-up kitchen corpus: its Table 9.

Every architecture is trained with the packaged recipe kitchen_decoder_prob, which was not tuned for any of
them, from several seeds; the corpus, its CRF noise and the split are the same throughout. Scores are on the
test clips, three references each, with the recipe's beam of 3. Beside them:

    ceiling        (b) trained and tested on the same clips with almost no noise (the labels are right)
    by confidence  BLEU-4 on the half of the test clips that the CRF is surer and less sure of (mean over the
                   nodes of the largest marginal), which is where (c) can gain over (b)

The grammar is small: --corpus only counts how many test sentences occur word for word in the training split,
and adds that to the newest results. Runs are kept in --out and continued when called again.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import harness
import torch

ARCHITECTURES = {"encoder_decoder": "(a)", "decoder_max": "(b)", "decoder_prob": "(c)"}
PAPER = {"encoder_decoder": 25.3, "decoder_max": 27.4, "decoder_prob": 28.8}  # Table 9, BLEU-4 %
RECIPE = "kitchen_decoder_prob"


def run(architecture: str, seed: int, args: argparse.Namespace, clips: str | None = None) -> dict[str, Any]:
    """Train one model and score it on the test clips."""
    from lrcn_fast.data import kitchen_clips, read_crf_clips
    from lrcn_fast.models import VideoDescriber
    from lrcn_fast.training import load_config, train

    settings = [f"model.architecture={architecture}", f"seed={seed}", *args.set]
    settings += [f"data.clips={clips}"] if clips else []
    config: Any = load_config(RECIPE, settings)
    out = args.out / f"{architecture}-{seed}{'-ceiling' if clips else ''}"
    summary = train(config, out, device="cpu")
    data = config.data
    found = read_crf_clips(clips) if clips else kitchen_clips(data.kitchen_clips, seed=data.kitchen_seed)
    test = found.split("test")
    model = VideoDescriber.from_pretrained(out / "model").prepare()
    texts = [captions[0].text for captions in model.describe(test)]
    sure = [statistics.mean(map(max, clip.marginals)) for clip in test]
    order = sorted(range(len(test)), key=sure.__getitem__)
    low, high = order[: len(order) // 2], order[len(order) // 2 :]
    row = {
        "architecture": architecture,
        "seed": seed,
        **score(test, texts, range(len(test))),
        "bleu_4_surer_half": score(test, texts, high)["bleu_4"],
        "bleu_4_less_sure_half": score(test, texts, low)["bleu_4"],
        "validation_loss": summary["best"]["validation_loss"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "example": {"references": test[0].sentences, "map": test[0].labels, "found": texts[0]},
    }
    print(f"{architecture} seed {seed}: BLEU-4 {100 * row['bleu_4']:.1f}", file=sys.stderr, flush=True)
    return row


def score(test: Any, texts: list[str], which: Any) -> dict[str, float]:
    from lrcn_fast.evaluation import caption_metrics

    references = {test[i].id: list(test[i].sentences) for i in which}
    return {
        k: float(v) for k, v in caption_metrics(references, {test[i].id: texts[i] for i in which}).items()
    }


def ceiling(args: argparse.Namespace) -> dict[str, Any]:
    """(b) where the CRF makes no mistake."""
    from lrcn_fast.data import kitchen_clips, write_crf_clips
    from lrcn_fast.training import load_config

    data = load_config(RECIPE, args.set).data  # type: ignore[attr-defined]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "noiseless.jsonl"
    write_crf_clips(path, kitchen_clips(data.kitchen_clips, seed=data.kitchen_seed, noise=(0.02, 0.02)))
    return run("decoder_max", args.seeds[0], args, str(path))


def seen_sentences(args: argparse.Namespace) -> float:
    """Share of the sentences of test clips that some training clip has, word for word."""
    from lrcn_fast.data import kitchen_clips
    from lrcn_fast.training import load_config

    data = load_config(RECIPE, args.set).data  # type: ignore[attr-defined]
    clips = kitchen_clips(data.kitchen_clips, seed=data.kitchen_seed)
    trained = set(clips.split("train").sentences())
    return statistics.mean(sentence in trained for sentence in clips.split("test").sentences())


def markdown(report: dict[str, Any]) -> str:
    """One row per architecture: BLEU-4 in percent, mean and each seed."""
    rows = [
        "| | CRF output | paper, TACoS | here | seeds | surer half | less sure half |",
        "|---|---|---|---|---|---|---|",
    ]

    def cells(runs: list[dict[str, Any]]) -> list[str]:
        mean = {k: 100 * statistics.mean(r[k] for r in runs) for k in KEYS}
        seeds = " ".join(f"{100 * r['bleu_4']:.1f}" for r in runs)
        return [f"{mean[KEYS[0]]:.1f}", seeds, *(f"{mean[k]:.1f}" for k in KEYS[1:])]

    for name, letter in ARCHITECTURES.items():
        runs = [r for r in report["runs"] if r["architecture"] == name]
        if runs:
            rows.append("| " + " | ".join([letter, name, f"{PAPER[name]:.1f}", *cells(runs)]) + " |")
    if report.get("ceiling"):
        rows.append("| " + " | ".join(["", "labels all right", "", *cells([report["ceiling"]])]) + " |")
    return "\n".join(rows)


KEYS = ("bleu_4", "bleu_4_surer_half", "bleu_4_less_sure_half")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="working folder")
    parser.add_argument("--corpus", action="store_true", help="train nothing, see above")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="where the JSON goes")
    args = parser.parse_args()
    if args.corpus:
        path, report = harness.newest("describe")
        report["test_sentences_seen"] = seen_sentences(args)
        path.write_text(json.dumps(report, indent=1) + "\n")
        return
    if args.out is None:
        parser.error("--out must be given")
    torch.set_num_threads(1)
    report = {"environment": harness.environment(), "recipe": RECIPE, "runs": []}
    report["test_sentences_seen"] = seen_sentences(args)
    for seed in args.seeds:
        for architecture in ARCHITECTURES:
            report["runs"].append(run(architecture, seed, args))
            path = harness.save(args.results, "describe", report)
    report["ceiling"] = ceiling(args)
    harness.save(args.results, "describe", report)
    print(markdown(report))
    print(json.dumps(report["runs"][0]["example"], indent=1))
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Retrieval: speed and memory of scoring every caption for every photo, and results on Flickr8k's dev photos.

    speed    1000 photos x 5000 captions (--photos, --captions) with the packaged model: random features, and
             captions of COCO val2014. --scored says how many of the photos are scored, in one call: a few,
             and the rest is extrapolated, pairs being the same work, or all (--scored 1000, an hour of
             one core). Beside it 160 pairs one by one (each pair's logits from
             CaptionDecoder.log_likelihood in batches of 256), after the two were compared.
    quality  113 photos, 565 captions, both directions; with and without the paper's normalisation, end marker
             scored or not; and what chance gives.

The floor is the multiplications that no sharing in the scoring can avoid: for every distinct beginning of a
caption and every photo, the recurrence of the layer that sees the photo and the vocabulary projection.
"""

import argparse
import gzip
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import harness
import torch


def synthetic(args: argparse.Namespace, model: Any) -> tuple[torch.Tensor, list[str]]:
    """Features of photos [B, C] as the model normalises them, and captions."""
    generator = torch.Generator().manual_seed(0)
    C = int(model.encoder.feature_dim)
    features = torch.randn(args.photos, C, generator=generator) * model.feature_std + model.feature_mean
    path = args.data / "coco_val2014_captions" / "captions_val2014_5refs.json.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        by_photo = json.load(file)
    captions = [c for photo in sorted(by_photo) for c in by_photo[photo][:5]]
    return features, captions[: args.captions]


def one_by_one(model: Any, features: torch.Tensor, captions: list[str]) -> torch.Tensor:
    """Every pair computed on its own, in batches of 256 pairs of similar length."""
    from lrcn_fast.models.captioner import pad_captions

    encoded = [model.vocabulary.encode(c) for c in captions]
    order = sorted(range(len(encoded)), key=lambda s: len(encoded[s]))
    pairs = [(i, s) for s in order for i in range(len(features))]
    static = model.condition(features)
    scores = torch.zeros(len(features), len(captions))
    with torch.no_grad():
        for at in range(0, len(pairs), 256):
            rows, columns = (list(x) for x in zip(*pairs[at : at + 256], strict=True))
            tokens, lengths = pad_captions([encoded[s] for s in columns], 0)
            scores[rows, columns] = model.decoder.log_likelihood(tokens, static[rows], lengths)
    return scores


def prefixes(model: Any, captions: list[str]) -> tuple[int, int]:
    """Words of the captions, and distinct beginnings that a word follows."""
    encoded = [tuple(model.vocabulary.encode(c)) for c in captions]
    return sum(map(len, encoded)), len({c[:t] for c in encoded for t in range(len(c))})


def speed(args: argparse.Namespace, model: Any) -> dict[str, Any]:
    features, captions = synthetic(args, model)
    few = torch.randperm(len(captions), generator=torch.Generator().manual_seed(1))[:40].tolist()
    some = [captions[s] for s in few]
    start = time.process_time()
    expected = one_by_one(model, features[:4], some)
    plain = 4 * len(some) / (time.process_time() - start)
    actual = model.log_likelihood(None, some, features=features[:4], end_marker=False)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-3)

    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    words, distinct = prefixes(model, captions)
    H, V = model.hidden_size, len(model.vocabulary)
    flops_per_photo = 2 * distinct * H * (4 * H + V)
    scored = min(args.scored, args.photos)
    wall, cpu = time.perf_counter(), time.process_time()

    def progress(done: int, pairs: int) -> None:
        rate = done / (time.process_time() - cpu)
        print(f"{done} of {pairs} pairs, {rate:.0f} a CPU second", file=sys.stderr, flush=True)

    scores = model.log_likelihood(
        None, captions, features=features[:scored], end_marker=False, progress=progress
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if not bool(torch.isfinite(scores).all()):
        raise RuntimeError("retrieval: every score must be finite")
    if scored < args.photos:  # all photos at once, as all captions were above: neither may grow the memory
        model.log_likelihood(None, captions[:8], features=features, end_marker=False)
    return {
        "photos": args.photos,
        "captions": len(captions),
        "photos_scored": scored,
        "words": words,
        "distinct_prefixes": distinct,
        "wall_minutes": wall / 60,
        "cpu_minutes": cpu / 60,
        "pairs_per_cpu_second": scored * len(captions) / cpu,
        "pairs_per_cpu_second_one_by_one": plain,
        "cpu_minutes_in_all": args.photos * cpu / scored / 60,
        "floor_gflop_per_photo": flops_per_photo / 1e9,
        "gflop_per_cpu_second": scored * flops_per_photo / cpu / 1e9,
        "scores_mb": 4e-6 * args.photos * len(captions),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "peak_rss_mb_before": base / 1024,
    }


def quality(args: argparse.Namespace, model: Any) -> dict[str, Any]:
    from lrcn_fast.data import read_captions
    from lrcn_fast.evaluation import retrieval_metrics

    dev = read_captions(args.data / "flickr8k_small" / "captions.json").split("dev")
    features = model.features([item.image for item in dev])
    owner = [i for i, item in enumerate(dev) for _ in item.captions]
    rows = {}
    for end_marker in (False, True):
        scores = model.log_likelihood(None, dev.captions(), features=features, end_marker=end_marker)
        for normalize in (True, False):
            name = f"end marker {'in' if end_marker else 'out'}, {'' if normalize else 'not '}normalised"
            rows[name] = retrieval_metrics(scores, owner, normalize=normalize)
            print(name, json.dumps(rows[name]), file=sys.stderr)
    generator = torch.Generator().manual_seed(0)
    draws = [
        retrieval_metrics(torch.rand(len(dev), len(owner), generator=generator), owner, normalize=False)
        for _ in range(100)
    ]
    rows["chance, mean of 100 draws"] = {
        way: {k: sum(d[way][k] for d in draws) / len(draws) for k in draws[0][way]} for way in draws[0]
    }
    return {"photos": len(dev), "captions": len(owner), "scores": rows}


def markdown(report: dict[str, Any]) -> str:
    """The results, one row per way to score."""
    rows = ["| scores | photo -> caption R@1 / 5 / 10, median rank | caption -> photo |", "|---|---|---|"]
    for name, scores in report["quality"]["scores"].items():
        cells = [
            " / ".join(f"{100 * s[k]:.1f}" for k in ("r1", "r5", "r10")) + f", {s['median_rank']:g}"
            for s in (scores["image_to_caption"], scores["caption_to_image"])
        ]
        rows.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)


def main() -> None:
    from lrcn_fast.models import Captioner

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder of the data sets")
    parser.add_argument("--model", default="flickr8k-small")
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--captions", type=int, default=5000)
    parser.add_argument("--scored", type=int, default=8, help="photos that are scored; more are extrapolated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=harness.RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = Captioner.from_pretrained(args.model).eval()
    report = {"environment": harness.environment(), "model": args.model}
    report["speed"] = speed(args, model)
    report["quality"] = quality(args, model)
    print(json.dumps(report["speed"], indent=1))
    print(markdown(report))
    print(f"written to {harness.save(args.out, 'retrieval', report)}", file=sys.stderr)


if __name__ == "__main__":
    main()

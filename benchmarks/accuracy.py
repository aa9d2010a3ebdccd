"""What rounded weights do to captions: words, log-probabilities and CIDEr-D of the shipped captioner.

Two models on the dev photos of Flickr8k small. "shipped" is the one in the package, which is stored as int8,
so that rounding it to int8 once more changes little. "unrounded" is the same with every weight of its
matrices moved at random by up to half a step of its row's int8 grid, back to where a trained weight may have
been.

Each is decoded with float32, bfloat16 and int8 weights. Words and captions are compared with those of
float32; the log-probability of a caption with that of the same words in float64. The last table is about the
search itself: how many more candidates than it needs int8 has to keep so that none of the best is lost.
"""

import argparse
import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import harness
import torch
from flickr8k import read_data
from torch import Tensor

from lrcn_fast import CaptionDecoder, DecodeResult, ops
from lrcn_fast.evaluation import CaptionScorer
from lrcn_fast.models import Captioner

DTYPES = ("float32", "bfloat16", "int8")
SPARE = (0, 2, 4, 8, 16)  # candidates beyond those that a search needs


def unrounded(model: Captioner) -> Captioner:
    """A copy whose matrices lie off the int8 grid."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in {id(p): p for p in model.decoder.parameters() if p.dim() == 2}.values():
            half_step = weight.abs().amax(1, keepdim=True) / 254
            weight += half_step * (2 * torch.rand(weight.shape, generator=generator) - 1)
    return model


def searches(model: Captioner) -> dict[str, dict[str, Any]]:
    """Name to options: greedy, beam 5, and the model's own."""
    plain = {"length_penalty": 0.0, "max_new_tokens": 20}
    own = model.generation
    return {
        "greedy": {"num_beams": 1, **plain},
        "beam 5": {"num_beams": 5, **plain},
        f"own: beam {own.num_beams}, length penalty {own.length_penalty:g}": {},
    }


def evaluate(model: Captioner, features: Tensor, photos: Any) -> dict[str, Any]:
    """Every search with every type of weights."""
    static = model.condition(features)
    judge = copy.deepcopy(model.decoder).double()
    scorer = CaptionScorer(photos.references())
    report: dict[str, Any] = {}
    for name, options in searches(model).items():
        options = {
            **model.generation.options(**options),
            "suppress_tokens": [i for i in (model.vocabulary.unk_id,) if i is not None],
        }
        found = {
            dtype: model.decoder.prepare(dtype).generate(static, **options)  # type: ignore[arg-type]
            for dtype in DTYPES
        }
        report[name] = {}
        exact = judged(found.values(), judge, static)
        for (dtype, result), logprobs in zip(found.items(), exact, strict=True):
            texts = [model.vocabulary.decode(result.tokens(i)) for i in range(len(photos))]
            metrics = scorer.score({item.id: text for item, text in zip(photos, texts, strict=True)})
            report[name][dtype] = {
                **agreement(result, found["float32"]),
                **error(result, logprobs),
                "cider_d": metrics["cider_d"],
            }
        for row in report[name].values():
            row["cider_d_difference"] = row["cider_d"] - report[name]["float32"]["cider_d"]
    return report


def agreement(result: DecodeResult, expected: DecodeResult) -> dict[str, float]:
    """Shares of words and of captions that are the same. A word counts at its position."""
    words, longest, captions = 0, 0, 0
    for i in range(len(result.lengths)):
        a, b = result.tokens(i), expected.tokens(i)
        words += sum(x == y for x, y in zip(a, b, strict=False))
        longest += max(len(a), len(b))
        captions += a == b
    return {"same_words": words / longest, "same_captions": captions / len(result.lengths)}


def judged(results: Iterable[DecodeResult], judge: CaptionDecoder, static: Tensor) -> Iterator[Tensor]:
    """The log-probabilities of each result's words in float64; past the end anything. [B, L] each."""
    sequences = [result.sequences[:, 0] for result in results]
    photos = torch.arange(len(static))[:, None]
    # Most captions are the same for all types: each is scored once.
    told = torch.cat([torch.cat([photos, s], 1) for s in sequences])
    rows, of = torch.unique(told, dim=0, return_inverse=True)
    logits = judge(rows[:, 1:], static.double()[rows[:, 0]])
    words = logits.log_softmax(-1).gather(2, rows[:, 1:, None])[..., 0]
    yield from words[of].split(len(static))


def error(result: DecodeResult, exact: Tensor) -> dict[str, float]:
    """Distance of each caption's log-probability, and of the worst word's, from the exact ones [B, L]."""
    valid = torch.arange(exact.shape[1]) < result.lengths
    words = torch.where(valid, result.token_logprobs[:, 0] - exact, 0.0)
    captions = words.sum(1).abs()
    return {
        "caption_error_mean": captions.mean().item(),
        "caption_error_max": captions.max().item(),
        "word_error_max": words.abs().max().item(),
    }


def spare_candidates(model: Captioner, features: Tensor) -> dict[str, Any]:
    """How often the best words by exact logits are among somewhat more by int8 logits.

    The hidden states are those of the float32 captions, word by word.
    """
    static, projection = model.condition(features), model.decoder.projection
    found = model.decoder.prepare().generate(static, num_beams=5)
    seen: list[Tensor] = []
    hook = projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.decoder(found.sequences[:, 0], static)
    hook.remove()
    valid = torch.arange(seen[0].shape[1]) < found.lengths
    h, V = seen[0][valid].contiguous(), model.decoder.vocab_size
    exact = projection(h)
    rounded = ops.linear(h, ops.linear_pack(projection.weight, dtype=torch.int8), projection.bias, V)
    # ranks[r, v]: the place of word v among the rounded logits
    ranks = rounded.argsort(dim=1, descending=True).argsort(dim=1)
    report: dict[str, Any] = {
        "rows": len(h),
        "logit_error_mean": (rounded - exact).abs().mean().item(),
        "needed": {},
    }
    for best in (1, 10, 20):
        last = ranks.gather(1, exact.topk(best).indices).amax(1) + 1
        report["needed"][str(best)] = {str(m): (last <= best + m).double().mean().item() for m in SPARE}
    return report


def markdown(report: dict[str, Any]) -> str:
    """One row a model, search and type."""
    rows = [
        "| model | search | weights | same words | same captions | log p of a caption, mean error (max) "
        "| CIDEr-D | difference |",
        "|---" * 8 + "|",
    ]
    for model, searches in report["models"].items():
        for search, dtypes in searches.items():
            for dtype, v in dtypes.items():
                rows.append(
                    f"| {model} | {search} | {dtype} | {v['same_words']:.1%} | {v['same_captions']:.1%} "
                    f"| {v['caption_error_mean']:.2g} ({v['caption_error_max']:.2g}) "
                    f"| {v['cider_d']:.3f} | {v['cider_d_difference']:+.4f} |"
                )
    return "\n".join(rows)


def spare_markdown(report: dict[str, Any]) -> str:
    """Share of the steps at which no wanted word is lost."""
    needed = report["spare_candidates"]["needed"]
    rows = [
        "| words wanted | " + " | ".join(f"{m} more" for m in SPARE) + " |",
        "|---" * (len(SPARE) + 1) + "|",
    ]
    for best, shares in needed.items():
        rows.append(f"| {best} | " + " | ".join(f"{shares[str(m)]:.2%}" for m in SPARE) + " |")
    return "\n".join(rows)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder with flickr8k_small")
    parser.add_argument("--model", default="flickr8k-small", help="name or folder of a captioner")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder for the JSON file")
    args = parser.parse_args()
    _, photos = read_data(args.data)
    shipped = Captioner.from_pretrained(args.model)
    features = shipped.features([item.image for item in photos])
    models = {"shipped": shipped, "unrounded": unrounded(shipped)}
    report = {
        "environment": harness.environment(),
        "model": args.model,
        "photos": len(photos),
        "models": {name: evaluate(model, features, photos) for name, model in models.items()},
        "spare_candidates": spare_candidates(models["unrounded"], features),
    }
    path = harness.save(args.out, "accuracy", report)
    print(markdown(report), spare_markdown(report), f"written to {path}", sep="\n\n")


if __name__ == "__main__":
    main()

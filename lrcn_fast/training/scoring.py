"""Scheduled evaluation: the word loss and the caption metrics of a captioner on held-out photos."""

import torch
from torch import Tensor

from lrcn_fast.data import CaptionSet
from lrcn_fast.evaluation import caption_metrics
from lrcn_fast.models.captioner import Captioner, pad_captions

__all__ = ["score_captions"]

# Captions per teacher-forced batch.
BATCH = 256


@torch.no_grad()
def score_captions(
    model: Captioner,
    items: CaptionSet,
    features: Tensor | None,
    *,
    max_words: int,
    num_beams: int,
    max_new_tokens: int,
    rank: int = 0,
    world: int = 1,
) -> dict[str, float]:
    """Score a captioner; each of ``world`` processes does its share of the photos and returns the whole.

    Args:
        model: In evaluation mode.
        items: Photos with their captions.
        features: Their CNN features, or None to score the captions as text without photos. [N, C].
        max_words: Where captions are cut for the loss, <EOS> included.
        num_beams: Of the search behind the metrics.
        max_new_tokens: Longest generated caption.
        rank: This process.
        world: Processes.

    Returns:
        ``validation_loss``, the mean -log p of a word, and with features the caption metrics; ``score``,
        better when higher, is CIDEr-D, or the negative loss of text.
    """
    share = range(rank, len(items), world)
    loss, words = _loss(model, items, share, features, max_words)
    candidates = {}
    if features is not None and len(share):
        found = model.caption(
            features=features[list(share)], num_beams=num_beams, max_new_tokens=max_new_tokens
        )
        candidates = {items[i].id: c[0].text if c else "" for i, c in zip(share, found, strict=True)}
    parts = [(loss, words, candidates)]
    if world > 1:
        from accelerate.utils import gather_object

        parts = gather_object(parts)
    mean = sum(p[0] for p in parts) / sum(p[1] for p in parts)
    scores = {"validation_loss": mean, "score": -mean}
    if features is not None:
        merged = {k: v for p in parts for k, v in p[2].items()}
        scores |= {k: float(v) for k, v in caption_metrics(items.references(), merged).items()}
        scores["score"] = scores["cider_d"]
    return scores


def _loss(
    model: Captioner, items: CaptionSet, share: range, features: Tensor | None, max_words: int
) -> tuple[float, float]:
    """Sum of -log p over the words of a share of the photos, and the number of words."""
    vocabulary = model.vocabulary
    pairs = [(i, vocabulary.encode_target(c, max_words)) for i in share for c in items[i].captions]
    total, count = 0.0, 0.0
    for at in range(0, len(pairs), BATCH):
        chunk = pairs[at : at + BATCH]
        tokens, lengths = pad_captions([c for _, c in chunk], vocabulary.pad_id)
        rows = None if features is None else features[[i for i, _ in chunk]]
        total += float(model.loss(rows, tokens.to(model.device), lengths, reduction="sum"))
        count += float(lengths.sum())
    return total, count

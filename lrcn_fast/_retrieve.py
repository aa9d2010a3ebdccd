"""What ``lrcn-fast retrieve`` does: the photos of a caption, or the captions of a photo, by likelihood."""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrcn_fast._photos import Problems, batches, expand_inputs
from lrcn_fast.evaluation.retrieval import normalize_log_likelihood
from lrcn_fast.models import Captioner

__all__ = ["find_captions", "find_photos", "read_sentences"]

Bar = Callable[[int, str], AbstractContextManager[Callable[[int], object]]]
"""``with bar(total, what) as advance``."""

COMMAND = "lrcn-fast retrieve"


def find_photos(
    model: Captioner,
    caption: str,
    inputs: Sequence[str],
    *,
    end_marker: bool,
    top_k: int,
    as_json: bool,
    bar: Bar,
) -> None:
    """Print the photos that a caption is likeliest for, best first, with log p(caption | photo)."""
    if set(model.vocabulary.encode(caption)) <= {model.vocabulary.unk_id}:
        raise ValueError(f"CAPTION must have a word that the model knows, got {caption!r}")
    problems = Problems(COMMAND)
    names, features = _encode(model, inputs, problems, bar)
    if names:
        scores = _score(model, features, [caption], end_marker, bar)[:, 0]
        order = np.argsort(-scores, kind="stable")[:top_k]
        _print("caption", caption, "image", [(names[i], float(scores[i])) for i in order], as_json)
    problems.finish()


def find_captions(
    model: Captioner,
    images: Sequence[str],
    captions: Sequence[str],
    against: Sequence[str],
    *,
    end_marker: bool,
    top_k: int,
    as_json: bool,
    bar: Bar,
) -> None:
    """Print the likeliest captions of each photo, best first.

    Args:
        model: In evaluation mode.
        images: Photos, as for ``expand_inputs``.
        captions: To choose from.
        against: Photos over which the mean likelihood of a caption is taken, and subtracted, as in
            ``normalize_log_likelihood``; the photo itself is one of them. None: log p(caption | photo).
        end_marker: Whether the end of the sentence is scored.
        top_k: Captions per photo.
        as_json: One JSON object per photo.
        bar: For progress.
    """
    problems = Problems(COMMAND)
    names, features = _encode(model, images, problems, bar)
    others = _encode(model, against, problems, bar)[1] if against else features[:0]
    if names:
        scores = _score(model, torch.cat([features, others]), captions, end_marker, bar)
        background = scores[len(names) :]
        for name, own in zip(names, scores, strict=False):
            if against:
                own = normalize_log_likelihood(np.concatenate([own[None], background]))[0]
            order = np.argsort(-own, kind="stable")[:top_k]
            _print("image", name, "caption", [(captions[i], float(own[i])) for i in order], as_json)
    problems.finish()


def read_sentences(name: str) -> list[str]:
    """Sentences of a text file, or of stdin for ``-``, one a line.

    Raises:
        ValueError: no such file, not UTF-8, or nothing in it; names the file.
    """
    wanted = f"--captions: {name} must be a text file with one caption a line"
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{wanted}, got {' '.join(str(error).split())}") from None
    sentences = [line.strip() for line in text.splitlines() if line.strip()]
    if not sentences:
        raise ValueError(f"{wanted}, got none")
    return sentences


def _encode(
    model: Captioner, inputs: Sequence[str], problems: Problems, bar: Bar
) -> tuple[list[str], Tensor]:
    """Names and CNN features [B, C] of the photos that can be read."""
    photos = expand_inputs(inputs, sys.stdin.buffer, problems)
    names: list[str] = []
    features = [torch.zeros(0, int(model.encoder.feature_dim), device=model.device)]
    with bar(len(photos), "photos") as advance:
        for batch in batches(photos, 8 if model.device.type == "cpu" else 32):
            tensors = []
            for name, source in batch:
                try:
                    tensors.append(model.encoder.preprocess(source))
                    names.append(name)
                except (ValueError, OSError) as error:
                    problems.add(error)
            if tensors:
                features.append(model.features(torch.stack(tensors)))
            advance(len(batch))
    return names, torch.cat(features)


def _score(model: Captioner, features: Tensor, captions: Sequence[str], end_marker: bool, bar: Bar) -> Any:
    done = 0
    with bar(len(features) * len(captions), "pairs") as advance:

        def progress(now: int, total: int) -> None:
            nonlocal done
            advance(now - done)
            done = now

        scores = model.log_likelihood(
            None, captions, features=features, end_marker=end_marker, progress=progress
        )
    return scores.cpu().double().numpy()


def _print(kind: str, query: str, found: str, results: Sequence[tuple[str, float]], as_json: bool) -> None:
    if as_json:
        items = [{found: text, "score": score} for text, score in results]
        print(json.dumps({kind: query, f"{found}s": items}), flush=True)
        return
    for text, score in results:
        print(f"{text}\t{score:.3f}" if kind == "caption" else f"{query}\t{score:.3f}\t{text}", flush=True)

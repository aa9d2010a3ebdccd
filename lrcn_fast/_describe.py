"""What ``lrcn-fast describe`` does: sentences for clips of CRF outputs, or for videos."""

import os
from collections.abc import Sequence
from typing import Any

from lrcn_fast._cli_options import print_captions
from lrcn_fast._photos import Problems
from lrcn_fast.data import CrfSet, read_crf_clips
from lrcn_fast.models import VideoDescriber

__all__ = ["crf_clips", "describe_inputs"]


def crf_clips(model: VideoDescriber, path: str | os.PathLike[str]) -> CrfSet:
    """Read clips of CRF outputs that have the nodes and labels of a model; a ValueError if others."""
    clips = read_crf_clips(path)
    if list(clips.nodes) != list(model.nodes):
        raise ValueError(
            f"{path}: crf must have the nodes of the model ({', '.join(model.nodes)}), "
            f"got {', '.join(clips.nodes)}"
        )
    for node, labels in clips.nodes.items():
        known = model.nodes[node]
        if labels != known:
            i = next((i for i, pair in enumerate(zip(labels, known, strict=False)) if pair[0] != pair[1]), -1)
            got = f"{len(labels)}" if i < 0 else f"{labels[i]!r} for {known[i]!r}"
            raise ValueError(
                f"{path}: labels of node {node!r} must be the {len(known)} of the model, in its order, "
                f"got {got}"
            )
    return clips


def describe_inputs(
    model: VideoDescriber, inputs: Sequence[str], *, as_json: bool, bar: Any, **search: Any
) -> None:
    """Print the sentences of every clip; a file that cannot be read is a line on stderr, then exit status 1.

    Args:
        model: In evaluation mode.
        inputs: JSON-lines files for a model of CRF outputs, else videos or folders of frames.
        as_json: One JSON object per clip.
        bar: ``with bar(total, what) as advance``.
        **search: As for ``VideoDescriber.describe``.
    """
    problems = Problems("lrcn-fast describe")
    with bar(len(inputs), "files") as advance:
        for name in inputs:
            try:
                if model.nodes:
                    clips: Any = crf_clips(model, name)
                    ids = [clip.id for clip in clips]
                else:
                    clips, ids = [model.features(name)], [name]
                found = model.describe(clips, **search)
            except (ValueError, OSError) as error:
                problems.add(error)
            else:
                for clip, captions in zip(ids, found, strict=True):
                    print_captions(clip, captions, as_json, key="clip_id", plural="sentences")
            advance(1)
    problems.finish()

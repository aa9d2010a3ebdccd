"""Clips as the outputs of a CRF over named variables (activity, tool, object, ...), with their sentences.

The video-description part of the paper (section 6) works on such outputs, not on pixels. As JSON lines, one
line per sentence::

    {"clip_id": "s13-d25_4", "split": "train", "sentence": "The person cuts a carrot.",
     "crf": [{"node": "activity", "labels": ["cut", "peel"], "probs": [0.8, 0.2]}, ...],
     "map": ["cut", ...]}

``map`` is the most probable joint labelling, in the order of ``crf``; without it, each node's own best label.
``split`` and ``sentence`` may be missing. Lines with one clip_id are one clip with several sentences.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from lrcn_fast._files import read_text, write_atomic

__all__ = ["CrfClip", "CrfSet", "read_crf_clips", "write_crf_clips"]

# How far from 1 the probabilities of a node may add up: they may have been printed with three digits.
_SUM_TOLERANCE = 0.01


@dataclass(frozen=True)
class CrfClip:
    """One clip.

    Attributes:
        id: Name of the clip.
        marginals: Probabilities of each node's labels, in the order of the set's nodes and labels.
        labels: The most probable joint labelling, one label per node.
        sentences: What people said about it; may be empty.
        split: "train", "val", "test" or whatever the file calls its parts; "" where it has none.
    """

    id: str
    marginals: tuple[tuple[float, ...], ...]
    labels: tuple[str, ...]
    sentences: tuple[str, ...] = ()
    split: str = ""


class CrfSet(Sequence[CrfClip]):
    """An immutable list of clips over the same nodes.

    Args:
        nodes: Name of each node -> its labels, in the order of the clips' marginals.
        clips: With distinct ids.
        name: Where they come from, for messages.
    """

    def __init__(
        self, nodes: Mapping[str, Sequence[str]], clips: Iterable[CrfClip], name: str = "clips"
    ) -> None:
        self.nodes = {node: tuple(labels) for node, labels in nodes.items()}
        self.clips = tuple(clips)
        self.name = name

    def __len__(self) -> int:
        return len(self.clips)

    @overload
    def __getitem__(self, index: int) -> CrfClip: ...
    @overload
    def __getitem__(self, index: slice) -> "CrfSet": ...
    def __getitem__(self, index: int | slice) -> "CrfClip | CrfSet":
        if isinstance(index, slice):
            return CrfSet(self.nodes, self.clips[index], self.name)
        return self.clips[index]

    def __iter__(self) -> Iterator[CrfClip]:
        return iter(self.clips)

    @property
    def splits(self) -> dict[str, int]:
        """Clips per split, in order of first appearance."""
        return dict(Counter(clip.split for clip in self.clips))

    def split(self, *names: str) -> "CrfSet":
        """Return the clips of the named splits.

        Raises:
            ValueError: no clip has one of these splits.
        """
        absent = [name for name in names if name not in self.splits]
        if absent:
            raise ValueError(
                f"CrfSet.split: names must be among {sorted(self.splits)} of {self.name}, got {absent[0]!r}"
            )
        return CrfSet(self.nodes, (clip for clip in self.clips if clip.split in names), self.name)

    def sentences(self) -> list[str]:
        """Every sentence, clip by clip."""
        return [sentence for clip in self.clips for sentence in clip.sentences]

    def references(self) -> dict[str, list[str]]:
        """{id: sentences} of the clips that have any, as ``caption_metrics`` takes it."""
        return {clip.id: list(clip.sentences) for clip in self.clips if clip.sentences}


def read_crf_clips(path: str | os.PathLike[str]) -> CrfSet:
    """Read and check JSON lines of CRF outputs (see the head of this file); may be gzip-compressed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the message names the file, the line, the field and what it must be.
    """
    path = Path(path)
    nodes: dict[str, tuple[str, ...]] = {}
    clips: dict[str, CrfClip] = {}
    for number, line in enumerate(read_text(path, "read_crf_clips").splitlines(), 1):
        if not line.strip():
            continue
        where = f"read_crf_clips: {path} line {number}"
        clip = _clip(_record(line, where), nodes, where)
        held = clips.setdefault(clip.id, clip)
        if held is not clip:
            if replace(clip, sentences=()) != replace(held, sentences=()):
                raise ValueError(
                    f"{where}: clip_id must be new, or its split, crf and map those of the lines before, "
                    f"got another {clip.id!r}"
                )
            clips[clip.id] = replace(held, sentences=held.sentences + clip.sentences)
    if not clips:
        raise ValueError(f"read_crf_clips: {path} must have at least one clip, got none")
    return CrfSet(nodes, clips.values(), path.name)


def write_crf_clips(path: str | os.PathLike[str], clips: CrfSet) -> None:
    """Write JSON lines that ``read_crf_clips`` reads back as they are; whole or not at all."""
    lines = []
    for clip in clips:
        crf = [
            {"node": node, "labels": labels, "probs": probs}
            for (node, labels), probs in zip(clips.nodes.items(), clip.marginals, strict=True)
        ]
        for sentence in clip.sentences or (None,):
            record: dict[str, Any] = {"clip_id": clip.id, "split": clip.split}
            if sentence is not None:
                record["sentence"] = sentence
            lines.append(json.dumps({**record, "crf": crf, "map": clip.labels}, ensure_ascii=False))
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} must be a JSON object, got: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where} must be a JSON object, got {_short(record)}")
    return record


def _clip(record: dict[str, Any], nodes: dict[str, tuple[str, ...]], where: str) -> CrfClip:
    """Check one line. The first one fills ``nodes``, which the others must repeat."""
    for field, default in (("clip_id", None), ("split", ""), ("sentence", "")):
        value = record.get(field, default)
        if not isinstance(value, str) or (field == "clip_id" and not value):
            raise ValueError(f"{where}: {field} must be text, got {_short(value)}")
    crf = record.get("crf")
    if not isinstance(crf, list) or not crf:
        raise ValueError(f"{where}: crf must be a list of nodes, got {_short(crf)}")
    entries = [_node(entry, f"{where}: crf[{i}]") for i, entry in enumerate(crf)]
    found = {node: labels for node, labels, _ in entries}
    if len(found) != len(entries):
        raise ValueError(f"{where}: crf must have distinct nodes, got {[node for node, _, _ in entries]}")
    if not nodes:
        nodes.update(found)
    elif list(found.items()) != list(nodes.items()):
        raise ValueError(
            f"{where}: crf must have the nodes and labels of the first line ({', '.join(nodes)}), "
            f"got {', '.join(found)}" + (" with other labels" if list(found) == list(nodes) else "")
        )
    marginals = tuple(probs for _, _, probs in entries)
    best = [labels[max(range(len(p)), key=p.__getitem__)] for (_, labels, p) in entries]
    joint = record.get("map", best)
    if not isinstance(joint, list) or len(joint) != len(nodes):
        raise ValueError(f"{where}: map must be {len(nodes)} labels, got {_short(joint)}")
    for i, (label, (node, labels)) in enumerate(zip(joint, nodes.items(), strict=True)):
        if label not in labels:
            raise ValueError(f"{where}: map[{i}] must be a label of {node!r}, got {_short(label)}")
    sentence = " ".join(record.get("sentence", "").split())
    return CrfClip(
        record["clip_id"], marginals, tuple(joint), (sentence,) if sentence else (), record.get("split", "")
    )


def _node(entry: Any, where: str) -> tuple[str, tuple[str, ...], tuple[float, ...]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("node"), str) or not entry["node"]:
        raise ValueError(f'{where} must be an object with "node", "labels" and "probs", got {_short(entry)}')
    labels, probs = entry.get("labels"), entry.get("probs")
    if not isinstance(labels, list) or not labels or not all(isinstance(x, str) and x for x in labels):
        raise ValueError(f"{where}.labels must be a list of texts, got {_short(labels)}")
    if len(set(labels)) != len(labels):
        raise ValueError(f"{where}.labels must be distinct, got {_short(labels)}")
    if not isinstance(probs, list) or len(probs) != len(labels):
        raise ValueError(f"{where}.probs must be {len(labels)} numbers, got {_short(probs)}")
    for p in probs:
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
            raise ValueError(f"{where}.probs must be probabilities, got {_short(p)}")
    if not math.isclose(sum(probs), 1, abs_tol=_SUM_TOLERANCE):
        raise ValueError(f"{where}.probs must add up to 1, got {sum(probs):.6g}")
    return entry["node"], tuple(labels), tuple(map(float, probs))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

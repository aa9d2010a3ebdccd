"""What ``lrcn-fast eval`` does: candidates or a model against what people wrote, or against labels."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from lrcn_fast._describe import crf_clips
from lrcn_fast._files import write_json
from lrcn_fast._photos import Problems, read_candidates
from lrcn_fast._recognize import Streams, recognize_video
from lrcn_fast.data import (
    CaptionSet,
    VideoItem,
    VideoSet,
    open_video,
    read_captions,
    read_ucf101,
    read_ut_interaction,
    read_video_captions,
    read_video_folders,
    read_video_list,
)
from lrcn_fast.data.captions import CaptionItem
from lrcn_fast.evaluation import CaptionScorer, confusion_matrix, recognition_metrics, retrieval_metrics
from lrcn_fast.models import Captioner, VideoDescriber

__all__ = ["Report", "candidates", "captioner", "describer", "labelled_videos", "recognizer", "retrieval"]


class Report:
    """Where results go.

    Args:
        command: Name for problems.
        as_json: One JSON object instead of lines.
        out: File for what the model said; None without.
        bar: ``with bar(total, what) as advance``.
    """

    def __init__(
        self,
        command: str,
        as_json: bool,
        out: Path | None,
        bar: Callable[[int, str], AbstractContextManager[Callable[[int], object]]],
    ) -> None:
        self.problems = Problems(command)
        self.bar = bar
        self._as_json, self._out = as_json, out

    def said(self, values: Any) -> None:
        """Write what the model said of each item, if asked for."""
        if self._out is not None:
            write_json(self._out, values)

    def scores(self, values: Mapping[str, Any], table: Sequence[str] = ()) -> None:
        """Print scores; lines of ``table`` only as text, nested values only as JSON."""
        if self._as_json:
            print(json.dumps(values))
            return
        for name, value in values.items():
            if not isinstance(value, (dict, list)):
                print(f"{name}\t{value:.4f}" if isinstance(value, float) else f"{name}\t{value}")
        for line in table:
            print(line)

    def captions(self, found: dict[str, str], people: dict[str, list[str]], noun: str, extra: Any) -> None:
        """Score one sentence per item, those of ``found``, and exit with 1 if some had problems."""
        if found:
            scorer = CaptionScorer({key: people[key] for key in found})
            self.scores({noun: len(found), **scorer.score(found, extra=extra)})
        self.problems.finish()


def _part(items: Any, split: str | None) -> Any:
    """The named split of a set of captions, clips or videos."""
    if split is None:
        return items
    if split not in items.splits:
        raise typer.BadParameter(f"--split must be one of {', '.join(items.splits)}, got {split!r}")
    return items.split(split)


# ---- captions ---------------------------------------------------------------------------------


def candidates(
    report: Report, references: Path, path: Path, split: str | None, images: Path | None, extra: Sequence[str]
) -> None:
    """Score captions that a file has."""
    # No photos are needed: one that lies beside the references must not change their number.
    people = _part(read_captions(references, images=images, missing="keep"), split)
    found = read_candidates(path, [item.id for item in people])
    report.scores({"photos": len(found), **CaptionScorer(people.references()).score(found, extra=extra)})


def captioner(
    report: Report,
    model: Captioner,
    references: Path,
    split: str | None,
    images: Path | None,
    extra: Sequence[str],
    search: dict[str, Any],
) -> None:
    """Caption photos and score the captions."""
    people = _part(read_captions(references, images=images), split)
    found = _sentences(report, people, lambda image: model.caption([image], **search)[0])
    report.said(found)
    report.captions(found, people.references(), "photos", extra)


def describer(
    report: Report,
    model: VideoDescriber,
    references: Path,
    split: str | None,
    videos: Path | None,
    extra: Sequence[str],
    search: dict[str, Any],
) -> None:
    """Describe clips of CRF outputs, or videos, and score the sentences."""
    if model.nodes:
        clips = _part(crf_clips(model, references), split)
        with_sentences = [clip for clip in clips if clip.sentences]
        if not with_sentences:
            raise ValueError(f"--references: clips of {references} must have sentences, got none")
        texts = model.describe(with_sentences, **search)
        found = {c.id: t[0].text if t else "" for c, t in zip(with_sentences, texts, strict=True)}
        people: dict[str, list[str]] = clips.references()
    else:
        items = _part(read_video_captions(references, videos), split)
        found = _sentences(report, items, lambda video: model.describe([video], **search)[0])
        people = items.references()
    report.said(found)
    report.captions(found, people, "clips", extra)


def _sentences(report: Report, items: CaptionSet, say: Callable[[Path], Sequence[Any]]) -> dict[str, str]:
    """The best sentence for each photo or video that can be read."""
    said = _each(report, items, "items", lambda item: say(_image(item)))
    return {item.id: sentences[0].text if sentences else "" for item, sentences in said}


def _image(item: CaptionItem) -> Path:
    if item.image is None:
        raise ValueError(f"{item.id}: its photo must be in the folder of --images, got no file")
    return item.image


def _each(report: Report, items: Any, noun: str, do: Callable[[Any], Any]) -> list[tuple[Any, Any]]:
    """Each item with what was done with it; one that cannot be read is a problem."""
    done = []
    with report.bar(len(items), noun) as advance:
        for item in items:
            try:
                done.append((item, do(item)))
            except (ValueError, OSError) as error:
                report.problems.add(error)
            advance(1)
    return done


def retrieval(
    report: Report,
    model: Captioner,
    references: Path,
    split: str | None,
    images: Path | None,
    end_marker: bool,
) -> None:
    """Rank every photo for every caption, and the other way round, normalised as in the paper."""
    people = _part(read_captions(references, images=images), split)
    encoded = _each(report, people, "photos", lambda item: model.features([_image(item)]))
    if encoded:
        kept, features = zip(*encoded, strict=True)
        captions = [caption for item in kept for caption in item.captions]
        owner = [i for i, item in enumerate(kept) for _ in item.captions]
        done = 0
        with report.bar(len(kept) * len(captions), "pairs") as advance:

            def progress(now: int, total: int) -> None:
                nonlocal done
                advance(now - done)
                done = now

            scores = model.log_likelihood(
                None, captions, features=torch.cat(features), end_marker=end_marker, progress=progress
            )
        found = retrieval_metrics(scores, owner)
        flat = {f"{way}_{name}": value for way, metrics in found.items() for name, value in metrics.items()}
        report.scores({"photos": len(kept), "captions": len(captions), **flat})
        report.said({"images": [i.id for i in kept], "captions": captions, "log_likelihood": scores.tolist()})
    report.problems.finish()


# ---- recognition ------------------------------------------------------------------------------


def labelled_videos(
    references: Path, videos: Path | None, format: str | None, number: int | None, classes: Sequence[str]
) -> VideoSet:
    """Read a set of videos, with labels that are those of the model.

    Args:
        references: Folder of class folders, of UT-Interaction or of UCF101's lists; or a list.
        videos: Folder of the videos that lists name.
        format: One of the four; None looks: a file is a list, a folder with classInd.txt UCF101's.
        number: Which of UCF101's lists; None: the first.
        classes: Of the model.

    Raises:
        ValueError: foreign content, missing videos, or a class that the model does not know.
        BadParameter: ``videos`` or ``number`` with a format that has no lists.
    """
    if format is None:
        looks = "ucf101" if (references / "classInd.txt").exists() else "folders"
        format = "list" if references.is_file() else looks
    for option, value, formats in (
        ("--list", number, ("ucf101",)),
        ("--videos", videos, ("ucf101", "list")),
    ):
        if value is not None and format not in formats:
            raise typer.BadParameter(f"{option} goes with --format {' or '.join(formats)}, got {format}")
    if format == "ucf101":
        if videos is None:
            raise ValueError("--videos must be the folder of UCF101's videos, got nothing")
        found = read_ucf101(videos, references, split=number or 1)
    elif format == "list":
        found = read_video_list(references, videos, classes=list(classes))
    elif format == "ut_interaction":
        found = read_ut_interaction(references)
    else:
        found = read_video_folders(references)
    unknown = [name for name in found.classes if name not in classes]
    if unknown:
        raise ValueError(
            f"--model must know the classes of {found.name}, got none called {unknown[0]!r}"
            + (f" and {len(unknown) - 1} others" if len(unknown) > 1 else "")
        )
    labels = [list(classes).index(name) for name in found.classes]
    items = (VideoItem(item.id, item.path, labels[item.label], item.split, item.group) for item in found)
    return VideoSet(items, classes, found.name)


def recognizer(
    report: Report, streams: Streams, videos: VideoSet, split: str | None, groups: Sequence[str]
) -> None:
    """Recognise every video, of some groups or of all, and score the classes."""
    videos = _part(videos, split)
    for group in groups:
        if group not in videos.groups:
            known = ", ".join(filter(None, videos.groups)) or "none"
            raise typer.BadParameter(f"--group must be one of {known}, got {group!r}")
    if groups:
        videos = videos.filter(lambda item: item.group in groups)

    def probabilities_of(item: VideoItem) -> Any:
        with open_video(item.path) as video:
            return recognize_video(video, streams)[0]

    recognised = _each(report, videos, "videos", probabilities_of)
    if recognised:
        kept, found = zip(*recognised, strict=True)
        labels, probabilities = np.array([item.label for item in kept]), np.stack(found)
        counts = confusion_matrix(labels, probabilities.argmax(1), len(videos.classes))
        seen = np.unique(labels)
        shares = {videos.classes[k]: float(counts[k, k] / counts[k].sum()) for k in seen}
        table = ["", "class\tvideos\taccuracy\t" + "\t".join(f"as {name}" for name in videos.classes)]
        for k in seen:
            name = videos.classes[k]
            cells = (name, counts[k].sum(), f"{shares[name]:.4f}", *counts[k])
            table.append("\t".join(map(str, cells)))
        nested = {"per_class": shares, "classes": list(videos.classes), "confusion": counts.tolist()}
        report.scores({"videos": len(kept), **recognition_metrics(labels, probabilities), **nested}, table)
        said = {
            item.id: {"label": videos.classes[item.label], "probabilities": p.tolist()}
            for item, p in zip(kept, probabilities, strict=True)
        }
        report.said({"classes": list(videos.classes), "videos": said})
    report.problems.finish()

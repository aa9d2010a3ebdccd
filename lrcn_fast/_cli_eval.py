"""The options of ``lrcn-fast eval``; what it does is in ``_evaluate.py``."""

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from lrcn_fast._cli_options import (
    Beams,
    Crops,
    Device,
    DeviceName,
    Dtype,
    DtypeName,
    FlowModel,
    FlowWeight,
    Json,
    LengthPenalty,
    NewTokens,
    check_device,
    check_flow,
    progress,
)

__all__ = ["evaluate"]


class FormatName(str, enum.Enum):
    """How labelled videos are laid out."""

    FOLDERS = "folders"
    LIST = "list"
    UCF101 = "ucf101"
    UT_INTERACTION = "ut_interaction"


FILES = "--images/--videos"
MODEL = (FILES, "--out")
SEARCH = ("--out", "--num-beams", "--length-penalty", "--max-new-tokens", "--metric")
VIDEOS = ("--format", "--list", "--group", "--crops", "--flow-model", "--flow-weight", "--cache")
APPLIES = {
    "captions": ("--candidates", FILES, "--metric"),
    "a captioner": (FILES, *SEARCH),
    "--retrieval": (*MODEL, "--retrieval", "--end-marker"),
    "a video describer": (FILES, *SEARCH),
    "a video describer of CRF outputs": SEARCH,
    "an activity recognizer": (*MODEL, *VIDEOS),
}
"""Options that not everything has, by what is scored."""


def evaluate(
    references: Annotated[
        Path,
        typer.Option(
            "--references",
            help="Captions people wrote (COCO, Karpathy, Flickr, CSV, JSON); CRF clips or videos with their "
            "sentences; for a recogniser labelled videos: a folder per class, a list, UCF101's lists.",
        ),
    ],
    candidates: Annotated[
        Path | None,
        typer.Option(
            "--candidates", help='{"id": "caption"}, COCO results, or lines of lrcn-fast caption --json.'
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Score this captioner, recogniser or video describer instead."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", "--videos", help="Folder of the photos or videos, for --model.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Part of the references to use.")] = None,
    extra: Annotated[
        list[str] | None, typer.Option("--metric", help="meteor, spice: more metrics (eval extra, Java).")
    ] = None,
    retrieval: Annotated[
        bool,
        typer.Option("--retrieval", help="A captioner's recall at 1, 5, 10 and median rank, both ways."),
    ] = False,
    end_marker: Annotated[
        bool,
        typer.Option(
            "--end-marker", help="--retrieval scores the end of the sentence too, unlike the release."
        ),
    ] = False,
    format: Annotated[
        FormatName | None, typer.Option("--format", help="Of labelled videos. Default: as they look.")
    ] = None,
    number: Annotated[
        int | None, typer.Option("--list", min=1, max=3, help="Which of UCF101's lists. Default: 1.")
    ] = None,
    groups: Annotated[
        list[str] | None,
        typer.Option("--group", help="Only labelled videos of this group: UT-Interaction's sequences."),
    ] = None,
    crops: Crops = None,
    flow_model: FlowModel = None,
    flow_weight: FlowWeight = None,
    cache: Annotated[Path | None, typer.Option("--cache", help="Folder that keeps optical flow.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write what --model said of each item, as JSON.")
    ] = None,
    num_beams: Beams = None,
    length_penalty: LengthPenalty = None,
    max_new_tokens: NewTokens = None,
    device: Device = DeviceName.CPU,
    dtype: Dtype = DtypeName.FLOAT32,
    as_json: Json = False,
) -> None:
    """Score captions, or a model by what it is.

    Captions, captioners, video describers: BLEU-1..4, ROUGE-L, CIDEr-D; on request METEOR and SPICE.
    Captioners with --retrieval: recall and median rank. Recognisers: accuracy, per class, confusion.
    """
    if (candidates is None) == (model is None):
        raise typer.BadParameter("give exactly one of --candidates and --model")
    for metric in extra or ():
        if metric not in ("meteor", "spice"):
            raise typer.BadParameter(f"--metric must be meteor or spice, got {metric!r}")
    given = {
        "--candidates": candidates, FILES: images, "--metric": extra, "--retrieval": retrieval,
        "--end-marker": end_marker, "--format": format, "--list": number, "--group": groups, "--crops": crops,
        "--flow-model": flow_model, "--flow-weight": flow_weight, "--cache": cache, "--out": out,
        "--num-beams": num_beams, "--length-penalty": length_penalty, "--max-new-tokens": max_new_tokens,
    }  # fmt: skip
    from lrcn_fast import _evaluate

    report = _evaluate.Report("lrcn-fast eval", as_json, out, progress)
    if candidates is not None:
        _check("captions", given)
        _evaluate.candidates(report, references, candidates, split, images, extra or ())
        return
    from lrcn_fast.models import ActivityRecognizer, Captioner, VideoDescriber, load_pretrained

    check_device(device)
    loaded = load_pretrained(str(model), device=device.value)
    ranks = retrieval and isinstance(loaded, Captioner)
    from_crf = isinstance(loaded, VideoDescriber) and loaded.nodes
    noun = f"{loaded.bundle_noun} of CRF outputs" if from_crf else loaded.bundle_noun
    _check("--retrieval" if ranks else noun, given)
    check_flow(flow_model, flow_weight)
    search = {
        "num_beams": num_beams, "length_penalty": length_penalty, "max_new_tokens": max_new_tokens,
    }  # fmt: skip
    if isinstance(loaded, Captioner) and retrieval:
        _evaluate.retrieval(report, loaded.prepare(dtype.value), references, split, images, end_marker)
    elif isinstance(loaded, Captioner):
        loaded.prepare(dtype.value)
        _evaluate.captioner(report, loaded, references, split, images, extra or (), search)
    elif isinstance(loaded, VideoDescriber):
        loaded.prepare(dtype.value)
        _evaluate.describer(report, loaded, references, split, images, extra or (), search)
    else:
        assert isinstance(loaded, ActivityRecognizer)
        second = None
        if flow_model is not None:
            second = ActivityRecognizer.from_pretrained(flow_model, device=device.value)
        from lrcn_fast._recognize import Streams

        streams = Streams.of(
            loaded, second, flow_weight=flow_weight, crops=crops.value if crops else None, cache=cache
        )
        videos = _evaluate.labelled_videos(
            references, images, format.value if format else None, number, streams.classes
        )
        _evaluate.recognizer(report, streams, videos, split, groups or ())


def _check(what: str, given: dict[str, Any]) -> None:
    """Refuse options that mean nothing for what is scored."""
    for option, value in given.items():
        absent = value is None or value is False or value == []
        if not absent and option not in APPLIES[what]:
            raise typer.BadParameter(f"{option} does not go with {what}")

"""The options of ``lrcn-fast recognize``; what it does is in ``_recognize.py``."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from lrcn_fast._cli_options import (
    Crops,
    Device,
    DeviceName,
    FlowModel,
    FlowWeight,
    Json,
    check_device,
    check_flow,
    progress,
)

__all__ = ["recognize"]


class FlowMethod(str, enum.Enum):
    """How optical flow is computed."""

    DIS = "dis"
    FARNEBACK = "farneback"
    TVL1 = "tvl1"
    BROX = "brox"


def recognize(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="VIDEO...", help="Files, folders of videos or of frames, globs."),
    ],
    model: Annotated[
        str, typer.Option("--model", help="Folder or hub id of a recogniser of frames, or of flow.")
    ],
    flow_model: FlowModel = None,
    flow_weight: FlowWeight = None,
    flow_method: Annotated[
        FlowMethod, typer.Option("--flow-method", help="tvl1 and brox need another OpenCV.")
    ] = FlowMethod.DIS,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder that keeps the flow for the next time.")
    ] = None,
    crops: Crops = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Classes per video.")] = 1,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Frame by frame, state kept; VIDEO may be the number of a camera."),
    ] = False,
    max_frames: Annotated[
        int | None, typer.Option("--max-frames", min=1, help="Where --stream stops.")
    ] = None,
    annotate: Annotated[
        Path | None, typer.Option("--annotate", help="Write the video with its classes drawn in.")
    ] = None,
    timeline: Annotated[
        Path | None, typer.Option("--timeline", help="Write a PNG of the probabilities over time.")
    ] = None,
    device: Device = DeviceName.CPU,
    as_json: Json = False,
) -> None:
    """Recognise actions in videos: the mean over all frames of all clips, or a stream frame by frame."""
    from lrcn_fast._photos import Problems
    from lrcn_fast._recognize import Outputs, Streams, expand_videos, recognize_files, recognize_stream

    if stream and len(inputs) != 1:
        raise typer.BadParameter(f"--stream takes one VIDEO, got {len(inputs)}")
    if max_frames is not None and not stream:
        raise typer.BadParameter("--max-frames needs --stream")
    if stream and (crops is not None or cache is not None):
        raise typer.BadParameter("--crops and --cache are for whole files, not for --stream")
    check_flow(flow_model, flow_weight)
    problems = Problems("lrcn-fast recognize")
    videos = inputs if stream else expand_videos(inputs, problems)
    if not videos:
        problems.finish()
        raise typer.BadParameter("no video to recognise")
    if len(videos) != 1 and (annotate or timeline):
        raise typer.BadParameter(f"--annotate and --timeline take one video, got {len(videos)}")
    from lrcn_fast.models import ActivityRecognizer

    check_device(device)
    first = ActivityRecognizer.from_pretrained(model, device=device.value)
    second = None
    if flow_model is not None:
        second = ActivityRecognizer.from_pretrained(flow_model, device=device.value)
    streams = Streams.of(
        first,
        second,
        flow_weight=flow_weight,
        crops=crops.value if crops else None,
        cache=cache,
        flow_method=flow_method.value,
    )
    outputs = Outputs(top_k, as_json, annotate, timeline)
    if stream:
        recognize_stream(videos[0], streams, outputs, max_frames)
        return
    with progress(len(videos), "videos") as advance:
        recognize_files(videos, streams, outputs, problems, advance)
    problems.finish()

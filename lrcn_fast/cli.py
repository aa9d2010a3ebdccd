"""The command line: ``lrcn-fast caption | recognize | retrieve | describe | train | eval | convert | ...``.

Results go to stdout, one line per result, or JSON lines with ``--json``. Problems go to stderr, one line
each; progress too, and only on a terminal. Exit status: 0, 1 where something failed (a bad file among good
ones: the good ones are done first), 2 for wrong usage. ``--debug`` anywhere shows tracebacks.

Heavy imports (torch, models) happen inside the commands, so that ``--help`` answers at once.
"""

import enum
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
except ImportError as error:
    raise ImportError("lrcn-fast needs typer and rich: pip install 'lrcn_fast[cli]'") from error

from lrcn_fast._cli_eval import evaluate
from lrcn_fast._cli_options import (
    Beams,
    Device,
    DeviceName,
    Dtype,
    DtypeName,
    Json,
    LengthPenalty,
    NewTokens,
    check_device,
    check_nbest,
    print_captions,
    progress,
)
from lrcn_fast._cli_recognize import recognize

if TYPE_CHECKING:
    from lrcn_fast.models import Captioner

app = typer.Typer(
    name="lrcn-fast",
    help="LRCN models (a CNN feeding LSTMs): caption photos, recognise actions, describe videos; training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DEFAULT_MODEL = "flickr8k-small"

# Recent versions of typer carry click inside, older ones depend on it: reach its classes through typer.
_UsageError: Any = typer.BadParameter.__mro__[1]


class SourceName(str, enum.Enum):
    """The program that a converted model comes from."""

    CAFFE = "caffe"


class StreamName(str, enum.Enum):
    """What an activity model reads: frames, or pictures of optical flow."""

    RGB = "rgb"
    FLOW = "flow"


Model = Annotated[str, typer.Option("--model", help="Folder, packaged model or hub id.")]
NBest = Annotated[
    int,
    typer.Option("--num-return-sequences", "--nbest", min=1, max=1024, help="Captions per photo."),
]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (also after the command).")] = False,
) -> None:
    pass


@app.command()
def caption(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTO...",
            help="Files, folders, globs; - reads file names (one a line) or one photo from stdin.",
        ),
    ],
    model: Model = DEFAULT_MODEL,
    num_beams: Beams = None,
    length_penalty: LengthPenalty = None,
    num_return_sequences: NBest = 1,
    max_new_tokens: NewTokens = None,
    device: Device = DeviceName.CPU,
    dtype: Dtype = DtypeName.FLOAT32,
    as_json: Json = False,
) -> None:
    """Caption photos."""
    from lrcn_fast._photos import Problems, expand_inputs

    check_nbest(num_return_sequences, num_beams)
    problems = Problems("lrcn-fast caption")
    photos = expand_inputs(inputs, sys.stdin.buffer, problems)
    if not photos:
        problems.finish()
        raise typer.BadParameter("no photo to caption")
    captioner = _load(model, device, dtype)
    import torch

    from lrcn_fast._photos import batches

    with progress(len(photos)) as advance:
        for batch in batches(photos, 8 if device is DeviceName.CPU else 32):
            names, tensors = [], []
            for name, source in batch:
                try:
                    tensors.append(captioner.encoder.preprocess(source))
                    names.append(name)
                except (ValueError, OSError) as error:
                    problems.add(error)
            if tensors:
                found = captioner.caption(
                    torch.stack(tensors),
                    num_beams=num_beams,
                    length_penalty=length_penalty,
                    num_return_sequences=num_return_sequences,
                    max_new_tokens=max_new_tokens,
                )
                for name, captions in zip(names, found, strict=True):
                    print_captions(name, captions, as_json)
            advance(len(batch))
    problems.finish()


app.command()(recognize)


@app.command()
def train(
    config: Annotated[str, typer.Option("--config", help="YAML file, or the name of a packaged recipe.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for checkpoints, log, TensorBoard and model/.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key: phases.0.epochs=3")
    ] = None,
    device: Annotated[
        DeviceName | None, typer.Option("--device", help="Default: a GPU if there is one.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what --out holds of an earlier run.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a model; called again with the same options, continue where it stopped.

    Several processes: torchrun -m lrcn_fast.training with the same options.
    """
    from lrcn_fast.training.config import load_config

    settings_ = load_config(config, settings or ())
    settings_.check_environment()
    from lrcn_fast.training.loop import train as run

    summary = run(settings_, out, device=device.value if device else None, restart=restart)
    if as_json:
        print(json.dumps({"model": str(out / "model"), **(summary["best"] or {})}))
        return
    print(out / "model")
    for name, value in (summary["best"] or {}).items():
        if isinstance(value, float) and name not in ("lr", "score"):
            print(f"{name}\t{value:.4f}")


app.command("eval")(evaluate)


@app.command()
def retrieve(
    query: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CAPTION PHOTO...]", help="A caption, then files, folders, globs of photos."),
    ] = None,
    images: Annotated[
        list[str] | None, typer.Option("--image", help="Find captions of this photo (repeatable) instead.")
    ] = None,
    captions: Annotated[
        str | None,
        typer.Option("--captions", help="The captions to choose from: text, one a line; - is stdin."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            help="Photos (a folder, say): subtract the mean likelihood of each caption over them, so that "
            "captions likely for any photo do not always win.",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Results.")] = 5,
    end_marker: Annotated[
        bool,
        typer.Option("--end-marker", help="Score the end of the sentence too, unlike the paper's release."),
    ] = False,
    model: Model = DEFAULT_MODEL,
    device: Device = DeviceName.CPU,
    as_json: Json = False,
) -> None:
    """Find the photos of a caption, or the captions of a photo."""
    if images is None:
        if captions is not None or against is not None:
            raise typer.BadParameter("--captions and --against go with --image")
        if query is None or len(query) < 2:
            raise typer.BadParameter("give a caption and photos, or --image and --captions")
    elif query or captions is None:
        raise typer.BadParameter("--image goes with --captions, and with no other caption or photo")
    from lrcn_fast import _retrieve

    sentences = [] if captions is None else _retrieve.read_sentences(captions)
    captioner = _load(model, device, DtypeName.FLOAT32)
    options: Any = {"end_marker": end_marker, "top_k": top_k, "as_json": as_json, "bar": progress}
    if images is None:
        assert query is not None
        _retrieve.find_photos(captioner, query[0], query[1:], **options)
    else:
        _retrieve.find_captions(captioner, images, sentences, against or [], **options)


@app.command()
def describe(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="JSON lines of CRF outputs; videos or folders of frames, if the model has a CNN.",
        ),
    ],
    model: Annotated[str, typer.Option("--model", help="Folder or hub id of a video describer.")],
    num_beams: Beams = None,
    length_penalty: LengthPenalty = None,
    num_return_sequences: NBest = 1,
    max_new_tokens: NewTokens = None,
    device: Device = DeviceName.CPU,
    dtype: Dtype = DtypeName.FLOAT32,
    as_json: Json = False,
) -> None:
    """Describe video clips in sentences."""
    check_nbest(num_return_sequences, num_beams)
    from lrcn_fast._describe import describe_inputs
    from lrcn_fast.models import VideoDescriber

    check_device(device)
    describe_inputs(
        VideoDescriber.from_pretrained(model, device=device.value).prepare(dtype.value),
        inputs,
        as_json=as_json,
        bar=progress,
        num_beams=num_beams,
        length_penalty=length_penalty,
        num_return_sequences=num_return_sequences,
        max_new_tokens=max_new_tokens,
    )


@app.command()
def demo(
    model: Model = DEFAULT_MODEL,
    num_beams: Beams = None,
    length_penalty: LengthPenalty = None,
    max_new_tokens: NewTokens = None,
    dtype: Dtype = DtypeName.FLOAT32,
    out: Annotated[Path, typer.Option("--out", help="Gallery picture to write.")] = Path(
        "lrcn-fast-demo.png"
    ),
    as_json: Json = False,
) -> None:
    """Caption the photos that come with scikit-image, timed against the same search in eager PyTorch."""
    from lrcn_fast._demo import run_demo

    run_demo(
        _load(model, DeviceName.CPU, dtype),
        out,
        exact=dtype is DtypeName.FLOAT32,
        as_json=as_json,
        num_beams=num_beams,
        length_penalty=length_penalty,
        max_new_tokens=max_new_tokens,
    )


@app.command()
def convert(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .caffemodel or .caffemodel.h5 file.")],
    source: Annotated[SourceName, typer.Option("--from", help="The program that wrote it.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write, created if needed.")],
    vocabulary: Annotated[
        Path | None, typer.Option("--vocabulary", help="The release's vocabulary.txt, for a captioner.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option("--classes", help="Names of an activity model's classes: one a line, or classInd.txt."),
    ] = None,
    stream: Annotated[
        StreamName | None, typer.Option("--stream", help="What an activity model reads. Default: rgb.")
    ] = None,
    dtype: Annotated[DtypeName, typer.Option("--dtype", help="How weights are stored.")] = DtypeName.FLOAT32,
    as_json: Json = False,
) -> None:
    """Turn a model of the original LRCN release, or its CNN, into one of this package."""
    from lrcn_fast.importers.caffe import convert_caffe, summary

    kind = stream.value if stream else None
    facts = summary(
        convert_caffe(model, out, vocabulary=vocabulary, classes=classes, stream=kind, dtype=dtype.value)
    )
    if as_json:
        print(json.dumps({"model": str(out), **facts}))
    else:
        print(out, *(f"{name} {value}" for name, value in facts.items()), sep="\t")


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder, packaged model or hub id of a captioner.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write, created if needed.")],
    dtype: Annotated[DtypeName, typer.Option("--dtype", help="How weights are stored.")] = DtypeName.FLOAT32,
    as_json: Json = False,
) -> None:
    """Write a captioner for lrcn_fast.runtime, which needs ONNX Runtime and no PyTorch."""
    from lrcn_fast.export import export_captioner

    export_captioner(_load(model, DeviceName.CPU, DtypeName.FLOAT32), out, dtype=dtype.value)
    print(json.dumps({"model": str(out)}) if as_json else out)


@app.command()
def info(as_json: Json = False) -> None:
    """Versions, instruction set, CUDA, threads and packaged models."""
    from lrcn_fast._info import collect

    facts = collect()
    if as_json:
        print(json.dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
        print(f"{name:<{width}}  {text}")


def _load(model: str, device: DeviceName, dtype: DtypeName) -> "Captioner":
    from lrcn_fast.models import Captioner

    check_device(device)
    return Captioner.from_pretrained(model, device=device.value).prepare(dtype.value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``lrcn-fast``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file's name may hold any bytes; one that the terminal cannot show must not stop the others.
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdout else "backslashreplace")
    debug = "--debug" in given
    given = [a for a in given if a != "--debug"]
    try:
        status = app(given, prog_name="lrcn-fast", standalone_mode=False)
    except _UsageError as error:
        error.show()
        status = 2
    except typer.Exit as stop:
        status = stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    except BrokenPipeError:
        # The reader went away, as in `| head`. Keep Python from complaining again at exit.
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except Exception as error:
        if debug:
            raise
        line = " ".join(str(error).split()) or type(error).__name__
        print(f"lrcn-fast: {line}", file=sys.stderr)
        status = 1
    sys.exit(status or 0)


if __name__ == "__main__":
    main()

"""What the commands read: photos from files, folders, globs and stdin; candidate captions from files."""

import glob
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["Problems", "batches", "expand_inputs", "read_candidates"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}

Photo = tuple[str, Any]
"""A name to print and what ``encoder.preprocess`` takes."""


class Problems:
    """One line on stderr for each thing that failed; ``finish`` turns any into exit status 1."""

    def __init__(self, command: str) -> None:
        self._command = command
        self.count = 0

    def add(self, problem: object) -> None:
        """Report one."""
        self.count += 1
        print(f"{self._command}: {' '.join(str(problem).split())}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Exit with status 1 if there was any."""
        if self.count:
            raise SystemExit(1)


def expand_inputs(inputs: Sequence[str], stdin: BinaryIO, problems: Problems) -> list[Photo]:
    """Turn the command's arguments into photos, in order, each named once per mention.

    A folder stands for the photos directly in it, by name. ``-`` reads stdin: text is file names, one a
    line; anything that holds a zero byte is itself a photo, as every JPEG, PNG, WebP or TIFF does.

    Args:
        inputs: Paths, folders, glob patterns or ``-``.
        stdin: Read at most once.
        problems: Gets a line for whatever does not exist.
    """
    photos: list[Photo] = []
    for text in inputs:
        if text == "-":
            content = stdin.read()
            if b"\0" in content:
                photos.append(_from_bytes(content, problems))
                continue
            lines = content.decode("utf-8", errors="surrogateescape").splitlines()
            photos += expand_inputs(
                [line for line in lines if line.strip() and line != "-"], io.BytesIO(), problems
            )
            continue
        path = Path(text)
        if not text:
            problems.add("PHOTO must be a file, a folder, a pattern or -, got an empty name")
        elif path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
            if not found:
                problems.add(f"{text}: must hold photos ({', '.join(sorted(SUFFIXES))}), got none")
            photos += [(str(p), p) for p in found]
        elif not path.exists() and glob.has_magic(text):
            names = sorted(name for name in glob.glob(text, recursive=True) if Path(name).is_file())
            if not names:
                problems.add(f"{text}: must match files, got none")
            photos += [(name, Path(name)) for name in names]
        else:
            # A missing file is reported when it is read, in its place among the others.
            photos.append((text, path))
    return [photo for photo in photos if photo[1] is not None]


def _from_bytes(content: bytes, problems: Problems) -> Photo:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        problems.add("stdin must be file names or the bytes of one photo, got other bytes")
        return "stdin", None
    return "stdin", image


def batches(photos: Sequence[Photo], size: int) -> Iterator[Sequence[Photo]]:
    """Cut a list into pieces of ``size``."""
    for at in range(0, len(photos), size):
        yield photos[at : at + size]


def read_candidates(path: Path, ids: Sequence[str]) -> dict[str, str]:
    """Read generated captions by photo id.

    Accepts ``{"id": "caption"}``, COCO results ``[{"image_id": ..., "caption": ...}]`` and the lines of
    ``lrcn-fast caption --json``, whose photos are found by path, file name or stem.

    Args:
        path: The file.
        ids: Known photos, for the lines of ``caption --json``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another format; names the file.
    """
    expected = (
        f'--candidates: {path} must be {{"id": "caption"}}, a list of {{"image_id", "caption"}}, or lines of '
        "lrcn-fast caption --json"
    )
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{expected}, got no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{expected}, got {' '.join(str(error).split())}") from None
    values: Any
    try:
        values = json.loads(text)
    except ValueError:
        try:
            values = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            raise ValueError(f"{expected}, got other text") from None
    except RecursionError:
        raise ValueError(f"{expected}, got deeply nested JSON") from None
    if isinstance(values, dict) and "captions" in values:
        values = [values]
    if isinstance(values, dict):
        found = values
    else:
        known = {form: i for i in ids for form in (Path(i).stem, Path(i).name, i)}
        try:
            found = dict(_record(entry, known) for entry in values)
        except (TypeError, KeyError, IndexError):
            raise ValueError(f"{expected}, got other JSON") from None
    if not found or not all(isinstance(v, str) for v in found.values()):
        raise ValueError(f"{expected}, got {'nothing' if not found else 'other JSON'}")
    return {str(k): v for k, v in found.items()}


def _record(entry: Any, known: dict[str, str]) -> tuple[str, str]:
    if "captions" in entry:
        image = str(entry["image"])
        name = next((known[f] for f in (image, Path(image).name, Path(image).stem) if f in known), image)
        return name, entry["captions"][0]["text"] if entry["captions"] else ""
    return str(entry["image_id"]), entry["caption"]

"""Caption files of other people: COCO, Karpathy, Flickr, CSV and JSON in their usual shapes.

:func:`read_captions` tells the formats apart by their content. Whatever is wrong with a file is one
ValueError that names the file, the place in it and what was expected there.
"""

import csv
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lrcn_fast._files import parse_json, read_text
from lrcn_fast.data.captions import _SUFFIXES, CaptionItem, CaptionSet

FORMATS = ("auto", "coco", "karpathy", "flickr", "msvd", "records", "mapping", "csv")

_CALLER = "read_captions"
_IMAGE_KEYS = ("image", "file", "file_name", "filename", "image_name", "image_path", "path", "photo", "img",
               "video", "image_id", "video_id", "id")  # fmt: skip
_CAPTION_KEYS = ("caption", "captions", "sentence", "sentences", "text", "texts", "comment", "comments",
                 "description", "descriptions", "raw")  # fmt: skip
_SPLIT_KEYS = ("split", "set", "subset", "partition")
_NUMBERED = re.compile(r"(?:caption|sentence|text|comment|description)[ _-]?\d+")
_FLICKR_LINE = re.compile(r"(?P<name>[^\t]+?)#\d+\t(?P<caption>.*)")
_MSVD_LINE = re.compile(r"(?P<name>vid\d+)\t(?P<caption>.*)")


@dataclass
class _Photo:
    name: str  # as the file spells it: a relative path, a file name or an id
    id: str = ""  # the data set's own id; the name if it has none
    split: str = ""
    captions: list[str] = field(default_factory=list)


def read_captions(
    path: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    split: str = "",
    exclude: Collection[str] = (),
    format: str = "auto",
    missing: str = "drop",
) -> CaptionSet:
    """Read a file of captions, or a folder with photos and one such file.

    ============  ==========================================================================================
    format        content
    ============  ==========================================================================================
    ``coco``      ``{"images": [{id, file_name}], "annotations": [{image_id, caption}]}``
    ``karpathy``  ``{"images": [{filename, split, sentences: [{raw}]}]}``
    ``flickr``    lines ``name.jpg#k<TAB>caption`` (Flickr8k, Flickr30k)
    ``msvd``      lines ``vid7<TAB>sentence`` (clips of MSVD / YouTube2Text; the clip is the "photo")
    ``records``   JSON list, or one JSON object per line: an image (or "video"), a split if known, and a
                  caption, a list of them or ``caption_0``, ``caption_1``, ...
    ``mapping``   JSON ``{image name or id: [captions]}``
    ``csv``       columns as in ``records``; comma, tab, semicolon or bar; without a header: image, caption
    ============  ==========================================================================================

    Text is UTF-8, may be gzip-compressed, and empty captions are skipped; one warning counts the photos that
    have no other. An image's captions may be spread over lines.

    Args:
        path: the file; or a folder that holds exactly one of captions.*, metadata.*, dataset*.json,
            results*.csv, *.token* (with its photos in it or in ``images/`` below it).
        images: folder of the photos. Default: the folder of the file, or ``images/`` in it, whichever has
            them.
        split: split of photos that name none; "" leaves them without. For COCO and MSVD, "" takes the word
            train, val or test out of the file's name.
        exclude: photos to leave out: ids, file names or stems. The text of a data set usually contains the
            captions of the photos somebody evaluates on; see :func:`~lrcn_fast.data.captions.photo_names`.
        format: one of the table; "auto" looks at the content.
        missing: what to do where a photo's file is not found while others' are: "drop" the photo with one
            warning for all, "keep" it with image None, or raise an "error". If no photo at all is found and
            ``images`` was not given, the set is text only: every image is None, and nothing is reported.

    Returns:
        The photos in order of first appearance.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: unreadable or foreign content, no caption at all, or missing photos where that is an
            error.
    """
    if format not in FORMATS:
        raise ValueError(f"{_CALLER}: format must be one of {', '.join(FORMATS)}, got {format!r}")
    if missing not in ("drop", "keep", "error"):
        raise ValueError(f'{_CALLER}: missing must be "drop", "keep" or "error", got {missing!r}')
    if images is not None and not Path(images).is_dir():
        raise FileNotFoundError(f"{_CALLER}: images must be a folder, got {images}")
    path = Path(path)
    if path.is_dir():
        path = _caption_file(path)
    text = read_text(path, _CALLER)
    content, format = _recognise(text, path, format)
    photos = _PARSERS[format](content, path)
    if format in ("coco", "msvd") and not split:
        split = next((name for name in ("train", "val", "test") if name in path.name.lower()), "")

    items, empty = [], []
    for photo in photos:
        captions = tuple(" ".join(caption.split()) for caption in photo.captions)
        captions = tuple(caption for caption in captions if caption)
        if captions:
            items.append(
                CaptionItem(photo.id or photo.name, captions, photo.split or split, Path(photo.name))
            )
        elif photo.captions:
            empty.append(photo.name)
    if not items:
        raise ValueError(f"{_CALLER}: {path} must have at least one caption, got none")
    if empty:
        report = f"{len(empty)} photos of {path.name} have empty captions only (first: {empty[0]})"
        warnings.warn(f"{_CALLER}: {report}; they are left out", stacklevel=2)
    found = _find_images(items, path, None if images is None else Path(images), missing)
    return CaptionSet(found, path.name).exclude(exclude)


# --- which file, which format -------------------------------------------------------------------


def _caption_file(folder: Path) -> Path:
    pattern = re.compile(
        r"((captions|metadata)\.(json|jsonl|csv|tsv|txt|token)|dataset.*\.json|results.*\.csv|.*\.token(\.txt)?)(\.gz)?"
    )
    names = sorted(entry for entry in folder.iterdir() if pattern.fullmatch(entry.name.lower()))
    if len(names) != 1:
        got = ", ".join(entry.name for entry in names) or "none"
        raise ValueError(
            f"{_CALLER}: {folder} must hold one caption file (captions.csv, captions.json, metadata.jsonl, "
            f"...), got {got}"
        )
    return names[0]


def _recognise(text: str, path: Path, format: str) -> tuple[Any, str]:
    """Return what the parser of a format takes, and the format."""
    if not text.strip():
        raise ValueError(f"{_CALLER}: {path} must have at least one caption, got an empty file")
    if format in ("flickr", "msvd", "csv"):
        return text, format
    if text.lstrip()[0] in "[{":
        content = _json_or_lines(text, path)
        kind = _json_kind(content)
        if format not in ("auto", kind):
            raise ValueError(f"{_CALLER}: {path} must be of format {format}, got {kind or 'other JSON'}")
        if kind is None:
            raise ValueError(
                f"{_CALLER}: {path} must be captions in JSON (COCO, Karpathy, a list of records or "
                f"{{image: [captions]}}), got {_short(content)}"
            )
        return content, kind
    if format != "auto":
        raise ValueError(
            f"{_CALLER}: {path} line 1 must start a JSON object or list, got {_short(text[:60])}"
        )
    first = text.lstrip().splitlines()[0]
    lines = {"flickr": _FLICKR_LINE, "msvd": _MSVD_LINE}
    return text, next((kind for kind, line in lines.items() if line.fullmatch(first)), "csv")


def _json_or_lines(text: str, path: Path) -> Any:
    """Parse one JSON value, or a list of the objects of JSON lines, be it one."""
    first, _, rest = text.strip().partition("\n")
    if not (first.startswith("{") and first.rstrip().endswith("}") and rest.lstrip().startswith("{")):
        content = parse_json(text, path, _CALLER)
        return [content] if _is_record(content) else content
    records = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{_CALLER}: {path} line {number} must be a JSON object, got: {error}"
                ) from error
    return records


def _is_record(content: Any) -> bool:
    """Whether an object is one record, with the name of an image, rather than {image: captions}."""
    if not isinstance(content, dict):
        return False
    named = {key.strip().lower(): value for key, value in content.items()}
    image = next((named[key] for key in _IMAGE_KEYS if key in named), None)
    said = any(key in _CAPTION_KEYS or _NUMBERED.fullmatch(key) for key in named)
    return said and isinstance(image, (str, int))


def _json_kind(content: Any) -> str | None:
    if isinstance(content, list):
        return "records"
    if not isinstance(content, dict):
        return None
    if "annotations" in content:
        return "coco"
    if isinstance(content.get("images"), list):
        return "karpathy"
    if content and all(isinstance(value, (list, str)) for value in content.values()):
        return "mapping"
    return None


# --- parsers: content -> photos -----------------------------------------------------------------


def _parse_coco(content: Any, path: Path) -> list[_Photo]:
    photos: dict[Any, _Photo] = {}
    for place, image in _entries(content, "images", path):
        if "id" not in image or not isinstance(image.get("file_name"), str):
            raise _wrong(path, place, 'an object with "id" and "file_name"', image)
        photos[image["id"]] = _Photo(image["file_name"], str(image["id"]))
    for place, annotation in _entries(content, "annotations", path):
        if not isinstance(annotation.get("caption"), str) or "image_id" not in annotation:
            raise _wrong(path, place, 'an object with "image_id" and "caption"', annotation)
        photo = photos.get(annotation["image_id"])
        if photo is None:
            raise _wrong(path, place, 'an "image_id" that is in "images"', annotation["image_id"])
        photo.captions.append(annotation["caption"])
    return list(photos.values())


def _parse_karpathy(content: Any, path: Path) -> list[_Photo]:
    photos: list[_Photo] = []
    for place, image in _entries(content, "images", path):
        sentences = image.get("sentences")
        if not isinstance(image.get("filename"), str) or not isinstance(sentences, list):
            raise _wrong(path, place, 'an object with "filename" and "sentences"', image)
        name = str(PurePosixPath(image.get("filepath") or "") / image["filename"])
        photo = _Photo(name, str(image.get("cocoid", image["filename"])), str(image.get("split", "")))
        for number, sentence in enumerate(sentences):
            raw = sentence.get("raw") if isinstance(sentence, dict) else None
            if raw is None and isinstance(sentence, dict) and isinstance(sentence.get("tokens"), list):
                raw = " ".join(map(str, sentence["tokens"]))
            if not isinstance(raw, str):
                raise _wrong(
                    path, f"{place}.sentences[{number}]", 'an object with "raw" or "tokens"', sentence
                )
            photo.captions.append(raw)
        photos.append(photo)
    return photos


def _parse_flickr(text: str, path: Path) -> list[_Photo]:
    return _grouped(_matches(text, path, _FLICKR_LINE, "name.jpg#k<TAB>caption"))


def _parse_msvd(text: str, path: Path) -> list[_Photo]:
    return _grouped(_matches(text, path, _MSVD_LINE, "vid<number><TAB>sentence"))


def _matches(
    text: str, path: Path, pattern: re.Pattern[str], wanted: str
) -> Iterator[tuple[str, list[str], str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = pattern.fullmatch(line)
        if match is None:
            raise _wrong(path, f"line {number}", wanted, line)
        yield match["name"], [match["caption"]], ""


def _parse_records(content: Any, path: Path) -> list[_Photo]:
    def pairs() -> Iterator[tuple[str, list[str], str]]:
        columns: _Columns | None = None
        for number, record in enumerate(content):
            place = f"record {number + 1}"
            if not isinstance(record, dict):
                raise _wrong(path, place, "an object with an image and captions", record)
            if columns is None or not columns.fit(record):
                columns = _columns(list(record), path, place)
            captions: list[str] = []
            for key in columns.captions:
                value = record.get(key)
                captions += _strings(value, path, f"{place}, {key!r}") if value is not None else []
            name = record[columns.image]
            if not isinstance(name, (str, int)) or isinstance(name, bool):
                raise _wrong(path, f"{place}, {columns.image!r}", "a file name or an id", name)
            yield str(name), captions, str(record.get(columns.split) or "") if columns.split else ""

    return _grouped(pairs())


def _parse_mapping(content: Any, path: Path) -> list[_Photo]:
    return [
        _Photo(name, captions=_strings(value, path, f"{name!r}")) for name, value in content.items()
    ]  # fmt: skip


def _parse_csv(text: str, path: Path) -> list[_Photo]:
    delimiter = _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)

    def pairs() -> Iterator[tuple[str, list[str], str]]:
        header: list[str] = []
        columns: _Columns | None = None
        try:
            for row in reader:
                place = f"line {reader.line_num}"
                if not any(cell.strip() for cell in row):
                    continue
                if not header:
                    header = [cell.strip().lower() for cell in row]
                    if not set(header) & set(_IMAGE_KEYS):
                        if not _is_image_name(row[0]):
                            raise _wrong(
                                path,
                                place,
                                "a header with an image and a caption column",
                                delimiter.join(row),
                            )
                        header = ["image", "caption"]
                        columns = _Columns("image", ("caption",), None)
                    else:
                        columns = _columns(header, path, place)
                        continue
                assert columns is not None
                # An unquoted delimiter inside the last column is part of the caption.
                if len(row) > len(header) and columns.captions == (header[-1],):
                    row = [*row[: len(header) - 1], delimiter.join(row[len(header) - 1 :])]
                if len(row) != len(header):
                    raise _wrong(path, place, f"{len(header)} columns ({', '.join(header)})", f"{len(row)}")
                record = dict(zip(header, (cell.strip() for cell in row), strict=True))
                if not record[columns.image]:
                    raise _wrong(path, place, f"a value in column {columns.image!r}", delimiter.join(row))
                name = re.sub(r"#\d+$", "", record[columns.image])
                yield (
                    name,
                    [record[key] for key in columns.captions],
                    record[columns.split] if columns.split else "",
                )
        except csv.Error as error:
            raise ValueError(f"{_CALLER}: {path} line {reader.line_num} must be CSV, got: {error}") from error

    return _grouped(pairs())


_PARSERS: dict[str, Callable[[Any, Path], list[_Photo]]] = {
    "coco": _parse_coco,
    "karpathy": _parse_karpathy,
    "flickr": _parse_flickr,
    "msvd": _parse_msvd,
    "records": _parse_records,
    "mapping": _parse_mapping,
    "csv": _parse_csv,
}


# --- parts of the parsers -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    image: str
    captions: tuple[str, ...]
    split: str | None

    def fit(self, record: Mapping[str, Any]) -> bool:
        wanted = (self.image, *self.captions, *((self.split,) if self.split else ()))
        return all(key in record for key in wanted)


def _columns(names: list[str], path: Path, place: str) -> _Columns:
    """Choose the columns of the image, the captions and the split by their names."""
    by_name = {name.strip().lower(): name for name in names}
    image = next((by_name[key] for key in _IMAGE_KEYS if key in by_name), None)
    captions = [by_name[key] for key in _CAPTION_KEYS if key in by_name][:1]
    captions += [name for key, name in by_name.items() if _NUMBERED.fullmatch(key)]
    if image is None or not captions:
        wanted = (
            "an image column (image, file_name, ...)"
            if image is None
            else "a caption column (caption, text, ...)"
        )
        raise _wrong(path, place, wanted, ", ".join(names))
    return _Columns(
        image, tuple(captions), next((by_name[key] for key in _SPLIT_KEYS if key in by_name), None)
    )


def _entries(content: Any, key: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    entries = content.get(key)
    if not isinstance(entries, list):
        raise _wrong(path, key, "a list", entries)
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise _wrong(path, f"{key}[{number}]", "an object", entry)
        yield f"{key}[{number}]", entry


def _strings(value: Any, path: Path, place: str) -> list[str]:
    """Return the captions of a str, a list of str, or a list of {"raw": str}."""
    values = [value] if isinstance(value, str) else value
    if isinstance(values, list):
        values = [v.get("raw", v.get("caption")) if isinstance(v, dict) else v for v in values]
        if all(isinstance(v, str) for v in values):
            return values
    raise _wrong(path, place, "a caption or a list of captions", value)


def _grouped(pairs: Iterable[tuple[str, list[str], str]]) -> list[_Photo]:
    photos: dict[str, _Photo] = {}
    for name, captions, split in pairs:
        photo = photos.setdefault(name, _Photo(name))
        photo.captions += captions
        photo.split = photo.split or split
    return list(photos.values())


def _delimiter(text: str) -> str:
    first = text.lstrip().splitlines()[0]
    return max("\t|;,", key=lambda mark: (first.count(mark) > 0, "\t|;,"[::-1].index(mark)))


def _is_image_name(text: str) -> bool:
    return Path(re.sub(r"#\d+$", "", text.strip())).suffix.lower() in _SUFFIXES


def _wrong(path: Path, place: str, wanted: str, got: Any) -> ValueError:
    return ValueError(f"{_CALLER}: {path} {place} must be {wanted}, got {_short(got)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# --- photos -------------------------------------------------------------------------------------


def _find_images(
    items: list[CaptionItem], path: Path, images: Path | None, missing: str
) -> list[CaptionItem]:
    roots = [images] if images is not None else [path.parent / "images", path.parent]
    roots = [root for root in roots if root.is_dir()]
    found: list[CaptionItem] = []
    absent: list[str] = []
    for item in items:
        assert item.image is not None
        name = item.image
        candidates = (root / part for root in roots for part in dict.fromkeys((name, Path(name.name))))
        file = next((candidate for candidate in candidates if candidate.is_file()), None)
        found.append(replace(item, image=file))
        if file is None:
            absent.append(str(name))
    if len(absent) == len(items) and images is None:
        return found
    if absent:
        where = " or ".join(map(str, roots))
        report = (
            f"{len(absent)} of {len(items)} photos of {path.name} are not in {where} (first: {absent[0]})"
        )
        if missing == "error" or len(absent) == len(items):
            raise ValueError(f"{_CALLER}: images must hold the photos; {report}")
        if missing == "drop":
            warnings.warn(f"{_CALLER}: {report}; they are left out", stacklevel=3)
            found = [item for item in found if item.image is not None]
    return found

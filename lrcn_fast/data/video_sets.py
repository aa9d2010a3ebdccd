"""Labelled videos, and the readers that find them: UCF101, UT-Interaction, folders of classes, list files.

Every reader returns a :class:`VideoSet`. A video is a file or a folder of frames, whatever
:func:`~lrcn_fast.data.video.open_video` takes; nothing is decoded here. Whatever is wrong with a list is one
ValueError that names the file, the line and what was expected there.
"""

import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import overload

import numpy as np
import numpy.typing as npt

from lrcn_fast._files import read_text
from lrcn_fast.data.video import FRAME_SUFFIXES, VIDEO_SUFFIXES, natural_key

__all__ = [
    "VideoItem",
    "VideoSet",
    "read_ucf101",
    "read_ut_interaction",
    "read_video_folders",
    "read_video_list",
]

PathLike = str | os.PathLike[str]

UT_INTERACTION = ("hand shaking", "hugging", "kicking", "pointing", "punching", "pushing")


@dataclass(frozen=True)
class VideoItem:
    """One video.

    Attributes:
        id: Its name in result files: the path in its data set, without suffix.
        path: A file or a folder of frames.
        label: Index into ``VideoSet.classes``.
        split: "train", "val", "test" or whatever the data set calls its parts; "" where it has none.
        group: Videos of one group (the same recording, the same people) belong on one side of any split; ""
            where nothing is known.
    """

    id: str
    path: Path
    label: int
    split: str = ""
    group: str = ""


class VideoSet(Sequence[VideoItem]):
    """An immutable list of :class:`VideoItem` with the names of its classes; every method returns a new one.

    Args:
        items: Videos with distinct ids.
        classes: Names, in the order of the labels.
        name: Where they come from, for messages.

    Raises:
        ValueError: Two items with one id, or a label outside the classes.
    """

    def __init__(self, items: Iterable[VideoItem], classes: Sequence[str], name: str = "videos") -> None:
        self.items = tuple(items)
        self.classes = tuple(classes)
        self.name = name
        repeated = [key for key, count in Counter(item.id for item in self.items).items() if count > 1]
        if repeated:
            raise ValueError(f"VideoSet: items of {name} must have distinct ids, got {repeated[0]!r} twice")
        for item in self.items:
            if not 0 <= item.label < len(self.classes):
                raise ValueError(
                    f"VideoSet: labels of {name} must be 0 to {len(self.classes) - 1}, got {item.label} for "
                    f"{item.id!r}"
                )

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> VideoItem: ...
    @overload
    def __getitem__(self, index: slice) -> "VideoSet": ...
    def __getitem__(self, index: int | slice) -> "VideoItem | VideoSet":
        if isinstance(index, slice):
            return VideoSet(self.items[index], self.classes, self.name)
        return self.items[index]

    def __iter__(self) -> Iterator[VideoItem]:
        return iter(self.items)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name or 'no split'}: {count}" for name, count in self.splits.items())
        return f"VideoSet({self.name}: {len(self)} videos, {len(self.classes)} classes; {parts})"

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Labels [N]."""
        return np.array([item.label for item in self.items], np.int64)

    @property
    def splits(self) -> dict[str, int]:
        """Videos per split, in order of first appearance."""
        return dict(Counter(item.split for item in self.items))

    @property
    def groups(self) -> dict[str, int]:
        """Videos per group, in natural order of the names."""
        counts = Counter(item.group for item in self.items)
        return {name: counts[name] for name in sorted(counts, key=natural_key)}

    def split(self, *names: str) -> "VideoSet":
        """Return the videos of the named splits.

        Raises:
            ValueError: No video has one of these splits.
        """
        absent = [name for name in names if name not in self.splits]
        if absent:
            raise ValueError(
                f"VideoSet.split: names must be among {sorted(self.splits)} of {self.name}, got {absent[0]!r}"
            )
        return self.filter(lambda item: item.split in names)

    def filter(self, keep: Callable[[VideoItem], bool]) -> "VideoSet":
        """Return the videos for which `keep` is true; the classes stay."""
        return VideoSet(filter(keep, self.items), self.classes, self.name)

    def folds(self) -> Iterator[tuple[str, "VideoSet", "VideoSet"]]:
        """Yield (group, all other videos, the videos of that group), for leave-one-group-out evaluation.

        Raises:
            ValueError: Fewer than two groups, or videos without one.
        """
        groups = self.groups
        if len(groups) < 2 or "" in groups:
            raise ValueError(
                f"VideoSet.folds: every video of {self.name} must have one of at least 2 groups, got "
                f"{len(groups) - ('' in groups)} groups and {groups.get('', 0)} videos without"
            )
        for group in groups:
            yield (
                group,
                self.filter(lambda item, g=group: item.group != g),  # type: ignore[misc]
                self.filter(lambda item, g=group: item.group == g),  # type: ignore[misc]
            )

    def hold_out(
        self, fraction: float, *, source: str = "train", name: str = "val", seed: int = 0
    ) -> "VideoSet":
        """Move a part of one split into a new one, to choose settings on.

        Whole groups move where the videos have groups, so many that the share comes closest to `fraction`;
        where they have none, the same share of every class moves. Who moves depends on ids, groups and
        the seed only, not on the order of the items.

        Args:
            fraction: Share of the videos of `source` to move, in (0, 1).
            source: Split they are taken from.
            name: Split they get.
            seed: Another seed chooses others.

        Raises:
            ValueError: No such split, `name` is taken, or one of the two would be empty.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"VideoSet.hold_out: fraction must be in (0, 1), got {fraction}")
        if name in self.splits:
            raise ValueError(f"VideoSet.hold_out: name must be a new split, got {name!r}")
        pool = self.split(source)

        def draw(key: str) -> str:
            return hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()

        grouped = any(item.group for item in pool)
        moved: set[str] = set()
        if grouped:
            members: dict[str, list[str]] = {}
            for item in pool:  # a video without a group is one of its own
                members.setdefault(item.group or f"\0{item.id}", []).append(item.id)
            for group in sorted(members, key=draw):
                grown = len(moved) + len(members[group])
                if abs(grown - fraction * len(pool)) > abs(len(moved) - fraction * len(pool)):
                    break
                moved.update(members[group])
        else:
            for label in range(len(self.classes)):
                ids = sorted((item.id for item in pool if item.label == label), key=draw)
                moved.update(ids[: round(fraction * len(ids))])
        if not 0 < len(moved) < len(pool):
            what = f"{len(pool.groups)} groups" if grouped else f"{len(pool)} videos"
            raise ValueError(
                f"VideoSet.hold_out: fraction must leave both parts of the {what} of {source!r} with videos, "
                f"got {fraction}"
            )
        items = (replace(item, split=name) if item.id in moved else item for item in self.items)
        return VideoSet(items, self.classes, self.name)


# --- readers ------------------------------------------------------------------------------------


def read_ucf101(
    videos: PathLike | None, lists: PathLike, *, split: int = 1, missing: str = "error"
) -> VideoSet:
    """Read the official lists of UCF101: classInd.txt, trainlist0N.txt and testlist0N.txt.

    Labels are 0-based: one less than in classInd.txt. The group of ``v_<class>_g08_c01`` is "g08", in every
    class, so that :meth:`VideoSet.hold_out` separates the recordings and keeps the classes even. Names are
    compared without regard to case: the videos of class HandstandPushups are called HandStandPushups.

    Args:
        videos: Folder of the class folders, with the videos or folders of their frames; all in one folder
            works too. None: the paths of the lists are kept, and not looked for.
        lists: Folder of the lists.
        split: 1, 2 or 3.
        missing: What to do with a video that is not there: "error", or "drop" with one warning for all.

    Returns:
        The videos with the splits "train" and "test".

    Raises:
        FileNotFoundError: A list is not there.
        ValueError: Foreign content of a list, or missing videos.
    """
    caller = "read_ucf101"
    if split not in (1, 2, 3):
        raise ValueError(f"{caller}: split must be 1, 2 or 3, got {split}")
    path = Path(lists) / "classInd.txt"
    classes: list[str] = []
    for number, line in _lines(path, caller):
        match = re.fullmatch(r"(\d+)\s+(\S+)", line)
        if match is None or int(match[1]) != len(classes) + 1:
            raise _wrong(caller, path, number, f'"{len(classes) + 1} <class>"', line)
        classes.append(match[2])
    labels = {name.lower(): label for label, name in enumerate(classes)}
    items = []
    for part, pattern in (("train", r"(\S+)\s+(\d+)"), ("test", r"(\S+)()")):
        path = Path(lists) / f"{part}list{split:02d}.txt"
        for number, line in _lines(path, caller):
            match = re.fullmatch(pattern, line)
            name = PurePosixPath(match[1]) if match else PurePosixPath()
            group = re.search(r"_(g\d+)_c\d+$", name.stem)
            if match is None or group is None:
                expected = '"<class>/v_<class>_gXX_cYY.avi' + (' <label>"' if part == "train" else '"')
                raise _wrong(caller, path, number, expected, line)
            label = labels.get(name.parent.name.lower())
            if label is None or (match[2] and int(match[2]) != label + 1):
                raise _wrong(caller, path, number, f"a class and its number in {path.parent.name}", line)
            items.append(VideoItem(str(name.with_suffix("")), Path(name), label, part, group[1]))
    return _located(items, classes, videos, missing, caller, f"UCF101 split {split}")


def read_ut_interaction(folder: PathLike) -> VideoSet:
    """Read UT-Interaction: files ``<number>_<sequence>_<class>.avi``; the sequence is the group.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: No such file in it.
    """
    caller = "read_ut_interaction"
    root = _folder(folder, caller)
    items = []
    for path in sorted(root.iterdir(), key=lambda p: natural_key(p.name)):
        match = re.fullmatch(r"\d+_(\d+)_([0-5])", path.stem)
        if match and (path.suffix.lower() in VIDEO_SUFFIXES or path.is_dir()):
            items.append(VideoItem(path.stem, path, int(match[2]), "", match[1]))
    if not items:
        raise ValueError(f"{caller}: {root} must hold videos <number>_<sequence>_<class>.avi, got none")
    return VideoSet(items, UT_INTERACTION, root.resolve().name)


def read_video_folders(folder: PathLike) -> VideoSet:
    """Read a folder of class folders that hold videos, or folders of frames.

    ``<class>/<video>``, or ``<split>/<class>/<video>`` where every subfolder is called train, val,
    validation, valid or test. Classes are in natural order of their names; hidden folders are skipped.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: No class, or a class without a video.
    """
    caller = "read_video_folders"
    root = _folder(folder, caller)
    top = _subfolders(root)
    has_splits = bool(top) and all(
        p.name.lower() in ("train", "val", "validation", "valid", "test") for p in top
    )
    places = [(p.name, c) for p in top for c in _subfolders(p)] if has_splits else [("", c) for c in top]
    classes = sorted({place.name for _, place in places}, key=natural_key)
    items = []
    for split, place in places:
        found = [p for p in sorted(place.iterdir(), key=lambda p: natural_key(p.name)) if _is_video(p)]
        if not found:
            raise ValueError(f"{caller}: {place} must hold videos or folders of frames, got none")
        items += [
            VideoItem(_id(path.relative_to(root)), path, classes.index(place.name), split) for path in found
        ]
    if not items:
        raise ValueError(f"{caller}: {root} must hold a folder for each class, got none")
    return VideoSet(items, classes, root.resolve().name)


def read_video_list(
    path: PathLike,
    videos: PathLike | None = None,
    *,
    classes: Sequence[str] | PathLike | None = None,
    split: str = "",
    missing: str = "error",
) -> VideoSet:
    """Read a list file with lines ``path label``, or ``folder frames label`` for folders of frames.

    This is what mmaction2 reads, and, with paths without suffix, the lists of the original release. Labels
    are 0-based numbers, or names of classes. Empty lines are skipped; paths may contain spaces.

    Args:
        path: The list.
        videos: Folder that the paths are relative to; default: that of the list.
        classes: Names in the order of the labels, or a file with one a line; default: "0", "1", ... up to
            the largest label.
        split: Split of all the videos.
        missing: As in :func:`read_ucf101`.

    Raises:
        FileNotFoundError: There is no list, or no file of classes.
        ValueError: Foreign content, a label that is no class, or missing videos.
    """
    caller = "read_video_list"
    path = Path(path)
    if isinstance(classes, (str, os.PathLike)):
        names: list[str] | None = [line for _, line in _lines(Path(classes), caller)]
    else:
        names = None if classes is None else list(classes)
    entries: list[tuple[PurePosixPath, int]] = []
    for number, line in _lines(path, caller):
        match = re.fullmatch(r"(?P<path>.+?)(?:\s+\d+)?\s+(?P<label>\d+)", line)
        label = -1
        if match is not None:
            label = int(match["label"])
        elif names is not None:
            match = re.fullmatch(rf"(?P<path>.+?)\s+(?P<label>{'|'.join(map(re.escape, names))})", line)
            label = names.index(match["label"]) if match else -1
        if match is None or (names is not None and label >= len(names)):
            what = "0, 1, ..." if names is None else f"one of {len(names)} classes"
            raise _wrong(caller, path, number, f'"path label" with label {what}', line)
        entries.append((PurePosixPath(match["path"]), label))
    if not entries:
        raise ValueError(f'{caller}: {path} must have lines "path label", got none')
    if names is None:
        names = [str(label) for label in range(max(label for _, label in entries) + 1)]
    items = [VideoItem(_id(name), Path(name), label, split) for name, label in entries]
    return _located(items, names, path.parent if videos is None else videos, missing, caller, path.name)


# --- finding files ------------------------------------------------------------------------------


def _folder(folder: PathLike, caller: str) -> Path:
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{caller}: {root} must be a folder, got nothing there")
    return root


def _subfolders(folder: Path) -> list[Path]:
    found = (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(found, key=lambda p: natural_key(p.name))


def _is_video(path: Path) -> bool:
    if path.is_dir():
        return any(p.suffix.lower() in FRAME_SUFFIXES for p in path.iterdir())
    return path.suffix.lower() in VIDEO_SUFFIXES


def _id(path: Path | PurePosixPath) -> str:
    return (path.with_suffix("") if path.suffix.lower() in VIDEO_SUFFIXES else path).as_posix()


def _lines(path: Path, caller: str) -> Iterator[tuple[int, str]]:
    """Yield the numbers and texts of lines that are not empty, whatever ends them."""
    for number, line in enumerate(read_text(path, caller).splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _wrong(caller: str, path: Path, number: int, expected: str, line: str) -> ValueError:
    short = line if len(line) <= 80 else line[:77] + "..."
    return ValueError(f"{caller}: {path} line {number} must be {expected}, got {short!r}")


def find_videos(folder: PathLike, names: Iterable[Path], caller: str) -> list[Path | None]:
    """Find the videos, or folders of frames, that a list names.

    As written; with or without a suffix; in other case, or all in one folder, not more than two deep.

    Args:
        folder: Where they are.
        names: Relative to it.
        caller: For the message.

    Returns:
        Their paths; None for one that is not there.

    Raises:
        FileNotFoundError: No such folder.
    """
    root = _folder(folder, caller)
    by_name: dict[str, Path] = {}
    found: list[Path | None] = []
    for name in names:
        path = root / name
        written = (path, *(path.with_name(path.name + suffix) for suffix in VIDEO_SUFFIXES))
        path = next((p for p in written if p.exists()), path)
        if not path.exists():
            if not by_name:
                for place, folders, files in os.walk(root):
                    inside = Path(place).relative_to(root)
                    for entry in (*folders, *(f for f in files if Path(f).suffix.lower() in VIDEO_SUFFIXES)):
                        by_name.setdefault(_id(inside / entry).lower(), inside / entry)
                        by_name.setdefault(_id(Path(entry)).lower(), inside / entry)
                    if len(inside.parts) >= 1:
                        folders.clear()  # not into folders of frames
            key = _id(name).lower()
            path = root / by_name.get(key, by_name.get(PurePosixPath(key).name, name))
        found.append(path if path.exists() else None)
    return found


def _located(
    items: list[VideoItem],
    classes: Sequence[str],
    videos: PathLike | None,
    missing: str,
    caller: str,
    name: str,
) -> VideoSet:
    """Replace the paths of a list by those on the disk."""
    if missing not in ("error", "drop"):
        raise ValueError(f'{caller}: missing must be "error" or "drop", got {missing!r}')
    if videos is None:
        return VideoSet(items, classes, name)
    paths = find_videos(videos, [item.path for item in items], caller)
    found = [replace(item, path=path) for item, path in zip(items, paths, strict=True) if path is not None]
    absent = [item for item, path in zip(items, paths, strict=True) if path is None]
    root = Path(videos)
    if absent:
        message = f"{caller}: {root} must hold the videos of {name}, got no {absent[0].path}"
        message += f" and no {len(absent) - 1} others" if len(absent) > 1 else ""
        if missing == "error" or not found:
            raise ValueError(message)
        warnings.warn(f"{message}; left out", stacklevel=3)
    return VideoSet(found, classes, name)

"""Videos and the sentences that people wrote about them."""

import os
from dataclasses import replace
from pathlib import Path

from lrcn_fast._files import read_text
from lrcn_fast.data.captions import CaptionSet
from lrcn_fast.data.readers import read_captions
from lrcn_fast.data.video_sets import find_videos

__all__ = ["read_video_captions"]

_CALLER = "read_video_captions"


def read_video_captions(
    path: str | os.PathLike[str],
    videos: str | os.PathLike[str] | None = None,
    *,
    names: str | os.PathLike[str] | None = None,
) -> CaptionSet:
    """Read sentences about videos, and find the videos.

    Every format of :func:`read_captions` will do, above all the lines of MSVD (``vid7<TAB>sentence``), and
    JSON lines ``{"video": "clips/7.mp4", "captions": ["A man runs.", ...], "split": "train"}``.

    Args:
        path: The sentences.
        videos: Folder that the videos' names are relative to: files, with or without their suffix, or
            folders of frames; default: that of ``path``.
        names: Lines ``<name of the video> <its name in the sentences>``, where the two differ: MSVD's
            youtube_video_to_id_mapping.txt.

    Returns:
        The sentences, with the video as ``image``.

    Raises:
        FileNotFoundError: No such file or folder.
        ValueError: Foreign content, or a video that is not there; the message names it.

    Example:
        >>> read_video_captions("sents_train_lc_nopunc.txt", "clips", names="mapping.txt")  # doctest: +SKIP
        CaptionSet(sents_train_lc_nopunc.txt: 1200 photos, 48774 captions; train: 1200)
    """
    captions = read_captions(path, missing="keep")
    files = {} if names is None else _names(Path(names))
    wanted = []
    for item in captions:
        if names is not None and item.id not in files:
            raise ValueError(f"{_CALLER}: {names} must name the video of {item.id!r}, got no such line")
        wanted.append(Path(files.get(item.id, item.id)))
    root = Path(path if videos is None else videos)
    root = root.parent if videos is None and not root.is_dir() else root
    found = find_videos(root, wanted, _CALLER)
    absent = [name for name, file in zip(wanted, found, strict=True) if file is None]
    if absent:
        more = f" and no {len(absent) - 1} others" if len(absent) > 1 else ""
        raise ValueError(
            f"{_CALLER}: {root} must hold the videos of {captions.name}, got no {absent[0]}{more}"
        )
    items = (replace(item, image=file) for item, file in zip(captions, found, strict=True))
    return CaptionSet(items, captions.name)


def _names(path: Path) -> dict[str, str]:
    names = {}
    for number, line in enumerate(read_text(path, _CALLER).splitlines(), 1):
        if line.strip():
            name, space, known = line.strip().rpartition(" ")
            if not space:
                raise ValueError(f"{_CALLER}: {path} line {number} must be two names, got {line[:80]!r}")
            names[known] = name.strip()
    return names

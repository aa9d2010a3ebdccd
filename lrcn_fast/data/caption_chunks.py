"""The training files of the original release: captions as HDF5 chunks, a list of them, a list of photos.

A folder holds ::

    batch_0.h5, batch_1.h5, ...             at most 100000 steps each
    hdf5_chunk_list.txt                     their paths, one a line
    image_list.txt                          path of each caption's photo, in the order of the captions
    image_list.with_dummy_labels.txt        the same, with a blank and the photo's hash

and a chunk has these datasets, float64 [steps, N] except where said otherwise:

====================  ====================================================================================
``input_sentence``    what the network reads; the release pads it with -1
``target_sentence``   what it has to predict; -1 is ignored by the loss
``cont_sentence``     0 where a caption starts, and in the padding
``cont``              0 where a caption starts, 1 elsewhere; the networks of the release do not read it
``stage_indicators``  1 at words, 0 in the padding
``hashed_image_path`` SHA-1 of the photo's path modulo 100000, at every step of its caption
``buffer_size``       N; int64 [1]
====================  ====================================================================================

Caffe looks the -1 of padded inputs up in its embedding without a check, and so reads memory in front of the
table. Nothing uses the result, but it may be NaN or end the program: reading replaces it by the harmless
begin of sentence, and writing never makes it unless asked.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lrcn_fast._files import import_h5py, one_line, read_text, staged_folder
from lrcn_fast.data.sequences import IGNORE, Window

__all__ = ["ChunkWindow", "image_hash", "read_caption_chunks", "read_image_list", "write_caption_chunks"]

PathLike = str | os.PathLike[str]

LIST = "hdf5_chunk_list.txt"
IMAGES = "image_list.txt"
IMAGES_WITH_HASHES = "image_list.with_dummy_labels.txt"
_HASHES = 100_000


class ChunkWindow(NamedTuple):
    """Consecutive steps of a chunk.

    Attributes:
        window: Input, target and cont [T, N], as ``lrcn_fast.data.sequences`` makes them.
        images: Hash of the photo of each step's caption. [T, N] int64.
    """

    window: Window
    images: npt.NDArray[np.int64]


def image_hash(path: str) -> int:
    """The release's number for a photo: SHA-1 of its path modulo 100000."""
    return int(hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest(), 16) % _HASHES


def write_caption_chunks(
    folder: PathLike,
    windows: Iterable[Window],
    images: Iterable[Sequence[str]] | None = None,
    *,
    chunk_steps: int = 100_000,
    release_padding: bool = False,
) -> list[Path]:
    """Write windows of captions as the release's chunks.

    Args:
        folder: Where to; other files of it stay, and nothing is changed where a window is refused.
        windows: From ``aligned`` or ``unaligned``, all with N columns.
        images: For each window (of ``aligned``) the path of each column's photo; None writes hash 0 and no
            list of photos.
        chunk_steps: Most steps of a chunk. A window is never cut.
        release_padding: Pad inputs with -1, as the release does (see the head of this module); otherwise
            they stay the begin of sentence that they are.

    Returns:
        The chunks.

    Raises:
        ImportError: h5py is missing.
        ValueError: No window, one of another width or longer than a chunk, or another number of photos.
    """
    h5py = import_h5py("write_caption_chunks")
    folder = Path(folder)
    names: list[str] = []
    paths: list[str] = []
    pending: list[ChunkWindow] = []
    photos = None if images is None else iter(images)
    width: int | None = None
    with staged_folder(folder) as stage:

        def flush() -> None:
            name = f"batch_{len(names)}.h5"
            with h5py.File(stage / name, "w") as file:
                _write_chunk(file, pending, release_padding)
            names.append(name)
            pending.clear()

        for number, window in enumerate(windows):
            steps, N = window.input.shape
            width = N if width is None else width
            if N != width or not 0 < steps <= chunk_steps:
                raise ValueError(
                    f"write_caption_chunks: windows must be [T, {width}] with T in 1..{chunk_steps}, "
                    f"got [{steps}, {N}] for window {number}"
                )
            hashes = np.zeros((steps, N), np.int64)
            if photos is not None:
                row = list(next(photos, ()))
                if len(row) != N:
                    raise ValueError(
                        f"write_caption_chunks: images must name {N} photos for window {number}, "
                        f"got {len(row)}"
                    )
                paths += row
                hashes[:] = [image_hash(path) for path in row]
            if sum(len(w.images) for w in pending) + steps > chunk_steps:
                flush()
            pending.append(ChunkWindow(window, hashes))
        if not pending:
            raise ValueError("write_caption_chunks: windows must hold at least one, got none")
        flush()
        _write_lines(stage / LIST, (str(folder / name) for name in names))
        if photos is not None:
            _write_lines(stage / IMAGES, paths)
            _write_lines(stage / IMAGES_WITH_HASHES, (f"{path} {image_hash(path)}" for path in paths))
    return [folder / name for name in names]


def read_caption_chunks(path: PathLike, *, steps: int = 20, bos_id: int = 0) -> Iterator[ChunkWindow]:
    """Read chunks of the release, window by window.

    Args:
        path: The folder, its hdf5_chunk_list.txt, or one chunk. Paths of the list that are not there, as
            after moving the folder, are looked for beside the list by their name.
        steps: Rows T of a window; 20 gives each aligned caption its own. The last window of a chunk may
            have fewer.
        bos_id: What stands for the -1 of padded inputs.

    Yields:
        Windows [T, N].

    Raises:
        FileNotFoundError: There is no such file, or a chunk of the list is missing.
        ImportError: h5py is missing.
        ValueError: A file is damaged, or its arrays are not what the head of this module says; the message
            names it.
    """
    if steps < 1:
        raise ValueError(f"read_caption_chunks: steps must be at least 1, got {steps}")
    h5py = import_h5py("read_caption_chunks")
    for chunk in _chunks(Path(path)):
        expected = f"read_caption_chunks: {chunk} must be a chunk of captions (HDF5)"
        try:
            with h5py.File(chunk, "r") as file:
                yield from _read_chunk(file, steps, bos_id)
        except FileNotFoundError:
            raise FileNotFoundError(f"{expected}, got no such file") from None
        except (OSError, KeyError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{expected}, got {one_line(error)}") from None


def read_image_list(path: PathLike) -> list[str]:
    """Paths of the photos, caption by caption: column n of aligned window k has entry k N + n.

    Args:
        path: The folder, or either of its lists of photos.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    file = path / IMAGES if path.is_dir() else path
    lines = read_text(file, "read_image_list").splitlines()
    if file.name == IMAGES_WITH_HASHES:
        lines = [line.rpartition(" ")[0] for line in lines]
    return lines


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_chunk(file: Any, parts: list[ChunkWindow], release_padding: bool) -> None:
    target = np.concatenate([part.window.target for part in parts])
    words = target != IGNORE
    cont = np.concatenate([part.window.cont for part in parts])
    inputs = np.concatenate([part.window.input for part in parts])
    if release_padding:
        inputs = np.where(words, inputs, IGNORE)
    file.create_dataset("buffer_size", data=np.asarray([target.shape[1]], np.int64))
    for name, values in (
        ("cont", 1 - (words & (cont == 0))),
        ("cont_sentence", cont),
        ("input_sentence", inputs),
        ("target_sentence", target),
        ("stage_indicators", words),
        ("hashed_image_path", np.concatenate([part.images for part in parts])),
    ):
        file.create_dataset(name, data=values.astype(np.float64))


def _chunks(path: Path) -> list[Path]:
    if path.is_dir():
        path = path / LIST
    if path.suffix != ".txt":
        return [path]
    lines = [line.strip() for line in read_text(path, "read_caption_chunks").splitlines()]
    chunks = [Path(line) for line in lines if line]
    if not chunks:
        raise ValueError(f"read_caption_chunks: {path} must name chunks, one a line, got an empty list")
    return [chunk if chunk.is_file() else path.parent / chunk.name for chunk in chunks]


def _read_chunk(file: Any, steps: int, bos_id: int) -> Iterator[ChunkWindow]:
    names = ("input_sentence", "target_sentence", "cont_sentence", "hashed_image_path")
    data = []
    for name in names:
        if name not in file or not hasattr(file[name], "shape"):
            raise ValueError(f"no dataset {name}")
        data.append(file[name])
    shape = data[0].shape
    if len(shape) != 2 or any(values.shape != shape for values in data):
        shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in zip(names, data, strict=True))
        raise ValueError(f"shapes that are not all [steps, N]: {shapes}")
    for start in range(0, shape[0], steps):
        rows = slice(start, start + steps)
        arrays = [_integers(values[rows], name) for values, name in zip(data, names, strict=True)]
        inputs, target, cont, images = arrays
        padding = inputs == IGNORE
        for name, wrong in (
            ("input_sentence below -1", inputs < IGNORE),
            ("target_sentence below -1", target < IGNORE),
            ("input_sentence -1 at a word", padding & (target != IGNORE)),
            ("cont_sentence other than 0 and 1", (cont != 0) & (cont != 1)),
        ):
            if wrong.any():
                step, column = (int(k) for k in np.argwhere(wrong)[0])
                raise ValueError(f"{name} (step {start + step}, column {column})")
        yield ChunkWindow(Window(np.where(padding, bos_id, inputs), target, cont.astype(np.uint8)), images)


def _integers(values: Any, name: str) -> npt.NDArray[np.int64]:
    values = np.asarray(values)
    # Above 2^31 there is no vocabulary; NaN compares as false too.
    if values.dtype.kind not in "iuf" or not (np.abs(values) < 2**31).all():
        raise ValueError(f"{name} that are not word indices")
    whole: npt.NDArray[np.int64] = values.astype(np.int64)
    if not (whole == values).all():
        raise ValueError(f"{name} that are not whole numbers")
    return whole

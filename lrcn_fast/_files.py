"""Reading and writing files: whole or not at all, with errors of one line.

Writing goes to a temporary name in the same folder, is flushed to the disk, and is then renamed: a reader
sees the old file or the new one, never a part of one.
"""

import contextlib
import gzip
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "atomic_path",
    "import_h5py",
    "one_line",
    "parse_json",
    "read_json",
    "read_text",
    "staged_folder",
    "write_atomic",
    "write_json",
]

PathLike = str | os.PathLike[str]


def one_line(error: BaseException, limit: int = 160) -> str:
    """First line of an exception's text, shortened; its type where it has no text."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= limit else text[: limit - 3] + "..."


def import_h5py(caller: str) -> Any:
    """The module h5py.

    Raises:
        ImportError: It is missing; the message starts with `caller` and names the command.
    """
    try:
        import h5py
    except ImportError:
        raise ImportError(f"{caller}: h5py is missing. pip install 'lrcn_fast[caffe]'") from None
    return h5py


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _default_mode() -> int:
    """Permissions that ``open(path, 'w')`` would give; mkstemp's are 0600."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an exception.

    Args:
        path: The file to write or replace. Its folder is created when missing.

    Yields:
        The path to write to. It is removed, and `path` left as it was, when the block raises.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(_default_mode())
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(folder: PathLike) -> Iterator[Path]:
    """Yield an empty folder; move its files into `folder` when the block ends without an exception.

    For files that belong together, such as weights and their configuration: all of them are complete on the
    disk before the first is renamed. Other files of `folder` stay. Subfolders are not supported.

    Args:
        folder: Where the files go. Created when missing.

    Yields:
        The folder to write to, inside `folder`. It is removed at the end.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".staged-", dir=target))
    try:
        yield stage
        files = sorted(stage.iterdir())
        for file in files:
            file.chmod(_default_mode())
            _sync(file)
        for file in files:
            os.replace(file, target / file.name)
        _sync(target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def read_json(path: PathLike, *, caller: str, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        caller: Function named at the start of the error message.
        what: What the file should have been, for the error message, e.g. "a vocabulary".

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{caller}: {path} must be {what} (JSON), got no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{caller}: {path} must be {what} (JSON), got {one_line(error)}") from None


def write_json(path: PathLike, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_atomic(path: PathLike, content: bytes) -> None:
    """Write bytes, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_text(path: Path, caller: str) -> str:
    """Return a UTF-8 text file, gzip or plain (told apart by its first bytes), without a byte-order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged gzip stream, or bytes that are not UTF-8; the message starts with ``caller``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{caller}: {path} must be a file, got nothing there")
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{caller}: {path} must be a whole gzip file, got a damaged one ({error})"
            ) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{caller}: {path} line {line} must be UTF-8 text, got byte {content[error.start]:#04x}"
        ) from error


def parse_json(text: str, path: Path, caller: str) -> Any:
    """Parse JSON text that came from a file.

    Raises:
        ValueError: not JSON; names file, line and column.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise ValueError(f"{caller}: {path} {where} must be JSON, got: {error.msg}") from error
    except RecursionError as error:
        raise ValueError(f"{caller}: {path} must be JSON of moderate depth, got deep nesting") from error

"""Reading and writing small files: whole or not at all, with errors of one line."""

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, flush it to disk, then rename it into place.

    A reader sees the old file or the new one; a kill leaves at most a file named ``.<name>.<random>.tmp``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def read_json(path: Path, caller: str) -> Any:
    """Read a JSON file, gzip or plain; the errors of :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, caller), path, caller)

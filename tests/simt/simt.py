"""Builds CUDA kernels for the CPU emulator and calls them with numpy arrays.

``Library()`` compiles ``csrc/cuda/*.cu`` with g++. ``Library(edits={"file.cu": [(old, new)]})`` compiles a
copy with pieces of one file replaced: a mutation test.
"""

import _ctypes
import ctypes
import dataclasses
import fcntl
import hashlib
import os
import pathlib
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
CUDA = HERE.parents[1] / "csrc" / "cuda"
CACHE = pathlib.Path(tempfile.gettempdir()) / "lrcn_simt"
POLICIES = ("round_robin", "random", "starve")

COMMON = [
    "g++",
    "-std=c++17",
    "-g",
    "-fPIC",
    "-fvisibility=hidden",
    "-DLRCN_SIMT",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
]
# Every load and store of a kernel calls a hook of memory.cpp; so does a bad index or alignment.
CHECKED = ["-fsanitize=thread,bounds,alignment"]
# A mutant is built once and run a few times: neither source lines nor every type nor faster code are worth
# their time.
MUTANT = ["-w", "-g0", "-Og", "-DLRCN_SIMT_MUTANT"]


# Launches of the kernels as they are that did not fail, since the last test: launcher, its numbers, seed.
LAUNCHES: list[tuple[str, tuple[tuple[str, int], ...], int]] = []


class SimtError(Exception):
    """A race, stall, bad access or misused primitive, with the schedule that shows it."""


def _make(target: pathlib.Path, command: list[str], given: str | None = None) -> pathlib.Path:
    """Run a command that writes a file, unless another process has: one of them does, the others wait."""
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with open(target.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                part = target.with_suffix(".part")
                subprocess.run([*command, "-o", str(part)], check=True, input=given, text=True)
                part.replace(target)
    return target


def _edit(path: pathlib.Path, edits) -> str:
    """The text of a file with each ``old``, which must occur exactly once, replaced."""
    text = path.read_text()
    for old, new in edits:
        assert text.count(old) == 1, f"{path.name}: {old!r} occurs {text.count(old)} times"
        text = text.replace(old, new)
    return text


def _headers(text: str, seen: dict[str, str]) -> dict[str, str]:
    """The texts of our headers that a file includes, by name, and of those that they include."""
    for include in re.findall(r'#include "(.*?)"', text):
        name = include.rsplit("/", 1)[-1]
        for path in (CUDA / name, HERE / name):  # device.cuh and launch.h forward to their twins
            if path.exists() and str(path) not in seen:
                seen[str(path)] = path.read_text()
                _headers(seen[str(path)], seen)
    return seen


def _compile(source: pathlib.Path, text: str, flags: list[str]) -> pathlib.Path:
    """Compile one file, unless an object of the same text, headers and flags exists."""
    headers = [text for _, text in sorted(_headers(text, {}).items())]
    digest = hashlib.sha256("\0".join([text, *headers, *flags]).encode()).hexdigest()[:20]
    target = CACHE / f"{source.stem}-{digest}.o"
    command = [*COMMON, *flags, f"-I{source.parent}", f"-I{HERE.parent}", "-x", "c++", "-c", "-"]
    return _make(target, command, f'#line 1 "{source}"\n{text}')


def _precompiled(flags: list[str]) -> pathlib.Path:
    """A header with all that the kernels take from the standard library, compiled beside it."""
    texts = [p.read_text() for folder in (CUDA, HERE) for p in sorted(folder.glob("*.*h"))]
    names = sorted(set(re.findall("#include <[a-z]+>\n", "".join(texts))))
    digest = hashlib.sha256("\0".join([*names, *flags]).encode()).hexdigest()[:20]
    header = CACHE / f"std-{digest}.h"
    if not header.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = header.with_suffix(f".{os.getpid()}")  # of several processes all write the same
        part.write_text("".join(names))
        part.replace(header)
    _make(CACHE / f"{header.name}.gch", [*COMMON, *flags, "-x", "c++-header", str(header)])
    return header


class Library:
    """The kernels, compiled for the emulator.

    Args:
        edits: replacements per kernel file or header; each ``old`` must occur exactly once.
        unit: the files, with a space between, that are compiled with the edited headers.
        checked: without it only what goes through primitives is checked, at 0.3 to 0.9 of the cost.
        flags: more compiler flags, for every file.
    """

    def __init__(self, edits=None, unit=None, checked=True, flags=()):
        edits = dict(edits or {})
        self._mutant = bool(edits)
        strip = ["-Wl,-S"] if edits else []
        headers = []
        for name in [name for name in edits if name.endswith((".h", ".cuh"))]:
            text = _edit(CUDA / name, edits.pop(name))
            folder = CACHE / hashlib.sha256(text.encode()).hexdigest()[:20]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
            headers.append(f"-I{folder}")  # searched before the real one
        jobs = [(p, p.read_text(), ["-O3", *flags]) for p in sorted(HERE.glob("*.cpp"))]
        for source in [*sorted(CUDA.glob("*.cu")), *sorted(HERE.glob("*.cu"))]:
            include = headers if source.name in (unit or "").split() else []
            mutant = bool(include) or source.name in edits
            text = _edit(source, edits.pop(source.name, ()))
            more = ["-O1", *(CHECKED if checked else ()), *(MUTANT if mutant else ()), *flags]
            if mutant:
                more += [*include, "-include", str(_precompiled(more))]
            jobs.append((source, text, more))
        assert not edits, f"no such file: {edits}"
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda job: str(_compile(*job)), jobs))
        digest = hashlib.sha256(" ".join(objects).encode()).hexdigest()[:20]
        target = CACHE / f"simt-{digest}.so"
        _make(target, ["g++", "-shared", "-Wl,--no-undefined", *strip, *objects, "-ldl"])
        self._dll = ctypes.CDLL(str(target))
        self._dll.simt_switch_ns.restype = ctypes.c_double
        self._dll.simt_switches.restype = ctypes.c_uint64

    def call(self, name, *, policy="random", seed=1, shown=None, **arguments):
        """Run one launcher. Arrays become pointers and the only global memory it may touch, numbers int64.

        LAUNCHES keeps the numbers, or those `shown` instead.
        """
        self._dll.simt_options(POLICIES.index(policy), ctypes.c_uint64(seed))
        self._dll.simt_clear_buffers()
        values = []
        for key, value in arguments.items():
            if isinstance(value, np.ndarray):
                assert value.flags.c_contiguous, key
                size = ctypes.c_size_t(value.nbytes)
                self._dll.simt_add_buffer(key.encode(), ctypes.c_void_p(value.ctypes.data), size)
                value = ctypes.c_void_p(value.ctypes.data)
            elif value is not None:
                value = ctypes.c_int64(value)
            values.append(value)
        function = getattr(self._dll, name)
        function.restype = ctypes.c_char_p
        message = function(*values)
        if message is not None:
            raise SimtError(message.decode())
        if not self._mutant:
            numbers = [(k, int(v)) for k, v in arguments.items() if isinstance(v, (int, np.integer))]
            LAUNCHES.append((name, tuple(numbers if shown is None else shown.items()), seed))

    def value(self, name, *numbers):
        """What a function of numbers returns, both int64."""
        function = getattr(self._dll, name)
        function.restype = ctypes.c_int64
        return function(*map(ctypes.c_int64, numbers))

    def close(self):
        """Unload it: its fibers' stacks are thousands of mappings, which a process has only so many of."""
        _ctypes.dlclose(self._dll._handle)

    def switches(self):
        """Context switches of the last launch."""
        return self._dll.simt_switches()

    def switch_ns(self):
        """Nanoseconds per context switch, without the scheduler."""
        return self._dll.simt_switch_ns()


def schedules(count):
    """Schedules of all three policies; a seed is one schedule."""
    return [{"policy": POLICIES[seed % 3], "seed": seed} for seed in range(count)]


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A bug to plant in a kernel.

    Attributes:
        kernel: The ``__global__`` function it is in.
        name: What is wrong.
        file: Source file.
        edits: Pairs of text, to find exactly once, and its replacement.
        unit: For a header, the files to compile with it: all that have the function, or the linker takes its
            other copy.
        message: What the emulator must say; "wrong numbers" is a result that differs. Empty: only that.
        always: Whether every schedule shows it.
    """

    kernel: str
    name: str
    file: str
    edits: tuple
    message: str = ""
    always: bool = True
    unit: str | None = None

    def __str__(self):
        return f"{self.kernel}: {self.name}".replace(" ", "-")


def killed(mutation, check, count=12):
    """Assert that ``check(library, **schedule)`` finds the bug on every one of `count` schedules."""
    mutant = Library({mutation.file: mutation.edits}, mutation.unit)
    survived = 0
    for schedule in schedules(count):
        try:
            check(mutant, **schedule)
            survived += 1
        except SimtError as error:
            if not re.search(mutation.message or "nothing", str(error)):
                raise
        except AssertionError:
            if mutation.message and "wrong numbers" not in mutation.message:
                raise
    mutant.close()
    assert survived < count if not mutation.always else survived == 0, (
        f"survived {survived} of {count} schedules"
    )

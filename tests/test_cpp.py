"""The C++ tests of csrc/core, per instruction set and under sanitizers; and what its objects contain."""

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
X86 = platform.machine() in ("x86_64", "AMD64")
ISAS = ["generic", "avx2", "avx512"] if X86 else ["generic"]
FLAGS = {
    "avx2": ["avx2", "fma"],
    "avx512": ["avx2", "fma", "avx512f", "avx512vl", "avx512dq", "avx512bw"],
}
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"


def missing_flags(isa):
    """What of CMakeLists.txt's flags for ``isa`` this CPU lacks."""
    have = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    return [flag for flag in FLAGS.get(isa, []) if flag not in have]


def needs_isa(isa):
    if missing_flags(isa):
        pytest.skip(f"this CPU has no {', '.join(missing_flags(isa))}")


def build(name, *options):
    """Build core_test in build/cpp-<name>, incrementally. Returns the folder."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("no cmake on PATH")
    folder = ROOT / "build" / f"cpp-{name}"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    switches = ["-DLRCN_TESTS=ON", "-DLRCN_OPS=OFF", "-DLRCN_RUNTIME=OFF"]
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist: one worker builds, the others find it built
    for command in (
        [cmake, "-S", ROOT, "-B", folder, *generator, *switches, *options],
        [cmake, "--build", folder, "--target", "core_test", "--parallel", "2"],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    lock.close()
    return folder


@pytest.fixture(scope="module")
def plain():
    return build("plain")


@pytest.fixture(scope="module")
def sanitized():
    # -O1: at -O3 the instrumented kernels take two minutes to compile.
    return build("sanitized", f"-DCMAKE_CXX_FLAGS={SANITIZE}", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")


def run(folder, isa):
    # verify_asan_link_order: a preloaded allocator of the environment is not this test's business.
    environment = os.environ | {"LRCN_FAST_ISA": isa, "ASAN_OPTIONS": "verify_asan_link_order=0"}
    result = subprocess.run([folder / "core_test"], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert f"instruction set: {isa}" in result.stdout
    assert " 0 failed" in result.stdout


@pytest.mark.parametrize("isa", ISAS)
def test_core(plain, isa):
    needs_isa(isa)
    run(plain, isa)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_core_under_sanitizers(sanitized, isa):
    needs_isa(isa)
    run(sanitized, isa)


@pytest.mark.parametrize("isa", [isa for isa in ISAS if missing_flags(isa)] + ["bogus"])
def test_forcing_what_the_cpu_lacks_is_an_error(plain, isa):
    result = subprocess.run(
        [plain / "core_test"], capture_output=True, text=True, env=os.environ | {"LRCN_FAST_ISA": isa}
    )
    assert result.returncode != 0
    expected = (
        'must be generic, avx2 or avx512, got "bogus"' if isa == "bogus" else f"LRCN_FAST_ISA={isa}, but"
    )
    assert expected in result.stderr


def test_python_sees_a_value_error():
    command = "from lrcn_fast import _runtime; _runtime.isa()"
    result = subprocess.run(
        [sys.executable, "-c", command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"LRCN_FAST_ISA": "bogus"},
    )
    assert 'ValueError: LRCN_FAST_ISA must be generic, avx2 or avx512, got "bogus"' in result.stderr


def symbols(path, *options):
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm on PATH")
    return subprocess.run([nm, "-C", *options, path], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("isa", ISAS)
def test_an_isa_object_defines_one_external_symbol(plain, isa):
    """A second one could be kept by the linker for the whole library, and kill older machines with SIGILL."""
    (path,) = plain.glob(f"CMakeFiles/lrcn_kernels_{isa}.dir/**/kernels.cpp.o")
    lines = symbols(path, "--defined-only", "--extern-only").strip().splitlines()
    assert [line.split()[-1] for line in lines] == [f"lrcn::simd::{isa}::table"]


def test_torch_libraries_use_the_stable_abi_only():
    import lrcn_fast

    libraries = [path for folder in lrcn_fast.__path__ for path in Path(folder).glob("_ops*.so")]
    assert libraries
    for path in libraries:
        undefined = symbols(path, "--undefined-only", "--dynamic")
        assert "at::" not in undefined
        assert "c10::" not in undefined
        assert "aoti_torch" in undefined  # nm did read something

"""The C++ tests of csrc/core, per instruction set and under sanitizers; and what its objects contain."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import native
import pytest
from native import ROOT, X86, missing_flags

ISAS = ["generic", "avx2", "avx512", "avx512_vnni", "avx512_bf16"] if X86 else ["generic"]
BOGUS = 'LRCN_FAST_ISA must be generic, avx2, avx512, avx512_vnni or avx512_bf16, got "bogus"'
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"


def needs_isa(isa):
    if missing_flags(isa):
        pytest.skip(f"this CPU has no {', '.join(missing_flags(isa))}")


def build(name, *options):
    """Build core_test in build/cpp-<name>. Returns the folder."""
    if shutil.which("cmake") is None:
        pytest.skip("no cmake on PATH")
    return native.build(f"cpp-{name}", "-DLRCN_OPS=OFF", "-DLRCN_RUNTIME=OFF", *options, target="core_test")


@pytest.fixture(scope="module")
def plain():
    return build("plain")


# The sanitizers see the AVX-512 kernels on every x86 CPU: where it lacks AVX-512, in AVX2 instructions.
EMULATES = X86 and missing_flags("avx512_bf16") != []


@pytest.fixture(scope="module")
def sanitized():
    # -O1: at -O3 the instrumented kernels take two minutes to compile.
    flags = [f"-DCMAKE_CXX_FLAGS={SANITIZE}", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"]
    return build("sanitized", *flags, f"-DLRCN_EMULATE_AVX512={'ON' if EMULATES else 'OFF'}")


def run(folder, isa, emulates=False):
    # verify_asan_link_order: a preloaded allocator of the environment is not this test's business.
    environment = os.environ | {"LRCN_FAST_ISA": isa, "ASAN_OPTIONS": "verify_asan_link_order=0"}
    result = subprocess.run([folder / "core_test"], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert result.stdout.startswith(f"instruction set: {isa}{' (emulated)' if emulates else ''}\n")
    assert " 0 failed" in result.stdout


@pytest.mark.parametrize("isa", ISAS)
def test_core(plain, isa):
    needs_isa(isa)
    run(plain, isa)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_core_under_sanitizers(sanitized, isa):
    emulates = isa.startswith("avx512") and EMULATES
    needs_isa("avx2" if emulates else isa)
    run(sanitized, isa, emulates)


@pytest.mark.parametrize("isa", [isa for isa in ISAS if missing_flags(isa)] + ["bogus"])
def test_forcing_what_the_cpu_lacks_is_an_error(plain, isa):
    result = subprocess.run(
        [plain / "core_test"], capture_output=True, text=True, env=os.environ | {"LRCN_FAST_ISA": isa}
    )
    assert result.returncode != 0
    expected = BOGUS if isa == "bogus" else f"LRCN_FAST_ISA={isa}, but"
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
    assert f"ValueError: {BOGUS}" in result.stderr


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

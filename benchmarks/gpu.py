"""Everything that needs a GPU, on a machine that has one: build, tests, compute-sanitizer, benchmarks.

``python benchmarks/gpu.py`` does all four with the Python it is run by (torch with CUDA, numpy, pytest,
cmake, ninja and pybind11 must be there; nothing is downloaded) and prints one screen at the end. Name one or
more of ``build test sanitize bench`` to do only those.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("results")


def architecture() -> str:
    """The GPU's, as CMAKE_CUDA_ARCHITECTURES has it; Hopper's own instructions need the 'a'."""
    major, minor = torch.cuda.get_device_capability()
    return "90a" if major == 9 else f"{major}{minor}"


def run(*command: str, **env: str) -> tuple[bool, str]:
    """Run a command, show its output as it comes, and return whether it worked and what it said."""
    print("$", *(f"{k}={v}" for k, v in env.items()), *command, flush=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return process.wait() == 0, "".join(lines)


def build() -> tuple[bool, str]:
    """Compile for this GPU, into the source tree."""
    pybind11 = subprocess.check_output([sys.executable, "-m", "pybind11", "--cmakedir"], text=True).strip()
    ok, _ = run(
        "cmake", "-S", ".", "-B", "build/gpu", "-G", "Ninja", "-DLRCN_CUDA=ON",
        f"-DCMAKE_CUDA_ARCHITECTURES={architecture()}", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11}",
    )  # fmt: skip
    ok = ok and run("ninja", "-C", "build/gpu")[0]
    ok = ok and run("cmake", "--install", "build/gpu", "--prefix", ".")[0]
    return ok, "" if ok else "the build failed"


def test() -> tuple[bool, str]:
    """GPU tests, and the CPU kernels' on AVX-512 where this machine has it."""

    def pytest(*arguments: str, **env: str) -> tuple[bool, str]:
        ok, out = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, **env)
        return ok, re.sub(r"=+", "", out.strip().splitlines()[-1]).strip()

    tests = [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("tests/test_cuda_*.py"))]
    ok, said = pytest("-m", "needs_cuda", *tests, "tests/simt/test_on_gpu.py", FAIL_WITHOUT_CUDA="1")
    if " avx512bw" in Path("/proc/cpuinfo").read_text():
        tests = [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("tests/test_ops_*.py"))]
        avx512_ok, avx512_said = pytest("-m", "not slow", *tests, LRCN_FAST_ISA="avx512")
        ok, said = ok and avx512_ok, f"{said}; AVX-512: {avx512_said}"
    return ok, said


def sanitize() -> tuple[bool, str]:
    """Every kernel under compute-sanitizer."""
    failed = []
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        ok, _ = run(
            "compute-sanitizer", "--tool", tool, "--error-exitcode", "1", sys.executable,
            "tests/simt/gpu/library.py", architecture(),
        )  # fmt: skip
        if not ok:
            failed.append(tool)
    return not failed, f"errors from {', '.join(failed)}" if failed else "no errors"


def bench() -> tuple[bool, str]:
    """Every GPU benchmark; their JSON files are what counts."""
    started = time.time()
    scripts = sorted(ROOT.glob("benchmarks/gpu_*.py"))
    failed = [p.name for p in scripts if not run(sys.executable, str(p), "--rounds", "5")[0]]
    tables = [summary(p) for p in sorted(RESULTS.glob("gpu-*.json")) if p.stat().st_mtime >= started]
    return not failed, "\n".join([f"failed: {', '.join(failed)}"] * bool(failed) + tables)


def summary(path: Path) -> str:
    """One line a case: microseconds of each variant, and how often it was as fast as the first."""
    report = json.loads(path.read_text())
    lines = [f"{path.relative_to(ROOT)} ({report['environment']['gpu']}), us and times the first:"]
    for case in report["cases"]:
        label = " ".join(str(v) for k, v in case["case"].items() if k != "cudnn")
        cells = [f"{v['median_us']:.0f} ({v['speedup']:.2f}x)" for v in case["variants"].values()]
        lines.append(
            f"  {label:32s} {'  '.join(f'{c:>15s}' for c in cells)}  {case['case'].get('cudnn', '')}"
        )
    lines.insert(1, "  " + " " * 32 + "  ".join(f"{n[-15:]:>15s}" for n in report["cases"][0]["variants"]))
    return "\n".join(lines)


STEPS: dict[str, Callable[[], tuple[bool, str]]] = {
    "build": build,
    "test": test,
    "sanitize": sanitize,
    "bench": bench,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="*", choices=[*STEPS, []], metavar="step", help=" ".join(STEPS))
    steps = parser.parse_args().steps or list(STEPS)
    if not torch.cuda.is_available():
        print("make gpu: needs an NVIDIA GPU that torch can use")
        return 1
    results = {}
    for step in steps:
        started = time.time()
        results[step] = (*STEPS[step](), time.time() - started)
        if step == "build" and not results[step][0]:
            break
    print(f"\n== {torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    for step, (ok, said, seconds) in results.items():
        print(f"{'ok    ' if ok else 'FAILED'} {step} ({seconds:.0f} s)  {said}")
    return 0 if all(ok for ok, _, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

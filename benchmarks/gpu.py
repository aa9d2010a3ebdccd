"""Everything that needs a GPU, on a machine that has one: build, tests, compute-sanitizer, benchmarks.

``python benchmarks/gpu.py`` does all steps with the Python it is run by (torch with CUDA, numpy, pytest,
cmake, ninja and pybind11 must be there; nothing is downloaded) and prints one screen at the end. Name one or
more of ``build test sanitize micro lstm decode`` to do only those: each works by itself, on what an earlier
``build`` left. Every step has a time limit, together under eight minutes, and what it has found by then is
kept: the benchmarks write their JSON as they go, and ``gpu-summary-*.json`` says after each step how it went.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch

ROOT = Path(__file__).resolve().parent.parent
Outcome = tuple[bool, str]


class Runner:
    """Runs commands until a step's time is up."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.deadline = 0.0

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def run(self, *command: str, **env: str) -> Outcome:
        """Show a command's output as it comes; return whether it worked in time, and what it said."""
        print("$", *(f"{k}={v}" for k, v in env.items()), *command, flush=True)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        # A kernel that hangs prints nothing: the alarm comes in the middle of a read.
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(process.pid, signal.SIGKILL))
        signal.alarm(max(1, int(self.left())))
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        status = process.wait()
        signal.alarm(0)
        if status == -signal.SIGKILL:
            lines.append("stopped: no time left\n")
        return status == 0, "".join(lines)

    def python(self, *arguments: str, **env: str) -> Outcome:
        """The same with this Python."""
        return self.run(sys.executable, *arguments, **env)


def architecture() -> str:
    """The GPU's, as CMAKE_CUDA_ARCHITECTURES has it; Hopper's own instructions need the 'a'."""
    major, minor = torch.cuda.get_device_capability()
    return "90a" if major == 9 else f"{major}{minor}"


def last_line(text: str) -> str:
    """Without pytest's frame."""
    lines = text.strip().splitlines()
    return re.sub(r"=+", "", lines[-1]).strip() if lines else "no output"


def build(r: Runner) -> Outcome:
    """Compile for this GPU, into the source tree."""
    pybind11 = subprocess.check_output([sys.executable, "-m", "pybind11", "--cmakedir"], text=True).strip()
    commands = [
        (
            "cmake", "-S", ".", "-B", "build/gpu", "-G", "Ninja", "-DLRCN_CUDA=ON",
            f"-DCMAKE_CUDA_ARCHITECTURES={architecture()}", f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11}",
        ),
        ("ninja", "-C", "build/gpu"),
        ("cmake", "--install", "build/gpu", "--prefix", "."),
    ]  # fmt: skip
    for command in commands:
        ok, said = r.run(*command)
        if not ok:
            return False, last_line(said)
    return True, ""


def test(r: Runner) -> Outcome:
    """GPU tests: the operators against the reference, and the checks of the emulator on the GPU."""
    patterns = ("tests/test_cuda_*.py", "tests/test_ops_decoder.py", "tests/test_decoder_*.py")
    tests = [str(p.relative_to(ROOT)) for pattern in patterns for p in sorted(ROOT.glob(pattern))]
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "needs_cuda", *tests]
    ok, said = r.python(*command, "tests/simt/test_on_gpu.py", FAIL_WITHOUT_CUDA="1")
    return ok, last_line(said)


def sanitize(r: Runner) -> Outcome:
    """Every kernel under compute-sanitizer, on cases that run every line."""
    outcomes = []
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        if r.left() < 15:
            outcomes.append(f"{tool}: not run, no time left")
            continue
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", sys.executable]
        ok, said = r.run(*command, "tests/simt/gpu/library.py", architecture())
        found = re.findall(r"ERROR SUMMARY: .*|RACECHECK SUMMARY: .*", said)
        outcomes.append(f"{tool}: {'ok' if ok else 'FAILED'}, {(found or [last_line(said)])[-1]}")
    return not any("FAILED" in o for o in outcomes[:2]), "; ".join(outcomes)


def benchmark(script: str, *arguments: str) -> Callable[[Runner], Outcome]:
    """A step that runs one script, which writes JSON files named after it."""

    def step(r: Runner) -> Outcome:
        started = time.time()
        ok, said = r.python(f"benchmarks/{script}.py", "--out", str(r.out), *arguments)
        files = r.out.glob(f"{script.replace('_', '-')}-*.json")
        found = [summary(p) for p in sorted(files) if p.stat().st_mtime >= started]
        return ok, "\n".join(([] if ok else [last_line(said)]) + found)

    return step


def summary(path: Path) -> str:
    """A line a case: microseconds, and of compared variants how often each was as fast as the first."""
    lines = [f"{path.name}, us"]
    for entry in json.loads(path.read_text())["cases"]:
        label = " ".join(str(v) for v in entry["case"].values() if not isinstance(v, list))
        if "round" in entry:
            said = entry["round"]
            lines.append(f"  {label:40s} {said.get('median_us', said.get('error'))}")
            continue
        cells = (f"{n} {v['median_us']:.0f} ({v['speedup']:.2f}x)" for n, v in entry["variants"].items())
        lines.append(f"  {label:32s} {'; '.join(cells)}")
        lines += [f"      torch ran {name}" for name in entry["case"].get("cudnn", [])[:1]]
    return "\n".join(lines)


# What each does, and the seconds it gets.
STEPS: dict[str, tuple[Callable[[Runner], Outcome], int]] = {
    "build": (build, 120),
    "test": (test, 110),
    "sanitize": (sanitize, 80),
    "micro": (benchmark("gpu_micro"), 40),
    "lstm": (benchmark("gpu_lstm", "--processes", "5", "--rounds", "9", "--seconds", "60"), 80),
    "decode": (benchmark("gpu_decode", "--processes", "5", "--rounds", "5", "--seconds", "25"), 45),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="*", choices=[*STEPS, []], metavar="step", help=" ".join(STEPS))
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder for the JSON files")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on every time limit")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("make gpu: needs an NVIDIA GPU that torch can use")
        return 1
    runner = Runner(args.out.resolve())
    results: dict[str, dict[str, Any]] = {}
    for name in args.steps or list(STEPS):
        step, seconds = STEPS[name]
        started = time.monotonic()
        runner.deadline = started + seconds * args.patience
        ok, said = step(runner)
        results[name] = {"ok": ok, "seconds": round(time.monotonic() - started), "said": said}
        # Not harness.environment(): it needs the build, which may be what failed.
        environment = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
        harness.save(runner.out, "gpu-summary", {"environment": environment, "steps": results})
        if name == "build" and not ok:
            break
    print(f"\n== {torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    for name, result in results.items():
        print(f"{'ok    ' if result['ok'] else 'FAILED'} {name} ({result['seconds']} s)  {result['said']}")
    return 0 if all(result["ok"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

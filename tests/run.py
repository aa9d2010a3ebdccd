"""The whole test suite: everything on the best instruction set, then the kernels on every other one."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What runs through per-ISA kernels; the rest would only repeat itself.
KERNEL_TESTS = [
    "tests/test_ops_*.py",
    "tests/test_nn_lstm.py",
    "tests/test_decoder_native.py",
    "tests/test_runtime.py",
]


def supported(isa: str) -> bool:
    probe = "from lrcn_fast import _runtime; print(_runtime.isa())"
    env = os.environ | {"LRCN_FAST_ISA": isa}
    return subprocess.run([sys.executable, "-c", probe], env=env, capture_output=True).returncode == 0


def pytest(*arguments: str, isa: str | None = None) -> bool:
    env = os.environ | {"OMP_NUM_THREADS": "1"} | ({"LRCN_FAST_ISA": isa} if isa else {})
    print(f"== pytest {' '.join(arguments)}  [LRCN_FAST_ISA={isa or 'unset'}]", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(os.cpu_count() or 1), *arguments]
    return subprocess.run(command, env=env, cwd=ROOT).returncode == 0


def main() -> int:
    isas = [isa for isa in ("generic", "avx2", "avx512") if supported(isa)]
    if isas == ["generic"] and os.environ.get("CI"):
        print("only the generic kernels can run on this CPU: the SIMD ones would go untested")
        return 1
    kernel_tests = [str(p.relative_to(ROOT)) for pattern in KERNEL_TESTS for p in sorted(ROOT.glob(pattern))]
    passed = [pytest("--dist", "worksteal", "tests")]
    passed += [pytest(*kernel_tests, isa=isa) for isa in isas[:-1]]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())

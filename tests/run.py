"""The whole test suite: everything on the best instruction set, then the kernels on every other one.

Where the CPU has AVX2 but not all of AVX-512, "every other one" includes the AVX-512 kernels that it lacks,
in AVX2 instructions (LRCN_EMULATE_AVX512 in CMakeLists.txt): that proves tiles, blocks and tails, not
instructions.
"""

import os
import subprocess
import sys

import native

ROOT = native.ROOT
# What runs through per-ISA kernels; the rest would only repeat itself.
KERNEL_TESTS = [
    "tests/test_ops_*.py",
    "tests/test_nn_lstm.py",
    "tests/test_decoder_native.py",
    "tests/test_rescoring.py",
    "tests/test_runtime.py",
]
# More, where it is the only time that a set's kernels run.
EMULATED_TESTS = ["tests/test_nn_options.py", "tests/test_decoder_hf.py", "tests/test_decoder_model.py"]


def instruction_set(wanted: str = "") -> str | None:
    """The one that is used if this one is asked for, none: the CPU's best; None if the CPU lacks it."""
    probe = "from lrcn_fast import _runtime; print(_runtime.isa())"
    env = os.environ | {"LRCN_FAST_ISA": wanted}
    ran = subprocess.run([sys.executable, "-c", probe], env=env, capture_output=True, text=True)
    return ran.stdout.strip() if ran.returncode == 0 else None


def pytest(*arguments: str, **environment: str) -> bool:
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    shown = " ".join([*(f"{k}={v}" for k, v in environment.items()), "pytest", *arguments])
    print(f"== {shown}", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(os.cpu_count() or 1), *arguments]
    return subprocess.run(command, env=env, cwd=ROOT).returncode == 0


def emulated(isa: str, tests: list[str]) -> bool:
    print(f"== {isa}: building the AVX-512 kernels in AVX2 instructions", flush=True)
    folder = native.build_emulated()
    env = os.environ | {"LRCN_FAST_ISA": isa}
    core = subprocess.run([folder / "core_test"], env=env, capture_output=True, text=True)
    print(core.stdout.splitlines()[0] if core.returncode == 0 else core.stdout + core.stderr, flush=True)
    python = pytest(*tests, LRCN_FAST_ISA=isa, LRCN_TEST_LIBRARIES=str(folder))
    return core.returncode == 0 and python


def main() -> int:
    isas = [isa for isa in ("generic", *native.FLAGS) if instruction_set(isa)]
    best = instruction_set()
    if isas == ["generic"] and os.environ.get("CI"):
        print("only the generic kernels can run on this CPU: the SIMD ones would go untested")
        return 1
    kernel_tests = [str(p.relative_to(ROOT)) for pattern in KERNEL_TESTS for p in sorted(ROOT.glob(pattern))]
    passed = [pytest("--dist", "worksteal", "tests")]
    passed += [pytest(*kernel_tests, LRCN_FAST_ISA=isa) for isa in isas if isa != best]
    if "avx2" in isas and "avx512" not in isas:
        passed.append(emulated("avx512", kernel_tests + EMULATED_TESTS))
    if "avx2" in isas and "avx512_vnni" not in isas:  # of the other kernels only the name is another
        passed.append(emulated("avx512_vnni", ["tests/test_ops_linear.py", "tests/test_rescoring.py"]))
    if "avx2" in isas and "avx512_bf16" not in isas:
        passed.append(emulated("avx512_bf16", kernel_tests))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())

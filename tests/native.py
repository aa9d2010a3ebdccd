"""Native builds of their own for tests, in build/, and how a test process takes the libraries of one."""

import fcntl
import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
X86 = platform.machine() in ("x86_64", "AMD64")
FLAGS = {
    "avx2": ["avx2", "fma"],
    "avx512": ["avx2", "fma", "avx512f", "avx512vl", "avx512dq", "avx512bw"],
}
FLAGS["avx512_vnni"] = [*FLAGS["avx512"], "avx512_vnni"]
FLAGS["avx512_bf16"] = [*FLAGS["avx512_vnni"], "avx512_bf16"]


def missing_flags(isa: str) -> list[str]:
    """What of CMakeLists.txt's flags for ``isa`` this CPU lacks."""
    have = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    return [flag for flag in FLAGS.get(isa, []) if flag not in have]


def build(name: str, *options: str, target: str = "all") -> Path:
    """Configure and build build/<name>, incrementally. Returns the folder."""
    folder = ROOT / "build" / name
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist: one worker builds, the others find it built
        for command in (
            ["cmake", "-S", ROOT, "-B", folder, *generator, "-DLRCN_TESTS=ON", *options],
            ["cmake", "--build", folder, "--target", target, "--parallel", "2"],
        ):
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, result.stdout + result.stderr
    return folder


def build_emulated() -> Path:
    """The package's libraries with the AVX-512 kernels compiled to AVX2 instructions, and core_test."""
    python = [sys.executable, "-m", "pybind11", "--cmakedir"]
    pybind11 = subprocess.run(python, capture_output=True, text=True, check=True).stdout.strip()
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}"]
    options.append("-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF")  # pybind11's default: 10 s of linking
    return build("emulated", "-DLRCN_EMULATE_AVX512=ON", *options)


def use_libraries(folder: Path) -> None:
    """Let this process take ``_ops`` and ``_runtime`` from ``folder``; before anything asks for them."""
    import lrcn_fast

    lrcn_fast.__path__.insert(0, str(folder))
    # An editable install resolves submodules by a table that comes before __path__.
    (path,) = folder.glob("_runtime.*.so")
    spec = importlib.util.spec_from_file_location("lrcn_fast._runtime", path)
    sys.modules["lrcn_fast._runtime"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

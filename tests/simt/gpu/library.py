"""The kernels of csrc/cuda compiled by nvcc, behind the interface of ``simt.Library``.

The checks of the emulator then run unchanged on a GPU, where they test what an emulator cannot: whether the
PTX of ``device.cuh`` does what its twin does. Run as a script under compute-sanitizer, no torch kernel comes
between.
"""

import ctypes
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np

SIMT = Path(__file__).resolve().parent.parent
CUDA = SIMT.parents[1] / "csrc" / "cuda"
BUILD = SIMT.parents[1] / "build" / "simt_gpu"


def build(architecture: str) -> Path:
    """Compile everything, unless that has been done: one nvcc per file, all at once."""
    sources = [
        *sorted(CUDA.glob("*.cu")),
        SIMT / "selftest.cu",
        SIMT / "bindings.cpp",
        SIMT / "gpu" / "runtime.cpp",
    ]
    headers = [p for folder in (CUDA, SIMT) for p in sorted(folder.iterdir()) if p.suffix in (".h", ".cuh")]
    text = "\0".join([architecture, *(p.read_text() for p in [*sources, *headers])])
    out = BUILD / hashlib.sha256(text.encode()).hexdigest()[:20]
    target = out / "kernels.so"
    if target.exists():
        return target
    out.mkdir(parents=True, exist_ok=True)
    objects = [out / f"{source.name}.o" for source in sources]
    command = [
        "nvcc",
        "-std=c++17",
        "-O3",
        "-lineinfo",
        f"-arch=sm_{architecture}",
        "-Xcompiler",
        "-fPIC",
        "-c",
    ]
    jobs = [
        subprocess.Popen([*command, str(source), "-o", str(o)])
        for source, o in zip(sources, objects, strict=True)
    ]
    if any([job.wait() for job in jobs]):
        raise RuntimeError("nvcc failed")
    link = ["nvcc", "-shared", f"-arch=sm_{architecture}", "-o", str(target), *map(str, objects)]
    subprocess.run(link, check=True)
    return target


class GpuError(Exception):
    """A failed launch, or an error the kernel left behind."""


class GpuLibrary:
    """Calls launchers with numpy arrays, which are copied to the GPU and back."""

    def __init__(self, architecture: str) -> None:
        self._dll = ctypes.CDLL(str(build(architecture)))
        self._dll.gpu_allocate.restype = ctypes.c_void_p
        self._dll.gpu_allocate.argtypes = [ctypes.c_size_t]
        self._dll.gpu_free.argtypes = [ctypes.c_void_p]
        self._dll.gpu_copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

    def call(self, name: str, *, shown: object = None, **arguments: object) -> None:
        """Run one launcher. Arrays change in place; numbers become int64. `shown` is for the emulator's."""
        arrays, values = [], []
        try:
            for value in arguments.values():
                if isinstance(value, np.ndarray):
                    pointer = self._dll.gpu_allocate(max(value.nbytes, 1))
                    if pointer is None:
                        raise GpuError("cudaMalloc failed")
                    arrays.append((pointer, value))
                    self._copy(pointer, value.ctypes.data, value.nbytes)
                    values.append(ctypes.c_void_p(pointer))
                else:
                    values.append(value if value is None else ctypes.c_int64(value))
            function = getattr(self._dll, name)
            function.restype = ctypes.c_char_p
            message = function(*values)
            if message is not None:
                raise GpuError(f"{name}: {message.decode()}")
            for pointer, value in arrays:
                self._copy(value.ctypes.data, pointer, value.nbytes)
        finally:
            for pointer, _ in arrays:
                self._dll.gpu_free(pointer)

    def _copy(self, to: int, source: int, count: int) -> None:
        status = self._dll.gpu_copy(to, source, count)
        if status != 0:
            raise GpuError(f"cudaMemcpy failed with status {status}")


def main() -> None:
    """Every line of every kernel, for compute-sanitizer."""
    sys.path.insert(0, str(SIMT))
    import cases
    import decode_cases
    import selftest_cases
    import test_decode_kernels
    import test_lstm_kernels

    library = GpuLibrary(sys.argv[1])
    selftest_cases.check_self(library)
    suspects = [case for group in test_lstm_kernels.SUSPECTS.values() for case in group]
    for case in suspects:
        if case.blocks > 1 and int(sys.argv[1].rstrip("a")) < 90:
            continue  # needs clusters
        cases.check_lstm(library, case)
        print(case, flush=True)
    for case in test_decode_kernels.SUSPECTS:
        decode_cases.check_decode(library, case, fresh=True)
        print(case, flush=True)


if __name__ == "__main__":
    main()

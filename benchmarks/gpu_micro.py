"""What it costs on this GPU to get blocks together, and a value from one to the others.

Question: which exchange should a persistent kernel use, and how long is a step at least? Times of one round:
the difference between launches of more and of fewer rounds, medians of several.
"""

import argparse
import ctypes
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import torch

SOURCE = Path(__file__).with_name("gpu_micro.cu")
KERNELS = ("grid sync", "counter barrier", "in-band exchange", "cluster sync", "push", "broadcast")
THREADS = 256
REPEATS = 5


def build(folder: str) -> ctypes.CDLL:
    """Compile the kernels for this GPU."""
    major, minor = torch.cuda.get_device_capability()
    target = f"{folder}/micro.so"
    command = ["nvcc", "-std=c++17", "-O3", f"-arch=sm_{'90a' if major == 9 else f'{major}{minor}'}"]
    subprocess.run([*command, "-Xcompiler", "-fPIC", "-shared", str(SOURCE), "-o", target], check=True)
    library = ctypes.CDLL(target)
    library.micro.restype = ctypes.c_char_p
    library.micro.argtypes = [ctypes.c_int] + [ctypes.c_uint] * 3 + [ctypes.c_int, ctypes.c_void_p]
    return library


def questions() -> list[dict[str, Any]]:
    """What to run: kernel, blocks, blocks of a cluster, size."""
    chip = torch.cuda.get_device_properties(0).multi_processor_count
    cases: list[dict[str, Any]] = []
    for name in KERNELS[:3]:
        cases += [{"what": name, "blocks": blocks} for blocks in (chip // 4, chip // 2, chip)]
    cases += [{"what": "broadcast", "blocks": chip, "bytes": 16 * size} for size in (512, 4096, 32768)]
    if torch.cuda.get_device_capability()[0] >= 9:
        for cluster in (2, 4, 8, 16):
            # As many as there would be of an LSTM's: one, and most of the chip.
            for blocks in (cluster, chip // cluster * cluster * 3 // 4 // cluster * cluster):
                cases.append({"what": "cluster sync", "blocks": blocks, "cluster": cluster})
                cases.append({"what": "push", "blocks": blocks, "cluster": cluster, "bytes": 4 * 128})
    return cases


def microseconds(library: ctypes.CDLL, case: dict[str, Any]) -> list[float]:
    """Samples of one round."""
    which = KERNELS.index(case["what"])
    per_item = 16 if case["what"] == "broadcast" else 4

    def once(rounds: int) -> float:
        scratch = torch.zeros(4 << 20, dtype=torch.int32, device="cuda")
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        size = case.get("bytes", 0) // per_item
        # The default stream is torch's too.
        said = library.micro(which, case["blocks"], case.get("cluster", 1), size, rounds, scratch.data_ptr())
        end.record()
        if said is not None:
            raise RuntimeError(said.decode())
        end.synchronize()
        return start.elapsed_time(end) * 1e3

    once(10)
    few, many = 100, 1100
    return [(once(many) - once(few)) / (many - few) for _ in range(REPEATS)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder for the JSON file")
    out = parser.parse_args().out
    cases: list[dict[str, Any]] = []
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        library = build(folder)
        for case in questions():
            result: dict[str, Any]
            try:
                samples = microseconds(library, case)
                result = {"median_us": statistics.median(samples), "us": samples}
            except RuntimeError as error:  # clusters of 16 do not fit everywhere
                result = {"error": str(error)}
                failed = failed or case.get("cluster") != 16
            cases.append({"case": case, "round": result})
            print(*(f"{k}={v}" for k, v in case.items()), "->", result.get("median_us", result), flush=True)
            path = harness.save(out, "gpu-micro", {"environment": harness.environment(), "cases": cases})
    print(f"written to {path}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

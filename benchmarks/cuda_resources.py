"""Registers, shared memory and spills of every CUDA kernel, as ptxas reports them. Needs nvcc, no GPU."""

import argparse
import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

CUDA = Path(__file__).resolve().parent.parent / "csrc" / "cuda"
ARCHITECTURES = ("80", "90a")


class Kernel(NamedTuple):
    """One kernel, compiled for one architecture."""

    architecture: str
    name: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spilled_bytes: int


def kernels(source: Path, architecture: str) -> list[Kernel]:
    """Compile one file and read what ptxas says about its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "nvcc",
            "-std=c++17",
            "-O3",
            f"-arch=sm_{architecture}",
            "-Xptxas",
            "-v",
            "-cubin",
            str(source),
        ]
        command += ["-o", f"{folder}/kernels.cubin"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found = []
    for part in said.split("Compiling entry function '")[1:]:
        name = subprocess.run(
            ["c++filt", part.split("'")[0]], check=True, capture_output=True, text=True
        ).stdout
        name = re.sub(r"\(anonymous namespace\)::|lrcn::cuda::|^void ", "", name.strip())

        def number(pattern: str, part: str = part) -> int:
            match = re.search(pattern, part)
            return int(match[1]) if match else 0

        spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
        found.append(
            Kernel(
                architecture,
                name.split("(")[0],
                number(r"Used (\d+) registers"),
                number(r"(\d+) bytes smem"),
                number(r"(\d+) bytes stack frame"),
                spilled,
            )
        )
    return found


def all_kernels() -> list[Kernel]:
    """Every kernel of csrc/cuda on every architecture."""
    sources = sorted(CUDA.glob("*.cu"))
    jobs = [(source, architecture) for architecture in ARCHITECTURES for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each job waits for an nvcc
        return [k for found in pool.map(lambda job: kernels(*job), jobs) for k in found]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(f"{'kernel':60s} {'sm':>4s} {'registers':>9s} {'shared':>7s} {'stack':>6s} {'spilled':>8s}")
    for k in all_kernels():
        print(
            f"{k.name:60s} {k.architecture:>4s} {k.registers:9d} {k.shared_bytes:7d} {k.stack_bytes:6d} "
            f"{k.spilled_bytes:8d}"
        )


if __name__ == "__main__":
    main()

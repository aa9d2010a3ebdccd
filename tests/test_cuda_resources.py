"""What the compiler makes of the CUDA kernels. Needs nvcc, no GPU.

That none spills is the build's affair: LRCN_WERROR=ON makes it an error, for every kernel and architecture.
"""

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "cuda_resources.py"))

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")

# 64 numbers that are alive together, where a thread may have 32 registers.
SPILLS = """
__global__ void __launch_bounds__(1024, 2) spills_kernel(float* p) {
  float a[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) a[i] = p[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) p[i * 1024 + threadIdx.x] = a[i] * a[63 - i];
}
"""


@pytest.fixture
def spilling(tmp_path):
    source = tmp_path / "spills.cu"
    source.write_text(SPILLS)
    return source


def test_the_script_names_every_kernel_of_a_file():
    source = SCRIPT["CUDA"] / "lstm_cell.cu"
    kernels = SCRIPT["kernels"](source, "80")
    defined = re.findall(r"\b(\w+_kernel)\(", source.read_text())  # launches have no parenthesis there
    assert len(defined) == source.read_text().count("__global__ ")
    assert {k.name.split("<")[0] for k in kernels} == set(defined)
    assert all(k.registers > 0 and k.stack_bytes == k.spilled_bytes == 0 for k in kernels)


def test_the_script_sees_spills(spilling):
    (kernel,) = SCRIPT["kernels"](spilling, "80")
    assert kernel.name == "spills_kernel"
    assert kernel.stack_bytes > 0
    assert kernel.spilled_bytes > 0


def test_a_spill_fails_the_strict_build(spilling, tmp_path):
    flags = ",".join(re.findall(r"LRCN_PTXAS ,?(--\S+)\)", (ROOT / "CMakeLists.txt").read_text()))
    command = ["nvcc", "-arch=sm_80", "-cubin", f"-Xptxas={flags}", "-o", str(tmp_path / "spills.cubin")]
    said = subprocess.run([*command, str(spilling)], capture_output=True, text=True)
    assert said.returncode != 0
    assert "spill" in said.stderr

"""What the compiler makes of the CUDA kernels. Needs nvcc, no GPU."""

import runpy
import shutil
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "cuda_resources.py"


@pytest.mark.slow  # compiles everything twice
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_no_kernel_spills():
    kernels = runpy.run_path(str(SCRIPT))["all_kernels"]()
    assert {k.architecture for k in kernels} == {"80", "90a"}
    assert {k.name.split("<")[0] for k in kernels} >= {"lstm_cell_kernel", "lstm_cell_backward_kernel"}
    assert not [k for k in kernels if k.spilled_bytes or k.stack_bytes]

"""What every test module shares: where the data sets are, what a GPU test needs, seeds and threads."""

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

try:
    import torch
except ImportError:  # the torch-free runtime has tests of its own
    torch = None

import native

if "LRCN_TEST_LIBRARIES" in os.environ:  # set by run.py
    native.use_libraries(Path(os.environ["LRCN_TEST_LIBRARIES"]))

REPOSITORY = Path(__file__).resolve().parent.parent


def rounds_bfloat16() -> bool:
    """Whether bfloat16 weights multiply activations rounded to bfloat16, as AVX512_BF16 does."""
    from lrcn_fast import runtime

    return runtime.isa().startswith("avx512_bf16")


def int8_activations(x):
    """x [..., K] as int8 weights multiply it: its product with the identity, which int8 stores exactly.

    test_ops_linear.py says how close that is to x.
    """
    from lrcn_fast import ops

    K = x.shape[-1]
    return ops.linear(x.float(), ops.linear_pack(torch.eye(K), dtype=torch.int8), None, K).to(x.dtype)


def data_dir(*parts: str) -> Path:
    """Return a folder or file of the shared data sets, or skip the test (or the module) that asks for it.

    They are looked for in $LRCN_DATA, then in ../shared/data beside the repository; they are no part of it.
    """
    root = Path(os.environ.get("LRCN_DATA") or REPOSITORY.parent / "shared" / "data")
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path} (set LRCN_DATA)", allow_module_level=True)
    return path


@pytest.fixture(name="data_dir", scope="session")
def _data_dir():
    """The function data_dir, for tests that do not import this module."""
    return data_dir


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_cuda") is None:
        return
    if torch is not None and torch.cuda.is_available():
        return
    reason = "needs an NVIDIA GPU"
    if os.environ.get("FAIL_WITHOUT_CUDA") == "1":
        pytest.fail(f"{reason}, and FAIL_WITHOUT_CUDA=1", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def device(request):
    """Where native code runs, for tests that are the same everywhere."""
    return request.param


@pytest.fixture(autouse=True)
def _seeds_and_threads():
    """The same random numbers and one thread in every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (for libraries that still draw from it)
    if torch is not None:
        torch.manual_seed(0)
        torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Keep what the SIMT emulator (tests/simt) ran with the test's report, for the summary below."""
    simt = sys.modules.get("simt")
    if simt is not None:
        simt.LAUNCHES.clear()
    result = yield
    if simt is not None:
        found = [[name, list(map(list, numbers)), seed] for name, numbers, seed in simt.LAUNCHES]
        item.user_properties.append(("simt", found))
    return result


def pytest_terminal_summary(terminalreporter) -> None:
    """Which kernels the SIMT emulator ran, at which sizes, under how many schedules."""
    seeds: dict[str, dict[tuple, set[int]]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, sizes, seed in dict(report.user_properties).get("simt", ()):
            seeds.setdefault(name, {}).setdefault(tuple(map(tuple, sizes)), set()).add(seed)
    if not seeds:
        return
    terminalreporter.section("kernels in the SIMT emulator")
    for name, cases in sorted(seeds.items()):
        values: dict[str, set[int]] = {}
        for sizes in cases:
            for key, value in sizes:
                values.setdefault(key, set()).add(value)
        ranges = ", ".join(
            f"{key} {min(v)}" if len(v) == 1 else f"{key} {min(v)} to {max(v)}" for key, v in values.items()
        )
        counts = sorted(map(len, cases.values()))
        terminalreporter.line(
            f"{name}: {len(cases)} sizes ({ranges}), each under {counts[0]} to {counts[-1]} schedules"
        )

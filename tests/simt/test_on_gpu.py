"""The emulator's checks, on a GPU."""

import sys

import cases
import decode_cases
import pytest
import selftest_cases
import torch
from simt import HERE
from test_decode_kernels import CASES
from test_lstm_kernels import ALL

pytestmark = pytest.mark.needs_cuda


@pytest.fixture(scope="module")
def library():
    sys.path.insert(0, str(HERE / "gpu"))
    from library import GpuLibrary

    major, minor = torch.cuda.get_device_capability()
    return GpuLibrary("90a" if major == 9 else f"{major}{minor}")


@pytest.mark.parametrize(
    "which", range(7), ids=["shuffles", "reduce", "rotate", "peers", "pipe", "mailbox", "mma"]
)
def test_primitives(library, which):
    if which in (3, 4) and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("needs clusters")
    selftest_cases.check_self(library, which)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_lstm(library, case):
    if case.blocks > 1 and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("needs clusters")
    cases.check_lstm(library, case)


@pytest.mark.parametrize("case", [case for case in ALL if case.both], ids=str)
def test_directions_side_by_side_change_no_bit(library, case):
    if case.blocks > 1 and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("needs clusters")
    cases.check_apart(library, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_decode(library, case):
    decode_cases.check_decode(library, case, fresh=True)


@pytest.mark.parametrize("sample", [False, True])
def test_decode_complains(library, sample):
    decode_cases.check_complaints(library, sample)

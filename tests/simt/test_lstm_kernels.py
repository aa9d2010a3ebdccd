"""The LSTM kernels on the CPU: right on every schedule."""

import re

import cases
import pytest
from cases import Lstm
from mutations import LSTM_MUTATIONS, MUTATIONS
from simt import CUDA, Library, killed, schedules

SEEDS = 20
LENGTHS = (3, 0, 4, 1, -2, 9)  # two of them out of range: clamped to 0 and T


@pytest.fixture(scope="module")
def library():
    return Library()


VARIANTS = [
    {},
    {"gates": False},
    {"d_gates": False},
    {"reverse": True},
    {"cont": True},
    {"lengths": LENGTHS},
    {"lengths": LENGTHS, "reverse": True},
    {"lengths": LENGTHS, "cont": True},
    {"lengths": LENGTHS, "cont": True, "reverse": True},
    {"P": 3},
    {"P": 3, "lengths": LENGTHS, "cont": True},
    {"P": 3, "lengths": LENGTHS, "cont": True, "reverse": True},
]
CASES = [Lstm(4, 6, 5, dtype="float32", **variant) for variant in VARIANTS]
EDGES = [Lstm(1, 1, 1), Lstm(2, 1, 127), Lstm(2, 2, 128), Lstm(2, 1, 129), Lstm(3, 2, 7, P=9)]
TYPES = [Lstm(4, 6, 5, dtype=d, **VARIANTS[i]) for d in cases.DTYPES[1:] for i in (0, 8, 11)]


HALF = {"dtype": "bfloat16", "groups": 1}
GRID = [
    *(Lstm(4, 6, 16, **HALF, **variant) for variant in VARIANTS if "P" not in variant),
    Lstm(1, 1, 8, **HALF),
    Lstm(5, 2, 8, dtype="float16", groups=1),
    Lstm(4, 17, 16, **HALF),
    Lstm(4, 9, 16, dtype="float16", groups=2),
    Lstm(3, 2, 40, **HALF),  # more than one warp's part of K
    Lstm(4, 3, 13, **HALF, gates=False),  # the last block is not full
    Lstm(4, 6, 16, **HALF, lengths=LENGTHS, both=True),
    Lstm(4, 6, 16, **HALF, lengths=LENGTHS, cont=True, reverse=True, both=True),
    Lstm(4, 9, 13, dtype="float16", groups=2, both=True, gates=False),
    Lstm(4, 9, 8, dtype="float16", groups=2, both=True, d_gates=False),
    Lstm(3, 17, 8, **HALF, both=True, cont=True),
    Lstm(1, 1, 8, **HALF, both=True),
]
CLUSTER = [
    *(Lstm(4, 6, 16, "bfloat16", blocks=2, **variant) for variant in VARIANTS if "P" not in variant),
    *(Lstm(4, 6, 16, "bfloat16", blocks=1, **VARIANTS[i]) for i in (0, 1, 8)),
    *(Lstm(4, 6, 16, blocks=blocks, **VARIANTS[8]) for blocks in (1, 2)),
    Lstm(1, 1, 1, "bfloat16", blocks=1),
    Lstm(1, 1, 1, blocks=4),
    Lstm(5, 9, 13, "float16", blocks=2),  # two clusters; the last tile is not full
    Lstm(5, 9, 13, blocks=4),  # the last blocks have no units
    Lstm(4, 2, 40, "bfloat16", blocks=1),  # two parts of K
    Lstm(4, 2, 40, "bfloat16", blocks=4),
    Lstm(4, 2, 40, blocks=2),
    Lstm(3, 2, 17, "bfloat16", blocks=2),
    Lstm(2, 1, 70, "bfloat16", blocks=2),
    Lstm(3, 2, 72, "float16", blocks=1),  # three pairs of k-steps
    Lstm(2, 1, 20, "bfloat16", gates=False, blocks=16),
    Lstm(4, 9, 13, "bfloat16", blocks=2, both=True, lengths=(3, 0, 4, 1, 4, 2, 9, -1, 4)),
    Lstm(4, 6, 16, "bfloat16", blocks=2, both=True),
    Lstm(3, 2, 17, "float16", blocks=2, both=True, cont=True, reverse=True, d_gates=False),
    Lstm(1, 1, 1, "bfloat16", blocks=2, both=True),
    Lstm(4, 6, 5, blocks=2, both=True, lengths=LENGTHS, cont=True, reverse=True),
    Lstm(4, 9, 5, "float16", blocks=1, both=True, gates=False),
    Lstm(1, 1, 1, blocks=1, both=True),
]
ALL = CASES + EDGES + TYPES + GRID + CLUSTER


@pytest.mark.parametrize("case", ALL, ids=str)
def test_lstm(library, case):
    for schedule in schedules(SEEDS):
        cases.check_lstm(library, case, **schedule)


@pytest.mark.parametrize("case", [case for case in ALL if case.both], ids=str)
def test_directions_side_by_side_change_no_bit(library, case):
    for schedule in schedules(3):
        cases.check_apart(library, case, **schedule)


def test_nan(library):
    for schedule in schedules(SEEDS):
        cases.check_nan(library, **schedule)


@pytest.mark.parametrize(
    ("dtype", "backward", "clusters", "most"),
    [
        ("bfloat16", False, (1,), 128),
        ("float32", False, (1,), 112),
        ("bfloat16", False, (2, 4, 8, 16), 512),
        ("float32", False, (2, 4, 8, 16), 384),
        ("bfloat16", True, (2, 4, 8, 16), 512),
    ],
)
def test_some_cluster_holds_every_size(library, dtype, backward, clusters, most):
    """Up to the sizes the plans are for, in the shared memory of sm_90."""
    for H in range(1, most + 1):
        rooms = [
            library.value("lstm_cluster_room", cases.CODE[dtype], H, blocks, backward) for blocks in clusters
        ]
        assert any(0 < room <= 227 * 1024 for room in rooms), H


# Those of a plan together run every line of its kernels.
SUSPECTS = {
    "grid": [
        Lstm(5, 3, 40, **HALF, lengths=(5, 0, 4), cont=True),
        Lstm(4, 9, 8, **HALF, lengths=(3, 4, 0, 2, 2, 9, 1, 4, 4), cont=True, reverse=True, d_gates=False),
        Lstm(3, 3, 13, **HALF, gates=False),
        Lstm(3, 2, 16, **HALF, both=True),
        Lstm(3, 9, 8, dtype="bfloat16", groups=2, lengths=(3, 2, 0, 2, 2, 9, 1, 3, 3), both=True),
    ],
    "cluster": [
        Lstm(5, 3, 40, "bfloat16", blocks=2, lengths=(5, 0, 4), cont=True),
        Lstm(4, 9, 17, "bfloat16", blocks=2, lengths=(3, 4, 0, 2, 2, 9, 1, 4, 4), cont=True, reverse=True),
        Lstm(4, 3, 36, blocks=1, cont=True),  # of float32 the weights lie in shared memory
        Lstm(2, 1, 70, "bfloat16", blocks=2),  # more parts of K than warps that have rows
        Lstm(3, 2, 5, blocks=1, lengths=(2, 3), both=True),
        Lstm(3, 2, 9, "bfloat16", blocks=2, lengths=(2, 3), both=True),
    ],
    "": [
        Lstm(3, 3, 5, lengths=(2, 0, 3), cont=True, d_gates=False),
        Lstm(3, 3, 5, lengths=(2, 0, 7), cont=True, reverse=True),
        Lstm(3, 3, 5, P=4, lengths=(2, -1, 3), cont=True),
        Lstm(2, 2, 5, dtype="bfloat16"),
    ],
}


@pytest.mark.parametrize("mutation", LSTM_MUTATIONS, ids=str)
def test_planted_bug_is_found(mutation):
    def check(mutant, **schedule):
        if "NaN" in mutation.name:
            return cases.check_nan(mutant, **schedule)
        plan = next(plan for plan in SUSPECTS if plan in mutation.kernel)
        for case in SUSPECTS[plan]:
            cases.check_lstm(mutant, case, **schedule)

    killed(mutation, check, 3)


def test_nothing_is_found_where_no_bug_is():
    """A mutant lacks types and sizes of its kernels; what is run of it must have them all."""
    library = Library({p.name: () for p in CUDA.glob("lstm*.cu")})
    for suspects in SUSPECTS.values():
        for case in suspects:
            cases.check_lstm(library, case)
    library.close()


def test_every_kernel_is_under_test():
    """A new kernel brings its mutations, and those only die if something runs it."""
    sources = "".join(p.read_text() for p in CUDA.iterdir() if p.suffix in (".cu", ".cuh"))
    kernels = set(re.findall(r"\b(\w+)\(", " ".join(re.findall(r"__global__[^{;]*", sources))))
    kernels = {name for name in kernels if name.endswith("_kernel")}
    assert len(kernels) == sources.count("__global__ "), "a kernel's name ends in _kernel"
    assert kernels == {m.kernel for m in MUTATIONS if m.file in {p.name for p in CUDA.iterdir()}}

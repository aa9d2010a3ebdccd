"""The emulator itself: every primitive of device.cuh, and what a schedule is."""

import pytest
import selftest_cases
from mutations import SELF_MUTATIONS
from simt import Library, killed, schedules


@pytest.fixture(scope="module")
def library():
    return Library()


@pytest.mark.parametrize(
    "which", range(7), ids=["shuffles", "reduce", "rotate", "peers", "pipe", "mailbox", "mma"]
)
def test_primitives(library, which):
    for schedule in schedules(24):
        selftest_cases.check_self(library, which, **schedule)


def test_a_seed_is_a_schedule(library):
    def switches(seed):
        selftest_cases.check_self(library, 5, policy="random", seed=seed)
        return library.switches()

    runs = [switches(seed) for seed in range(8)]
    assert runs == [switches(seed) for seed in range(8)]
    assert len(set(runs)) > 1


@pytest.mark.slow
def test_without_instrumentation_and_with_ucontext():
    other = Library(checked=False, flags=["-DSIMT_UCONTEXT"])
    for schedule in schedules(3):
        selftest_cases.check_self(other, **schedule)


@pytest.mark.parametrize("mutation", SELF_MUTATIONS, ids=str)
def test_planted_bug_is_found(mutation):
    killed(mutation, lambda mutant, **schedule: selftest_cases.check_self(mutant, **schedule))

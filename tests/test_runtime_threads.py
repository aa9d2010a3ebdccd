"""The runtime on several threads: the same results, whoever calls, and in a forked process."""

import os
import subprocess
import sys

import numpy as np
import pytest
from test_runtime import BOS, at_the_same_time, randn, weights

from lrcn_fast.runtime import Decoder, LstmStream

DTYPES = ["float32", "bfloat16", "int8"]


@pytest.mark.parametrize("B", [1, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stream_is_the_same_on_any_number_of_threads(dtype, B):
    H = 200
    w_ih, w_hh = randn(1, 4 * H, 150, scale=0.1), randn(2, 4 * H, H, scale=0.1)
    streams = [LstmStream(w_hh, B, w_ih=w_ih, dtype=dtype, threads=n) for n in (1, 2, 3, 16, 0)]
    for t in range(5):
        frame = randn(10 + t, B, 150)
        first, *others = [stream.step(frame) for stream in streams]
        for h in others:
            np.testing.assert_array_equal(h, first)


@pytest.mark.parametrize("options", [dict(num_beams=5), dict(num_beams=1), dict(do_sample=True)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_captions_are_the_same_on_any_number_of_threads(dtype, options):
    values, features = weights(V=3000, E=64, hidden=(130, 120), F=40), randn(7, 9, 40)

    def captions(threads):
        decoder = Decoder(**values, bos_id=BOS, dtype=dtype, threads=threads)
        draws = dict(generator=np.random.default_rng(0)) if "do_sample" in options else {}
        return decoder.generate(features, **options, **draws)

    expected = captions(1)
    for threads in (2, 3, 0):
        found = captions(threads)
        np.testing.assert_array_equal(found.sequences, expected.sequences)
        np.testing.assert_array_equal(found.token_logprobs, expected.token_logprobs)


def test_many_callers_share_the_threads():
    values, features = weights(V=2000, hidden=(64, 64)), randn(7, 4, 5)
    decoder = Decoder(**values, bos_id=BOS, threads=3)
    expected = decoder.generate(features).sequences
    found = at_the_same_time(6, lambda: [decoder.generate(features).sequences for _ in range(5)])
    assert [len(sequences) for sequences in found] == [5] * 6
    assert all(np.array_equal(sequences, expected) for of_one in found for sequences in of_one)


@pytest.mark.parametrize("unit", [0, 199])
def test_an_error_on_any_thread_is_raised(unit):
    w_hh = randn(0, 800, 200)
    w_hh[unit, 3] = np.nan
    with pytest.raises(ValueError, match="the weight must be finite to be stored as int8, got "):
        LstmStream(w_hh, dtype="int8", threads=2)


@pytest.mark.skipif("LRCN_TEST_LIBRARIES" in os.environ, reason="a new process takes the installed libraries")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_threads_are_there_when_asked_for_and_in_a_forked_process_too():
    code = (
        "import os\n"
        "import numpy as np\n"
        "from lrcn_fast.runtime import LstmStream\n"
        "def run(threads):\n"
        "    before = len(os.listdir('/proc/self/task'))\n"
        "    stream = LstmStream(np.ones((2048, 512), np.float32), threads=threads)\n"
        "    h = stream.step(np.ones((1, 2048), np.float32))\n"
        "    return len(os.listdir('/proc/self/task')) - before, float(h.sum())\n"
        "alone, here = run(1), run(3)\n"
        "again = run(3)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if run(3) == here else 1)\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "print(alone[0], here[0], again[0], status, alone[1] == here[1] == again[1])\n"
    )
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("threads are counted in /proc")
    # Without the pool of its own the child would wait for ever.
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert out.split() == ["0", "2", "0", "0", "True"]


@pytest.mark.parametrize("threads", [-1, 1.5, True, None, "2", 1025, 10**20])
def test_bad_numbers_of_threads(threads):
    shown = "'2'" if threads == "2" else threads
    message = rf"threads must be an integer in 0\.\.1024, got {shown}$"
    with pytest.raises(ValueError, match=f"^LstmStream: {message}"):
        LstmStream(randn(0, 80, 20), threads=threads)
    with pytest.raises(ValueError, match=f"^Decoder: {message}"):
        Decoder(**weights(), threads=threads)

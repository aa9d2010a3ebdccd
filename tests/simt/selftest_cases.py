"""Checks of the small kernels in selftest.cu, one per group of primitives of device.cuh."""

import numpy as np
from cases import aligned, bf16, widen


def check_self(library, which=None, **schedule):
    """All kernels of selftest.cu, or one."""
    rng = np.random.default_rng(0)

    def run(which, in_shape, out_shape, n, scratch=0, data=None):
        in_, scratch = aligned(in_shape, np.float32), aligned((max(scratch, 4),), np.uint32)
        in_[:] = rng.standard_normal(in_shape) if data is None else data
        out = aligned(out_shape, np.float32)
        arrays = {"in": in_, "out": out, "scratch": scratch}
        library.call("selftest", which=which, **arrays, n=n, **schedule)
        return in_, out

    def shuffles():
        x, out = run(0, (32,), (3, 32), 1)
        np.testing.assert_array_equal(out[0], x[5])
        np.testing.assert_array_equal(out[1], [x[i + 3] if i < 29 else x[i] for i in range(32)])
        np.testing.assert_allclose(out[2], np.repeat(x.reshape(2, 16).sum(1), 16), rtol=1e-5, atol=1e-5)

    def reduce():
        x, out = run(1, (5, 64), (1,), 5, scratch=6)
        np.testing.assert_allclose(out[0], x.sum(dtype=np.float64), rtol=1e-5, atol=1e-4)

    def rotate():
        x, out = run(2, (4, 128), (4, 128), 4, scratch=512)
        np.testing.assert_array_equal(out, np.roll(x, 2, 0))

    def peers():
        x, out = run(3, (8,), (8,), 8)
        np.testing.assert_allclose(out, np.repeat(x.reshape(2, 4).sum(1), 4), rtol=1e-5, atol=1e-6)

    def pipe():
        x, out = run(4, (7, 32), (7, 32), 7)
        np.testing.assert_array_equal(out, x)

    def mailbox():
        x, out = run(5, (6,), (6,), 6, scratch=8)
        np.testing.assert_array_equal(out, x)

    def mma():
        a, b = bf16(rng.standard_normal((16, 16))), bf16(rng.standard_normal((16, 8)))
        pairs = np.concatenate([a.ravel(), b.T.ravel()]).view(np.float32)
        _, out = run(6, pairs.shape, (16, 8), 1, data=pairs)
        np.testing.assert_allclose(out, widen(a) @ widen(b), rtol=1e-5, atol=1e-5)

    tests = (shuffles, reduce, rotate, peers, pipe, mailbox, mma)
    for test in tests if which is None else tests[which : which + 1]:
        test()

"""Captions as the three arrays LRCN's LSTMs are trained on: input word, target word, ``cont``.

For the word indices w_1..w_n of a caption::

    input   BOS  w_1 ... w_n        what the network reads
    target  w_1  ... w_n  EOS       what it has to predict
    cont     0    1  ...  1         0 where a new sentence starts (the LSTM's state is dropped)

Arrays are time-major, [T, N]. Padding is input BOS, target -1 (ignored by the loss) and cont 0. The release
pads the input with -1 and looks that up outside its table; the result was ignored there, and here
it is the harmless BOS.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IGNORE = -1
"""Target of positions that the loss must skip."""


class Window(NamedTuple):
    """Arrays of one training step, each [T, N]: input int64, target int64 (-1 = skip), cont uint8."""

    input: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    cont: npt.NDArray[np.uint8]


def _empty(steps: int, streams: int, bos_id: int) -> Window:
    return Window(
        np.full((steps, streams), bos_id, np.int64),
        np.full((steps, streams), IGNORE, np.int64),
        np.zeros((steps, streams), np.uint8),
    )


def aligned(
    captions: Sequence[Sequence[int]], *, max_words: int = 20, bos_id: int = 0, eos_id: int = 0
) -> Window:
    """Give each caption a column of its own, cut or padded to ``max_words`` steps.

    A caption of ``max_words`` words or more is cut and has no EOS target, as in the release.

    Args:
        captions: N lists of word indices, without BOS and EOS.
        max_words: steps T of every column.
        bos_id: input of the first step.
        eos_id: target after the last word.

    Returns:
        Arrays [max_words, N].
    """
    if max_words < 1:
        raise ValueError(f"aligned: max_words must be at least 1, got {max_words}")
    window = _empty(max_words, len(captions), bos_id)
    for n, words in enumerate(captions):
        length = min(len(words) + 1, max_words)
        window.input[1:length, n] = words[: length - 1]
        window.target[:length, n] = [*words[:max_words], eos_id][:length]
        window.cont[1:length, n] = 1
    return window


def unaligned(
    captions: Sequence[Sequence[int]], *, streams: int, steps: int, bos_id: int = 0, eos_id: int = 0
) -> Iterator[Window]:
    """Lay captions back to back in parallel streams, for a language model with carried state.

    Each stream takes the next caption, in order, when its own one ends; nothing is cut or padded inside.
    State is to be carried from one window to the next (``cont`` says where it must not be). Only the ends
    of the last window may hold padding.

    Args:
        captions: lists of word indices, without BOS and EOS.
        streams: columns N of a window.
        steps: rows T of a window.
        bos_id: input of a caption's first step.
        eos_id: target of a caption's last step.

    Yields:
        Arrays [steps, streams].
    """
    if streams < 1 or steps < 1:
        raise ValueError(f"unaligned: streams and steps must be at least 1, got {streams} and {steps}")
    following = iter(captions)
    # What is left of each stream's caption: (input, target, cont) triples, the next one last.
    rest: list[list[tuple[int, int, int]]] = [[] for _ in range(streams)]
    exhausted = False
    while True:
        window = _empty(steps, streams, bos_id)
        filled = False
        for t in range(steps):
            for n in range(streams):
                if not rest[n] and not exhausted:
                    words = next(following, None)
                    if words is None:
                        exhausted = True
                    else:
                        cont = [0] + [1] * len(words)
                        rest[n] = list(zip([bos_id, *words], [*words, eos_id], cont, strict=True))[::-1]
                if rest[n]:
                    window.input[t, n], window.target[t, n], window.cont[t, n] = rest[n].pop()
                    filled = True
        if not filled:
            return
        yield window

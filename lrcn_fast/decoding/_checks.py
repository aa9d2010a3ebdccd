"""Checks of arguments that the decoders with and without torch share. Errors name function and argument."""

import math
import operator
from typing import Any

import numpy as np

__all__ = [
    "check_batch_size",
    "check_dtype",
    "check_flag",
    "check_integer",
    "check_layout",
    "check_number",
    "check_tokens",
    "check_words",
    "shown",
    "to_integer",
]

LARGEST = 2**31 - 1
"""No count is larger: the engines count in 32 bits."""


def shown(value: object) -> str:
    """What came instead, in one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def to_integer(value: object) -> int | None:
    """The value where it is an integer of any kind, None where it is not. ``True`` is not."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def check_integer(function: str, name: str, value: object, low: int, high: int | None = None) -> int:
    """Return an integer in low..high.

    Raises:
        ValueError: It is something else.
    """
    number = to_integer(value)
    if number is not None and low <= number <= (LARGEST if high is None else high):
        return number
    if high is None and number is not None and number > LARGEST:
        high = LARGEST
    wanted = f"of at least {low}" if high is None else f"in {low}..{high}"
    raise ValueError(
        f"{function}: {name} must be an integer {wanted}, got {shown(value if number is None else number)}"
    )


def check_number(
    function: str, name: str, value: object, above: float = -math.inf, at_most: float = math.inf
) -> float:
    """Return a finite number, above one limit and at most another.

    Raises:
        ValueError: It is something else.
    """
    number = math.nan
    if not isinstance(value, (bool, np.bool_, str, bytes, bytearray)):
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError, RuntimeError):
            pass  # what is no number stays NaN
    if math.isfinite(number) and above < number <= at_most:
        return number
    wanted = "a finite number"
    if above > -math.inf:
        wanted += f" above {above:g}"
    if at_most < math.inf:
        wanted += f" and at most {at_most:g}"
    raise ValueError(f"{function}: {name} must be {wanted}, got {shown(value)}")


def check_flag(function: str, name: str, value: object) -> None:
    """Raise ValueError unless the value is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{function}: {name} must be True or False, got {shown(value)}")


def check_dtype(function: str, dtype: object) -> None:
    """Raise ValueError unless the value names a type that weights can be packed in."""
    if not isinstance(dtype, str) or dtype not in ("float32", "bfloat16", "int8"):
        raise ValueError(f"{function}: dtype must be float32, bfloat16 or int8, got {shown(dtype)}")


def check_tokens(value: Any) -> tuple[int, ...]:
    """Return the words of ``suppress_tokens``, sorted, each once.

    Raises:
        ValueError: They are no integers of at least 0.
    """
    tokens: set[int] = set()
    try:
        for item in value.tolist() if hasattr(value, "tolist") else value:
            token = to_integer(item)
            if token is None:
                raise TypeError
            tokens.add(token)
    except TypeError:
        raise ValueError(
            f"generate: suppress_tokens must be a sequence of token ids, got {shown(value)}"
        ) from None
    if tokens and min(tokens) < 0:
        raise ValueError(f"generate: suppress_tokens must be token ids of at least 0, got {min(tokens)}")
    return tuple(sorted(tokens))


def check_batch_size(batch_size: int | None, rows: int | None) -> int:
    """The batch size of ``generate``. rows: of the features, None without.

    Raises:
        ValueError: It is no size, or not that of the features.
    """
    if rows is None:
        return 1 if batch_size is None else check_integer("generate", "batch_size", batch_size, 0)
    if batch_size is not None and to_integer(batch_size) != rows:
        raise ValueError(f"generate: batch_size must be None or B = {rows}, got {shown(batch_size)}")
    return rows


def check_layout(
    function: str, num_layers: int, static_layer: int | None, image_first: bool, feed_bos: bool
) -> None:
    """Check where the image enters a decoder.

    Raises:
        ValueError: An option is not of its kind, or two contradict each other.
    """
    if static_layer is not None:
        layer = to_integer(static_layer)
        if layer is None or not 0 <= layer < num_layers:
            raise ValueError(
                f"{function}: static_layer must be None or in 0..{num_layers - 1}, got {shown(static_layer)}"
            )
    check_flag(function, "image_first", image_first)
    check_flag(function, "feed_bos", feed_bos)
    if image_first and static_layer is not None:
        raise ValueError(f"{function}: static_layer must be None with image_first=True, got {static_layer}")
    if not feed_bos and not image_first:
        raise ValueError(f"{function}: feed_bos must be True unless image_first=True, got False")


def check_words(function: str, vocab_size: int, bos_id: int, eos_id: int, pad_id: int) -> None:
    """Check the special words of a decoder. pad_id may be outside the vocabulary.

    Raises:
        ValueError: One is no integer, or not in the vocabulary.
    """
    for name, value in (("bos_id", bos_id), ("eos_id", eos_id), ("pad_id", pad_id)):
        word = to_integer(value)
        if word is None:
            raise ValueError(f"{function}: {name} must be an integer, got {shown(value)}")
        if name == "pad_id" and not -(2**63) <= word < 2**63:
            raise ValueError(f"{function}: {name} must be an integer of 64 bits, got {shown(word)}")
        if name != "pad_id" and not 0 <= word < vocab_size:
            raise ValueError(f"{function}: {name} must be in 0..{vocab_size - 1}, got {shown(word)}")

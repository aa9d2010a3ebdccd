"""What to decode: the settings of a search and its result. How it is done is the engine's business.

Every name is loaded on first use: ``lrcn_fast.decoding.config`` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrcn_fast.decoding.config import GenerationConfig
    from lrcn_fast.decoding.result import DecodeResult

# Public name -> module that defines it.
_NAMES = {
    "DecodeResult": "lrcn_fast.decoding.result",
    "GenerationConfig": "lrcn_fast.decoding.config",
}

__all__ = ["DecodeResult", "GenerationConfig"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'lrcn_fast.decoding' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

"""LRCN models (a CNN feeding LSTMs) with fused LSTM kernels and a fused beam search.

Importing the package imports nothing else: every public name is loaded on first use, so
``lrcn_fast.runtime`` works where torch is not installed.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> module that defines it.
_NAMES = {
    "CaptionDecoder": "lrcn_fast.decoder",
    "DecodeResult": "lrcn_fast.decoding",
}
_MODULES = {
    "data", "decoder", "decoding", "evaluation", "importers", "models", "nn", "ops", "reference", "runtime",
    "training",
}  # fmt: skip

__all__ = ["CaptionDecoder", "DecodeResult", "__version__", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"lrcn_fast.{name}")
    raise AttributeError(f"module 'lrcn_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""Models of other programs, read into this package's.

``read_caffemodel`` needs numpy alone; the rest needs torch. Every name is loaded on first use.
"""

import importlib
from typing import Any

# Public name -> module that defines it.
_NAMES = {
    "CaffeLayer": "lrcn_fast.importers.caffe_wire",
    "read_caffemodel": "lrcn_fast.importers.caffe_wire",
    "convert_caffe": "lrcn_fast.importers.caffe",
    "load_caffe": "lrcn_fast.importers.caffe",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'lrcn_fast.importers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

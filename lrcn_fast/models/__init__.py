"""Image encoders and the models built on them.

Every name is loaded on first use: ``lrcn_fast.models.preprocess`` needs neither torch nor a CNN library.
"""

import importlib
from typing import Any

# Public name -> module that defines it.
_NAMES = {
    "ActivityRecognizer": "lrcn_fast.models.recognizer",
    "Recognition": "lrcn_fast.models.recognition",
    "Caption": "lrcn_fast.models.captioner",
    "Captioner": "lrcn_fast.models.captioner",
    "Generation": "lrcn_fast.models.captioner",
    "Encoder": "lrcn_fast.models.encoders",
    "create_encoder": "lrcn_fast.models.encoders",
    "load_pretrained": "lrcn_fast.models.auto",
    "VideoDescriber": "lrcn_fast.models.describer",
    "Preprocessing": "lrcn_fast.models.preprocess",
    "load_image": "lrcn_fast.models.preprocess",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'lrcn_fast.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

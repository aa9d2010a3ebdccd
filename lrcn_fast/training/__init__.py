"""Training: one loop on Accelerate, YAML configurations, packaged recipes with the paper's settings."""

import importlib
from typing import Any

_NAMES = {
    "TrainConfig": "config",
    "load_config": "config",
    "parse_config": "config",
    "recipe_names": "config",
    "Trainer": "loop",
    "train": "loop",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"lrcn_fast.training.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'lrcn_fast.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

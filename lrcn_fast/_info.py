"""What ``lrcn-fast info`` reports."""

import importlib.metadata
import os
import platform
from typing import Any

import lrcn_fast

__all__ = ["collect"]


def collect() -> dict[str, Any]:
    """Facts about this installation; a missing part is named, never an error."""
    facts: dict[str, Any] = {
        "lrcn_fast": lrcn_fast.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }
    try:
        from lrcn_fast import _runtime

        facts["instruction set"] = _runtime.isa()
    except (ImportError, ValueError) as error:
        facts["instruction set"] = f"unknown ({error})"
    try:
        import torch
    except ImportError:
        facts["torch"] = "not installed"
    else:
        facts["torch"] = torch.__version__
        facts["threads"] = torch.get_num_threads()
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        facts["cuda"] = torch.version.cuda or "torch without CUDA"
        facts["gpus"] = gpus
        try:
            from lrcn_fast._library import HAS_CUDA

            facts["operators"] = "CPU and CUDA" if HAS_CUDA else "CPU"
        except ImportError as error:
            facts["operators"] = f"none ({error})"
    for name in ("numpy", "torchvision", "timm", "safetensors", "accelerate", "onnxruntime"):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    try:
        from lrcn_fast.models.bundle import packaged_models

        facts["packaged models"] = packaged_models()
    except ImportError as error:
        facts["packaged models"] = f"unavailable ({error})"
    return facts

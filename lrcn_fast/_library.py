"""Find and load the operator libraries. Imported for its side effect by ``lrcn_fast.ops``."""

from pathlib import Path

import lrcn_fast

try:
    import torch
except ImportError as error:
    raise ImportError("lrcn_fast.ops needs torch >= 2.10: pip install 'lrcn_fast[torch]'") from error


def _find(name: str) -> Path | None:
    # Every entry of __path__: an editable install keeps the libraries apart from the sources.
    for folder in lrcn_fast.__path__:
        path = Path(folder) / name
        if path.exists():
            return path
    return None


def _load() -> bool:
    """Load ``_ops``, and ``_ops_cuda`` where torch has CUDA. Returns whether the latter is loaded."""
    cpu = _find("_ops.so")
    if cpu is None:
        raise ImportError(
            "lrcn_fast was built without its torch operators (LRCN_OPS=OFF): reinstall it with LRCN_OPS=ON, "
            "or use lrcn_fast.runtime, which needs no torch"
        )
    torch.ops.load_library(cpu)  # type: ignore[no-untyped-call]
    cuda = _find("_ops_cuda.so") if torch.version.cuda else None
    if cuda is not None:
        torch.ops.load_library(cuda)  # type: ignore[no-untyped-call]
    return cuda is not None


HAS_CUDA: bool = _load()
"""Whether the CUDA implementations are loaded."""

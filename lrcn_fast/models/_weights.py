"""Safe reading and atomic writing of weights.

Reading never unpickles anything but tensors, and turns every way in which a file can be broken into one
line that names the file and says what was expected.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lrcn_fast._files import atomic_path, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["load_weights", "read_arrays", "read_state_dict", "write_state_dict"]

PathLike = str | os.PathLike[str]


def read_state_dict(path: PathLike, *, caller: str, what: str = "a weights file") -> "dict[str, Tensor]":
    """Read named tensors from a safetensors file or a torch state dict; nothing else is unpickled.

    The format is recognised by content. A torch file may hold the state dict itself or a dictionary with the
    state dict under "state_dict".

    Args:
        path: The file.
        caller: Function named at the start of the error message.
        what: What the file should have been, for the error message.

    Returns:
        Tensors on the CPU, by name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, of another format, or holds other things than tensors.
    """
    import torch

    expected = f"{caller}: {path} must be {what} (safetensors or a torch state dict)"
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except FileNotFoundError:
        raise FileNotFoundError(f"{expected}, got no such file") from None
    except OSError as error:
        raise ValueError(f"{expected}, got {error.strerror or one_line(error)}") from None
    if not head:
        raise ValueError(f"{expected}, got an empty file")
    loaded: Any
    try:
        if head.startswith((b"PK\x03\x04", b"\x80")):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        else:
            from safetensors.torch import load_file

            loaded = load_file(path)
    except ImportError:
        raise ImportError(f"{caller}: safetensors is missing. pip install safetensors") from None
    except Exception as error:
        # torch raises RuntimeError, UnpicklingError, EOFError, KeyError and more for a broken file.
        raise ValueError(f"{expected}, got a truncated or foreign file ({one_line(error)})") from None
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{expected}, got {type(loaded).__name__}")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{expected}, got {type(value).__name__} under {name!r}")
    return dict(loaded)


def read_arrays(path: PathLike, *, caller: str, what: str) -> dict[str, npt.NDArray[Any]]:
    """Read a safetensors file with numpy alone: 8 bytes of header length, a JSON header, the tensors.

    Args:
        path: The file.
        caller: Function named at the start of the error message.
        what: What the file should have been, for the error message.

    Returns:
        Arrays by name: float32 for every floating-point type, otherwise the type of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, of another format, or holds a type without a conversion.
    """
    expected = f"{caller}: {path} must be {what} (safetensors)"
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{expected}, got no such file") from None
    except OSError as error:
        raise ValueError(f"{expected}, got {error.strerror or one_line(error)}") from None
    arrays = {}
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            dtype, shape = _SAFETENSORS_TYPES[entry["dtype"]], entry["shape"]
            if not 0 <= begin <= end <= len(data) - 8 - length:
                raise ValueError(f"{name} ends beyond the file")
            if end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} has {end - begin} bytes for {entry['dtype']} {shape}")
            array = np.frombuffer(data, dtype, math.prod(shape), 8 + length + begin).reshape(shape)
            if entry["dtype"] == "BF16":  # the upper half of a float32
                array = (array.astype(np.uint32) << 16).view(np.float32)
            arrays[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{expected}, got a truncated or foreign file ({one_line(error)})") from None
    return arrays


_SAFETENSORS_TYPES = {
    name: np.dtype(code)
    for name, code in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
        "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1",
    }.items()
}  # fmt: skip


def write_state_dict(path: PathLike, tensors: "Mapping[str, Tensor]") -> None:
    """Write named tensors as safetensors, atomically. Tensors that share memory are written once each."""
    from safetensors.torch import save_file

    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(copies, temporary)


def load_weights(
    module: "nn.Module",
    tensors: "Mapping[str, Tensor]",
    *,
    path: PathLike,
    caller: str,
    ignore: Iterable[str] = (),
) -> None:
    """Copy named tensors into a module, strictly, with one line for what does not fit.

    Args:
        module: Takes the weights.
        tensors: From :func:`read_state_dict`.
        path: The file they came from, for the error message.
        caller: Function named at the start of the error message.
        ignore: Prefixes of names that may be in the file without being in the module.

    Raises:
        ValueError: A name is missing or unexpected, or a shape differs. The module is unchanged.
    """
    own = module.state_dict()
    ignore = tuple(ignore)
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    foreign = [name for name in tensors if name not in own and not name.startswith(ignore)]
    if missing or foreign:
        parts = [f"no {_names(missing)}"] * bool(missing) + [f"unexpected {_names(foreign)}"] * bool(foreign)
        got = " and ".join(parts)
        raise ValueError(
            f"{caller}: {path} must hold the {len(own)} tensors of {type(module).__name__}, got {got}"
        )
    for name, tensor in own.items():
        if name in tensors and tensors[name].shape != tensor.shape:
            raise ValueError(
                f"{caller}: {name} in {path} must be {list(tensor.shape)}, got {list(tensors[name].shape)}"
            )
    module.load_state_dict({name: tensors[name] for name in own if name in tensors}, strict=False)


def _names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

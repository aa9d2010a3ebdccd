"""The HDF5 form of a Caffe model, ``.caffemodel.h5``: a dataset ``/data/<layer>/<index>`` for each blob."""

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from lrcn_fast._files import import_h5py
from lrcn_fast.importers.caffe_wire import CaffeLayer

__all__ = ["read_hdf5_layers"]


def read_hdf5_layers(
    path: str | os.PathLike[str], size: int, max_layers: int, max_blobs: int
) -> list[CaffeLayer]:
    """Read the layers of a ``.caffemodel.h5`` file, sorted by name.

    Only what Caffe writes is read: plain datasets inside the file. Links to other files, external or virtual
    data, and compressed data, which may grow without bound, are refused.

    Args:
        path: The file.
        size: Its bytes; the datasets together may not claim more.
        max_layers: More are refused.
        max_blobs: More are refused.

    Raises:
        ImportError: h5py is missing.
        ValueError: The file is damaged, or holds something else.
    """
    h5py = import_h5py("read_caffemodel")
    layers, blobs, used = [], 0, 0
    try:
        with h5py.File(path, "r") as file:
            data = _member(h5py, file, "data", h5py.Group)
            if len(data) > max_layers:
                raise ValueError(f"more than {max_layers} layers")
            for name in sorted(data):
                group = _member(h5py, data, name, h5py.Group)
                blobs += len(group)
                if blobs > max_blobs:
                    raise ValueError(f"more than {max_blobs} blobs")
                arrays = []
                for index in range(len(group)):
                    arrays.append(_array(h5py, group, str(index), size - used))
                    used += arrays[-1].nbytes
                layers.append(CaffeLayer(name, "", tuple(arrays)))
    except ValueError:
        raise
    except Exception as error:
        # h5py raises OSError, KeyError, RuntimeError, TypeError and more for a damaged file.
        raise ValueError(str(error) or type(error).__name__) from None
    return layers


def _member(h5py: Any, group: Any, name: str, kind: Any) -> Any:
    where = f"{group.name.rstrip('/')}/{name}"
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{where} must be in the file, got {type(link).__name__}")
    member = group[name]
    if not isinstance(member, kind):
        raise ValueError(f"{where} must be a {kind.__name__}, got a {type(member).__name__}")
    return member


def _array(h5py: Any, group: Any, name: str, left: int) -> npt.NDArray[Any]:
    dataset = _member(h5py, group, name, h5py.Dataset)
    where = f"{group.name}/{name}"
    if dataset.chunks is not None or dataset.external or dataset.is_virtual:
        raise ValueError(f"{where} must be plain data in the file, got compressed, external or virtual data")
    if dataset.dtype not in (np.float32, np.float64) or dataset.shape is None or 0 in dataset.shape:
        raise ValueError(f"{where} must hold float32 or float64 values, got {dataset.dtype} {dataset.shape}")
    if dataset.nbytes > left:
        raise ValueError(f"{where} must fit in the {left} bytes that are left, got {dataset.nbytes}")
    return np.asarray(dataset[()])

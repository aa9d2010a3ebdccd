"""Views of a clip: where its frames are cropped and whether they are mirrored, the same for every frame."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lrcn_fast.data.flow import mirror_flow_images
from lrcn_fast.models.preprocess import Preprocessing

__all__ = ["CROPS", "View", "clip_frames"]


@dataclass(frozen=True)
class View:
    """A crop of all frames of a clip.

    Attributes:
        x: Where it is in what room it has: 0 at the left, 0.5 in the centre, 1 at the right.
        y: 0 at the top, 1 at the bottom.
        mirror: Whether left and right are exchanged.
        warp: Squash the whole frame instead of cropping; what the original release did, by mistake, to every
            clip in training that it did not mirror.
    """

    x: float = 0.5
    y: float = 0.5
    mirror: bool = False
    warp: bool = False


_CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))

CROPS = {
    "centre": (View(),),
    "mirror": (View(), View(mirror=True)),
    "ten": tuple(View(x, y, mirror) for mirror in (False, True) for x, y in _CORNERS),
}
"""Views that predictions are averaged over; ten: the four corners and the centre, and their mirror images."""


def clip_frames(
    preprocessing: Preprocessing, frames: npt.NDArray[np.uint8], view: View, *, flow: bool
) -> Tensor:
    """Prepare the frames of one clip for the CNN, all of them alike.

    Args:
        preprocessing: Of the CNN.
        frames: [T, H, W, 3] uint8.
        view: Where to crop, and whether to mirror.
        flow: The frames are flow pictures, whose horizontal part is negated when mirrored.

    Returns:
        [T, 3, S, S] float32.
    """
    if view.mirror:
        frames = mirror_flow_images(frames) if flow else frames[:, :, ::-1]
    if view.warp:
        import dataclasses

        preprocessing = dataclasses.replace(preprocessing, mode="warp", resize=preprocessing.size)
    pixels: Any = [preprocessing.view(frame, view.x, view.y) for frame in frames]
    return torch.from_numpy(np.stack(pixels))

"""Image encoders on the CPU: 32 images at once as torch runs them, against the few at a time of ``Encoder``.

Random weights, ImageNet sizes. Both must agree to 1e-4 of the largest feature before anything is timed.
"""

from collections.abc import Iterator
from typing import Any

import harness
import torch
from torch import Tensor

from lrcn_fast.models import create_encoder

IMAGES = 32


def measure() -> Iterator[tuple[dict[str, Any], harness.Variants, Any]]:
    for name in ("efficientnet_lite0", "timm/resnet50", "caffenet"):
        torch.manual_seed(1)
        encoder = create_encoder(name, weights=None).eval()
        images = torch.rand(IMAGES, 3, encoder.image_size, encoder.image_size)
        case = {"encoder": name, "images": IMAGES, "threads": torch.get_num_threads()}

        def whole(encoder: Any = encoder, images: Tensor = images) -> Tensor:
            with torch.no_grad():
                return encoder.net(images)

        def ours(encoder: Any = encoder, images: Tensor = images) -> Tensor:
            with torch.no_grad():
                return encoder(images)

        yield case, {"whole batch": whole, "lrcn_fast": ours}, check


def check(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


if __name__ == "__main__":
    harness.main(__file__, "encode", measure)

"""Top-1 accuracy of the encoders with real weights on 100 photos, one per tenth ImageNet class.

The photos come from the training set, so the numbers are optimistic; they show that weights and preprocessing
belong together, not how good the networks are.
"""

import argparse
import json
from pathlib import Path

import torch

from lrcn_fast.models import Encoder, create_encoder

# Encoder, its weights (below the data folder where not "imagenet"), and the least that must be right.
CASES = (
    ("efficientnet_lite0", "imagenet", 83),
    ("efficientnet_lite1", "imagenet", 83),
    ("efficientnet_lite2", "imagenet", 83),
    ("squeezenet", "squeezenet_caffe/squeezenet_v10_dc.pt", 63),
)


@torch.inference_mode()
def correct(encoder: Encoder, folder: Path, batch: int = 10) -> int:
    """Count the photos whose highest logit is the class index that their file name starts with."""
    photos = sorted(folder.glob("*.jpg"))
    labels = torch.tensor([int(photo.name.partition("_")[0]) for photo in photos])
    right = 0
    for start in range(0, len(photos), batch):
        images = torch.stack([encoder.preprocess(photo) for photo in photos[start : start + batch]])
        right += int((encoder(images).argmax(1) == labels[start : start + batch]).sum())
    return right


def evaluate(data: Path, name: str, weights: str) -> int:
    """Make the encoder and count on the photos of the data folder."""
    source = weights if weights == "imagenet" else data / weights
    return correct(create_encoder(name, weights=source, features="logits"), data / "imagenet_sample_100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder with imagenet_sample_100")
    parser.add_argument("--out", type=Path, help="also write the counts to this JSON file")
    args = parser.parse_args()
    rows = []
    for name, weights, least in CASES:
        right = evaluate(args.data, name, weights)
        rows.append({"encoder": name, "weights": weights, "correct": right, "of": 100, "least": least})
        print(f"{name:20} {right}/100 (at least {least})")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

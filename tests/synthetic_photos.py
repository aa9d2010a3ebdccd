"""A data set of coloured shapes with captions that can be learned, for model, training and command tests."""

import json

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (240, 240, 240)}
SHAPES = ("square", "stripe")


def photo(colour, shape, seed=0):
    """One 48 x 40 picture: a shape on noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 90, size=(40, 48, 3), dtype=np.uint8)
    rows, columns = (slice(8, 32), slice(12, 36)) if shape == "square" else (slice(16, 24), slice(0, 48))
    pixels[rows, columns] = COLOURS[colour]
    return Image.fromarray(pixels)


def write_data_set(folder, copies=2):
    """Photos and captions.json in ``folder``; returns the path of captions.json."""
    (folder / "images").mkdir(parents=True)
    records = []
    for copy in range(copies):
        for c, colour in enumerate(COLOURS):
            for s, shape in enumerate(SHAPES):
                name = f"{colour}_{shape}_{copy}.png"
                photo(colour, shape, seed=100 * copy + 10 * c + s).save(folder / "images" / name)
                sentences = [f"A {colour} {shape} .", f"There is a {colour} {shape} on grey ."]
                records.append({"file": name, "split": "train", "sentences": sentences})
    path = folder / "captions.json"
    path.write_text(json.dumps(records))
    return path


def tiny_config(captions, **changes):
    """Plain values of a two-phase configuration that trains in a second or two."""
    return {
        "seed": 3,
        "model": {
            "encoder": "timm/test_resnet", "encoder_weights": None, "variant": "2f",
            "embed_dim": 12, "hidden_size": 16,
        },
        "data": {"captions": str(captions), "min_count": 1, "max_words": 10, "validation_fraction": 0.25},
        "phases": [
            {"name": "language", "data": "text", "steps": 6, "batch_size": 8, "evaluate_every": 3,
             "dropout": {"embedding": 0.2}},
            {"name": "caption", "steps": 10, "batch_size": 8, "views": 2, "clip_norm": 5.0, "ema": 0.9,
             "evaluate_every": 4, "dropout": {"features": 0.2, "embedding": 0.2, "lstm": 0.2, "output": 0.2},
             "num_beams": 2, "max_new_tokens": 8},
        ],
        "checkpoint_every": 2,
        **changes,
    }  # fmt: skip

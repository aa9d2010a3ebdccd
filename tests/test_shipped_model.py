"""The model in the package: it loads, fits, decodes exactly, and is better than its nearest neighbour."""

import json
from pathlib import Path

import pytest
import torch

import lrcn_fast
from lrcn_fast import reference_decoder
from lrcn_fast.data import read_captions
from lrcn_fast.evaluation import caption_metrics
from lrcn_fast.models import Captioner

NAME = "flickr8k-small"
FOLDER = Path(lrcn_fast.__file__).parent / "pretrained" / NAME
RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


@pytest.fixture(scope="module")
def captioner():
    return Captioner.from_pretrained(NAME)


@pytest.fixture(scope="module")
def dev(captioner, data_dir):
    """The dev photos and their features [113, C]."""
    photos = read_captions(data_dir("flickr8k_small") / "captions.json").split("dev")
    return photos, captioner.features([photo.image for photo in photos])


def test_it_fits_in_8_mb():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8_000_000


def test_every_dev_photo_decodes_as_in_the_reference_search(captioner, dev):
    static = captioner.condition(dev[1])
    for num_beams in (1, 5):
        native = captioner.decoder.generate(static, num_beams=num_beams)
        expected = reference_decoder.generate(captioner.decoder, static, num_beams=num_beams)
        assert torch.equal(native.sequences, expected.sequences)
        torch.testing.assert_close(native.scores, expected.scores, rtol=1e-5, atol=1e-4)


def test_a_photo_alone_gets_the_same_bits_as_in_a_batch(captioner, dev):
    static = captioner.condition(dev[1])[:16]
    together = captioner.decoder.generate(static, num_beams=5, num_return_sequences=5)
    for i in range(len(static)):
        alone = captioner.decoder.generate(static[i : i + 1], num_beams=5, num_return_sequences=5)
        for name in ("sequences", "lengths", "scores", "token_logprobs"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[i])


def test_it_beats_the_nearest_neighbour_on_every_metric(captioner, dev):
    photos, features = dev
    found = captioner.caption(features=features)
    texts = {photo.id: captions[0].text for photo, captions in zip(photos, found, strict=True)}
    scores = caption_metrics(photos.references(), texts)
    newest = max(RESULTS.glob("flickr8k-*.json"), key=lambda path: path.stem.rsplit("-", 1)[-1])
    for baseline in json.loads(newest.read_text())["baseline"].values():
        for metric, score in scores.items():
            assert score > baseline[metric], metric

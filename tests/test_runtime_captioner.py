"""The torch-free captioner: the captions of the torch one, from files, without torch in the process."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic_photos import photo

from lrcn_fast import runtime
from lrcn_fast.export import export_captioner
from lrcn_fast.models import Captioner, Generation

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

WORDS = ["a", "red", "blue", "square", "stripe", "on", "grey", "photo"]


KINDS = [(colour, shape) for colour in ("red", "blue", "white") for shape in ("square", "stripe")]
PHOTOS = [photo(colour, shape, seed=index) for index, (colour, shape) in enumerate(KINDS)]


def make(variant="2f", **options):
    """A captioner with random weights that says long and different things of different photos."""
    torch.manual_seed(1)
    options = {"embed_dim": 12, "hidden_size": 16, "init_scale": 1.0, "encoder_weights": None, **options}
    model = Captioner("timm/test_resnet", variant, WORDS, feature_norm="standardize", **options).eval()
    features = model.features(PHOTOS)
    model.set_feature_statistics(features)
    # Where the photos hardly differ, deviations of 1e-5 of the largest feature show only rounding.
    model.feature_std.clamp_(min=1e-2 * float(features.max()))
    with torch.no_grad():
        model.decoder.projection.bias[0] = -2  # end of sentence
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index, image in enumerate(PHOTOS):
        image.save(folder / f"{index}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The torch model, and the folder that it was exported to."""
    model = make(feature_projection=10, feature_activation="relu")
    folder = tmp_path_factory.mktemp("bundle")
    export_captioner(model, folder)
    return model, folder


def compare(model, folder, photos, **options):
    ours, theirs = runtime.Captioner(folder), model
    features = ours.features(photos)
    with torch.no_grad():
        want = theirs.condition(theirs.features(photos)).numpy()
    # Another order of summation grows where features are standardized: worst seen 6e-6 of the largest.
    np.testing.assert_allclose(features, want, rtol=0, atol=3e-5 * np.abs(want).max())
    got, want = ours.caption(photos, **options), theirs.caption(photos, **options)
    assert len({captions[0].text for captions in want}) >= 3
    assert [[c.text for c in captions] for captions in got] == [
        [c.text for c in captions] for captions in want
    ]
    for captions, expected in zip(got, want, strict=True):
        for caption, other in zip(captions, expected, strict=True):
            # The same through 20 steps: worst seen 7e-6 for a word, 6e-5 for a sum.
            assert caption.score == pytest.approx(other.score, abs=3e-4)
            np.testing.assert_allclose(caption.token_logprobs, other.token_logprobs, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 1}, {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 1.0},
     {"max_new_tokens": 3, "no_repeat_ngram_size": 1}, {"compat": "caffe", "suppress_unk": False}],
    ids=str,
)  # fmt: skip
def test_same_captions_as_torch(bundle, photos, options):
    compare(*bundle, photos, **options)


def test_same_defaults_as_torch(bundle, photos, tmp_path):
    model = make(feature_projection=10, feature_activation="relu")
    model.generation = Generation(num_beams=3, length_penalty=1.5, max_new_tokens=4)
    export_captioner(model, tmp_path)
    compare(model, tmp_path, photos)
    plain = runtime.Captioner(bundle[1])
    assert runtime.Captioner(tmp_path).caption(photos) == plain.caption(
        photos, 3, length_penalty=1.5, max_new_tokens=4
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"variant": "1u"}, {"variant": "2u", "tie_weights": True, "embed_dim": 16}]
)
def test_every_variant(tmp_path, photos, options):
    model = make(**options)
    export_captioner(model, tmp_path)
    compare(model, tmp_path, photos)


def test_images_of_every_kind_and_number(bundle, photos):
    model = runtime.Captioner(bundle[1])
    want = model.caption(photos)
    images = [Image.open(path) for path in photos]
    assert model.caption(images) == want
    assert model.caption([np.asarray(image) for image in images], batch_size=2) == want
    assert model.caption(str(photos[1])) == want[1:2]
    assert model.caption([]) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_smaller_weights_in_memory(bundle, photos, dtype):
    full, small = (runtime.Captioner(bundle[1], dtype=d).caption(photos) for d in ("float32", dtype))
    for captions, others in zip(full, small, strict=True):
        assert captions[0].score == pytest.approx(others[0].score, rel=0.05)


def test_bfloat16_bundle_is_smaller(bundle, photos, tmp_path, monkeypatch):
    # The CNN is not what is tested here: take the one that was exported already.
    monkeypatch.setattr(
        "lrcn_fast.export.export_encoder", lambda m, p, **k: shutil.copy(bundle[1] / "encoder.onnx", p)
    )
    export_captioner(bundle[0], tmp_path, dtype="bfloat16")
    sizes = [(folder / "weights.safetensors").stat().st_size for folder in (tmp_path, bundle[1])]
    assert sizes[0] < 0.7 * sizes[1]
    full, small = (runtime.Captioner(folder).caption(photos)[0][0].score for folder in (bundle[1], tmp_path))
    assert small == pytest.approx(full, rel=0.05)


def test_runs_without_torch(bundle, photos):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from lrcn_fast import runtime\n"
        f"print(runtime.Captioner({str(bundle[1])!r}).caption({str(photos[0])!r})[0][0].text)\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] in ('timm', 'torchvision')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == bundle[0].caption(photos[:1])[0][0].text


# Errors


def test_bad_photo_is_named(bundle, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(ValueError, match=r"load_image: .*cut\.jpg must be an image"):
        runtime.Captioner(bundle[1]).caption([tmp_path / "cut.jpg"])


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "vocabulary.json", "encoder.onnx"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_damaged_bundle_is_named_in_one_line(bundle, tmp_path, name, damage):
    folder = shutil.copytree(bundle[1], tmp_path / "bundle")
    content = (folder / name).read_bytes()
    if damage == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    error = FileNotFoundError if damage == "missing" else ValueError
    with pytest.raises(error, match=rf": .*{name}") as caught:
        runtime.Captioner(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, r'config\.json must have "kind": "lrcn_fast runtime captioner"'),
        ({"format": 9}, '"format": 1, got another file'),
        ({"layers": 3}, r"weights\.safetensors must have an array 'layers\.2\.weight_ih', got none"),
        ({"layers": "two"}, r"config\.json: Decoder: layers must be an integer of at least 1, got 'two'"),
        ({"static_layer": 0}, r"weights\.safetensors must hold the layers of config\.json, got Decoder: "),
        ({"static_layer": 2}, r"config\.json: Decoder: static_layer must be None or in 0\.\.1, got 2"),
        ({"tied": None}, r"config\.json: Decoder: tied must be True or False, got None"),
        ({"feed_bos": 1}, r"config\.json: Decoder: feed_bos must be True or False, got 1"),
        ({"bos_id": 99999}, r"config\.json: Decoder: bos_id must be in 0\.\.9, got 99999"),
        ({"eos_id": 1.5}, r"config\.json: Decoder: eos_id must be an integer, got 1\.5"),
        ({"pad_id": None}, r"config\.json: Decoder: pad_id must be an integer, got None"),
        ({"generation": {"colour": 1}}, r"config\.json: .*colour"),
        ({"generation": None}, r"config\.json: generation must be an object, got None"),
        ({"generation": {"num_beams": -1}}, r"config\.json: generate: num_beams must be .* got -1"),
        (
            {"generation": {"max_new_tokens": "9"}},
            r"config\.json: generate: max_new_tokens must be .* got '9'",
        ),
        ({"preprocessing": {}}, r"config\.json: Preprocessing\.from_config: "),
        ({"preprocessing": {"size": 13}}, r"config\.json must have the image size .* got 13"),
        (
            {"preprocessing": {"resize": 2**31 - 1}},
            r"resize must be an integer in 1\.\.65536, got 2147483647",
        ),
        ({"preprocessing": {"resize": 256.5}}, r"config\.json: preprocessing: resize must be .* got 256\.5"),
    ],
    ids=str,
)
def test_foreign_settings(bundle, tmp_path, change, message):
    folder = shutil.copytree(bundle[1], tmp_path / "bundle")
    config = json.loads((folder / "config.json").read_text())
    if change.get("preprocessing"):
        change = {"preprocessing": config["preprocessing"] | change["preprocessing"]}
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message) as caught:
        runtime.Captioner(folder)
    assert "\n" not in str(caught.value)


def test_a_setting_is_missing(bundle, tmp_path):
    folder = shutil.copytree(bundle[1], tmp_path / "bundle")
    config = json.loads((folder / "config.json").read_text())
    del config["eos_id"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json must have the key 'eos_id', got none"):
        runtime.Captioner(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": "a"}, "Captioner: threads must be an integer in 0..1024, got 'a'"),
        ({"threads": -1}, "Captioner: threads must be an integer in 0..1024, got -1"),
        ({"dtype": "half"}, "Captioner: dtype must be float32, bfloat16 or int8, got 'half'"),
    ],
)
def test_arguments_of_the_constructor(bundle, options, message):
    with pytest.raises(ValueError, match=message):
        runtime.Captioner(bundle[1], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": "a"}, "generate: num_beams must be .* got 'a'"),
        ({"num_return_sequences": "a"}, "generate: num_return_sequences must be .* got 'a'"),
        ({"suppress_tokens": 5}, "generate: suppress_tokens must be .* got 5"),
        ({"batch_size": 0}, "Captioner.features: batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": -1}, "Captioner.features: batch_size must be an integer of at least 1, got -1"),
    ],
)
def test_arguments_of_caption(bundle, photos, options, message):
    with pytest.raises(ValueError, match=message):
        runtime.Captioner(bundle[1]).caption(photos[:1], **options)


def test_parts_of_different_bundles(bundle, tmp_path):
    folder = shutil.copytree(bundle[1], tmp_path / "bundle")
    vocabulary = json.loads((folder / "vocabulary.json").read_text())
    vocabulary["words"].append("more")
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match=r"vocabulary\.json must have V = 10 words, got 11"):
        runtime.Captioner(folder)


def test_export_checks_its_arguments(bundle, tmp_path):
    with pytest.raises(ValueError, match="export_captioner: dtype must be float32 or bfloat16, got 'int4'"):
        export_captioner(bundle[0], tmp_path, dtype="int4")
    encoder = torch.nn.Flatten()
    encoder.feature_dim = 12
    other = Captioner(encoder, "2f", WORDS, embed_dim=4, hidden_size=4)
    with pytest.raises(NotImplementedError, match=r"encoder must have a Preprocessing .*, got NoneType"):
        export_captioner(other, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("module", "command"), [("onnxruntime", "pip install onnxruntime")])
def test_missing_packages_name_the_command(bundle, monkeypatch, module, command):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=command):
        runtime.Captioner(bundle[1])

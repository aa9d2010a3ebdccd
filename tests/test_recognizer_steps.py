"""Options that the paper does not have: shared steps, change since the start, frame weights, mixup."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lrcn_fast.data import open_video
from lrcn_fast.models import ActivityRecognizer, create_encoder
from lrcn_fast.models.recognition import RecognizerDropout, frame_weights, nearest_frames, step_means
from lrcn_fast.training.recognition import mix_clips


def model(**options):
    torch.manual_seed(5)
    encoder = create_encoder("timm/test_resnet", weights=None)
    m = ActivityRecognizer(encoder, classes=["kick", "push", "wave"], hidden_size=7, **options)
    return m.eval()


def frames(n):
    return np.random.default_rng(n).integers(0, 256, (n, 40, 60, 3), dtype=np.uint8)


def test_steps_by_hand():
    x, lengths = torch.randn(2, 8, 3), torch.tensor([8, 4])
    means, steps = step_means(x, lengths, 3)
    assert steps.tolist() == [3, 2]
    torch.testing.assert_close(means[0, 2], x[0, 6:8].mean(0))
    torch.testing.assert_close(means[1, 0], x[1, :3].mean(0))
    torch.testing.assert_close(means[1, 1], x[1, 3])
    whole, none = step_means(x, None, 4)
    assert none is None
    torch.testing.assert_close(whole, x.view(2, 2, 4, 3).mean(2))


def test_what_lies_past_a_clip_is_not_read():
    m = model(frames_per_step=2, feature_change="first")
    x, lengths = torch.randn(2, 7, m.encoder.feature_dim), torch.tensor([7, 3])
    spoiled = x.clone()
    spoiled[1, 3:] = float("nan")
    with torch.no_grad():
        plain, other = m(x, lengths), m(spoiled, lengths)
    torch.testing.assert_close(other[1, :3], plain[1, :3])
    torch.testing.assert_close(other[0], plain[0])
    labels = torch.tensor([0, 2])
    torch.testing.assert_close(m.loss(spoiled, labels, lengths), m.loss(x, labels, lengths))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("change", ["none", "first"])
def test_the_lstm_reads_steps_and_their_change(n, change):
    m = model(frames_per_step=n, feature_change=change, feature_norm="l2")
    x = torch.randn(2, 8, m.encoder.feature_dim)
    parts = [F.normalize(x[:, at : at + n].mean(1), dim=1) for at in range(0, 8, n)]
    read = torch.stack(parts, 1)
    if change == "first":
        read = torch.cat([read, read - read[:, :1]], 2)
    with torch.no_grad():
        output, _ = m.lstm(read)
        expected = m.classifier(output).repeat_interleave(n, 1)[:, :8]
        torch.testing.assert_close(m(x), expected)


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_agrees_with_the_clip_where_steps_end(n):
    m, video = model(frames_per_step=n, feature_change="first", feature_norm="l2"), frames(12)
    x = m.features(open_video(video), np.arange(12))
    with torch.no_grad():
        whole = m(x)[0].softmax(-1).numpy()
    stream = m.stream()
    for _ in range(2):
        found = np.stack([stream.push(frame) for frame in video])
        np.testing.assert_allclose(found[n - 1 :: n], whole[n - 1 :: n], atol=3e-7)
        stream.reset()
    # Inside a step it knows the frames so far.
    if n == 3:
        with torch.no_grad():
            part = m(x[:, :5])[0, -1].softmax(-1).numpy()
        np.testing.assert_allclose(found[4], part, atol=3e-7)


def test_weights_by_hand():
    lengths = torch.tensor([4, 2])
    assert frame_weights("uniform", lengths, 4).tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert frame_weights("last", lengths, 4).tolist() == [[0, 0, 0, 4], [0, 2, 0, 0]]
    expected = torch.tensor([[0.4, 0.8, 1.2, 1.6], [2 / 3, 4 / 3, 0, 0]])
    torch.testing.assert_close(frame_weights("linear", lengths, 4), expected)


@pytest.mark.parametrize("kind", ["uniform", "linear", "last"])
def test_weights_hold_in_the_loss_and_in_the_prediction(kind):
    m, video = model(frame_weights=kind, sampling="uniform", clip_length=6), frames(20)
    x, lengths = torch.randn(2, 6, m.encoder.feature_dim), torch.tensor([6, 4])
    labels = torch.tensor([2, 1])
    logits, w = m(x, lengths), frame_weights(kind, lengths, 6)
    terms = [w[b, t] * F.cross_entropy(logits[b, t], labels[b]) for b in range(2) for t in range(6)]
    torch.testing.assert_close(m.loss(x, labels, lengths, reduction="sum"), sum(terms))
    torch.testing.assert_close(m.loss(x, labels, lengths), sum(terms) / 10)
    soft = F.one_hot(labels, 3).float()
    torch.testing.assert_close(m.loss(x, soft, lengths), sum(terms) / 10)

    found = m.recognize(video, sampling="clips", clip_length=8, clip_stride=4)
    clips = m.clips(20, sampling="clips", clip_length=8, clip_stride=4)
    each = m.features(open_video(video), np.arange(20))[0]
    with torch.no_grad():
        p = m(each[torch.from_numpy(clips)]).softmax(-1)
    w = frame_weights(kind, torch.tensor([8]), 8)[0, :, None] / 8
    np.testing.assert_allclose(found.probabilities, (p * w).sum(1).mean(0).numpy(), atol=3e-7)


def test_mixed_clips_are_between_two_and_their_labels_too():
    x = torch.randn(5, 4, 3)
    soft = F.one_hot(torch.tensor([0, 1, 2, 1, 0]), 3).float()
    mixed, targets = mix_clips(x, soft, 1.0, np.random.default_rng(3))
    again, _ = mix_clips(x, soft, 1.0, np.random.default_rng(3))
    assert torch.equal(mixed, again)
    torch.testing.assert_close(targets.sum(1), torch.ones(5))
    rng = np.random.default_rng(3)
    part, other = rng.beta(1, 1, 5), rng.permutation(5)
    for b in range(5):
        torch.testing.assert_close(mixed[b], (part[b] * x[b] + (1 - part[b]) * x[other[b]]).float())
        torch.testing.assert_close(targets[b], (part[b] * soft[b] + (1 - part[b]) * soft[other[b]]).float())


def test_refusals():
    m = model(feature_change="first")
    state = (torch.zeros(1, 1, 7), torch.zeros(1, 1, 7))
    with pytest.raises(ValueError, match="state must be None with feature_change 'first'"):
        m(torch.zeros(1, 2, m.encoder.feature_dim), state=state)
    with pytest.raises(ValueError, match="feature_change must be one of none, first, got 'last'"):
        model(feature_change="last")
    with pytest.raises(ValueError, match="frame_weights must be one of uniform, linear, last, got 'end'"):
        model(frame_weights="end")
    with pytest.raises(ValueError, match="frames_per_step must be an integer >= 1, got 0"):
        model(frames_per_step=0)
    with pytest.raises(ValueError, match=r"frames_per_step must be 1 without an LSTM .*, got 2"):
        model(frames_per_step=2, recurrent=False)
    with pytest.raises(ValueError, match=r"feature_change must be 'none' without an LSTM .*, got 'first'"):
        model(feature_change="first", recurrent=False)


def test_nearest_frames_by_hand():
    used = np.array([2, 4, 9])
    expected = [min(range(3), key=lambda i: (abs(used[i] - n), i)) for n in range(12)]
    assert nearest_frames(used, 12).tolist() == expected
    assert nearest_frames(np.array([5]), 3).tolist() == [0, 0, 0]
    assert nearest_frames(np.arange(4), 4).tolist() == [0, 1, 2, 3]


def test_refusals_of_losses_and_features():
    m = model()
    x = torch.zeros(2, 3, m.encoder.feature_dim)
    for labels in (torch.zeros(3, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), torch.zeros(2, 4)):
        with pytest.raises(ValueError, match=r"labels must be \[B\] = \[2\] or \[B, K\] = \[2, 3\], got"):
            m.loss(x, labels)
    with pytest.raises(ValueError, match="reduction must be mean or sum, got 'none'"):
        m.loss(x, torch.zeros(2, dtype=torch.int64), reduction="none")
    with pytest.raises(ValueError, match=r"frames must hold a clip of a frame, got \[0, 3, "):
        m(x[:0])
    with pytest.raises(ValueError, match=r"features must be \[crops, n, C\] with n = 4, .* got \[1, 3, "):
        m.recognize_features(x[:1], np.array([[0, 1, 2, 3]]), 4)
    with pytest.raises(ValueError, match=r"RecognizerDropout: output must be in \[0, 1\), got 2.0"):
        RecognizerDropout(output=2.0)
    with pytest.raises(ValueError, match="init_scale must be >= 0, got -1"):
        model(init_scale=-1)
    with torch.no_grad():
        m.classifier.bias[0] = float("nan")
    with pytest.raises(ValueError, match="the model's logits must be finite, got NaN"):
        m.recognize_features(x[:1], np.array([[0, 1, 2]]), 3)

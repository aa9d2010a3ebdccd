"""Scores of activity recognition, and the late fusion of two streams."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["confusion_matrix", "late_fusion", "recognition_metrics"]


def late_fusion(rgb: Any, flow: Any, flow_weight: float = 0.5) -> npt.NDArray[np.float64]:
    """Weigh the probabilities of two models: (1 - w) rgb + w flow.

    The paper's table 1 has w = 1/2 and w = 2/3.

    Args:
        rgb: Probabilities of the model that reads frames. [..., K].
        flow: Those of the model that reads optical flow. [..., K].
        flow_weight: w, in [0, 1].

    Raises:
        ValueError: other shapes, or a weight out of range.
    """
    a, b = np.asarray(rgb, np.float64), np.asarray(flow, np.float64)
    if a.shape != b.shape:
        raise ValueError(
            f"late_fusion: flow must have the shape of rgb, {list(a.shape)}, got {list(b.shape)}"
        )
    if not 0 <= flow_weight <= 1:
        raise ValueError(f"late_fusion: flow_weight must be in [0, 1], got {flow_weight}")
    fused: npt.NDArray[np.float64] = (1 - flow_weight) * a + flow_weight * b
    return fused


def confusion_matrix(labels: Any, predictions: Any, num_classes: int) -> npt.NDArray[np.int64]:
    """Count videos by class (rows) and by the class they were taken for (columns).

    Args:
        labels: True classes. [N].
        predictions: Classes predicted. [N].
        num_classes: K.

    Returns:
        [K, K].

    Raises:
        ValueError: different lengths, or a class out of range.
    """
    true, said = (np.asarray(x, np.int64).reshape(-1) for x in (labels, predictions))
    if true.shape != said.shape:
        raise ValueError(
            f"confusion_matrix: predictions must be as many as labels, {len(true)}, got {len(said)}"
        )
    both = np.concatenate((true, said))
    if len(both) and (both.min() < 0 or both.max() >= num_classes):
        raise ValueError(
            f"confusion_matrix: classes must be 0 to {num_classes - 1}, got {both.min()} to {both.max()}"
        )
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (true, said), 1)
    return counts


def recognition_metrics(labels: Any, probabilities: Any) -> dict[str, float]:
    """Score the recognition of N videos.

    Args:
        labels: True classes. [N].
        probabilities: What each video was recognised with. [N, K].

    Returns:
        ``accuracy``, the share of videos whose likeliest class (the first, of equals) is true;
        ``mean_class_accuracy``, its mean over the classes that occur; ``top_5_accuracy``; ``log_loss``, the
        mean of -log p of the true class.

    Raises:
        ValueError: no video, another shape, a label out of range or not whole, or a probability that is not
            finite.
    """
    p, true = np.asarray(probabilities, np.float64), np.asarray(labels)
    if p.ndim != 2 or true.shape != p.shape[:1] or not len(true):
        raise ValueError(
            "recognition_metrics: probabilities must be [N, K] and labels [N], N >= 1, got "
            f"{list(p.shape)} and {list(true.shape)}"
        )
    if not np.issubdtype(true.dtype, np.integer):
        raise ValueError(f"recognition_metrics: labels must be integers, got {true.dtype}")
    if not np.isfinite(p).all():
        video = int(np.flatnonzero(~np.isfinite(p).all(1))[0])
        raise ValueError(
            f"recognition_metrics: probabilities must be finite, got NaN or infinity for video {video}"
        )
    if true.min() < 0 or true.max() >= p.shape[1]:
        raise ValueError(
            f"recognition_metrics: labels must be 0 to {p.shape[1] - 1}, got {true.min()} to {true.max()}"
        )
    order = np.argsort(-p, axis=1, kind="stable")
    right = order[:, 0] == true
    per_class = [right[true == k].mean() for k in np.unique(true)]
    own = np.maximum(p[np.arange(len(true)), true], np.finfo(np.float32).tiny)
    return {
        "accuracy": float(right.mean()),
        "mean_class_accuracy": float(np.mean(per_class)),
        "top_5_accuracy": float((order[:, :5] == true[:, None]).any(1).mean()),
        "log_loss": float(-np.log(own).mean()),
    }

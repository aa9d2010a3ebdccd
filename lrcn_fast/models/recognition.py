"""What stands around an ``ActivityRecognizer``: its options, its results, and a video as it comes."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from lrcn_fast.models.recognizer import ActivityRecognizer

__all__ = [
    "FRAME_WEIGHTS",
    "ActivityStream",
    "Recognition",
    "RecognizerDropout",
    "frame_weights",
    "nearest_frames",
    "recognizer_preprocessing",
    "step_means",
]

Probabilities = npt.NDArray[np.float32]

FRAME_WEIGHTS = ("uniform", "linear", "last")


def frame_weights(kind: str, lengths: Tensor, num_frames: int) -> Tensor:
    """How much each frame of a clip counts, in the loss and in the prediction.

    Args:
        kind: "uniform": all alike, as the paper does; "linear": frame t of n by t, after Ng et al., "Beyond
            Short Snippets", CVPR 2015, section 3.4; "last": only the last, which has seen the whole clip.
        lengths: Frames n of each clip. [B] int64.
        num_frames: T.

    Returns:
        [B, T] float32; each row sums to n and is 0 past it.
    """
    t = torch.arange(1, num_frames + 1, device=lengths.device)
    n = lengths[:, None]
    if kind == "last":
        return ((t == n) * n).float()
    real = (t <= n).float()
    return real if kind == "uniform" else real * 2 * t / (n + 1)


def step_means(x: Tensor, lengths: Tensor | None, n: int) -> tuple[Tensor, Tensor | None]:
    """Mean of every ``n`` frames, where a clip ends of fewer.

    Args:
        x: Features of frames. [B, T, C].
        lengths: Frames of each clip, None: T. [B] int64.
        n: Frames of a step.

    Returns:
        Features of steps, [B, ceil(T / n), C], and how many steps each clip has, None if ``lengths`` was.
    """
    B, T, _ = x.shape
    frames = torch.full((B,), T, device=x.device) if lengths is None else lengths
    real = torch.arange(T, device=x.device) < frames[:, None]
    x = torch.where(real[:, :, None], x, 0.0)
    x = F.pad(x, (0, 0, 0, -T % n)).view(B, -1, n, x.shape[2]).sum(2)
    steps = torch.arange(x.shape[1], device=x.device)
    count = (frames[:, None] - steps * n).clamp(1, n)
    return x / count[:, :, None].to(x.dtype), None if lengths is None else (lengths + n - 1) // n


def nearest_frames(used: npt.NDArray[np.int64], num_frames: int) -> npt.NDArray[np.int64]:
    """For each frame of a video, which of some frames is nearest; the earlier of two.

    Args:
        used: Rising frame numbers. [n], n >= 1.
        num_frames: N.

    Returns:
        Positions in ``used``. [N].
    """
    middles = (used[1:] + used[:-1]) / 2
    return np.searchsorted(middles, np.arange(num_frames), side="left")


def recognizer_preprocessing(encoder: Any, stream: str, caffe_release: bool) -> Any:
    """From a frame to the CNN's input: the encoder's own, but for flow and for the release's red mean."""
    held = encoder.preprocessing
    if stream == "flow":
        return dataclasses.replace(held, mean=(128.0, 128.0, 128.0))
    if caffe_release and held.mean == (103.939, 116.779, 123.68):
        return dataclasses.replace(held, mean=(103.939, 116.779, 128.68))
    return held


@dataclass
class RecognizerDropout:
    """Training-time dropout of an ``ActivityRecognizer``; the paper: 0.9 on fc6, 0.5 on the LSTM's output."""

    features: float = 0.0
    output: float = 0.0

    def __post_init__(self) -> None:
        for name, p in dataclasses.asdict(self).items():
            if not 0 <= p < 1:
                raise ValueError(f"RecognizerDropout: {name} must be in [0, 1), got {p}")


@dataclass(frozen=True)
class Recognition:
    """What was recognised in one video.

    Attributes:
        classes: Names of the K classes.
        probabilities: Mean over all frames of all clips and crops, each frame with its weight. [K] float32.
        frame_probabilities: For each frame of the video the mean over the clips and crops that it is part of.
            A frame that no clip holds has those of the nearest that is in one. [N, K] float32.
    """

    classes: tuple[str, ...]
    probabilities: Probabilities
    frame_probabilities: Probabilities

    def top(self, k: int = 1) -> list[tuple[str, float]]:
        """Names and probabilities of the k likeliest classes."""
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.classes[i], float(self.probabilities[i])) for i in order]


class ActivityStream:
    """A video as it comes; made by ``ActivityRecognizer.stream``."""

    def __init__(self, model: "ActivityRecognizer") -> None:
        self._model = model
        self._preprocessing = model.preprocessing
        self.reset()

    def reset(self) -> None:
        """Forget the frames so far: the next is the first of a new video."""
        self.frames = 0
        self._state: tuple[Tensor, Tensor] | None = None
        self._first: Tensor | None = None
        self._step: list[Tensor] = []

    @torch.no_grad()
    def push(self, frame: Any) -> Probabilities:
        """Take the next frame (uint8 [H, W, 3]; a flow picture for a flow model). Returns [K] float32.

        Where several frames share a step of the LSTM, that step reads the mean of those that have come.
        """
        model = self._model
        image = torch.from_numpy(self._preprocessing(frame)).to(model.device)
        self._step.append(model.encoder(image[None])[0])
        mean = torch.stack(self._step).mean(0)
        logits, state = model._run(mean[None, None], None, self._state, self._first)
        if len(self._step) == model.frames_per_step:
            self._state = state
            self._step = []
            if self._first is None:
                self._first = mean[None]
        self.frames += 1
        p: Probabilities = logits[0, 0].float().softmax(-1).cpu().numpy()
        return p

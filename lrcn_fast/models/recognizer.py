"""The LRCN activity recognizer: a CNN over the frames of a video, an LSTM over time, a class at every frame.

Donahue et al., "Long-term Recurrent Convolutional Networks for Visual Recognition and Description", TPAMI
2017, section 4. With x_t the CNN's features of frame t:

    h_t = LSTM(x_t)              p(class | x_1..x_t) = softmax(W h_t + b)
    h_t = x_t                    the single-frame baseline, recurrent=False

A video's probabilities are the mean of those of all frames of all its clips (16 frames, one clip every 8).
Not from the paper, and off unless asked for: several frames may share a step of the LSTM, which may read
(x_t, x_t - x_1), and late frames may count for more.

Shapes: B clips, T frames of the longest clip, N frames of a video, S side of the CNN's images, C features of
the CNN, F features after normalisation and projection, H hidden, K classes.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrcn_fast.data.video import Video, clip_indices, open_video, uniform_indices
from lrcn_fast.models.bundle import Pretrained
from lrcn_fast.models.clip_views import CROPS, clip_frames
from lrcn_fast.models.conditioning import ConditionedFeatures
from lrcn_fast.models.encoders import Encoder, create_encoder
from lrcn_fast.models.recognition import (
    FRAME_WEIGHTS,
    ActivityStream,
    Recognition,
    RecognizerDropout,
    frame_weights,
    nearest_frames,
    recognizer_preprocessing,
    step_means,
)
from lrcn_fast.nn import LSTM

__all__ = ["ActivityRecognizer"]

SAMPLING = ("clips", "uniform")
FEATURE_CHANGE = ("none", "first")


class ActivityRecognizer(ConditionedFeatures, Pretrained):
    """An LRCN activity recognizer, or its single-frame baseline, trainable end to end.

    Args:
        encoder: Name for ``create_encoder``, or a module with its interface.
        num_classes: K; may be left out with ``classes``.
        hidden_size: H. The paper: 256 for RGB, 1024 for flow (256 in the released flow model).
        classes: Names of the classes; default "0", "1", ...
        recurrent: Whether there is an LSTM; without, every frame is classified alone.
        stream: "rgb" reads frames, "flow" reads pictures of optical flow (``lrcn_fast.data.flow_video``);
            mirrored flow has its horizontal part negated.
        sampling: How a video is cut: "clips" of ``clip_length`` frames, one every ``clip_stride``, as the
            paper does; "uniform": one clip of ``clip_length`` frames spread over the whole video.
        clip_length: Frames of a clip.
        clip_stride: Frames from the start of a clip to that of the next.
        encoder_weights: "imagenet", None for random ones, or a path. Ignored for a module.
        encoder_options: Further arguments of ``create_encoder``.
        feature_norm: "none"; "standardize": subtract the mean and divide by the deviation set by
            ``set_feature_statistics``; "l2": unit length.
        feature_projection: Size of a learned linear map on the features; 0: none, F is C.
        feature_activation: "none", "relu" or "tanh", after the projection.
        frames_per_step: The LSTM makes one step for so many frames and reads the mean of their CNN features;
            all of them get that step's prediction.
        feature_change: "none"; "first": the LSTM also reads how the features of a step differ from those of
            the clip's first, 2 F numbers in all.
        frame_weights: How much each frame of a clip counts, in the loss and in the prediction: "uniform", as
            in the paper; "linear": in proportion to its number; "last": only the last.
        caffe_release: Do as the code that came with the paper where that differs from what it says: mirrored
            flow is not negated at test time, and the red mean of the hybrid net is 128.68 (a typo that its
            LSTMs were trained with).
        init_scale: Start with LSTM weights uniform in +-scale, classifier weights normal with that deviation
            and zero biases (the release: 0.01); 0: torch's defaults.
        dropout: Probabilities during training.

    Raises:
        ValueError: an option that is not one of its choices, or a size below 1.

    Example:
        >>> model = ActivityRecognizer(classes=["kick", "wave"], encoder_weights=None).eval()
        >>> model.recognize(np.zeros((20, 48, 64, 3), np.uint8)).frame_probabilities.shape
        (20, 2)
    """

    bundle_noun = "an activity recognizer"
    has_words = False

    def __init__(
        self,
        encoder: str | nn.Module = "efficientnet_lite0",
        num_classes: int | None = None,
        hidden_size: int = 256,
        *,
        classes: Sequence[str] | None = None,
        recurrent: bool = True,
        stream: str = "rgb",
        sampling: str = "clips",
        clip_length: int = 16,
        clip_stride: int = 8,
        encoder_weights: str | os.PathLike[str] | None = "imagenet",
        encoder_options: Mapping[str, Any] | None = None,
        feature_norm: str = "none",
        feature_projection: int = 0,
        feature_activation: str = "none",
        frames_per_step: int = 1,
        feature_change: str = "none",
        frame_weights: str = "uniform",
        caffe_release: bool = False,
        init_scale: float = 0.0,
        dropout: RecognizerDropout | None = None,
    ) -> None:
        super().__init__()
        if classes is None:
            if num_classes is None:
                raise ValueError("ActivityRecognizer: num_classes or classes must be given, got neither")
            _positive("num_classes", num_classes)
            classes = [str(k) for k in range(num_classes)]
        elif isinstance(classes, str) or len(set(classes)) != len(classes) or not classes:
            raise ValueError(f"ActivityRecognizer: classes must be a list of distinct names, got {classes!r}")
        elif num_classes not in (None, len(classes)):
            raise ValueError(
                f"ActivityRecognizer: num_classes must be the number of classes = {len(classes)}, "
                f"got {num_classes}"
            )
        for name, value, choices in (
            ("stream", stream, ("rgb", "flow")),
            ("sampling", sampling, SAMPLING),
            ("feature_change", feature_change, FEATURE_CHANGE),
            ("frame_weights", frame_weights, FRAME_WEIGHTS),
        ):
            if value not in choices:
                raise ValueError(
                    f"ActivityRecognizer: {name} must be one of {', '.join(choices)}, got {value!r}"
                )
        for name, size in (
            ("hidden_size", hidden_size),
            ("clip_length", clip_length),
            ("clip_stride", clip_stride),
            ("frames_per_step", frames_per_step),
        ):
            _positive(name, size)
        if not init_scale >= 0:
            raise ValueError(f"ActivityRecognizer: init_scale must be >= 0, got {init_scale}")
        for name, given, plain in (
            ("feature_change", feature_change, "none"),
            ("frames_per_step", frames_per_step, 1),
        ):
            if given != plain and not recurrent:
                raise ValueError(
                    f"ActivityRecognizer: {name} must be {plain!r} without an LSTM (recurrent=False), "
                    f"got {given!r}"
                )
        if isinstance(encoder, str):
            encoder = create_encoder(encoder, weights=encoder_weights, **(encoder_options or {}))
        self.encoder = cast(Any, encoder)
        self.classes = tuple(classes)
        self.hidden_size, self.recurrent, self.stream_kind = hidden_size, recurrent, stream
        self.sampling, self.clip_length, self.clip_stride = sampling, clip_length, clip_stride
        self.frames_per_step, self.feature_change = frames_per_step, feature_change
        self.frame_weights = frame_weights
        self.caffe_release = caffe_release
        self.dropout = dropout or RecognizerDropout()
        self.details: dict[str, Any] = {}
        self.set_up_features(feature_norm, feature_projection, feature_activation)
        read = self.feature_dim * (1 if feature_change == "none" else 2)
        self.lstm = LSTM(read, hidden_size, batch_first=True) if recurrent else None
        self.classifier = nn.Linear(hidden_size if recurrent else self.feature_dim, len(classes))
        if init_scale > 0:
            nn.init.normal_(self.classifier.weight, std=init_scale)
            nn.init.zeros_(self.classifier.bias)
            for name, parameter in self.lstm.named_parameters() if self.lstm is not None else ():
                if "bias" in name:
                    nn.init.zeros_(parameter)
                else:
                    nn.init.uniform_(parameter, -init_scale, init_scale)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.classifier.weight.device

    # ---- training -----------------------------------------------------------------------------

    def forward(
        self, frames: Tensor, lengths: Tensor | None = None, *, state: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Class logits after every frame.

        Args:
            frames: Preprocessed frames [B, T, 3, S, S], which the CNN sees as one batch of B T images, or
                its features [B, T, C].
            lengths: Frames of each clip, 1 to T; None: T. What lies past them is not computed. [B] int64.
            state: h and c of the LSTM before the first frame, zeros if None; with ``feature_change`` only
                ``stream`` can go on where a clip was left. [1, B, H] each.

        Returns:
            Logits [B, T, K]; past a clip's length they mean nothing.

        Raises:
            ValueError: another shape, a length out of range, or a state with ``feature_change``.
        """
        if state is not None and self.feature_change != "none":
            raise ValueError(
                f"ActivityRecognizer: state must be None with feature_change {self.feature_change!r}, "
                f"which needs the clip's first frame, got {type(state).__name__}"
            )
        return self._run(self._features_of(frames, lengths), lengths, state)[0]

    def _features_of(self, frames: Tensor, lengths: Tensor | None) -> Tensor:
        """CNN features [B, T, C] of what ``forward`` takes."""
        C = int(self.encoder.feature_dim)
        if frames.dim() not in (3, 5) or (frames.dim() == 3 and frames.shape[2] != C):
            raise ValueError(
                f"ActivityRecognizer: frames must be [B, T, 3, S, S] or features [B, T, C] with C = {C}, "
                f"got {list(frames.shape)}"
            )
        B, T = frames.shape[:2]
        if B == 0 or T == 0:
            raise ValueError(
                f"ActivityRecognizer: frames must hold a clip of a frame, got {list(frames.shape)}"
            )
        if lengths is not None and (
            lengths.shape != (B,) or bool((lengths < 1).any() or (lengths > T).any())
        ):
            raise ValueError(
                f"ActivityRecognizer: lengths must be [B] = [{B}], each 1 to T = {T}, got {lengths.tolist()}"
            )
        if frames.dim() == 3:
            return frames
        if lengths is None:
            encoded: Tensor = self.encoder(frames.flatten(0, 1))
            return encoded.view(B, T, C)
        real = torch.arange(T, device=frames.device) < lengths.to(frames.device)[:, None]
        some: Tensor = self.encoder(frames[real])
        return some.new_zeros(B, T, C).masked_scatter(real[:, :, None], some)

    def _run(
        self,
        features: Tensor,
        lengths: Tensor | None,
        state: tuple[Tensor, Tensor] | None = None,
        first: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        B, T, _ = features.shape
        p, n = self.dropout, self.frames_per_step
        if lengths is not None:
            lengths = lengths.to(features.device)
        if n > 1:
            features, lengths = step_means(features, lengths, n)
        x = self.condition(features.flatten(0, 1)).view(B, -1, self.feature_dim)
        if self.feature_change == "first":
            start = x[:, :1] if first is None else self.condition(first)[:, None]
            x = torch.cat([x, x - start], 2)
        x = F.dropout(x, p.features, self.training)
        if self.lstm is not None:
            # Under autocast the projection returns half precision; the recurrence is float32.
            output, state = self.lstm(x.to(self.classifier.weight.dtype), state, lengths=lengths)
            x = F.dropout(cast(Tensor, output), p.output, self.training)
        logits: Tensor = self.classifier(x)
        if n > 1:
            logits = logits.repeat_interleave(n, 1)[:, :T]
        return logits, state

    def loss(
        self,
        frames: Tensor,
        labels: Tensor,
        lengths: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> Tensor:
        """Cross-entropy over all frames of all clips, each with its clip's label and its weight.

        Args:
            frames: As in ``forward``.
            labels: Class of each clip, [B] int64, or the probabilities of the classes, [B, K].
            lengths: As in ``forward``.
            label_smoothing: Share of the target that is spread over all classes.
            reduction: "mean" over the frames, or "sum". The weights of a clip sum to its length.

        Raises:
            ValueError: as ``forward``; labels of another shape; another reduction.
        """
        if reduction not in ("mean", "sum"):
            raise ValueError(f"ActivityRecognizer.loss: reduction must be mean or sum, got {reduction!r}")
        B, K = len(frames), len(self.classes)
        if tuple(labels.shape) not in ((B,), (B, K)):
            raise ValueError(
                f"ActivityRecognizer.loss: labels must be [B] = [{B}] or [B, K] = [{B}, {K}], "
                f"got {list(labels.shape)}"
            )
        logits = self(frames, lengths)
        T = logits.shape[1]
        if lengths is None:
            lengths = torch.full((B,), T, dtype=torch.int64)
        lengths = lengths.to(logits.device)
        weights = frame_weights(self.frame_weights, lengths, T)
        counted = weights > 0
        clip = torch.arange(B, device=logits.device)[:, None].expand(B, T)[counted]
        losses = F.cross_entropy(
            logits[counted].float(),
            labels.to(logits.device)[clip],
            label_smoothing=label_smoothing,
            reduction="none",
        )
        total = (losses * weights[counted]).sum()
        return total if reduction == "sum" else total / lengths.sum()

    # ---- inference ----------------------------------------------------------------------------

    def clips(
        self,
        num_frames: int,
        *,
        sampling: str | None = None,
        clip_length: int | None = None,
        clip_stride: int | None = None,
    ) -> npt.NDArray[np.int64]:
        """Frame numbers of the clips of a video of ``num_frames`` frames. [clips, clip_length].

        Args:
            num_frames: N.
            sampling: Instead of the model's own.
            clip_length: Instead of the model's own.
            clip_stride: Instead of the model's own.
        """
        length = clip_length or self.clip_length
        if (sampling or self.sampling) == "uniform":
            return uniform_indices(num_frames, length)[None]
        return clip_indices(num_frames, length, clip_stride or self.clip_stride)

    @torch.no_grad()
    def recognize(
        self,
        video: Any,
        *,
        crops: str = "centre",
        sampling: str | None = None,
        clip_length: int | None = None,
        clip_stride: int | None = None,
        batch_size: int = 16,
    ) -> Recognition:
        """Recognise the activity in one video, as the paper does.

        Each frame goes through the CNN once, however many clips share it.

        Args:
            video: A ``Video``, or whatever ``open_video`` takes: a path, a folder of frames, an array [N, H,
                W, 3] uint8. For a model of optical flow, pictures of flow (``lrcn_fast.data.flow_video``).
            crops: "centre"; "mirror": the centre and its mirror image; "ten": the four corners, the centre
                and their mirror images.
            sampling: Instead of the model's own.
            clip_length: Instead of the model's own.
            clip_stride: Instead of the model's own.
            batch_size: Frames that the CNN sees at a time.

        Raises:
            ValueError: not a video, or an option that is not one of its choices.
        """
        self._require_eval("recognize")
        if crops not in CROPS:
            raise ValueError(
                f"ActivityRecognizer.recognize: crops must be one of {', '.join(CROPS)}, got {crops!r}"
            )
        for name, size in (
            ("clip_length", clip_length),
            ("clip_stride", clip_stride),
            ("batch_size", batch_size),
        ):
            if size is not None:
                _positive(name, size, "ActivityRecognizer.recognize")
        if not isinstance(video, Video):
            with open_video(video) as opened:
                return self.recognize(
                    opened, crops=crops, sampling=sampling, clip_length=clip_length,
                    clip_stride=clip_stride, batch_size=batch_size,
                )  # fmt: skip
        if sampling is not None and sampling not in SAMPLING:
            raise ValueError(
                f"ActivityRecognizer.recognize: sampling must be one of {', '.join(SAMPLING)}, "
                f"got {sampling!r}"
            )
        N = len(video)
        clips = self.clips(N, sampling=sampling, clip_length=clip_length, clip_stride=clip_stride)
        used = np.unique(clips)
        return self.recognize_features(
            self.features(video, used, crops=crops, batch_size=batch_size), clips, N
        )

    @torch.no_grad()
    def recognize_features(
        self, features: Tensor, clips: npt.NDArray[np.int64], num_frames: int
    ) -> Recognition:
        """Recognise a video from CNN features of its frames.

        Args:
            features: Of every frame that a clip holds, in the order of their numbers, one row of crops each.
                [crops, n, C].
            clips: Frame numbers. [clips, T].
            num_frames: N.

        Raises:
            ValueError: another number of features than of frames in the clips, or the model says NaN.
        """
        self._require_eval("recognize_features")
        N = num_frames
        used, where = np.unique(clips, return_inverse=True)
        if features.dim() != 3 or features.shape[1] != len(used):
            raise ValueError(
                "ActivityRecognizer.recognize_features: features must be [crops, n, C] with n = "
                f"{len(used)}, the frames of the clips, got {list(features.shape)}"
            )
        rows = torch.from_numpy(where.reshape(clips.shape)).to(self.device)
        total = torch.zeros(len(used), len(self.classes), dtype=torch.float64)
        whole = torch.zeros(len(self.classes), dtype=torch.float64)
        count = np.zeros(len(used))
        T = clips.shape[1]
        weights = frame_weights(self.frame_weights, torch.tensor([T]), T)[0].double()
        for one in features:
            for start in range(0, len(clips), 64):
                part = rows[start : start + 64]
                p = self(one[part]).float().softmax(-1).double().cpu()
                total.index_add_(0, part.reshape(-1).cpu(), p.flatten(0, 1))
                whole += (p * weights[:, None]).sum((0, 1))
            np.add.at(count, where.reshape(-1), 1)
        frames = (total / torch.from_numpy(count)[:, None]).numpy()
        if not np.isfinite(frames).all():
            raise ValueError(
                "ActivityRecognizer.recognize_features: the model's logits must be finite, got NaN"
            )
        nearest = nearest_frames(used, N)
        return Recognition(
            self.classes,
            (whole.numpy() / count.sum()).astype(np.float32),
            frames[nearest].astype(np.float32),
        )

    @torch.no_grad()
    def features(self, video: Video, frames: Any, *, crops: str = "centre", batch_size: int = 16) -> Tensor:
        """CNN features of some frames of a video.

        Args:
            video: The video.
            frames: Their numbers. [n].
            crops: As in ``recognize``.
            batch_size: Frames that the CNN sees at a time.

        Returns:
            [crops, n, C] float32, on the model's device.
        """
        numbers = np.asarray(frames)
        views = CROPS[crops]
        parts: list[list[Tensor]] = [[] for _ in views]
        flow = self.stream_kind == "flow" and not self.caffe_release
        for at in range(0, len(numbers), batch_size):
            pictures = video.frames(numbers[at : at + batch_size])
            for view, part in zip(views, parts, strict=True):
                images = clip_frames(self.preprocessing, pictures, view, flow=flow)
                part.append(self.encoder(images.to(self.device)).float())
        return torch.stack([torch.cat(part) for part in parts])

    @property
    def preprocessing(self) -> Any:
        """From a frame to the CNN's input: the encoder's own, but for flow and for ``caffe_release``."""
        return recognizer_preprocessing(self.encoder, self.stream_kind, self.caffe_release)

    def stream(self) -> "ActivityStream":
        """Recognise frame by frame: an object with ``push(frame)``, which keeps the LSTM's state."""
        self._require_eval("stream")
        return ActivityStream(self)

    def _require_eval(self, method: str) -> None:
        if self.training:
            raise ValueError(
                f"ActivityRecognizer.{method}: the model must be in eval mode, got train mode; call .eval()"
            )

    # ---- files --------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Constructor arguments that are plain values, as ``config.json`` stores them."""
        return {
            "encoder": self.encoder.config(),
            "hidden_size": self.hidden_size,
            "classes": list(self.classes),
            "recurrent": self.recurrent,
            "stream": self.stream_kind,
            "sampling": self.sampling,
            "clip_length": self.clip_length,
            "clip_stride": self.clip_stride,
            "frames_per_step": self.frames_per_step,
            "feature_change": self.feature_change,
            "frame_weights": self.frame_weights,
            "caffe_release": self.caffe_release,
            **self.feature_config(),
        }

    def card(self) -> tuple[str, str, list[str], str]:
        """See ``Pretrained``."""
        head = f"LSTM of {self.hidden_size} units" if self.recurrent else "single frames, no LSTM"
        how = f"{self.clip_length} frames, " + (
            "spread over the video" if self.sampling == "uniform" else f"one clip every {self.clip_stride}"
        )
        facts = [f"Reads {self.stream_kind}: {head}; clips of {how}.", f"Classes: {', '.join(self.classes)}."]
        example = (
            "from lrcn_fast.models import ActivityRecognizer\n\n"
            'model = ActivityRecognizer.from_pretrained("path/to/this/folder")\n'
            'print(model.recognize("video.mp4").top(3))'
        )
        return "video-classification", "LRCN activity recognizer", facts, example

    @classmethod
    def from_bundle(
        cls, sizes: dict[str, Any], config: dict[str, Any], vocabulary: Any
    ) -> "ActivityRecognizer":
        """See ``Pretrained``."""
        return cls(Encoder.from_config(sizes.pop("encoder", None)), **sizes)


def _positive(name: str, value: object, where: str = "ActivityRecognizer") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{where}: {name} must be an integer >= 1, got {value!r}")

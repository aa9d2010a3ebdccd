"""Training an activity recognizer: clips of videos, the loss of every frame, accuracy over whole videos."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrcn_fast.data import (
    VideoSet,
    read_ucf101,
    read_ut_interaction,
    read_video_folders,
    read_video_list,
    uniform_indices,
)
from lrcn_fast.evaluation.recognition import recognition_metrics
from lrcn_fast.models.recognition import Recognition, RecognizerDropout
from lrcn_fast.models.recognizer import ActivityRecognizer
from lrcn_fast.training.clips import ClipStream, VideoFeatures, VideoReader
from lrcn_fast.training.config import TrainConfig
from lrcn_fast.training.encoders import cut_frames
from lrcn_fast.training.recognition_config import RecognitionConfig, RecognitionPhase, VideoConfig
from lrcn_fast.training.tasks import Batches, Context, Stage, Task

__all__ = ["RecognitionTask", "mix_clips", "read_videos"]


class _Objective(nn.Module):
    """Summed loss of every frame of clips, from pixels or features."""

    def __init__(self, model: ActivityRecognizer, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self._label_smoothing = label_smoothing

    def forward(self, frames: Tensor, labels: Tensor) -> Tensor:
        return self.model.loss(frames, labels, label_smoothing=self._label_smoothing, reduction="sum")


class RecognitionTask(Task):
    """An ``ActivityRecognizer`` in training; see ``Task``."""

    model: ActivityRecognizer

    def __init__(self, config: TrainConfig, context: Context) -> None:
        assert isinstance(config, RecognitionConfig)
        self.config, self.context = config, context
        self._train, self._validation = read_videos(config.data, config.seed)
        self.model = self._build_model()
        self._trains_encoder = any(p.encoder == "train" for p in config.phases)
        cache = Path(config.data.cache) if config.data.cache else context.out
        self._folder = cache / "features"
        # The first process makes the flow pictures, the others read them.
        with context.main_first():
            self._reader = self._open(self._train)
            self._validation_reader = None if self._validation is None else self._open(self._validation)
        self._features: dict[tuple[bool, int, bool], VideoFeatures] = {}

    def _open(self, videos: VideoSet) -> VideoReader:
        folder = self._folder.parent / "flow"
        return VideoReader(self.model, list(videos), folder, self.config.data.flow_method)

    def _build_model(self) -> ActivityRecognizer:
        m = self.config.model
        options = {
            "features": m.encoder_features,
            "dropout": m.encoder_dropout,
            "freeze_batch_norm": m.freeze_batch_norm,
        }
        model = ActivityRecognizer(
            m.encoder,
            classes=self._train.classes,
            encoder_weights=m.encoder_weights,
            encoder_options={k: v for k, v in options.items() if v is not None},
            **{
                key: getattr(m, key)
                for key in (
                    "recurrent", "hidden_size", "stream", "sampling", "clip_length", "clip_stride",
                    "feature_norm", "feature_projection", "feature_activation", "frames_per_step",
                    "feature_change", "frame_weights", "caffe_release", "init_scale",
                )
            },
        )  # fmt: skip
        encoder = model.encoder
        cut_frames(encoder, m.encoder_mode, m.encoder_resize)
        if m.init_from is not None:
            first = ActivityRecognizer.from_pretrained(m.init_from).encoder
            if first.name != encoder.name:
                raise ValueError(
                    f"train: model.init_from must hold a {encoder.name}, got a {first.name} in {m.init_from}"
                )
            # A single-frame net may have layers (fc7) above those that the LSTM reads (fc6).
            names = encoder.state_dict().keys()
            held = {k: v for k, v in first.state_dict().items() if k in names}
            encoder.load_state_dict(held)
        return model.to(self.context.device)

    def start(self) -> None:
        """Take the feature statistics of the training videos."""
        if self.model.feature_norm == "standardize":
            self.model.set_feature_statistics(self._cached(True, 1, False).all().to(self.context.device))

    def stage(self, index: int) -> Stage:
        """See ``Task.stage``."""
        phase, model = self.config.phases[index], self.model
        model.encoder.set_trainable(phase.encoder == "train")
        model.dropout = RecognizerDropout(**dataclasses.asdict(phase.dropout))
        stream = ClipStream(
            self._reader.lengths,
            model,
            phase.batch_size,
            (self.config.seed, index),
            mirror=phase.mirror,
            crop=phase.crop and phase.encoder != "cached",
            jitter=phase.jitter,
            rank=self.context.rank,
            world=self.context.world,
        )
        parameters = [
            (name, p)
            for name, p in model.named_parameters()
            if model.encoder.trainable or not name.startswith("encoder.")
        ]
        return Stage(
            _Objective(model, phase.label_smoothing),
            parameters,
            stream.batches_per_epoch,
            lambda start, stop: self._batches(index, stream, start, stop),
            None if self._validation is None else lambda: self._scores(phase),
        )

    def finish(self, index: int) -> None:
        """Forget the features of a CNN that was fine-tuned."""
        if self.config.phases[index].encoder == "train":
            self._features.clear()

    def weights(self) -> dict[str, Tensor]:
        """Without a CNN that stays as it is."""
        state = self.model.state_dict()
        return {k: v for k, v in state.items() if self._trains_encoder or not k.startswith("encoder.")}

    def save(self, folder: Path, details: dict[str, Any]) -> None:
        """Write a bundle."""
        self.model.save_pretrained(folder, details={**details, "videos": len(self._train)})

    # ---- data ---------------------------------------------------------------------------------

    def _cached(self, train: bool, jitter: int, mirror: bool) -> VideoFeatures:
        key = (train, jitter, mirror)
        if key not in self._features:
            reader = self._reader if train else self._validation_reader
            assert reader is not None
            numbers = [self._wanted(n, jitter if train else 0) for n in reader.lengths]
            with self.context.main_first():
                with self.context.report.bar("features", len(reader)) as advance:
                    self._features[key] = VideoFeatures(
                        self.model,
                        reader,
                        numbers,
                        self._folder,
                        mirror=mirror,
                        batch_size=self.config.encode_batch,
                        negate_flow=train or not self.model.caffe_release,
                        progress=advance,
                    )
        return self._features[key]

    def _wanted(self, num_frames: int, jitter: int) -> Any:
        """Frames that training clips may hold, or with jitter 0 those of the test clips; sorted. [n]."""
        model = self.model
        if jitter and model.sampling == "clips":
            return np.arange(num_frames)
        if jitter:
            return np.unique(uniform_indices(num_frames, model.clip_length * jitter))
        return np.unique(model.clips(num_frames))

    def _batches(self, index: int, stream: ClipStream, start: int, stop: int) -> Batches:
        phase, device = self.config.phases[index], self.context.device
        labels = torch.from_numpy(self._train.labels)
        count = float(stream.size * self.model.clip_length)
        cached = None
        if phase.encoder == "cached":
            cached = self._cached(True, phase.jitter, phase.mirror)
        for n in range(start, stop):
            clips = stream[n]
            frames = self._reader.pixels(clips) if cached is None else cached.clips(clips)
            targets = labels[[c.video for c in clips]]
            if phase.mixup > 0:
                rng = np.random.default_rng((self.config.seed, index, n, 2, self.context.rank))
                targets = F.one_hot(targets, len(self.model.classes)).float()
                frames, targets = mix_clips(frames, targets, phase.mixup, rng)
            yield (frames.to(device), targets.to(device)), count

    def _scores(self, phase: RecognitionPhase) -> dict[str, float]:
        assert self._validation is not None
        found = self.predictions(phase.encoder == "cached")
        probabilities = np.stack([found[item.id] for item in self._validation])
        scores = recognition_metrics(self._validation.labels, probabilities)
        return {
            "validation_loss": scores["log_loss"],
            "accuracy": scores["accuracy"],
            "score": scores["accuracy"],
        }

    def predictions(self, use_cache: bool) -> dict[str, list[float]]:
        """Probabilities of the validation videos, by id; the model must be in evaluation mode.

        Args:
            use_cache: Take CNN features from the cache, rather than compute them with the CNN as it is.
        """
        reader, videos = self._validation_reader, self._validation
        assert reader is not None
        assert videos is not None
        # Every process scores its share of the videos.
        share = range(self.context.rank, len(videos), self.context.world)
        found: dict[int, Any] = {}
        cached = self._cached(False, 0, self.config.crops == "mirror") if use_cache else None
        for i in share:
            recognition = self._recognize(reader, i, cached)
            found[i] = recognition.probabilities.tolist()
        parts = [found]
        if self.context.world > 1:
            from accelerate.utils import gather_object

            parts = gather_object(parts)
        merged = {i: p for part in parts for i, p in part.items()}
        return {item.id: merged[i] for i, item in enumerate(videos)}

    def _recognize(self, reader: VideoReader, index: int, cached: VideoFeatures | None) -> Recognition:
        model, N = self.model, reader.lengths[index]
        if cached is None:
            with reader.open(index) as video:
                return model.recognize(video, crops=self.config.crops, batch_size=self.config.encode_batch)
        features = cached.video(index).to(self.context.device)
        return model.recognize_features(features, model.clips(N), N)


def mix_clips(
    frames: Tensor, targets: Tensor, alpha: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mix every clip, and its target, with another of the batch.

    Args:
        frames: [B, T, ...].
        targets: Probabilities of the classes. [B, K].
        alpha: Each clip keeps a part drawn from Beta(alpha, alpha).
        rng: Draws the parts, then who is mixed with whom.
    """
    B = len(frames)
    part = torch.from_numpy(rng.beta(alpha, alpha, B).astype(np.float32))
    other = torch.from_numpy(rng.permutation(B))
    wide = part.view(B, *[1] * (frames.dim() - 1))
    mixed = torch.lerp(frames[other], frames, wide.expand_as(frames))
    return mixed, torch.lerp(targets[other], targets, part[:, None].expand_as(targets))


def read_videos(config: VideoConfig, seed: int) -> tuple[VideoSet, VideoSet | None]:
    """Read the data set and cut it into videos to train on, and those to validate on, if any."""
    if config.format == "ucf101":
        assert config.lists is not None
        everything = read_ucf101(config.videos, config.lists, split=config.split)
    elif config.format == "ut_interaction":
        everything = read_ut_interaction(config.videos)
    elif config.format == "list":
        assert config.lists is not None
        everything = read_video_list(config.lists, config.videos)
    else:
        everything = read_video_folders(config.videos)
    train, validation = everything, None
    if config.train_splits:
        train = everything.split(*config.train_splits)
    if config.validation_splits:
        validation = everything.split(*config.validation_splits)
    elif config.held_out_groups:
        for group in config.held_out_groups:
            if group not in everything.groups:
                raise ValueError(
                    "train: data.held_out_groups must be among "
                    f"{', '.join(everything.groups) or 'none'}, got {group!r}"
                )
        validation = train.filter(lambda item: item.group in config.held_out_groups)
    elif config.validation_fraction > 0:
        one = VideoSet((dataclasses.replace(v, split="train") for v in train), train.classes, train.name)
        cut = one.hold_out(config.validation_fraction, seed=seed)
        train, validation = cut.split("train"), cut.split("val")
    if validation is not None:
        held = {item.id for item in validation}
        train = train.filter(lambda item: item.id not in held)
    if not train:
        raise ValueError("train: the data must leave videos to train on, got none")
    return train, validation

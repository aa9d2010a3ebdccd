"""Configuration of training for activity recognition: the model, the videos, and what a phase may set."""

from dataclasses import dataclass, field

from lrcn_fast.training.config import PhaseConfig, TrainConfig, choice, least

__all__ = ["ModelConfig", "RecognitionConfig", "RecognitionPhase", "RecognizerDropoutConfig", "VideoConfig"]


@dataclass(kw_only=True)
class ModelConfig:
    """What is built: see ``lrcn_fast.models.ActivityRecognizer`` for the meaning of the sizes."""

    encoder: str = "efficientnet_lite0"
    encoder_weights: str | None = "imagenet"
    encoder_features: str | None = None
    """Which features of the CNN; null: its default."""
    encoder_dropout: float | None = field(default=None, metadata=least(0.0, below=1.0))
    """Of the paper's nets, after fc6 and fc7; null: their 0.5."""
    encoder_mode: str = field(default="own", metadata=choice("own", "short", "warp", "centre", "pad"))
    """How a frame becomes a square, see ``Preprocessing``; own: as the network does."""
    encoder_resize: int | None = field(default=None, metadata=least(1))
    """Length R of that mode; null: the network's own."""
    freeze_batch_norm: bool | None = None
    """Keep the stored statistics while the CNN trains; null: yes, if it has weights."""
    init_from: str | None = None
    """A recognizer whose CNN this one starts with, such as the single-frame model of the paper."""
    recurrent: bool = True
    """false: the single-frame baseline."""
    hidden_size: int = field(default=256, metadata=least(1))
    stream: str = field(default="rgb", metadata=choice("rgb", "flow"))
    sampling: str = field(default="clips", metadata=choice("clips", "uniform"))
    clip_length: int = field(default=16, metadata=least(1))
    clip_stride: int = field(default=8, metadata=least(1))
    feature_norm: str = field(default="none", metadata=choice("none", "standardize", "l2"))
    feature_projection: int = field(default=0, metadata=least(0))
    feature_activation: str = field(default="none", metadata=choice("none", "relu", "tanh"))
    frames_per_step: int = field(default=1, metadata=least(1))
    feature_change: str = field(default="none", metadata=choice("none", "first"))
    frame_weights: str = field(default="uniform", metadata=choice("uniform", "linear", "last"))
    init_scale: float = field(default=0.0, metadata=least(0.0))
    """Deviation of the classifier's first weights and bound of the LSTM's, as the release (0.01); 0: torch's
    defaults."""
    caffe_release: bool = False
    """The release's mistakes: clips that are not mirrored are squashed instead of cropped, the first frame is
    never used, the red mean is 128.68, mirrored flow is not negated in tests."""


@dataclass(kw_only=True)
class VideoConfig:
    """Where videos and labels are, and which are trained on."""

    videos: str
    """Their folder."""
    format: str = field(default="folders", metadata=choice("folders", "ucf101", "ut_interaction", "list"))
    """``folders``: one per class; ``ucf101``: the official lists; ``list``: lines ``path label``."""
    lists: str | None = None
    """``ucf101``: folder of the lists; ``list``: the file."""
    split: int = field(default=1, metadata=least(1))
    """Of UCF101: 1, 2 or 3."""
    train_splits: list[str] = field(default_factory=list)
    """Empty: all that is not held out."""
    validation_splits: list[str] = field(default_factory=list)
    held_out_groups: list[str] = field(default_factory=list)
    """Groups of videos (UT-Interaction: sequences) that are validated on."""
    validation_fraction: float = field(default=0.0, metadata=least(0.0, below=1.0))
    """Share cut from the training videos for validation, whole groups where there are any."""
    flow_method: str = "dis"
    """With ``stream: flow``, as ``lrcn_fast.data.optical_flow``."""
    cache: str | None = None
    """Folder of features and flow pictures; default: inside the output folder."""


@dataclass(kw_only=True)
class RecognizerDropoutConfig:
    """Probabilities of inverted dropout, applied in training only."""

    features: float = field(default=0.0, metadata=least(0.0, below=1.0))
    """On what the LSTM reads; the paper: 0.9."""
    output: float = field(default=0.0, metadata=least(0.0, below=1.0))
    """On the LSTM's output; the paper: 0.5."""


@dataclass(kw_only=True)
class RecognitionPhase(PhaseConfig):
    """One stage of training a recognizer; a batch is ``batch_size`` clips of ``clip_length`` frames."""

    encoder: str = field(default="train", metadata=choice("cached", "frozen", "train"))
    """``cached``: features computed once; ``frozen``: computed anew, so that dropout and random crops work;
    ``train``: fine-tuned (``optimizer.multipliers`` choose which layers)."""
    mirror: bool = True
    """Mirror half of the clips, all their frames alike."""
    crop: bool = True
    """Crop clips anywhere, all their frames alike; not with cached features."""
    jitter: int = field(default=1, metadata=least(1))
    """``sampling: uniform``: a training clip has one of this many frames, an odd number, for each of its
    places, drawn anew; 1: always the middle one."""
    mixup: float = field(default=0.0, metadata=least(0.0))
    """Train on mixtures of two clips and of their labels, in parts drawn from Beta(mixup, mixup) (Zhang et
    al., "mixup", ICLR 2018); 0: none."""
    dropout: RecognizerDropoutConfig = field(default_factory=RecognizerDropoutConfig)


@dataclass(kw_only=True)
class RecognitionConfig(TrainConfig):
    """A whole run over an activity recognizer."""

    task: str = field(metadata=choice("recognition"))
    model: ModelConfig
    data: VideoConfig
    phases: list[RecognitionPhase]
    crops: str = field(default="centre", metadata=choice("centre", "mirror", "ten"))
    """Views of a frame that validation averages over."""
    encode_batch: int = field(default=32, metadata=least(1))
    """Frames that the CNN sees at a time where no gradient is needed."""

    def check(self, name: str) -> None:
        """See ``TrainConfig.check``."""
        super().check(name)
        for i, phase in enumerate(self.phases):
            if phase.jitter % 2 == 0:
                raise ValueError(f"{name}: phases[{i}].jitter must be odd, got {phase.jitter}")
            if phase.jitter > 1 and self.model.sampling != "uniform":
                raise ValueError(
                    f"{name}: phases[{i}].jitter must be 1 with sampling 'clips', whose starts are drawn "
                    f"anyway, got {phase.jitter}"
                )
            if phase.encoder == "cached" and self.crops == "ten":
                raise ValueError(
                    f"{name}: crops must be centre or mirror where phases[{i}] has cached features, got 'ten'"
                )
        data = self.data
        if data.format in ("ucf101", "list") and data.lists is None:
            raise ValueError(f"{name}: data.lists must be given with format {data.format!r}, got null")
        chosen = [bool(data.validation_splits), bool(data.held_out_groups), data.validation_fraction > 0]
        if sum(chosen) > 1:
            raise ValueError(
                f"{name}: data must set at most one of validation_splits, held_out_groups and "
                f"validation_fraction, got {sum(chosen)}"
            )

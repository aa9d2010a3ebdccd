"""Configuration of training a video describer, on CRF outputs or on the frames of videos."""

from dataclasses import dataclass, field

from lrcn_fast.training.captioning_config import SearchConfig
from lrcn_fast.training.config import PhaseConfig, TrainConfig, choice, least

__all__ = ["FRAMES", "DescribePhase", "DescriberConfig", "DescribingConfig", "DescribingData"]

FRAMES = ("mean_pool", "frame_lstm")
"""Architectures that see the CNN features of frames; the others see the outputs of a CRF."""


@dataclass(kw_only=True)
class DescriberConfig:
    """What is built: see ``lrcn_fast.models.VideoDescriber``."""

    architecture: str = field(
        default="decoder_prob", metadata=choice("encoder_decoder", "decoder_max", "decoder_prob", *FRAMES)
    )
    embed_dim: int = field(default=256, metadata=least(1))
    hidden_size: int = field(default=256, metadata=least(1))
    dropout: float = field(default=0.0, metadata=least(0.0, below=1.0))
    init_scale: float = field(default=0.0, metadata=least(0.0))
    """Uniform +-scale for every weight and zero biases (the paper: 0.08); 0: torch's defaults."""
    encoder: str = "efficientnet_lite0"
    """This and what follows: for frames. The CNN, which stays as it is."""
    encoder_weights: str | None = "imagenet"
    encoder_features: str | None = None
    """Which features of the CNN; null: its default."""
    encoder_mode: str = field(default="own", metadata=choice("own", "short", "warp", "centre", "pad"))
    """How a frame becomes a square, see ``Preprocessing``; own: as the network does."""
    encoder_resize: int | None = field(default=None, metadata=least(1))
    """Length R of that mode; null: the network's own."""
    num_frames: int = field(default=16, metadata=least(1))
    """Frames of a video, spread evenly, that are seen."""
    feature_norm: str = field(default="none", metadata=choice("none", "standardize", "l2"))
    feature_projection: int = field(default=0, metadata=least(0))
    feature_activation: str = field(default="none", metadata=choice("none", "relu", "tanh"))


@dataclass(kw_only=True)
class DescribingData:
    """Where clips and sentences are, and how sentences are cut."""

    clips: str | None = None
    """CRF outputs: JSON lines, as ``lrcn_fast.data.read_crf_clips`` reads them; null: the made-up kitchen
    corpus."""
    kitchen_clips: int = field(default=2000, metadata=least(10))
    """Without ``clips``: size of the made-up corpus."""
    kitchen_seed: int = field(default=0, metadata=least(0))
    captions: list[str] = field(default_factory=list)
    """Frames: files of sentences about videos, as ``lrcn_fast.data.read_video_captions`` reads them."""
    videos: str | None = None
    """Frames: folder of the videos; null: that of each file of ``captions``."""
    names: str | None = None
    """Frames: lines ``<name of the video> <its name in captions>``, where the two differ (MSVD)."""
    cache: str | None = None
    """Frames: folder of CNN features; null: inside the output folder."""
    train_splits: list[str] = field(default_factory=lambda: ["train"])
    validation_splits: list[str] = field(default_factory=lambda: ["val"])
    """Empty: none."""
    min_count: int = field(default=1, metadata=least(1))
    max_words: int = field(default=20, metadata=least(2))
    """Training sentence length, <EOS> included; a longer one is cut and loses its <EOS>."""


@dataclass(kw_only=True)
class DescribePhase(PhaseConfig):
    """One stage of training; its score is BLEU-4 on the validation clips."""

    mirror: bool = False
    """Frames: mirror half of the clips, all their frames alike."""
    num_beams: int = field(default=3, metadata=least(1))
    max_new_tokens: int = field(default=20, metadata=least(1))


@dataclass(kw_only=True)
class DescribingConfig(TrainConfig):
    """A whole run over a video describer."""

    task: str = field(default="describing", metadata=choice("describing"))
    model: DescriberConfig = field(default_factory=DescriberConfig)
    data: DescribingData = field(default_factory=DescribingData)
    generation: SearchConfig = field(default_factory=SearchConfig)
    phases: list[DescribePhase]
    encode_batch: int = field(default=32, metadata=least(1))
    """Frames that the CNN sees at a time."""

    def check(self, name: str) -> None:
        """See ``TrainConfig.check``."""
        super().check(name)
        architecture, data = self.model.architecture, self.data
        if architecture in FRAMES and not data.captions:
            raise ValueError(f"{name}: data.captions must be given with {architecture!r}, got none")
        other = "clips" if architecture in FRAMES else "captions"
        if getattr(data, other):
            raise ValueError(
                f"{name}: data.{other} must not be given with {architecture!r}, got {getattr(data, other)!r}"
            )
        for i, phase in enumerate(self.phases):
            if phase.mirror and architecture not in FRAMES:
                raise ValueError(f"{name}: phases[{i}].mirror must be false with {architecture!r}, got true")

"""Configuration of training a video describer on CRF outputs."""

from dataclasses import dataclass, field

from lrcn_fast.training.captioning_config import SearchConfig
from lrcn_fast.training.config import PhaseConfig, TrainConfig, choice, least

__all__ = ["DescribePhase", "DescriberConfig", "DescribingConfig", "DescribingData"]


@dataclass(kw_only=True)
class DescriberConfig:
    """What is built: see ``lrcn_fast.models.VideoDescriber``."""

    architecture: str = field(
        default="decoder_prob", metadata=choice("encoder_decoder", "decoder_max", "decoder_prob")
    )
    embed_dim: int = field(default=256, metadata=least(1))
    hidden_size: int = field(default=256, metadata=least(1))
    dropout: float = field(default=0.0, metadata=least(0.0, below=1.0))
    init_scale: float = field(default=0.0, metadata=least(0.0))
    """Uniform +-scale for every weight and zero biases (the paper: 0.08); 0: torch's defaults."""


@dataclass(kw_only=True)
class DescribingData:
    """Where clips are, and how sentences are cut."""

    clips: str | None = None
    """JSON lines, as ``lrcn_fast.data.read_crf_clips`` reads them; null: the made-up kitchen corpus."""
    kitchen_clips: int = field(default=2000, metadata=least(10))
    """Without ``clips``: size of the made-up corpus."""
    kitchen_seed: int = field(default=0, metadata=least(0))
    train_splits: list[str] = field(default_factory=lambda: ["train"])
    validation_splits: list[str] = field(default_factory=lambda: ["val"])
    """Empty: none."""
    min_count: int = field(default=1, metadata=least(1))
    max_words: int = field(default=20, metadata=least(2))
    """Training sentence length, <EOS> included; a longer one is cut and loses its <EOS>."""


@dataclass(kw_only=True)
class DescribePhase(PhaseConfig):
    """One stage of training; its score is BLEU-4 on the validation clips."""

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

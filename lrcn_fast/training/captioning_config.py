"""Configuration of caption training: the model, photos and text, and what a phase of it may set."""

from dataclasses import dataclass, field

from lrcn_fast.training.config import PhaseConfig, TrainConfig, choice, least

__all__ = [
    "CaptionPhase",
    "CaptioningConfig",
    "DataConfig",
    "DropoutConfig",
    "ModelConfig",
    "SearchConfig",
    "TextConfig",
]


@dataclass(kw_only=True)
class ModelConfig:
    """What is built: see ``lrcn_fast.models.Captioner`` for the meaning of the sizes."""

    encoder: str = "efficientnet_lite0"
    encoder_weights: str | None = "imagenet"
    encoder_features: str | None = None
    """Which features of the CNN; null: its default."""
    encoder_resize: int | None = field(default=None, metadata=least(1))
    """Length a photo's side is resized to before the centre crop; null: the network's own. At the network's
    input size the crop keeps as much of the photo as a square can."""
    encoder_dropout: float | None = field(default=None, metadata=least(0.0, below=1.0))
    """Of the paper's nets; active in training even below frozen layers, as in Caffe. null: their 0.5."""
    freeze_batch_norm: bool | None = None
    """Keep the stored statistics while the CNN trains; null: yes, if it has weights."""
    variant: str = field(default="2f", metadata=choice("1u", "2u", "2f"))
    unit: str = field(default="lstm", metadata=choice("lstm", "rnn"))
    embed_dim: int = field(default=256, metadata=least(1))
    hidden_size: int = field(default=384, metadata=least(1))
    tie_weights: bool = False
    feature_norm: str = field(default="standardize", metadata=choice("none", "standardize", "l2"))
    feature_projection: int = field(default=0, metadata=least(0))
    feature_activation: str = field(default="none", metadata=choice("none", "relu", "tanh"))
    init_scale: float = field(default=0.0, metadata=least(0.0))
    """Uniform +-scale for every decoder weight and zero biases, as the paper (0.08); 0: torch's defaults."""
    init_from: str | None = None
    """A bundle to start from; its sizes must be those given here."""


@dataclass(kw_only=True)
class TextConfig:
    """Sentences without photos: for the vocabulary, or for language-model pre-training."""

    path: str
    format: str = "auto"
    exclude: str = field(default="held_out", metadata=choice("held_out", "none"))
    """``held_out`` drops the captions of every photo, by file name, that is not trained on."""
    limit: int = field(default=0, metadata=least(0))
    """Use that many sentences, drawn with the run's seed; 0: all."""


@dataclass(kw_only=True)
class DataConfig:
    """Where photos and captions are, and how they are cut."""

    captions: list[str]
    """One or more files, as ``lrcn_fast.data.read_captions`` reads them."""
    images: str | None = None
    format: str = "auto"
    train_splits: list[str] = field(default_factory=lambda: ["train"])
    validation_splits: list[str] = field(default_factory=list)
    """Splits used for scheduled evaluation; empty: cut from the training photos."""
    validation_fraction: float = field(default=0.1, metadata=least(0.0, below=1.0))
    min_count: int = field(default=5, metadata=least(1))
    max_words: int = field(default=20, metadata=least(2))
    """Training sequence length, <EOS> included; a longer caption is cut and loses its <EOS>."""
    vocabulary_text: list[TextConfig] = field(default_factory=list)
    """Counted for the vocabulary beside the training captions."""
    cache: str | None = None
    """Folder of the feature cache; default: ``features`` inside the output folder."""


@dataclass(kw_only=True)
class DropoutConfig:
    """Probabilities of inverted dropout, applied in training only."""

    features: float = field(default=0.0, metadata=least(0.0, below=1.0))
    embedding: float = field(default=0.0, metadata=least(0.0, below=1.0))
    lstm: float = field(default=0.0, metadata=least(0.0, below=1.0))
    """On the output of every recurrent layer but the last."""
    output: float = field(default=0.0, metadata=least(0.0, below=1.0))
    """On the output of the last recurrent layer."""


@dataclass(kw_only=True)
class SearchConfig:
    """How the trained model searches unless a call says otherwise; see ``GenerationConfig``."""

    num_beams: int = field(default=5, metadata=least(1))
    length_penalty: float = 0.0
    max_new_tokens: int = field(default=20, metadata=least(1))


@dataclass(kw_only=True)
class CaptionPhase(PhaseConfig):
    """One stage of training a captioner."""

    data: str = field(default="captions", metadata=choice("captions", "text"))
    text: list[TextConfig] = field(default_factory=list)
    """With ``data: text``: sources beside the training captions."""
    encoder: str = field(default="cached", metadata=choice("cached", "frozen", "train"))
    """``cached``: features computed once; ``frozen``: computed anew, so that dropout and random crops work;
    ``train``: fine-tuned (``optimizer.multipliers`` choose which layers)."""
    views: int = field(default=1, metadata=least(1))
    """Cached features: views per photo, the plain one first, then random crops and mirror images."""
    augment: bool = False
    """Random crops and mirror images where the CNN runs in training."""
    crop_area: float = field(default=0.6, metadata=least(0.0, exclusive=True, below=1.0001))
    """Smallest part of the photo's area that a random crop keeps."""
    captions_per_image: int = field(default=1, metadata=least(0))
    """Captions of one photo that share a batch; 0: all of them."""
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    num_beams: int = field(default=3, metadata=least(1))
    max_new_tokens: int = field(default=20, metadata=least(1))


@dataclass(kw_only=True)
class CaptioningConfig(TrainConfig):
    """A whole run over a captioner."""

    task: str = field(default="captioning", metadata=choice("captioning"))
    model: ModelConfig
    data: DataConfig
    phases: list[CaptionPhase]
    generation: SearchConfig = field(default_factory=SearchConfig)
    encode_batch: int = field(default=32, metadata=least(1))

    def check(self, name: str) -> None:
        """See ``TrainConfig.check``."""
        super().check(name)
        for i, phase in enumerate(self.phases):
            if phase.data == "text" and phase.encoder == "train":
                raise ValueError(
                    f"{name}: phases[{i}].encoder must be cached or frozen for text, got 'train'"
                )
            k = phase.captions_per_image
            if k and phase.batch_size % k:
                raise ValueError(
                    f"{name}: phases[{i}].batch_size must be a multiple of captions_per_image = {k}, "
                    f"got {phase.batch_size}"
                )
        if self.model.tie_weights and self.model.embed_dim != self.model.hidden_size:
            raise ValueError(
                f"{name}: model.embed_dim must be hidden_size = {self.model.hidden_size} with tie_weights, "
                f"got {self.model.embed_dim}"
            )

"""Training a video describer: clips or videos with sentences, the word loss, BLEU-4."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrcn_fast.data import Vocabulary
from lrcn_fast.evaluation import caption_metrics
from lrcn_fast.models.captioner import Generation, pad_captions
from lrcn_fast.models.describer import VideoDescriber
from lrcn_fast.models.encoders import create_encoder
from lrcn_fast.training.config import TrainConfig
from lrcn_fast.training.data import BatchStream, CaptionData
from lrcn_fast.training.describing_config import FRAMES, DescribePhase, DescribingConfig
from lrcn_fast.training.describing_data import Clips, read_clips
from lrcn_fast.training.encoders import cut_frames
from lrcn_fast.training.tasks import Batches, Context, Stage, Task

__all__ = ["DescribingTask"]

# Sentences per teacher-forced batch of an evaluation.
BATCH = 256


class _Objective(nn.Module):
    """Summed word loss of sentences."""

    def __init__(self, model: VideoDescriber, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self._label_smoothing = label_smoothing

    def forward(self, clips: list[Any], tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.model.loss(clips, tokens, lengths, label_smoothing=self._label_smoothing, reduction="sum")


class DescribingTask(Task):
    """A ``VideoDescriber`` in training; see ``Task``."""

    model: VideoDescriber

    def __init__(self, config: TrainConfig, context: Context) -> None:
        assert isinstance(config, DescribingConfig)
        self.config, self.context = config, context
        self.train_clips, self.validation_clips, nodes = read_clips(config, context)
        self.model = self._build_model(nodes).to(context.device)

    def _build_model(self, nodes: dict[str, tuple[str, ...]]) -> VideoDescriber:
        m = self.config.model
        sentences = [sentence for several in self.train_clips.sentences for sentence in several]
        counted = Vocabulary.from_captions(sentences, min_count=self.config.data.min_count)
        missing = [word for word in VideoDescriber.words(nodes) if word not in counted]
        source: dict[str, Any] = {"nodes": nodes}
        if m.architecture in FRAMES:
            encoder = create_encoder(m.encoder, weights=m.encoder_weights, features=m.encoder_features)
            cut_frames(encoder, m.encoder_mode, m.encoder_resize)
            source = {
                "encoder": encoder,
                "num_frames": m.num_frames,
                "feature_norm": m.feature_norm,
                "feature_projection": m.feature_projection,
                "feature_activation": m.feature_activation,
            }
        return VideoDescriber(
            m.architecture,
            Vocabulary([*counted.words, *missing]),
            **source,
            embed_dim=m.embed_dim,
            hidden_size=m.hidden_size,
            dropout=m.dropout,
            init_scale=m.init_scale,
            generation=Generation(**dataclasses.asdict(self.config.generation)),
        )

    def start(self) -> None:
        """Take the feature statistics of the training videos."""
        if self.config.model.architecture in FRAMES and self.model.feature_norm == "standardize":
            self.train_clips.prepare(self.model, self.context, self.config.phases[0].mirror)
            features = self.train_clips.inputs(range(len(self.train_clips.ids)))
            self.model.set_feature_statistics(torch.cat(features).to(self.context.device))

    def stage(self, index: int) -> Stage:
        """See ``Task.stage``."""
        phase, vocabulary = self.config.phases[index], self.model.vocabulary
        words = self.config.data.max_words
        self.train_clips.prepare(self.model, self.context, phase.mirror)
        if self.validation_clips is not None:
            self.validation_clips.prepare(self.model, self.context, False)
        groups = [
            [vocabulary.encode_target(s, words) for s in several] for several in self.train_clips.sentences
        ]
        stream = BatchStream(
            CaptionData(groups, True),
            phase.batch_size,
            1,
            (self.config.seed, index),
            vocabulary.pad_id,
            self.context.rank,
            self.context.world,
        )

        def batches(start: int, stop: int) -> Batches:
            for n in range(start, stop):
                batch = stream[n]
                mirrored = None
                if phase.mirror:
                    mirrored = (np.random.default_rng(batch.seed).random(len(batch.photos)) < 0.5).tolist()
                clips = self.train_clips.inputs(batch.photos, mirrored)
                yield (
                    ([clips[i] for i in batch.photo_of.tolist()], batch.tokens, batch.lengths),
                    (batch.total_words),
                )

        validation = self.validation_clips
        return Stage(
            _Objective(self.model, phase.label_smoothing),
            [(name, p) for name, p in self.model.named_parameters() if not name.startswith("encoder.")],
            stream.batches_per_epoch,
            batches,
            None if validation is None else lambda: self._scores(phase, validation),
        )

    def weights(self) -> dict[str, Tensor]:
        """Without the CNN, which stays as it is."""
        return {k: v for k, v in self.model.state_dict().items() if not k.startswith("encoder.")}

    def save(self, folder: Path, details: dict[str, Any]) -> None:
        """Write a bundle."""
        self.model.save_pretrained(folder, details={**details, "clips": len(self.train_clips.ids)})

    @torch.no_grad()
    def _scores(self, phase: DescribePhase, clips: Clips) -> dict[str, float]:
        vocabulary, words = self.model.vocabulary, self.config.data.max_words
        inputs = clips.inputs(range(len(clips.ids)))
        pairs = [
            (clip, vocabulary.encode_target(sentence, words))
            for clip, several in zip(inputs, clips.sentences, strict=True)
            for sentence in several
        ]
        loss = 0.0
        for at in range(0, len(pairs), BATCH):
            some, targets = zip(*pairs[at : at + BATCH], strict=True)
            tokens, lengths = pad_captions(targets, vocabulary.pad_id)
            loss += float(self.model.loss(some, tokens, lengths, reduction="sum"))
        found = self.model.describe(inputs, phase.num_beams, max_new_tokens=phase.max_new_tokens)
        candidates = {i: texts[0].text if texts else "" for i, texts in zip(clips.ids, found, strict=True)}
        scores = {k: float(v) for k, v in caption_metrics(clips.references(), candidates).items()}
        mean = loss / sum(len(target) for _, target in pairs)
        return {"validation_loss": mean, **scores, "score": scores["bleu_4"]}

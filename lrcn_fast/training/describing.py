"""Training a video describer on CRF outputs: clips and sentences, the word loss, BLEU-4."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrcn_fast.data import CrfClip, CrfSet, Vocabulary, kitchen_clips, read_crf_clips
from lrcn_fast.evaluation import caption_metrics
from lrcn_fast.models.captioner import Generation, pad_captions
from lrcn_fast.models.describer import VideoDescriber
from lrcn_fast.training.config import TrainConfig
from lrcn_fast.training.data import BatchStream, CaptionData
from lrcn_fast.training.describing_config import DescribePhase, DescribingConfig
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

    def forward(self, clips: list[CrfClip], tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.model.loss(clips, tokens, lengths, label_smoothing=self._label_smoothing, reduction="sum")


class DescribingTask(Task):
    """A ``VideoDescriber`` in training; see ``Task``."""

    model: VideoDescriber

    def __init__(self, config: TrainConfig, context: Context) -> None:
        assert isinstance(config, DescribingConfig)
        self.config, self.context = config, context
        data, m = config.data, config.model
        if data.clips is None:
            clips = kitchen_clips(data.kitchen_clips, seed=data.kitchen_seed)
        else:
            clips = read_crf_clips(data.clips)
        self.clips = _with_sentences(clips.split(*data.train_splits))
        self.validation = (
            _with_sentences(clips.split(*data.validation_splits)) if data.validation_splits else None
        )
        counted = Vocabulary.from_captions(self.clips.sentences(), min_count=data.min_count)
        missing = [word for word in VideoDescriber.words(clips.nodes) if word not in counted]
        self.model = VideoDescriber(
            m.architecture,
            Vocabulary([*counted.words, *missing]),
            nodes=clips.nodes,
            embed_dim=m.embed_dim,
            hidden_size=m.hidden_size,
            dropout=m.dropout,
            init_scale=m.init_scale,
            generation=Generation(**dataclasses.asdict(config.generation)),
        ).to(context.device)

    def stage(self, index: int) -> Stage:
        """See ``Task.stage``."""
        phase, vocabulary = self.config.phases[index], self.model.vocabulary
        words = self.config.data.max_words
        groups = [[vocabulary.encode_target(s, words) for s in clip.sentences] for clip in self.clips]
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
                clips = [self.clips[batch.photos[i]] for i in batch.photo_of.tolist()]
                yield (clips, batch.tokens, batch.lengths), batch.total_words

        validation = self.validation
        return Stage(
            _Objective(self.model, phase.label_smoothing),
            list(self.model.named_parameters()),
            stream.batches_per_epoch,
            batches,
            None if validation is None else lambda: self._scores(phase, validation),
        )

    def save(self, folder: Path, details: dict[str, Any]) -> None:
        """Write a bundle."""
        self.model.save_pretrained(folder, details={**details, "clips": len(self.clips)})

    @torch.no_grad()
    def _scores(self, phase: DescribePhase, clips: CrfSet) -> dict[str, float]:
        vocabulary, words = self.model.vocabulary, self.config.data.max_words
        pairs = [(clip, vocabulary.encode_target(s, words)) for clip in clips for s in clip.sentences]
        loss = 0.0
        for at in range(0, len(pairs), BATCH):
            some, targets = zip(*pairs[at : at + BATCH], strict=True)
            tokens, lengths = pad_captions(targets, vocabulary.pad_id)
            loss += float(self.model.loss(some, tokens, lengths, reduction="sum"))
        found = self.model.describe(clips, phase.num_beams, max_new_tokens=phase.max_new_tokens)
        candidates = {c.id: texts[0].text if texts else "" for c, texts in zip(clips, found, strict=True)}
        scores = {k: float(v) for k, v in caption_metrics(clips.references(), candidates).items()}
        mean = loss / sum(len(target) for _, target in pairs)
        return {"validation_loss": mean, **scores, "score": scores["bleu_4"]}


def _with_sentences(clips: CrfSet) -> CrfSet:
    """The clips that have a sentence; a ValueError if none has."""
    kept = CrfSet(clips.nodes, (clip for clip in clips if clip.sentences), clips.name)
    if not len(kept):
        raise ValueError(f"train: clips of {clips.name} must have sentences, got none")
    return kept

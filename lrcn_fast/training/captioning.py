"""Training a captioner: photos and sentences, the word loss, caption metrics."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrcn_fast.data import CaptionSet, FeatureCache
from lrcn_fast.models.captioner import Captioner, Dropout, Generation
from lrcn_fast.training.captioning_config import CaptioningConfig, CaptionPhase
from lrcn_fast.training.config import TrainConfig
from lrcn_fast.training.data import (
    Batch,
    BatchStream,
    CaptionData,
    build_vocabulary,
    read_splits,
    read_text,
)
from lrcn_fast.training.photos import PhotoReader, require_photos, view_features
from lrcn_fast.training.scoring import score_captions
from lrcn_fast.training.tasks import Batches, Context, Stage, Task

__all__ = ["CaptioningTask"]


class _Objective(nn.Module):
    """Summed word loss of captions, from pixels or features of the photos they share."""

    def __init__(self, model: Captioner, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self._label_smoothing = label_smoothing

    def forward(
        self,
        images: Tensor | None,
        features: Tensor | None,
        photo_of: Tensor,
        tokens: Tensor,
        lengths: Tensor,
    ) -> Tensor:
        if images is not None:
            features = self.model.encode(images)
        if features is not None:
            # An embedding look-up: unlike index_select, its backward adds in a fixed order on GPUs too.
            features = F.embedding(photo_of, features)
        return self.model.loss(
            features, tokens, lengths, label_smoothing=self._label_smoothing, reduction="sum"
        )


class CaptioningTask(Task):
    """A ``Captioner`` in training; see ``Task``."""

    model: Captioner

    def __init__(self, config: TrainConfig, context: Context) -> None:
        assert isinstance(config, CaptioningConfig)
        self.config, self.context = config, context
        train_set, validation, self._held_out = read_splits(config.data, config.seed)
        self.train_items: CaptionSet = train_set
        self.validation_items: CaptionSet | None = validation
        self.model = self._build_model()
        self._trains_encoder = any(p.encoder == "train" for p in config.phases)
        self._cache: dict[Any, Tensor] = {}

    def _build_model(self) -> Captioner:
        m = self.config.model
        options = {
            "features": m.encoder_features,
            "dropout": m.encoder_dropout,
            "freeze_batch_norm": m.freeze_batch_norm,
        }
        sizes = {
            "variant": m.variant,
            "unit": m.unit,
            "embed_dim": m.embed_dim,
            "hidden_size": m.hidden_size,
            "tie_weights": m.tie_weights,
            "feature_norm": m.feature_norm,
            "feature_projection": m.feature_projection,
            "feature_activation": m.feature_activation,
        }
        if m.init_from is None:
            vocabulary = build_vocabulary(self.config, self.train_items, self._held_out)
            model = Captioner(
                m.encoder,
                vocabulary=vocabulary,
                encoder_weights=m.encoder_weights,
                encoder_options={k: v for k, v in options.items() if v is not None},
                init_scale=m.init_scale,
                **sizes,  # type: ignore[arg-type]
            )
        else:
            model = Captioner.from_pretrained(m.init_from)
            held = {**model.config(), "encoder": model.encoder.name}
            for key, value in {**sizes, "encoder": m.encoder}.items():
                if held[key] != value:
                    raise ValueError(
                        f"train: model.{key} must be that of init_from = {held[key]!r}, got {value!r}"
                    )
        if m.encoder_resize is not None:
            encoder = model.encoder
            encoder.preprocessing = dataclasses.replace(encoder.preprocessing, resize=m.encoder_resize)
        model.generation = Generation(**dataclasses.asdict(self.config.generation))
        return model.to(self.context.device)

    def start(self) -> None:
        """Take the feature statistics of the training photos."""
        if self.model.feature_norm == "standardize" and self.config.model.init_from is None:
            self.model.set_feature_statistics(self._features(self.train_items, 1, 1.0)[:, 0])

    def stage(self, index: int) -> Stage:
        """See ``Task.stage``."""
        phase, model = self.config.phases[index], self.model
        stream = BatchStream(
            self._data(phase),
            phase.batch_size,
            phase.captions_per_image,
            (self.config.seed, index),
            model.vocabulary.pad_id,
            self.context.rank,
            self.context.world,
        )
        model.encoder.set_trainable(phase.encoder == "train" and phase.data == "captions")
        model.dropout = Dropout(**dataclasses.asdict(phase.dropout))
        parameters = [
            (name, p)
            for name, p in model.named_parameters()
            if (model.encoder.trainable or not name.startswith("encoder."))
            and (phase.data == "captions" or not name.startswith("feature_projection."))
        ]
        validation = self.validation_items
        return Stage(
            _Objective(model, phase.label_smoothing),
            parameters,
            stream.batches_per_epoch,
            lambda start, stop: self._batches(phase, stream, start, stop),
            None if validation is None else lambda: self._scores(phase, validation),
        )

    def finish(self, index: int) -> None:
        """Forget the features of a CNN that was fine-tuned."""
        if self.config.phases[index].encoder == "train":
            self._cache.clear()

    def weights(self) -> dict[str, Tensor]:
        """Without a CNN that stays as it is."""
        state = self.model.state_dict()
        return {k: v for k, v in state.items() if self._trains_encoder or not k.startswith("encoder.")}

    def save(self, folder: Path, details: dict[str, Any]) -> None:
        """Write a bundle."""
        self.model.save_pretrained(folder, details={**details, "photos": len(self.train_items)})

    # ---- data ---------------------------------------------------------------------------------

    def _data(self, phase: CaptionPhase) -> CaptionData:
        words = self.config.data.max_words
        if phase.data == "captions":
            return CaptionData.from_items(self.train_items, self.model.vocabulary, words)
        sentences = self.train_items.captions()
        for source in phase.text:
            sentences += read_text(source, self._held_out, self.config.seed)
        return CaptionData.from_text(sentences, self.model.vocabulary, words)

    def _features(self, items: CaptionSet, views: int, crop_area: float, keep: bool = True) -> Tensor:
        """CNN features [N, views, C], kept in memory and on disk unless the CNN is about to change."""
        key = (id(items), views, crop_area)
        if key in self._cache:
            return self._cache[key]
        encoder, cache = self.model.encoder, None
        if keep:
            folder = self.config.data.cache or self.context.out / "features"
            cache = FeatureCache(folder, encoder.fingerprint(), encoder.feature_dim)
        # The first process computes and writes, the others read what it wrote.
        with self.context.main_first():
            with self.context.report.bar("features", len(items) * views) as advance:
                features = view_features(
                    self.model,
                    items,
                    views=views,
                    crop_area=crop_area,
                    seed=self.config.seed,
                    batch_size=self.config.encode_batch,
                    cache=cache,
                    progress=advance,
                )
        features = features.to(self.context.device)
        if keep:
            self._cache[key] = features
        return features

    def _batches(self, phase: CaptionPhase, stream: BatchStream, start: int, stop: int) -> Batches:
        device = self.context.device

        def share(batch: Batch, images: Tensor | None, features: Tensor | None) -> tuple[Any, float]:
            captions = (batch.photo_of.to(device), batch.tokens.to(device), batch.lengths)
            return (images, features, *captions), batch.total_words

        if phase.data == "text":
            for n in range(start, stop):
                yield share(stream[n], None, None)
        elif phase.encoder == "cached":
            features = self._features(self.train_items, phase.views, phase.crop_area)
            for n in range(start, stop):
                batch = stream[n]
                view = torch.zeros(len(batch.photos), dtype=torch.int64)
                if phase.views > 1:
                    view = _random_views(batch, phase.views)
                rows = features[torch.tensor(batch.photos, device=device), view.to(device)]
                yield share(batch, None, rows)
        else:
            reader = PhotoReader(self.model, require_photos(self.train_items), phase.crop_area)
            try:
                wanted = (
                    (b.photos, [(*b.seed, i) if phase.augment else None for i in range(len(b.photos))])
                    for b in (stream[n] for n in range(start, stop))
                )
                for n, images in enumerate(reader.ahead(wanted), start):
                    # Half again as fast on a CPU, where most layers are depthwise.
                    yield share(stream[n], images.to(device, memory_format=torch.channels_last), None)
            finally:
                reader.close()

    def _scores(self, phase: CaptionPhase, items: CaptionSet) -> dict[str, float]:
        features: Tensor | None = None
        if phase.data == "captions":
            features = self._features(items, 1, 1.0, keep=phase.encoder != "train")[:, 0]
        return score_captions(
            self.model,
            items,
            features,
            max_words=self.config.data.max_words,
            num_beams=phase.num_beams,
            max_new_tokens=phase.max_new_tokens,
            rank=self.context.rank,
            world=self.context.world,
        )


def _random_views(batch: Batch, views: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(batch.seed).integers(views, size=len(batch.photos)))

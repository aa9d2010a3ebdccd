"""Video description: sentences from the outputs of a CRF, or from the CNN features of frames.

Donahue et al., TPAMI 2017, section 6. All are two-layer, unfactored LRCN decoders over words w; T label
words, T' words of the sentence, its end included:

    encoder_decoder  (a) one LSTM reads the words of the CRF's MAP labels and goes on as the decoder: its
                     inputs are x_1 .. x_T, w_1 .. w_T'-1, and its outputs from step T on are
                     w_1 .. w_T'. That is T + T' - 1 steps.
    decoder_max      (b) v = the one-hot vectors of the MAP labels, one after the other, at every step
    decoder_prob     (c) v = the marginal distributions of the CRF's nodes, at every step

and for people without a CRF, from frames x_1 .. x_N that an image encoder turned into features:

    mean_pool        v = mean of the features, at every step (Venugopalan et al. 2015a)
    frame_lstm       v = last state of an LSTM over the features, at every step. S2VT (Venugopalan et
                     al. 2015b) also reads the frames with an LSTM first, but hands its state over instead.

    b to frame_lstm:  h_t = LSTM2(LSTM1(cat(embed(w_t-1), v))),   p(w_t) = softmax(W h_t + b)

Shapes: B clips, N frames, C features of a frame, F size of v, L words, E embedding, H hidden, V vocabulary.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrcn_fast._captions import Caption, Generation, make_captions
from lrcn_fast.data import CrfClip, Vocabulary, open_video, uniform_indices
from lrcn_fast.decoder import CaptionDecoder
from lrcn_fast.decoding import GenerationConfig
from lrcn_fast.decoding._checks import check_integer
from lrcn_fast.models.bundle import Pretrained
from lrcn_fast.models.conditioning import ConditionedFeatures
from lrcn_fast.models.encoders import Encoder, create_encoder
from lrcn_fast.nn import LSTM

__all__ = ["VideoDescriber"]

CRF = ("encoder_decoder", "decoder_max", "decoder_prob")
FRAMES = ("mean_pool", "frame_lstm")


class VideoDescriber(ConditionedFeatures, Pretrained):
    """Describes video clips in sentences; see the head of this file for the architectures.

    What a clip is depends on the architecture: a ``CrfClip``, or for ``mean_pool`` and ``frame_lstm`` CNN
    features of its frames [N, C], or anything that ``open_video`` takes.

    Args:
        architecture: One of the five.
        vocabulary: A ``Vocabulary``, or its words, most frequent first. For ``encoder_decoder`` it must have
            the words of the labels too (``VideoDescriber.words``).
        nodes: Name of each CRF node -> its labels; with the first three architectures.
        encoder: Name for ``create_encoder``, or a module with its interface; with the other two.
        encoder_weights: "imagenet", None for random ones, or a path. Ignored for a module.
        num_frames: Frames of a video, spread evenly, that are encoded.
        feature_norm: Of the CNN's features, as is what follows. "none"; "standardize": subtract the mean and
            divide by the deviation set by ``set_feature_statistics``; "l2": unit length.
        feature_projection: Size of a learned linear map on them; 0: none.
        feature_activation: "none", "relu" or "tanh", after the projection.
        embed_dim: E.
        hidden_size: H.
        dropout: Probability in training, between the layers and on v.
        init_scale: Uniform +-scale and zero biases (the paper's captioners: 0.08); 0: torch's defaults.
        generation: How ``describe`` searches unless a call says otherwise.

    Raises:
        ValueError: an unknown architecture, nodes or an encoder missing or too many, a size below 1.

    Example:
        >>> model = VideoDescriber.from_pretrained("runs/kitchen/model")
        >>> model.describe(read_crf_clips("clips.jsonl"))[0][0].text
        'The person cuts a carrot on the cutting board.'
    """

    bundle_noun = "a video describer"
    encoder: Any
    stream_kind = "rgb"

    def __init__(
        self,
        architecture: str = "decoder_prob",
        vocabulary: "Vocabulary | Sequence[str] | None" = None,
        *,
        nodes: Mapping[str, Sequence[str]] | None = None,
        encoder: str | nn.Module | None = None,
        encoder_weights: str | None = "imagenet",
        num_frames: int = 16,
        feature_norm: str = "none",
        feature_projection: int = 0,
        feature_activation: str = "none",
        embed_dim: int = 256,
        hidden_size: int = 256,
        dropout: float = 0.0,
        init_scale: float = 0.0,
        generation: Generation | None = None,
    ) -> None:
        super().__init__()
        if architecture not in (*CRF, *FRAMES):
            raise ValueError(
                f"VideoDescriber: architecture must be one of {', '.join((*CRF, *FRAMES))}, "
                f"got {architecture!r}"
            )
        wanted = "nodes" if architecture in CRF else "encoder"
        for name, value in (("nodes", nodes), ("encoder", encoder)):
            if (value is not None) != (name == wanted):
                raise ValueError(
                    f"VideoDescriber: {name} must {'' if name == wanted else 'not '}be given with "
                    f"architecture {architecture!r}, "
                    f"got {'nothing' if value is None else type(value).__name__}"
                )
        for name, size in (
            ("embed_dim", embed_dim),
            ("hidden_size", hidden_size),
            ("num_frames", num_frames),
        ):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"VideoDescriber: {name} must be an integer >= 1, got {size!r}")
        if vocabulary is None:
            raise ValueError("VideoDescriber: vocabulary must be a Vocabulary or a list of words, got None")
        self.vocabulary = (
            vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary.from_words(vocabulary)
        )
        self.architecture = architecture
        self.nodes = {node: tuple(labels) for node, labels in (nodes or {}).items()}
        self.embed_dim, self.hidden_size, self.num_frames = embed_dim, hidden_size, num_frames
        self.dropout = dropout
        self.generation = generation or Generation()
        GenerationConfig(**asdict(self.generation))  # checks it
        self.details: dict[str, Any] = {}
        if isinstance(encoder, str):
            encoder = create_encoder(encoder, weights=encoder_weights)
        self.encoder = encoder
        self.frames = None
        F_ = sum(map(len, self.nodes.values()))
        if architecture == "encoder_decoder":
            F_ = 0
            missing = [w for w in self.words(self.nodes) if w not in self.vocabulary]
            if missing:
                raise ValueError(
                    "VideoDescriber: vocabulary must hold the words of the labels with architecture "
                    f"'encoder_decoder', got none for {', '.join(missing[:5])}"
                )
        elif self.encoder is not None:
            self.set_up_features(feature_norm, feature_projection, feature_activation)
            F_ = self.feature_dim
        if architecture == "frame_lstm":
            self.frames = LSTM(F_, hidden_size, batch_first=True)
            F_ = hidden_size
        V = len(self.vocabulary)
        self.decoder = CaptionDecoder(
            nn.Embedding(V, embed_dim),
            LSTM(embed_dim + F_, hidden_size, num_layers=2, dropout=dropout),
            nn.Linear(hidden_size, V),
            # In (a) the first label word is what CaptionDecoder calls the image, the others its prefix.
            static_layer=0 if F_ else None,
            image_first=not F_,
            feed_bos=bool(F_),
            bos_id=self.vocabulary.bos_id,
            eos_id=self.vocabulary.eos_id,
            pad_id=self.vocabulary.pad_id,
        )
        if init_scale > 0:
            for name, parameter in [*self.decoder.named_parameters(), *self._frame_parameters()]:
                if "bias" in name:
                    nn.init.zeros_(parameter)
                else:
                    nn.init.uniform_(parameter, -init_scale, init_scale)

    def _frame_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [] if self.frames is None else list(self.frames.named_parameters())

    @staticmethod
    def words(nodes: Mapping[str, Sequence[str]]) -> list[str]:
        """The distinct words of all labels, in order of first appearance."""
        from lrcn_fast.data import tokenize

        return list(
            dict.fromkeys(w for labels in nodes.values() for label in labels for w in tokenize(label))
        )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.decoder.projection.weight.device

    @property
    def preprocessing(self) -> Any:
        """From a frame to the CNN's image; with ``mean_pool`` and ``frame_lstm`` only."""
        return self.encoder.preprocessing

    # ---- what the decoder sees of a clip ------------------------------------------------------

    def context(self, clips: Sequence[Any]) -> Tensor:
        """What the decoder sees of each clip at every step; not for ``encoder_decoder``. Returns v [B, F]."""
        if self.architecture in CRF:
            return torch.tensor([self._vector(clip) for clip in clips], device=self.device)
        frames = [self.condition(self.features(clip)) for clip in clips]
        if self.frames is None:
            return torch.stack([x.mean(0) for x in frames])
        lengths = torch.tensor([len(x) for x in frames], device=self.device)
        padded = nn.utils.rnn.pad_sequence(frames, batch_first=True)
        _, (h, _) = self.frames(padded, lengths=lengths)
        return cast(Tensor, h[-1])

    def _vector(self, clip: CrfClip) -> list[float]:
        self._check_clip(clip)
        if self.architecture == "decoder_prob":
            return [p for marginal in clip.marginals for p in marginal]
        pairs = zip(self.nodes.values(), clip.labels, strict=True)
        return [float(label == best) for labels, best in pairs for label in labels]

    def _check_clip(self, clip: CrfClip) -> None:
        sizes = [len(labels) for labels in self.nodes.values()]
        if not isinstance(clip, CrfClip) or [len(p) for p in clip.marginals] != sizes:
            got = [len(p) for p in clip.marginals] if isinstance(clip, CrfClip) else type(clip).__name__
            raise ValueError(
                f"VideoDescriber: clips must be CrfClips with {sizes} labels ({', '.join(self.nodes)}), "
                f"got {got}"
            )

    def label_words(self, clip: CrfClip) -> list[int]:
        """The words of the MAP labels, x_1 .. x_T: the input of ``encoder_decoder``."""
        self._check_clip(clip)
        return [w for label in clip.labels for w in self.vocabulary.encode(label)]

    @torch.no_grad()
    def features(self, clip: Any) -> Tensor:
        """CNN features of a clip's frames: given ones as they are, a video's from the encoder. [N, C]."""
        C = int(self.encoder.feature_dim)
        if isinstance(clip, Tensor) and clip.is_floating_point():
            if clip.ndim != 2 or clip.shape[1] != C or not len(clip):
                raise ValueError(
                    f"VideoDescriber: features must be [N, C] = [N >= 1, {C}], got {list(clip.shape)}"
                )
            return clip.to(self.device)
        with open_video(clip) as video:
            frames = video.frames(uniform_indices(len(video), self.num_frames))
        images = torch.stack([self.encoder.preprocess(frame) for frame in frames])
        return torch.cat([self.encoder(part) for part in torch.split(images.to(self.device), 16)]).float()

    # ---- training -----------------------------------------------------------------------------

    def forward(self, clips: Sequence[Any], tokens: Tensor, lengths: Tensor) -> Tensor:
        """Teacher-forced logits at the real words only.

        Args:
            clips: B clips.
            tokens: Target words; those past ``lengths`` are no targets. [B, L] int64.
            lengths: Words of each sentence, <EOS> included; on the CPU. [B] int64.

        Returns:
            Logits of sentence 0's words, then sentence 1's, ... [sum(lengths), V].
        """
        tokens = tokens.to(self.device)
        if self.architecture != "encoder_decoder":
            v = F.dropout(self.context(clips), self.dropout, self.training)
            logits = self.decoder(tokens, v)
            starts = [0] * len(clips)
        else:
            heads = [self.label_words(clip) for clip in clips]
            starts = [len(head) - 1 for head in heads]
            rows = [torch.cat([tokens.new_tensor(x[1:]), w]) for x, w in zip(heads, tokens, strict=True)]
            first = self.decoder.embedding(tokens.new_tensor([head[0] for head in heads]))
            pad = self.vocabulary.pad_id
            logits = self.decoder(nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad), first)
        spans = zip(starts, lengths.tolist(), strict=True)
        return torch.cat([row[at : at + n] for row, (at, n) in zip(logits, spans, strict=True)])

    def loss(
        self,
        clips: Sequence[Any],
        tokens: Tensor,
        lengths: Tensor,
        *,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> Tensor:
        """Cross-entropy over the words of a batch: their mean, or "sum".

        Raises:
            ValueError: a sentence without words: its <EOS> is one.
        """
        if len(lengths) and int(lengths.min()) < 1:
            raise ValueError(f"VideoDescriber.loss: lengths must be >= 1, got {int(lengths.min())}")
        logits = self(clips, tokens, lengths)
        targets = torch.cat([w[: int(n)] for w, n in zip(tokens, lengths.tolist(), strict=True)])
        return F.cross_entropy(
            logits.float(), targets.to(self.device), label_smoothing=label_smoothing, reduction=reduction
        )

    # ---- inference ----------------------------------------------------------------------------

    @torch.no_grad()
    def describe(
        self,
        clips: Any,
        num_beams: int | None = None,
        *,
        num_return_sequences: int = 1,
        suppress_unk: bool = True,
        batch_size: int = 64,
        **options: Any,
    ) -> list[list[Caption]]:
        """Describe clips.

        Args:
            clips: A list of clips (see the class), or a ``CrfSet``.
            num_beams: Beam width; 1 is greedy. None: the model's own, or ``num_return_sequences`` if more.
            num_return_sequences: Sentences per clip.
            suppress_unk: Never say the unknown word.
            batch_size: Clips at a time. The result does not depend on it.
            **options: Passed on to ``CaptionDecoder.generate``. A length penalty counts the words of the
                labels of ``encoder_decoder`` too: they are steps of the same LSTM. Rules against repeated
                words would forbid the very words of the labels, so that architecture refuses them.

        Returns:
            For each clip, its sentences, best first.

        Raises:
            ValueError: training mode, clips of another kind, or an option out of range.
            NotImplementedError: ``no_repeat_ngram_size`` or ``repetition_penalty`` with ``encoder_decoder``.
        """
        for name, off in (("no_repeat_ngram_size", 0), ("repetition_penalty", 1.0)):
            if self.architecture == "encoder_decoder" and options.get(name, off) != off:
                raise NotImplementedError(
                    f"VideoDescriber.describe: {name} must be {off} with encoder_decoder, whose labels would "
                    f"count as said, got {options[name]}"
                )
        if self.training:
            raise ValueError(
                "VideoDescriber.describe: the model must be in eval mode, got train mode; call .eval()"
            )
        if isinstance(clips, (str, os.PathLike, CrfClip)):
            got = "one CrfClip" if isinstance(clips, CrfClip) else repr(clips)
            raise ValueError(f"VideoDescriber.describe: clips must be a list of clips, got {got}")
        check_integer("VideoDescriber.describe", "batch_size", batch_size, 1)
        suppress = tuple(options.pop("suppress_tokens", ()))
        if suppress_unk and self.vocabulary.unk_id is not None:
            suppress = (*suppress, self.vocabulary.unk_id)
        options = self.generation.options(num_return_sequences, num_beams=num_beams, **options)
        found: list[list[Caption]] = [[] for _ in clips]
        for group, at in self._batches(clips, batch_size):
            inputs, extra, skip = group
            result = self.decoder.generate(inputs, suppress_tokens=suppress, **options, **extra)
            captions = make_captions(
                self.vocabulary.decode,
                result.sequences[..., skip:],
                (result.lengths - skip).clamp_min(0),
                result.scores,
                result.token_logprobs[..., skip:],
            )
            for i, caption in zip(at, captions, strict=True):
                found[i] = caption
        return found

    def _batches(self, clips: Any, size: int) -> Any:
        """((features of the decoder, further options, words to cut off), which clips)."""
        if self.architecture != "encoder_decoder":
            for i in range(0, len(clips), size):
                batch = list(clips[i : i + size])
                yield (self.context(batch), {}, 0), range(i, i + len(batch))
            return
        heads = [self.label_words(clip) for clip in clips]
        by_length: dict[int, list[int]] = {}
        for i, head in enumerate(heads):
            by_length.setdefault(len(head), []).append(i)
        for length, same in sorted(by_length.items()):
            for i in range(0, len(same), size):
                at = same[i : i + size]
                words = torch.tensor([heads[j] for j in at], device=self.device)
                extra = {"prefix_ids": words[:, 1:]} if length > 1 else {}
                yield (self.decoder.embedding(words[:, 0]), extra, length - 1), at

    def prepare(self, dtype: Literal["float32", "bfloat16", "int8"] = "float32") -> "VideoDescriber":
        """Pack the decoder's weights for inference in ``dtype`` and switch to evaluation. Returns self."""
        self.eval()
        self.decoder.prepare(dtype)
        return self

    # ---- files --------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Constructor arguments that are plain values, as ``config.json`` stores them."""
        sizes: dict[str, Any] = {
            "architecture": self.architecture,
            "embed_dim": self.embed_dim,
            "hidden_size": self.hidden_size,
        }
        if self.encoder is None:
            return {**sizes, "nodes": {node: list(labels) for node, labels in self.nodes.items()}}
        return {
            "encoder": self.encoder.config(),
            **sizes,
            "num_frames": self.num_frames,
            **self.feature_config(),
        }

    def settings(self) -> dict[str, Any]:
        """How to search."""
        return {"generation": asdict(self.generation)}

    def card(self) -> tuple[str, str, list[str], str]:
        """See ``Pretrained.card``."""
        facts = [
            f"Embedding {self.embed_dim}, two LSTM layers of {self.hidden_size}, "
            f"{len(self.vocabulary)} words.",
            *(f"CRF node {node}: {len(labels)} labels." for node, labels in self.nodes.items()),
        ]
        example = (
            "from lrcn_fast.data import read_crf_clips\nfrom lrcn_fast.models import VideoDescriber\n\n"
            'model = VideoDescriber.from_pretrained("path/to/this/folder")\n'
        )
        source = 'read_crf_clips("clips.jsonl")' if self.architecture in CRF else '["clip.mp4"]'
        example += f"print(model.describe({source})[0][0].text)"
        return "video-text-to-text", f"LRCN video describer, {self.architecture}", facts, example

    @classmethod
    def from_bundle(
        cls, sizes: dict[str, Any], config: dict[str, Any], vocabulary: Vocabulary | None
    ) -> "VideoDescriber":
        """See ``Pretrained.from_bundle``."""
        if "encoder" in sizes:
            sizes["encoder"] = Encoder.from_config(sizes["encoder"])
        generation = Generation(**config.get("generation", {}))
        return cls(vocabulary=vocabulary, generation=generation, **sizes)

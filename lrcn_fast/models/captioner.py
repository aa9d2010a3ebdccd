"""The LRCN image captioner: a CNN, an embedding, one or two recurrent layers and a vocabulary projection.

Donahue et al., "Long-term Recurrent Convolutional Networks for Visual Recognition and
Description", TPAMI 2017, section 5 and figure 4. With w the words and v the image features:

    1u   h_t = LSTM(cat(embed(w_t-1), v))                         image in the only layer
    2u   h_t = LSTM2(LSTM1(cat(embed(w_t-1), v)))                 image in the bottom layer
    2f   h_t = LSTM2(cat(LSTM1(embed(w_t-1)), v))                 "factored": image in the top layer
    p(w_t | w_<t, v) = softmax(W h_t + b)

The paper's baseline (tables 5 and 6) has plain recurrent layers in the LSTMs' place, section 2 with g = tanh:

    h_t = tanh(W_ih x_t + W_hh h_t-1 + b)

Shapes: B images or captions, L words of the longest caption (<EOS> included), T time, E embedding,
H hidden, F features after normalisation and projection, V vocabulary.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrcn_fast._captions import Caption, Generation, make_captions
from lrcn_fast.data import Vocabulary
from lrcn_fast.decoder import CaptionDecoder
from lrcn_fast.decoding import GenerationConfig
from lrcn_fast.decoding._checks import check_tokens
from lrcn_fast.models.bundle import Pretrained
from lrcn_fast.models.conditioning import ConditionedFeatures
from lrcn_fast.models.encoders import Encoder, create_encoder
from lrcn_fast.nn import LSTM

__all__ = ["Caption", "Captioner", "Generation"]

VARIANTS = {"1u": (1, 0), "2u": (2, 0), "2f": (2, 1)}
"""Variant -> (recurrent layers, the layer that sees the image)."""

UNITS: dict[str, type[nn.Module]] = {"lstm": LSTM, "rnn": nn.RNN}


@dataclass
class Dropout:
    """Training-time dropout probabilities of a ``Captioner``; inverted, so evaluation is the identity."""

    features: float = 0.0
    embedding: float = 0.0
    lstm: float = 0.0  # between the recurrent layers, of either unit
    output: float = 0.0


class Captioner(ConditionedFeatures, Pretrained):
    """An LRCN captioner, trainable end to end and, unless ``unit`` is "rnn", decoded natively.

    Args:
        encoder: Name for ``create_encoder``, or a module with its interface.
        variant: "1u", "2u" or "2f" (see the head of this file).
        vocabulary: A ``Vocabulary``, or its words, most frequent first.
        unit: "lstm", or "rnn" for plain recurrent layers (``torch.nn.RNN``, tanh), which are decoded by the
            same rules in plain PyTorch.
        embed_dim: E.
        hidden_size: H of every layer.
        encoder_weights: "imagenet", None for random ones, or a path. Ignored for a module.
        encoder_options: Further arguments of ``create_encoder``.
        tie_weights: One matrix for embedding and projection (Press and Wolf 2017); E must be H.
        feature_norm: "none"; "standardize": subtract the mean and divide by the deviation set by
            ``set_feature_statistics``; "l2": unit length.
        feature_projection: Size of a learned linear map on the features; 0: none, F is the CNN's.
        feature_activation: "none", "relu" or "tanh", after the projection.
        init_scale: Uniform +-scale and zero biases in the decoder (the paper: 0.08); 0: torch's defaults.
        dropout: Probabilities during training.
        generation: How ``caption`` searches unless a call says otherwise.

    Raises:
        ValueError: an unknown variant, unit, norm or activation, a size below 1, or a search that cannot be.

    Example:
        >>> model = Captioner.from_pretrained("flickr8k-small")
        >>> model.caption(["dog.jpg"])[0][0].text
        'a black dog runs through the grass'
    """

    def __init__(
        self,
        encoder: str | nn.Module = "efficientnet_lite0",
        variant: str = "2f",
        vocabulary: "Vocabulary | Sequence[str] | None" = None,
        *,
        unit: str = "lstm",
        embed_dim: int = 256,
        hidden_size: int = 384,
        encoder_weights: str | os.PathLike[str] | None = "imagenet",
        encoder_options: Mapping[str, Any] | None = None,
        tie_weights: bool = False,
        feature_norm: str = "none",
        feature_projection: int = 0,
        feature_activation: str = "none",
        init_scale: float = 0.0,
        dropout: Dropout | None = None,
        generation: Generation | None = None,
    ) -> None:
        super().__init__()
        _choose("variant", variant, tuple(VARIANTS))
        _choose("unit", unit, tuple(UNITS))
        for name, value, low in (
            ("embed_dim", embed_dim, 1),
            ("hidden_size", hidden_size, 1),
        ):
            if not isinstance(value, int) or value < low:
                raise ValueError(f"Captioner: {name} must be an integer >= {low}, got {value!r}")
        if tie_weights and embed_dim != hidden_size:
            raise ValueError(
                f"Captioner: embed_dim must be hidden_size = {hidden_size} with tie_weights, got {embed_dim}"
            )
        if vocabulary is None:
            raise ValueError("Captioner: vocabulary must be a Vocabulary or a list of words, got None")
        self.vocabulary = (
            vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary.from_words(vocabulary)
        )
        if isinstance(encoder, str):
            encoder = create_encoder(encoder, weights=encoder_weights, **(encoder_options or {}))
        if not isinstance(encoder, nn.Module):
            raise ValueError(f"Captioner: encoder must be a name or a module, got {encoder!r}")
        self.encoder = cast(Any, encoder)
        self.variant, self.unit = variant, unit
        self.embed_dim = embed_dim
        self.hidden_size = hidden_size
        self.tie_weights = tie_weights
        self.dropout = dropout or Dropout()
        self.generation = generation or Generation()
        GenerationConfig(**asdict(self.generation))  # checks it
        self.details: dict[str, Any] = {}

        V = len(self.vocabulary)
        self.set_up_features(feature_norm, feature_projection, feature_activation)
        F_ = self.feature_dim
        num_layers, static_layer = VARIANTS[variant]
        sizes = [embed_dim] + [hidden_size] * (num_layers - 1)
        layers = [
            UNITS[unit](n + (F_ if i == static_layer else 0), hidden_size, batch_first=True)
            for i, n in enumerate(sizes)
        ]
        projection = nn.Linear(hidden_size, V)
        embedding = nn.Embedding(V, embed_dim)
        if tie_weights:
            nn.init.normal_(projection.weight, std=hidden_size**-0.5)
            embedding.weight = projection.weight
        if init_scale > 0:
            for module in (embedding, *layers, projection):
                for name, parameter in module.named_parameters():
                    if "bias" in name:
                        nn.init.zeros_(parameter)
                    else:
                        nn.init.uniform_(parameter, -init_scale, init_scale)
        self.decoder = CaptionDecoder(
            embedding,
            layers,
            projection,
            static_layer=static_layer,
            bos_id=self.vocabulary.bos_id,
            eos_id=self.vocabulary.eos_id,
            pad_id=self.vocabulary.pad_id,
        )

    # ---- features -----------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.decoder.projection.weight.device

    def encode(self, images: Tensor) -> Tensor:
        """CNN features of preprocessed images. [B, 3, S, S] -> [B, C], as the feature cache stores them."""
        features = self.encoder(images)
        assert isinstance(features, Tensor)
        return features

    # ---- training -----------------------------------------------------------------------------

    def forward(self, features: Tensor | None, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Teacher-forced logits at the real positions only.

        The image's share of the layer's input is computed once per caption, not once per word.

        Args:
            features: CNN features of each caption's image, or None for text without images, which then
                counts as the zero vector after normalisation and projection. [B, C].
            tokens: Target words; positions at and past ``lengths`` are never read as targets. [B, L] int64.
            lengths: Words per caption, <EOS> included; on the CPU. [B] int64.

        Returns:
            Logits of caption 0's words, then caption 1's, ... [sum(lengths), V].
        """
        decoder, p, training = self.decoder, self.dropout, self.training
        B, L = tokens.shape
        static = None
        if features is not None:
            static = F.dropout(self.condition(features), p.features, training)
        # Only real words are computed: row n is word words[n] of caption captions[n].
        captions = torch.repeat_interleave(torch.arange(B), lengths)
        words = torch.cat([torch.arange(int(n)) for n in lengths.tolist()])
        rows, captions = (words * B + captions).to(tokens.device), captions.to(tokens.device)
        bos = tokens.new_full((B, 1), self.vocabulary.bos_id)
        inputs = torch.cat([bos, tokens[:, :-1]], dim=1).t().reshape(-1)
        x = F.dropout(decoder.embedding(inputs[rows]), p.embedding, training)  # [sum(lengths), E]
        layers = decoder._weights()
        last = len(layers) - 1
        for i, layer in enumerate(layers):
            if layer.w_static is not None and static is not None:
                # A look-up in an embedding adds up its gradient in a fixed order, on GPUs too.
                of_image = F.embedding(captions, F.linear(static, layer.w_static, layer.bias))
                gates = of_image + F.linear(x, layer.w_x)
            else:
                gates = F.linear(x, layer.w_x, layer.bias)
            gates = gates.new_zeros(L * B, gates.shape[1]).index_copy(0, rows, gates)
            h, _ = layer.run(gates.view(L, B, gates.shape[1]), lengths=lengths.to(tokens.device))
            x = h.reshape(L * B, self.hidden_size).index_select(0, rows)
            x = F.dropout(x, p.output if i == last else p.lstm, training)
        logits = decoder.projection(x)
        assert isinstance(logits, Tensor)
        return logits

    def loss(
        self,
        features: Tensor | None,
        tokens: Tensor,
        lengths: Tensor,
        *,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> Tensor:
        """Cross-entropy over the words of a batch: their mean, as in Caffe's SoftmaxWithLoss, or "sum"."""
        logits = self(features, tokens, lengths)
        targets = torch.cat([tokens[b, : int(n)] for b, n in enumerate(lengths.tolist())])
        return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing, reduction=reduction)

    # ---- inference ----------------------------------------------------------------------------

    @torch.no_grad()
    def features(self, images: Any, *, batch_size: int = 16) -> Tensor:
        """CNN features of photos (see ``caption`` for what ``images`` may be). Returns [B, C]."""
        self._require_eval("features")
        if isinstance(images, Tensor):
            if images.dim() != 4 or images.shape[1] != 3:
                raise ValueError(
                    f"Captioner: images must be preprocessed, [B, 3, S, S], got {list(images.shape)}"
                )
            parts: Iterable[Tensor] = torch.split(images, batch_size)
        else:
            photos = [images] if isinstance(images, (str, os.PathLike)) or not _is_list(images) else images
            parts = (
                torch.stack([self.encoder.preprocess(photo) for photo in photos[i : i + batch_size]])
                for i in range(0, len(photos), batch_size)
            )
        features = [self.encode(part.to(self.device)).float() for part in parts]
        if not features:
            return torch.zeros(0, int(self.encoder.feature_dim), device=self.device)
        return torch.cat(features)

    @torch.no_grad()
    def caption(
        self,
        images: Any = None,
        num_beams: int | None = None,
        *,
        num_return_sequences: int = 1,
        features: Tensor | None = None,
        suppress_unk: bool = True,
        batch_size: int = 16,
        **options: Any,
    ) -> list[list[Caption]]:
        """Caption photos.

        Args:
            images: A photo or a list of photos: paths, ``PIL.Image``, arrays [height, width, 3] of uint8; or
                a preprocessed tensor [B, 3, S, S].
            num_beams: Beam width; 1 is greedy. None: the model's own, or ``num_return_sequences`` if more.
            num_return_sequences: Captions per photo.
            features: CNN features [B, C] instead of images.
            suppress_unk: Never say the unknown word.
            batch_size: Photos encoded at a time. The result does not depend on it.
            **options: Passed on to ``CaptionDecoder.generate``: ``do_sample``, ...; ``length_penalty`` and
                ``max_new_tokens`` default to the model's own (``generation``).

        Returns:
            For each photo, its captions, best first; fewer than asked where there are no more distinct ones.

        Raises:
            ValueError: a file that is not a photo, or an option out of range.
        """
        self._require_eval("caption")
        if (images is None) == (features is None):
            raise ValueError("Captioner.caption: exactly one of images and features must be given")
        if features is None:
            features = self.features(images, batch_size=batch_size)
        suppress = check_tokens(options.pop("suppress_tokens", ()))
        if suppress_unk and self.vocabulary.unk_id is not None:
            suppress = (*suppress, self.vocabulary.unk_id)
        result = self.decoder.generate(
            self.condition(features.to(self.device)),
            suppress_tokens=suppress,
            **self.generation.options(num_return_sequences, num_beams=num_beams, **options),
        )
        return self.to_captions(result)

    def to_captions(self, result: Any) -> list[list[Caption]]:
        """Words of a ``DecodeResult``; hypotheses that do not exist (score -inf) are left out."""
        return make_captions(
            self.vocabulary.decode, result.sequences, result.lengths, result.scores, result.token_logprobs
        )

    @torch.no_grad()
    def log_likelihood(
        self,
        images: Any,
        captions: Sequence[str],
        *,
        features: Tensor | None = None,
        end_marker: bool = True,
        batch_size: int = 1024,
        progress: Callable[[int, int], object] | None = None,
    ) -> Tensor:
        """Log-probability of every caption for every image.

        Memory grows with ``batch_size``, not with the number of images, captions or words.

        Args:
            images: Photos as for ``caption``; None with ``features``.
            captions: Sentences; unknown words count as <unk>.
            features: CNN features [B, C] instead of images.
            end_marker: Whether the end of the sentence is scored too. The paper's release leaves it out.
            batch_size: See ``CaptionDecoder.pairwise_log_likelihood``.
            progress: Called with the pairs done and the pairs in all, after every block of pairs.

        Returns:
            [images, captions], float32.
        """
        self._require_eval("log_likelihood")
        if (images is None) == (features is None):
            raise ValueError("Captioner.log_likelihood: exactly one of images and features must be given")
        if isinstance(captions, str):
            raise ValueError(f"Captioner.log_likelihood: captions must be a list, got {captions!r}")
        if features is None:
            features = self.features(images)
        if not bool(features.isfinite().all()):
            raise ValueError("Captioner.log_likelihood: features must be finite, got NaN or infinity")
        end = [self.vocabulary.eos_id] if end_marker else []
        return self.decoder.pairwise_log_likelihood(
            [self.vocabulary.encode(c) + end for c in captions],
            self.condition(features.to(self.device)),
            batch_size=batch_size,
            progress=progress,
        ).float()

    def prepare(self, dtype: Literal["float32", "bfloat16", "int8"] = "float32") -> "Captioner":
        """Pack the decoder's weights for inference in ``dtype`` and switch to evaluation. Returns self.

        Raises:
            NotImplementedError: see ``CaptionDecoder.prepare``; ``unit="rnn"`` takes only float32.
        """
        self.eval()
        self.decoder.prepare(dtype)
        return self

    def _require_eval(self, method: str) -> None:
        if self.training:
            raise ValueError(
                f"Captioner.{method}: the model must be in eval mode, got train mode; call .eval()"
            )

    # ---- files --------------------------------------------------------------------------------

    bundle_noun = "a captioner"

    def config(self) -> dict[str, Any]:
        """Constructor arguments that are plain values, as ``config.json`` stores them."""
        return {
            "encoder": self.encoder.config(),
            "variant": self.variant,
            "unit": self.unit,
            "embed_dim": self.embed_dim,
            "hidden_size": self.hidden_size,
            "tie_weights": self.tie_weights,
            **self.feature_config(),
        }

    def settings(self) -> dict[str, Any]:
        """See ``Pretrained``."""
        return {"generation": asdict(self.generation)}

    def ties(self) -> dict[str, str]:
        """See ``Pretrained``."""
        return {"decoder.embedding.weight": "decoder.projection.weight"} if self.tie_weights else {}

    def card(self) -> tuple[str, str, list[str], str]:
        """See ``Pretrained``."""
        search = self.generation
        facts = [
            f"Decoder: embedding {self.embed_dim}, {self.unit.upper()} layers of {self.hidden_size}, "
            f"{len(self.vocabulary)} words.",
            f"Search unless told otherwise: beam {search.num_beams}, length penalty "
            f"{search.length_penalty:g}.",
        ]
        example = (
            "from lrcn_fast.models import Captioner\n\n"
            'model = Captioner.from_pretrained("path/to/this/folder")\n'
            'print(model.caption(["photo.jpg"])[0][0].text)'
        )
        return "image-to-text", f"LRCN_{self.variant} image captioner", facts, example

    @classmethod
    def from_bundle(
        cls, sizes: dict[str, Any], config: dict[str, Any], vocabulary: Vocabulary | None
    ) -> "Captioner":
        """See ``Pretrained``."""
        encoder = Encoder.from_config(sizes.pop("encoder", None))
        # Bundles of before this key searched as Generation() does.
        generation = Generation(**config.get("generation", {}))
        return cls(encoder, vocabulary=vocabulary, generation=generation, **sizes)


def pad_captions(captions: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Word ids as one tensor. Returns tokens [B, L] and lengths [B], both int64 on the CPU."""
    lengths = torch.tensor([len(c) for c in captions], dtype=torch.int64)
    tokens = torch.full(
        (len(captions), int(lengths.max()) if len(captions) else 0), pad_id, dtype=torch.int64
    )
    for row, c in zip(tokens, captions, strict=True):
        row[: len(c)] = torch.tensor(c, dtype=torch.int64)
    return tokens, lengths


def _choose(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"Captioner: {name} must be one of {', '.join(choices)}, got {value!r}")


def _is_list(images: object) -> bool:
    return isinstance(images, (list, tuple))

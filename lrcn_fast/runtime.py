"""Inference over numpy arrays, without torch.

Notation used for shapes:
    B  images    n  captions per image    P  prefix words    L  P + max_new_tokens
    V  vocabulary    E  embedding    H  hidden size    F  image features
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

try:
    from lrcn_fast import _runtime
except ImportError as error:
    raise ImportError(
        "lrcn_fast was built without its numpy runtime (LRCN_RUNTIME=OFF): reinstall it with LRCN_RUNTIME=ON"
    ) from error

from lrcn_fast._runtime_captioner import Captioner

__all__ = ["Captioner", "DecodeResult", "Decoder", "LayerWeights", "LstmStream", "isa"]

LstmStream = _runtime.LstmStream

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_TABLE_LIMIT = 256 * 2**20
_EARLY_STOPPING = {False: 0, True: 1, "never": 2}


def isa() -> str:
    """The instruction set that the kernels run on: generic, avx2 or avx512."""
    name: str = _runtime.isa()
    return name


class LayerWeights(NamedTuple):
    """Parameters of one LSTM layer, as ``torch.nn.LSTM`` stores them: gates i, f, g, o. float32."""

    weight_ih: Floats  # [4H, input], or [4H, input + F] for the layer with the static input
    weight_hh: Floats  # [4H, H]
    bias_ih: Floats | None = None  # [4H]
    bias_hh: Floats | None = None  # [4H]


@dataclass(frozen=True, eq=False)
class DecodeResult:
    """Captions of B images, n for each, best first. As :class:`lrcn_fast.DecodeResult`, in numpy."""

    sequences: Ints  # words, then pad_id [B, n, L]
    lengths: Ints  # words of each, prefix and EOS included; 0 where fewer than n were found [B, n]
    scores: Floats  # [B, n]
    token_logprobs: Floats  # [B, n, L]

    def tokens(self, image: int, rank: int = 0) -> list[int]:
        """The words of one caption, without padding."""
        return [int(word) for word in self.sequences[image, rank, : self.lengths[image, rank]]]


class Decoder:
    """A caption decoder: embedding, LSTM layers, vocabulary projection; the image as one more input.

    The weights are copied and packed when it is made. It can be used from several threads at once.

    Args:
        embedding: One row per word. [V, E].
        layers: The LSTM layers, bottom up.
        projection: Weight of the vocabulary projection. [V, H].
        projection_bias: Its bias. [V].
        static_layer: The layer whose input is ``cat(x, features)`` at every step.
        image_first: The features are layer 0's input before the first word.
        feed_bos: Whether BOS is fed. If not, the first word is predicted from the image step.
        bos_id: The word that is fed first.
        eos_id: The word that ends a caption.
        pad_id: Fills sequences after their end.
        dtype: How the weights are stored: float32, bfloat16 or int8. The arithmetic is float32.
        table_limit: The input term of every word is computed once, now, when that takes at most this many
            bytes: ``V * 4H * 4``.

    Raises:
        ValueError: A weight has the wrong shape or is not float32.

    Example:
        >>> import numpy as np
        >>> random = np.random.default_rng(0)
        >>> weight = lambda *shape: random.standard_normal(shape, dtype=np.float32)
        >>> layer = LayerWeights(weight(32, 8 + 4), weight(32, 8))
        >>> decoder = Decoder(weight(10, 8), [layer], weight(10, 8), static_layer=0)
        >>> decoder.generate(weight(2, 4), num_beams=3, max_new_tokens=6).sequences.shape
        (2, 1, 6)
    """

    def __init__(
        self,
        embedding: Floats,
        layers: Sequence[LayerWeights | tuple[Floats | None, ...]],
        projection: Floats,
        projection_bias: Floats | None = None,
        *,
        static_layer: int | None = None,
        image_first: bool = False,
        feed_bos: bool = True,
        bos_id: int = 0,
        eos_id: int = 0,
        pad_id: int = 0,
        dtype: str = "float32",
        table_limit: int = _TABLE_LIMIT,
    ) -> None:
        weights = [LayerWeights(*layer) for layer in layers]  # type: ignore[arg-type]
        self.feed_bos = feed_bos
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.pad_id = pad_id
        self._engine = _runtime.Decoder(
            np.ascontiguousarray(embedding),
            [np.ascontiguousarray(layer.weight_ih) for layer in weights],
            [np.ascontiguousarray(layer.weight_hh) for layer in weights],
            [_sum(layer.bias_ih, layer.bias_hh) for layer in weights],
            np.ascontiguousarray(projection),
            None if projection_bias is None else np.ascontiguousarray(projection_bias),
            static_layer=-1 if static_layer is None else static_layer,
            image_first=image_first,
            dtype=dtype,
            table_limit=table_limit,
        )

    @property
    def vocab_size(self) -> int:
        """V."""
        size: int = self._engine.vocab_size
        return size

    @property
    def feature_dim(self) -> int | None:
        """Columns of the features, None for a language model."""
        size: int = self._engine.feature_dim
        return size or None

    def generate(
        self,
        features: Floats | None = None,
        *,
        num_beams: int = 5,
        num_return_sequences: int = 1,
        max_new_tokens: int = 20,
        min_new_tokens: int = 0,
        length_penalty: float = 0.0,
        early_stopping: bool | Literal["never"] = False,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        no_repeat_ngram_size: int = 0,
        repetition_penalty: float = 1.0,
        suppress_tokens: Sequence[int] = (),
        prefix_ids: Ints | Sequence[int] | Sequence[Sequence[int]] | None = None,
        compat: str = "hf",
        generator: np.random.Generator | None = None,
        batch_size: int | None = None,
    ) -> DecodeResult:
        """Describe images: beam search, greedy search (``num_beams=1``) or sampling (``do_sample=True``).

        The same captions as ``lrcn_fast.CaptionDecoder.generate``, bit for bit; sampling draws its numbers
        from numpy instead of torch.

        Args:
            features: One row per image, None for a language model. float32 [B, F].
            num_beams: Hypotheses kept per image, 1 to 1024; 1 is greedy.
            num_return_sequences: Captions per image, n.
            max_new_tokens: Words after the prefix, at most.
            min_new_tokens: EOS is banned before this many.
            length_penalty: Scores are sums of log-probabilities over ``length**length_penalty``.
            early_stopping: When a beam search stops: False, True or "never", as in Hugging Face's.
            do_sample: Draw n captions, likeliest first.
            temperature: Of the draws. Divides the logits; multiplies them with ``compat="caffe"``.
            top_k: Draw from the likeliest ``top_k`` words; 0 is all.
            top_p: Draw from the shortest head of the words, likeliest first, with this much probability.
            no_repeat_ngram_size: No n-gram of this size twice; 0 is off.
            repetition_penalty: On words already used; 1 is off.
            suppress_tokens: Words that are never generated.
            prefix_ids: Words that the captions start with. [P] or [B, P].
            compat: "hf", or "caffe" for the rules of LRCN's release.
            generator: Source of the draws; a fresh one each call unless given.
            batch_size: B for a language model, 1 unless given.

        Returns:
            n captions per image, best first.

        Raises:
            ValueError: An argument is out of range, features are not finite, or every word is banned.
            NotImplementedError: A ``compat`` that is not supported.
        """
        if compat not in ("hf", "caffe"):
            raise NotImplementedError(f"generate: compat must be hf or caffe, got {compat!r}")
        if early_stopping not in _EARLY_STOPPING:
            raise ValueError(
                f'generate: early_stopping must be True, False or "never", got {early_stopping!r}'
            )
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"generate: temperature must be a finite number above 0, got {temperature}")
        if compat == "caffe" and length_penalty != 0:
            raise ValueError(
                'generate: length_penalty must be 0 with compat="caffe", which has none, '
                f"got {length_penalty}"
            )
        B = _batch(features, batch_size)
        common = {
            "batch": B,
            "prefix": None if prefix_ids is None else _prefix(prefix_ids, B),
            "feed_bos": self.feed_bos,
            "bos": self.bos_id,
            "eos": self.eos_id,
            "pad": self.pad_id,
            "max_new": max_new_tokens,
            "min_new": min_new_tokens,
            "no_repeat_ngram": no_repeat_ngram_size,
            "repetition_penalty": repetition_penalty,
            "suppress": list(suppress_tokens),
            "length_penalty": length_penalty,
        }
        if not do_sample and num_beams > 1:
            found = self._engine.beam(
                features,
                num_beams=num_beams,
                num_return=num_return_sequences,
                early_stopping=_EARLY_STOPPING[early_stopping],
                in_slot=compat == "caffe",
                **common,
            )
            return DecodeResult(*found)
        uniforms = None
        if do_sample:
            if num_return_sequences < 1:
                raise ValueError(
                    f"generate: num_return_sequences must be at least 1, got {num_return_sequences}"
                )
            source = np.random.default_rng() if generator is None else generator
            uniforms = source.random((B, num_return_sequences, max(max_new_tokens, 0)))
        elif num_beams != 1 or num_return_sequences != 1:
            raise ValueError(
                "generate: num_beams must be in 1..1024 and num_return_sequences in 1..num_beams, "
                f"got {num_beams} and {num_return_sequences}"
            )
        scale = temperature if compat == "caffe" else 1.0 / temperature
        found = self._engine.sample(
            features, uniforms=uniforms, logit_scale=scale, top_k=top_k, top_p=top_p, **common
        )
        return DecodeResult(*found)


def _sum(first: Floats | None, second: Floats | None) -> Floats | None:
    """``first + second``, where either may be missing."""
    if first is None or second is None:
        only = second if first is None else first
        return None if only is None else np.ascontiguousarray(only)
    return np.ascontiguousarray(first + second)


def _batch(features: Floats | None, batch_size: int | None) -> int:
    if features is None:
        return 1 if batch_size is None else batch_size
    if features.ndim != 2:
        raise ValueError(f"generate: features must be [B, F], got shape {features.shape}")
    if batch_size is not None and batch_size != features.shape[0]:
        raise ValueError(f"generate: batch_size must be None or B = {features.shape[0]}, got {batch_size}")
    return int(features.shape[0])


def _prefix(prefix_ids: Ints | Sequence[int] | Sequence[Sequence[int]], B: int) -> Ints:
    prefix = np.asarray(prefix_ids)
    if prefix.ndim not in (1, 2) or (prefix.ndim == 2 and prefix.shape[0] != B):
        raise ValueError(f"generate: prefix_ids must be [P] or [B, P] with B = {B}, got shape {prefix.shape}")
    if prefix.size > 0 and prefix.dtype.kind not in "iu":
        raise ValueError(f"generate: prefix_ids must have an integer dtype, got {prefix.dtype}")
    return np.ascontiguousarray(np.broadcast_to(prefix.astype(np.int64), (B, prefix.shape[-1])))

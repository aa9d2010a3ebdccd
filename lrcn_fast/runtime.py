"""Inference over numpy arrays, without torch.

Notation used for shapes:
    B  images    n  captions per image    P  prefix words    L  P + max_new_tokens
    V  vocabulary    E  embedding    H  hidden size    F  image features
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

try:
    from lrcn_fast import _runtime
except ImportError as error:
    raise ImportError(
        "lrcn_fast was built without its numpy runtime (LRCN_RUNTIME=OFF): reinstall it with LRCN_RUNTIME=ON"
    ) from error

from lrcn_fast._runtime_captioner import Captioner
from lrcn_fast.decoding._checks import (
    check_batch_size,
    check_dtype,
    check_integer,
    check_layout,
    check_words,
    shown,
)
from lrcn_fast.decoding.config import GenerationConfig

__all__ = ["Captioner", "DecodeResult", "Decoder", "LayerWeights", "LstmStream", "isa"]

LstmStream = _runtime.LstmStream

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_TABLE_LIMIT = 256 * 2**20
_EARLY_STOPPING = {False: 0, True: 1, "never": 2}


def isa() -> str:
    """The instruction set that the kernels run on: generic, avx2, avx512, avx512_vnni or avx512_bf16.

    The CPU's best, or what the environment variable LRCN_FAST_ISA asks for. avx512_bf16 is the best where a
    CPU has AVX512_BF16, but on Intel's, where float32 multiplies bfloat16 weights faster: there it is
    avx512_vnni.
    """
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
        dtype: How the weights are stored: float32, bfloat16 or int8 (those that meet an image once, not at
            every step, as bfloat16). The arithmetic is float32, but for products with int8 weights, whose
            other factor is rounded to 8-bit integers (7 bits without VNNI) with a scale per 128 values, and
            with bfloat16 weights where :func:`isa` is avx512_bf16, whose other factor is rounded to bfloat16.
            A copy of the projection stays in float32: the words that a search chooses among are scored with
            it.
        table_limit: The input term of every word is computed once, now, when that takes at most this many
            bytes: ``V * 4H * 4``.
        threads: Threads that share a search, 0 for as many as there are cores. The captions are the same. One
            call of the runtime at a time has more than its own: to describe many images at once, call it from
            as many threads instead.

    Raises:
        ValueError: A weight has the wrong shape or is not float32, or options contradict each other.

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
        threads: int = 1,
    ) -> None:
        weights = _layers(layers)
        check_layout("Decoder", len(weights), static_layer, image_first, feed_bos)
        check_dtype("Decoder", dtype)
        self._engine = _runtime.Decoder(
            _contiguous(embedding),
            [_contiguous(layer.weight_ih) for layer in weights],
            [_contiguous(layer.weight_hh) for layer in weights],
            [_bias(index, layer) for index, layer in enumerate(weights)],
            _contiguous(projection),
            _contiguous(projection_bias),
            static_layer=-1 if static_layer is None else static_layer,
            image_first=image_first,
            dtype=dtype,
            table_limit=check_integer("Decoder", "table_limit", table_limit, 0, 2**63 - 1),
            threads=threads,
        )
        check_words("Decoder", self.vocab_size, bos_id, eos_id, pad_id)
        self.feed_bos, self.bos_id, self.eos_id, self.pad_id = feed_bos, bos_id, eos_id, pad_id

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
        num_beam_groups: int = 1,
        diversity_penalty: float = 0.0,
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
            num_beam_groups: Only 1 so far.
            diversity_penalty: 0 with one group.
            compat: "hf", or "caffe" for the rules of LRCN's release.
            generator: Source of the draws; a fresh one each call unless given.
            batch_size: B for a language model, 1 unless given.

        Returns:
            n captions per image, best first.

        Raises:
            ValueError: An argument is out of range, features are not finite, or every word is banned.
            NotImplementedError: An option that is valid, and not supported yet.
        """
        config = GenerationConfig(
            num_beams=num_beams,
            num_return_sequences=num_return_sequences,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            no_repeat_ngram_size=no_repeat_ngram_size,
            repetition_penalty=repetition_penalty,
            suppress_tokens=suppress_tokens,
            prefix_ids=prefix_ids,
            num_beam_groups=num_beam_groups,
            diversity_penalty=diversity_penalty,
            compat=compat,
            generator=generator,
        )
        config.check_vocabulary(self.vocab_size, self.eos_id)
        if generator is not None and not isinstance(generator, np.random.Generator):
            raise ValueError(f"generate: generator must be a numpy.random.Generator, got {shown(generator)}")
        self._check_features(features)
        B = check_batch_size(batch_size, None if features is None else features.shape[0])
        common = {
            "batch": B,
            "prefix": config.prefix(B),
            "feed_bos": self.feed_bos,
            "bos": self.bos_id,
            "eos": self.eos_id,
            "pad": self.pad_id,
            "max_new": config.max_new_tokens,
            "min_new": config.min_new_tokens,
            "no_repeat_ngram": config.no_repeat_ngram_size,
            "repetition_penalty": config.repetition_penalty,
            "suppress": config.suppress_tokens,
            "length_penalty": config.length_penalty,
        }
        features = _contiguous(features)
        if not config.do_sample and config.num_beams > 1:
            found = self._engine.beam(
                features,
                num_beams=config.num_beams,
                num_return=config.num_return_sequences,
                early_stopping=_EARLY_STOPPING[config.early_stopping],
                in_slot=config.compat == "caffe",
                **common,
            )
            return DecodeResult(*found)
        uniforms = None
        if config.do_sample:
            source = np.random.default_rng() if generator is None else generator
            uniforms = source.random((B, config.num_return_sequences, config.max_new_tokens))
        found = self._engine.sample(
            features,
            uniforms=uniforms,
            logit_scale=config.logit_scale,
            top_k=config.top_k,
            top_p=config.top_p,
            **common,
        )
        return DecodeResult(*found)

    def _check_features(self, features: Floats | None) -> None:
        F = self.feature_dim
        if F is None and features is not None:
            raise ValueError(
                "generate: features must be None without static_layer and image_first, "
                f"got {_described(features)}"
            )
        if F is not None and (
            not isinstance(features, np.ndarray) or features.ndim != 2 or features.shape[1] != F
        ):
            raise ValueError(f"generate: features must be [B, F] = [B, {F}], got {_described(features)}")


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {list(value.shape)}"
    return "None" if value is None else type(value).__name__


def _contiguous(value: Any) -> Any:
    """An array in the order that the engine reads; what is no array as it is, for the engine's own check."""
    return np.ascontiguousarray(value) if isinstance(value, np.ndarray) and value.ndim > 0 else value


def _layers(layers: Any) -> list[LayerWeights]:
    try:
        rows = [tuple(layer) for layer in layers]
    except TypeError:
        raise ValueError(
            f"Decoder: layers must be a sequence of LayerWeights, got {type(layers).__name__}"
        ) from None
    for index, row in enumerate(rows):
        if not 2 <= len(row) <= 4:
            raise ValueError(
                f"Decoder: layers[{index}] must be (weight_ih, weight_hh, bias_ih, bias_hh), "
                f"the last two optional, got {len(row)} values"
            )
    return [LayerWeights(*row) for row in rows]


def _bias(index: int, layer: LayerWeights) -> Any:
    """``bias_ih + bias_hh``, where either may be missing."""
    given = [bias for bias in (layer.bias_ih, layer.bias_hh) if bias is not None]
    if len(given) < 2:
        return _contiguous(given[0]) if given else None
    shapes = [bias.shape if isinstance(bias, np.ndarray) else None for bias in given]
    if shapes[0] is None or shapes[0] != shapes[1]:
        raise ValueError(
            f"Decoder: layers[{index}] must have biases of one shape [4H], "
            f"got {_described(given[0])} and {_described(given[1])}"
        )
    return given[0] + given[1]

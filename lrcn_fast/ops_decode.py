"""Functional interface to the native decoder: pack a caption decoder once, then search with it.

On the CPU, and on CUDA where the package was built with it.

The rules of the searches are those of :mod:`lrcn_fast.reference_search`, and in float32 so are the results.

Notation used for shapes:
    B  images    n  captions per image    K  beams    P  prefix words    L  P + max_new_tokens
    V  vocabulary    E  embedding    H  hidden size    F  image features
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

import lrcn_fast._library  # noqa: F401  (registers the operators)
from lrcn_fast._packed_sizes import cuda_decoder_bytes, decoder_bytes

__all__ = ["TABLE_LIMIT", "decode_beam", "decode_pack", "decode_sample"]

TABLE_LIMIT = 256 * 2**20
"""The largest [V, 4H] table, in bytes, that :func:`decode_pack` folds the embedding into."""

_EARLY_STOPPING = {False: 0, True: 1, "never": 2}

Decoded = tuple[Tensor, Tensor, Tensor, Tensor]


def decode_pack(
    embedding: Tensor,
    w_ih: Sequence[Tensor],
    w_hh: Sequence[Tensor],
    bias: Sequence[Tensor | None],
    projection: Tensor,
    projection_bias: Tensor | None = None,
    *,
    static_layer: int | None = None,
    image_first: bool = False,
    dtype: torch.dtype = torch.float32,
    table_limit: int = TABLE_LIMIT,
) -> Tensor:
    """Pack the weights of a caption decoder for the device they are on.

    Args:
        embedding: One row per word. [V, E] float32.
        w_ih: Input weight of each layer, bottom up. The last F columns of the one of ``static_layer`` belong
            to the features. [4H, input] or [4H, input + F] each.
        w_hh: Recurrent weight of each layer; layers may differ in H. [4H, H] each.
        bias: ``bias_ih + bias_hh`` of each layer, or None. [4H] each.
        projection: Weight of the vocabulary projection. [V, H].
        projection_bias: Its bias. [V].
        static_layer: The layer whose input is ``cat(x, features)`` at every step.
        image_first: Whether the features [B, E] are layer 0's input before the first word.
        dtype: How the weights are stored: float32, bfloat16, on the CPU int8, on CUDA float16. The arithmetic
            is float32, but for products with rounded weights, see :func:`lrcn_fast.ops.lstm_pack`. Weights
            that meet an image once, not at every step, are bfloat16 where the others are int8. On the CPU a
            copy of a projection that is rounded stays in float32: a search ranks the words that it
            chooses among by it, and reports its log-probabilities.
        table_limit: Layer 0's input term of every word, ``embedding @ w_ih[0].T + bias[0]``, is computed here
            and kept as a table of ``V * 4H * 4`` bytes when that is at most this many. It saves a GEMM per
            step and costs one over the whole vocabulary now; 0 is never. The table is always float32.

    Returns:
        Opaque bytes for :func:`decode_beam` and :func:`decode_sample`, uint8. Valid in processes that run
        the same instruction set, or on CUDA the same version: not to be stored.

    Raises:
        ValueError: A weight has the wrong shape or dtype.
    """
    zeros = [w.new_zeros(w.shape[0]) for w in w_hh]
    V, gates = embedding.shape[0], w_hh[0].shape[0] if w_hh else 0
    packed: Tensor = torch.ops.lrcn_fast.decode_pack(
        embedding.contiguous(),
        [w.contiguous() for w in w_ih],
        [w.contiguous() for w in w_hh],
        [zero if b is None else b.contiguous() for b, zero in zip(bias, zeros, strict=False)],
        projection.contiguous(),
        None if projection_bias is None else projection_bias.contiguous(),
        -1 if static_layer is None else static_layer,
        image_first,
        dtype,
        V * gates * 4 <= table_limit,
    )
    return packed


def decode_beam(
    packed: Tensor,
    features: Tensor | None,
    *,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    batch_size: int | None = None,
    feed_bos: bool = True,
    prefix: Tensor | None = None,
    num_beams: int = 5,
    num_return_sequences: int = 1,
    max_new_tokens: int = 20,
    min_new_tokens: int = 0,
    length_penalty: float = 0.0,
    early_stopping: bool | Literal["never"] = False,
    no_repeat_ngram_size: int = 0,
    repetition_penalty: float = 1.0,
    suppress_tokens: Sequence[int] = (),
    compat: str = "hf",
) -> Decoded:
    """Beam search for a batch of images, the whole loop in native code.

    Args:
        packed: From :func:`decode_pack`.
        features: One row per image, or None for a decoder without an image. [B, F] float32.
        bos_id: The first word fed.
        eos_id: The word that ends a caption.
        pad_id: Fills sequences after their end.
        batch_size: B, needed where features is None.
        feed_bos: Whether BOS is fed; if not, the first word is predicted from the image step.
        prefix: Words that the captions start with. [B, P] int64.
        num_beams: K, 1 to 1024. Unlike ``CaptionDecoder.generate``, 1 is a beam of one here, not greedy.
        num_return_sequences: n, at most K.
        max_new_tokens: Words after the prefix, at most.
        min_new_tokens: EOS is banned before this many.
        length_penalty: Scores are sums of log-probabilities over ``length**length_penalty``.
        early_stopping: As in :class:`lrcn_fast.decoding.GenerationConfig`.
        no_repeat_ngram_size: No n-gram of this size twice; 0 is off.
        repetition_penalty: On log-probabilities of words already used; 1 is off.
        suppress_tokens: Words that are never generated.
        compat: "hf" or "caffe".

    Returns:
        A tuple:

        - **sequences**: Words, then pad_id. [B, n, L] int64.
        - **lengths**: Words of each, prefix and EOS included; 0 where fewer than n were found. [B, n] int64.
        - **scores**: Best first; -inf where the length is 0. [B, n].
        - **token_logprobs**: As the search saw them; 0 for the prefix and after the end. [B, n, L].

    Raises:
        ValueError: An argument is out of range, a feature is not finite, or every word is banned.
        NotImplementedError: A ``compat`` that does not exist natively.
    """
    if compat not in ("hf", "caffe"):
        raise NotImplementedError(f"decode_beam: compat must be hf or caffe, got {compat!r}")
    if early_stopping not in _EARLY_STOPPING:
        raise ValueError(
            f'decode_beam: early_stopping must be True, False or "never", got {early_stopping!r}'
        )
    decoded: Decoded = torch.ops.lrcn_fast.decode_beam(
        packed,
        None if features is None else features.contiguous(),
        _batch_size("decode_beam", features, batch_size),
        None if prefix is None else prefix.contiguous(),
        feed_bos,
        bos_id,
        eos_id,
        pad_id,
        max_new_tokens,
        min_new_tokens,
        no_repeat_ngram_size,
        repetition_penalty,
        list(suppress_tokens),
        num_beams,
        num_return_sequences,
        length_penalty,
        _EARLY_STOPPING[early_stopping],
        compat == "caffe",
    )
    return decoded


def decode_sample(  # noqa: D417 (what is missing is described in decode_beam)
    packed: Tensor,
    features: Tensor | None,
    uniforms: Tensor | None,
    *,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    batch_size: int | None = None,
    feed_bos: bool = True,
    prefix: Tensor | None = None,
    max_new_tokens: int = 20,
    min_new_tokens: int = 0,
    length_penalty: float = 0.0,
    no_repeat_ngram_size: int = 0,
    repetition_penalty: float = 1.0,
    suppress_tokens: Sequence[int] = (),
    logit_scale: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Decoded:
    """Draw n captions per image, or one by greedy search, the whole loop in native code.

    Arguments that are not listed are those of :func:`decode_beam`.

    Args:
        uniforms: Numbers in [0, 1): ``uniforms[b, j, t]`` decides word t of draw j of image b. None for
            greedy search. [B, n, max_new_tokens] float64, on the device of ``packed``.
        repetition_penalty: On logits here, not on log-probabilities.
        logit_scale: Factor on the logits: 1 / temperature.
        top_k: Draw from the likeliest ``top_k`` words; 0 is all.
        top_p: Draw from the shortest head of the words, likeliest first, with this much probability.

    Returns:
        As :func:`decode_beam`; each image's draws best first. token_logprobs are the model's own: before any
        rule, at temperature 1.

    Raises:
        ValueError: An argument is out of range, a feature is not finite, or every word is banned.
    """
    decoded: Decoded = torch.ops.lrcn_fast.decode_sample(
        packed,
        None if features is None else features.contiguous(),
        _batch_size("decode_sample", features, batch_size),
        None if prefix is None else prefix.contiguous(),
        feed_bos,
        bos_id,
        eos_id,
        pad_id,
        max_new_tokens,
        min_new_tokens,
        no_repeat_ngram_size,
        repetition_penalty,
        list(suppress_tokens),
        None if uniforms is None else uniforms.contiguous(),
        length_penalty,
        logit_scale,
        top_k,
        top_p,
    )
    return decoded


def _batch_size(function: str, features: Tensor | None, batch_size: int | None) -> int:
    if features is None:
        if batch_size is None:
            raise ValueError(f"{function}: batch_size must be given when features is None")
        return batch_size
    if features.ndim != 2:
        raise ValueError(f"{function}: features must be [B, F], got {list(features.shape)}")
    if batch_size is not None and batch_size != features.shape[0]:
        raise ValueError(
            f"{function}: batch_size must be the rows of features = {features.shape[0]}, got {batch_size}"
        )
    return features.shape[0]


@torch.library.register_fake("lrcn_fast::decode_pack")
def _(
    embedding: Tensor,
    w_ih: list[Tensor],
    w_hh: list[Tensor],
    bias: list[Tensor],
    projection: Tensor,
    projection_bias: Tensor | None,
    static_layer: int,
    image_first: bool,
    dtype: torch.dtype,
    table: bool,
) -> Tensor:
    V, E = embedding.shape
    hidden = [w.shape[1] for w in w_hh]
    F = w_ih[static_layer].shape[1] - [E, *hidden][static_layer] if static_layer >= 0 else 0
    size_of = cuda_decoder_bytes if embedding.device.type == "cuda" else decoder_bytes
    size = size_of(V, E, hidden, F, static_layer, image_first, dtype, table)
    return embedding.new_empty(size, dtype=torch.uint8)


def _fake_decoded(like: Tensor, batch: int, n: int, longest: int) -> Decoded:
    return (
        like.new_empty(batch, n, longest, dtype=torch.int64),
        like.new_empty(batch, n, dtype=torch.int64),
        like.new_empty(batch, n, dtype=torch.float32),
        like.new_empty(batch, n, longest, dtype=torch.float32),
    )


@torch.library.register_fake("lrcn_fast::decode_beam")
def _(
    packed: Tensor,
    features: Tensor | None,
    batch: int,
    prefix: Tensor | None,
    feed_bos: bool,
    bos: int,
    eos: int,
    pad: int,
    max_new: int,
    min_new: int,
    no_repeat_ngram: int,
    repetition_penalty: float,
    suppress: list[int],
    num_beams: int,
    num_return: int,
    length_penalty: float,
    early_stopping: int,
    in_slot: bool,
) -> Decoded:
    P = 0 if prefix is None else prefix.shape[1]
    return _fake_decoded(packed, batch, num_return, P + max_new)


@torch.library.register_fake("lrcn_fast::decode_sample")
def _(
    packed: Tensor,
    features: Tensor | None,
    batch: int,
    prefix: Tensor | None,
    feed_bos: bool,
    bos: int,
    eos: int,
    pad: int,
    max_new: int,
    min_new: int,
    no_repeat_ngram: int,
    repetition_penalty: float,
    suppress: list[int],
    uniforms: Tensor | None,
    length_penalty: float,
    logit_scale: float,
    top_k: int,
    top_p: float,
) -> Decoded:
    P = 0 if prefix is None else prefix.shape[1]
    return _fake_decoded(packed, batch, 1 if uniforms is None else uniforms.shape[1], P + max_new)

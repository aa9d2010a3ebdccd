"""The word-by-word half of a captioner: embedding, recurrent layers, vocabulary projection, and search."""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lrcn_fast import ops_decode
from lrcn_fast._decoder_layers import LAYER_KINDS, Layout, check_plain, layer_modules
from lrcn_fast._decoder_pack import PackedDecoder
from lrcn_fast._decoder_scoring import score_captions
from lrcn_fast.decoding import DecodeResult, GenerationConfig
from lrcn_fast.decoding._checks import check_batch_size, check_words
from lrcn_fast.reference_decoder import search_eagerly

__all__ = ["CaptionDecoder"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class CaptionDecoder(PackedDecoder):
    """A recurrent language model that describes an image, with fast search.

    One class for the whole family of Donahue et al. 2015 (arXiv:1411.4389, section 5) and its neighbours. The
    image reaches the model in one of three ways:

    - ``static_layer=l``: layer l sees it at every step; its input is ``cat(x, features)``. LRCN_1u is
      one layer with ``static_layer=0``, LRCN_2u two layers with 0, LRCN_2f two layers with 1.
    - ``image_first=True``: it is the first input of layer 0 (Vinyals et al. 2015, "Show and Tell"), and
      begin of sentence follows, or with ``feed_bos=False`` directly the first word.
    - neither: a language model. ``features`` is None everywhere.

    Shapes: B images, L words, V vocabulary, E embedding, H hidden, F features (F = E with ``image_first``).

    Decoding is native on the CPU and on CUDA, for float32, bfloat16 and float16 parameters (computed in
    float32), and reads packed weights, see :meth:`prepare`. Models in float64, on other devices and with
    plain recurrent layers (the paper's baseline) decode by the same rules in eager PyTorch
    (:func:`lrcn_fast.reference.generate`). Sampling takes its random numbers from the generator before the
    search, so that one seed draws the same captions on every device, unless rounding decides between two
    words.

    For ``torch.compile`` use the LSTM modules of :mod:`lrcn_fast.nn` or torch.nn.RNNCell: Dynamo refuses
    torch.nn.LSTM (``lrcn_fast.nn.replace_lstm(decoder)`` swaps them, parameters shared) and torch.nn.RNN.

    Args:
        embedding: Word vectors. [V, E].
        layers: Unidirectional LSTM or LSTMCell modules of torch.nn or lrcn_fast.nn, or RNN or RNNCell modules
            of torch.nn (tanh), bottom up; those with several layers count as that many. Their parameters are
            shared, and their ``batch_first`` does not matter.
        projection: Hidden state to logits. [V, H].
        static_layer: The layer that sees the features at every step.
        image_first: Whether the features are the input before the first word.
        feed_bos: Whether begin of sentence is an input. False only with ``image_first``.
        bos_id: Begin of sentence.
        eos_id: End of sentence; the same word as ``bos_id`` in LRCN.
        pad_id: What fills results after the end of sentence. Any integer.

    Raises:
        ValueError: Another kind of module, sizes that do not fit, or options that contradict each other.
        NotImplementedError: Bidirectional or projected layers, layer normalisation, zoneout, recurrent
            dropout or relu; LSTM beside plain layers; modules that compute more than their parameters say (a
            class with its own ``forward``, forward hooks, ``torch.nn.utils.weight_norm`` of old, pruning),
            which decoding would not run.

    Example:
        >>> from torch import nn
        >>> layers = [nn.LSTM(16, 32), nn.LSTM(32 + 8, 32)]  # LRCN_2f
        >>> decoder = CaptionDecoder(nn.Embedding(100, 16), layers, nn.Linear(32, 100), static_layer=1)
        >>> decoder.generate(torch.randn(2, 8), num_beams=3, max_new_tokens=5).sequences.shape
        torch.Size([2, 1, 5])
    """

    def __init__(
        self,
        embedding: torch.nn.Embedding,
        layers: torch.nn.Module | Iterable[torch.nn.Module],
        projection: torch.nn.Linear,
        *,
        static_layer: int | None = None,
        image_first: bool = False,
        feed_bos: bool = True,
        bos_id: int = 0,
        eos_id: int = 0,
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        modules = layer_modules(layers)
        self.layers = torch.nn.ModuleList(modules)
        self.embedding, self.projection = embedding, projection
        self._check_modules()
        self._layout = Layout.of(modules, embedding.embedding_dim, static_layer, image_first, feed_bos)
        self.static_layer, self.image_first, self.feed_bos = static_layer, image_first, feed_bos
        self.bos_id, self.eos_id, self.pad_id = bos_id, eos_id, pad_id
        self._check_arguments()

    def _check_modules(self) -> None:
        check_plain("embedding", self.embedding, "an Embedding", torch.nn.Embedding)
        check_plain("projection", self.projection, "a Linear", torch.nn.Linear)
        for index, module in enumerate(self.layers):
            check_plain(f"layers[{index}]", module, "an LSTM, RNN or cell", *LAYER_KINDS)

    def _check_arguments(self) -> None:
        V, H = self.projection.out_features, self._layout.hidden[-1]
        if self.projection.in_features != H:
            raise ValueError(
                f"CaptionDecoder: projection must take the H = {H} outputs of the last layer, "
                f"got in_features = {self.projection.in_features}"
            )
        if self.embedding.num_embeddings != V:
            raise ValueError(
                "CaptionDecoder: projection must have one output for each word of the embedding = "
                f"{self.embedding.num_embeddings}, got out_features = {V}"
            )
        if self.embedding.max_norm is not None:
            raise NotImplementedError(
                f"CaptionDecoder: embedding must have max_norm=None, got {self.embedding.max_norm}"
            )
        check_words("CaptionDecoder", V, self.bos_id, self.eos_id, self.pad_id)

    @property
    def feature_dim(self) -> int | None:
        """F, the size of one image's features; None for a language model."""
        if self.image_first:
            return self.embedding.embedding_dim
        return self._layout.static_size or None

    @property
    def vocab_size(self) -> int:
        """V, the number of words."""
        return self.projection.out_features

    # ---------------------------------------------------------------- training

    def forward(self, tokens: Tensor, features: Tensor | None = None) -> Tensor:
        """Logits of given captions (teacher forcing). Differentiable.

        The input at step t is begin of sentence followed by ``tokens[:, :t]``, so that ``logits[:, t]``
        predicts ``tokens[:, t]``. In training mode the ``dropout`` between layers of one module applies.

        Args:
            tokens: Target words; anything valid after the end. [B, L] int64.
            features: The images, or None for a language model. [B, F].

        Returns:
            Logits [B, L, V].
        """
        if self.training:
            self._drop_pack()  # an optimiser step may follow that leaves no trace
        self._check_features("CaptionDecoder", features)
        self._check_tokens("CaptionDecoder", tokens)
        B, L = tokens.shape
        if features is not None and features.shape[0] != B:
            raise ValueError(f"CaptionDecoder: features must have B = {B} rows, got {features.shape[0]}")
        if L == 0:
            return self.projection.weight.new_zeros(B, 0, self.vocab_size)

        words = tokens.T[:-1]
        if self.feed_bos:
            words = torch.cat([words.new_full((1, B), self.bos_id), words])
        x = self.embedding(words)  # [T, B, E]
        if self.image_first:
            assert features is not None
            x = torch.cat([features.unsqueeze(0), x])
        for weights, dropout in zip(self._weights(), self._layout.dropout, strict=True):
            if weights.w_static is None:
                xg = F.linear(x, weights.w_x, weights.bias)
            else:
                assert features is not None
                # Once per image, not per step: the product does not depend on time.
                xg = F.linear(x, weights.w_x) + F.linear(features, weights.w_static, weights.bias)
            x, _ = weights.run(xg)
            x = F.dropout(x, dropout, self.training)
        logits: Tensor = self.projection(x[-L:].transpose(0, 1))
        return logits

    def log_likelihood(self, tokens: Tensor, features: Tensor | None, lengths: Tensor) -> Tensor:
        """The log-probability of whole captions, end of sentence included. Differentiable.

        Args:
            tokens: Words; what is beyond ``lengths`` is not read. [B, L] int64.
            features: The images, or None for a language model. [B, F].
            lengths: Words of each caption, its end of sentence included. [B] int64.

        Returns:
            Sums of log p [B].
        """
        self._check_features("log_likelihood", features)
        if not _is_integer(tokens, 2):
            raise ValueError(f"log_likelihood: tokens must be integers [B, L], got {_describe(tokens)}")
        B, L = tokens.shape
        if not _is_integer(lengths, 1) or lengths.shape[0] != B:
            raise ValueError(
                f"log_likelihood: lengths must be integers [B] = [{B}], got {_describe(lengths)}"
            )
        if lengths.device.type == "cpu" and B > 0 and (lengths.min() < 0 or lengths.max() > L):
            raise ValueError(
                f"log_likelihood: lengths must be in 0..L = {L}, "
                f"got {int(lengths.min())}..{int(lengths.max())}"
            )
        valid = torch.arange(L, device=tokens.device) < lengths.to(tokens.device).unsqueeze(1)
        tokens = tokens.masked_fill(~valid, self.eos_id).long()
        logits = self(tokens, features)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        logprobs = -F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
        return torch.where(valid, logprobs, 0.0).sum(1)

    def pairwise_log_likelihood(
        self,
        captions: Sequence[Sequence[int]],
        features: Tensor | None,
        *,
        batch_size: int = 1024,
        progress: Callable[[int, int], object] | None = None,
    ) -> Tensor:
        """The log-probability of every caption for every image, without gradients.

        What pairs have in common is computed once: the steps of captions that begin alike, layers below
        the static one, and the images' gate terms. Uses the parameters as they are, not the packed ones.

        Args:
            captions: S captions as token ids, of any lengths. The end of sentence counts where a caption
                has it as its last word; an empty caption has log-probability 0.
            features: The images [B, F], or None for a language model, where B is 1.
            batch_size: Rows, each the beginning of a caption for an image, computed at a time. Memory is
                about that of 2 V + 24 H numbers per row.
            progress: Called with the pairs done and the pairs in all, after every block of pairs.

        Returns:
            Sums of log p [B, S]: float32, or float64 for a float64 model.
        """
        self._check_features("pairwise_log_likelihood", features)
        if batch_size < 1:
            raise ValueError(f"pairwise_log_likelihood: batch_size must be at least 1, got {batch_size}")
        try:
            ids = [[operator.index(w) for w in caption] for caption in captions]
        except TypeError as error:
            raise ValueError(
                f"pairwise_log_likelihood: captions must be lists of token ids, got {error}"
            ) from None
        for s, caption in enumerate(ids):
            if caption and not (0 <= min(caption) and max(caption) < self.vocab_size):
                raise ValueError(
                    f"pairwise_log_likelihood: captions[{s}] must hold token ids in "
                    f"0..{self.vocab_size - 1}, got {min(caption)}..{max(caption)}"
                )
        return score_captions(self, features, ids, batch_size=batch_size, progress=progress)

    def _check_features(self, function: str, features: Tensor | None) -> None:
        size = self.feature_dim
        if size is None:
            if features is not None:
                raise ValueError(
                    f"{function}: features must be None without static_layer and image_first, "
                    f"got a tensor of shape {list(features.shape)}"
                )
            return
        if not isinstance(features, Tensor):
            raise ValueError(f"{function}: features must be [B, F] = [B, {size}], got {_describe(features)}")
        if features.ndim != 2 or features.shape[1] != size:
            raise ValueError(f"{function}: features must be [B, F] = [B, {size}], got {list(features.shape)}")
        weight = self.projection.weight
        if features.device != weight.device:
            raise ValueError(
                f"{function}: features must be on the device of the model, {weight.device}, "
                f"got {features.device}"
            )
        if features.dtype != weight.dtype and not torch.is_autocast_enabled(weight.device.type):
            raise ValueError(
                f"{function}: features must have the dtype of the model, {weight.dtype}, got {features.dtype}"
            )

    def _check_tokens(self, function: str, tokens: Tensor) -> None:
        if not _is_integer(tokens, 2):
            raise ValueError(f"{function}: tokens must be integers [B, L], got {_describe(tokens)}")
        # On CUDA the look-up itself checks: reading the values here would stall the stream.
        if tokens.device.type == "cpu" and tokens.numel() and not torch.compiler.is_compiling():
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.vocab_size:
                raise ValueError(
                    f"{function}: tokens must be in 0..V-1 = 0..{self.vocab_size - 1}, got {low}..{high}"
                )

    # ---------------------------------------------------------------- decoding

    @torch.no_grad()
    def generate(  # noqa: D417 (the options are described once, in GenerationConfig)
        self,
        features: Tensor | None = None,
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
        suppress_tokens: Iterable[int] = (),
        prefix_ids: Tensor | list[int] | list[list[int]] | None = None,
        num_beam_groups: int = 1,
        diversity_penalty: float = 0.0,
        compat: str = "hf",
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
    ) -> DecodeResult:
        """Describe images: beam search, greedy search (``num_beams=1``) or sampling (``do_sample=True``).

        Every option is described in :class:`lrcn_fast.decoding.GenerationConfig`. "Draw N and keep the
        likeliest" of the paper is ``do_sample=True, num_return_sequences=N``: results come likeliest first.

        Args:
            features: The images, or None for a language model. [B, F].
            batch_size: B for a language model, 1 unless given.

        Returns:
            ``num_return_sequences`` captions per image, L = P + ``max_new_tokens``.

        Raises:
            ValueError: An option is out of range, features are not finite, or every word is banned.
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
            suppress_tokens=suppress_tokens,  # type: ignore[arg-type]
            prefix_ids=prefix_ids,
            num_beam_groups=num_beam_groups,
            diversity_penalty=diversity_penalty,
            compat=compat,
            generator=generator,
        )
        prefix, uniforms = self._search_inputs(features, config, batch_size)
        if not self._is_native(self._prepared):
            return search_eagerly(self, features, config, prefix, uniforms)
        common: dict[str, Any] = {
            "batch_size": prefix.shape[0],
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
            "feed_bos": self.feed_bos,
            "prefix": prefix,
            "max_new_tokens": config.max_new_tokens,
            "min_new_tokens": config.min_new_tokens,
            "length_penalty": config.length_penalty,
            "no_repeat_ngram_size": config.no_repeat_ngram_size,
            "repetition_penalty": config.repetition_penalty,
            "suppress_tokens": config.suppress_tokens,
        }
        packed = self._packed()
        features = None if features is None else features.float()
        if config.do_sample or config.num_beams == 1:
            result = ops_decode.decode_sample(
                packed,
                features,
                None if uniforms is None else uniforms.to(packed.device),
                logit_scale=config.logit_scale,
                top_k=config.top_k,
                top_p=config.top_p,
                **common,
            )
        else:
            result = ops_decode.decode_beam(
                packed,
                features,
                num_beams=config.num_beams,
                num_return_sequences=config.num_return_sequences,
                early_stopping=config.early_stopping,
                compat=config.compat,
                **common,
            )
        return DecodeResult(*result)

    def _search_inputs(
        self, features: Tensor | None, config: GenerationConfig, batch_size: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """Check the arguments of ``generate`` against the model.

        Returns:
            A tuple:

            - **prefix**: The first words of every image. [B, P] int64, on the model's device.
            - **uniforms**: What sampling consumes, or None. [B, n, ``max_new_tokens``] float64, on the CPU.
        """
        self._check_modules()  # hooks may have come since
        self._check_features("generate", features)
        config.check_vocabulary(self.vocab_size, self.eos_id)
        weight = self.projection.weight
        B = check_batch_size(batch_size, None if features is None else features.shape[0])
        if features is not None:
            finite = features.isfinite().all(1)
            if not finite.all():
                image = int(finite.logical_not().nonzero()[0])
                raise ValueError(f"generate: features must be finite, got NaN or infinity in image {image}")

        prefix = torch.from_numpy(config.prefix(B)).to(weight.device)
        if config.generator is not None and not isinstance(config.generator, torch.Generator):
            raise ValueError(f"generate: generator must be a torch.Generator, got {config.generator!r}")
        uniforms = None
        if config.do_sample:
            source = config.generator
            uniforms = torch.rand(
                (B, config.num_return_sequences, config.max_new_tokens),
                dtype=torch.float64,
                generator=source,
                device="cpu" if source is None else source.device,
            ).cpu()
        return prefix, uniforms

    def extra_repr(self) -> str:
        """The options, for ``print(decoder)``."""
        return (
            f"static_layer={self.static_layer}, image_first={self.image_first}, feed_bos={self.feed_bos}, "
            f"bos_id={self.bos_id}, eos_id={self.eos_id}, pad_id={self.pad_id}"
        )


def _is_integer(value: object, ndim: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == ndim and value.dtype in _INTEGERS


def _describe(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__

"""The packed weights of a caption decoder: when they are made, kept and dropped.

A pack is a cache, and a stale cache is a wrong answer. It remembers the very parameters it was made from
and their version counters; writes through ``.data`` and fused optimisers change neither, so whatever
usually surrounds such writes drops it: ``train()``, ``eval()``, ``load_state_dict()``, ``to()`` and the
like, and ``forward`` in training mode. It is never pickled or copied, because its layout depends on the
instruction set of the machine.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from lrcn_fast import ops_decode
from lrcn_fast._decoder_layers import LayerWeights, Layout
from lrcn_fast._library import HAS_CUDA

__all__ = ["PackedDecoder"]

_PACK_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


class _Pack(NamedTuple):
    """The weights in the layout of the native decoder, and what they were made from."""

    packed: Tensor
    made_from: tuple[Tensor, ...]
    versions: tuple[int, ...]


class PackedDecoder(torch.nn.Module):
    """Embedding, recurrent layers and projection, and their pack."""

    embedding: torch.nn.Embedding
    layers: torch.nn.ModuleList
    projection: torch.nn.Linear
    static_layer: int | None
    image_first: bool
    _layout: Layout

    def __init__(self) -> None:
        super().__init__()
        self._pack: _Pack | None = None
        self._prepared = "float32"  # what packs hold, as asked of prepare()

    def _weights(self) -> list[LayerWeights]:
        return list(self._layout.weights(list(self.layers)))

    def prepare(self, dtype: Literal["float32", "bfloat16", "int8"] = "float32") -> Self:
        """Pack the weights for native decoding now, and choose what they are rounded to.

        Without it ``generate`` packs on its first call in eval mode, and on every call in training mode. A
        pack is kept until ``train()``, ``eval()``, ``load_state_dict()``, ``to()`` and the like,
        ``forward`` in training mode, or until a parameter is replaced or written in place; the choice of
        ``dtype`` until the next ``prepare``. Writes that autograd does not see (``.data``, fused
        optimisers) between two calls of ``generate`` with none of these need ``prepare`` again. ``forward``
        and ``log_likelihood`` always use the parameters as they are.

        Args:
            dtype: bfloat16 and int8 (one scale per row; CPU only) weights are read faster. The arithmetic is
                float32, but for products with rounded weights, see :func:`lrcn_fast.ops.lstm_pack`. With
                int8, weights that meet an image once, not at every step, are bfloat16. On the CPU the words
                that a search chooses among, a few more than it needs, are scored again with the projection in
                float32, which is kept beside: ``V * H * 4`` bytes.

        Returns:
            The decoder.

        Raises:
            ValueError: ``dtype`` is none of these.
            NotImplementedError: bfloat16 or int8 for a model that decodes in eager PyTorch; int8 on CUDA.
        """
        if not isinstance(dtype, str) or dtype not in _PACK_DTYPES:
            raise ValueError(f"prepare: dtype must be float32, bfloat16 or int8, got {dtype!r}")
        native = self._is_native(dtype)
        self._prepared = dtype
        self._pack = self._make_pack() if native else None
        return self

    def _is_native(self, dtype: str) -> bool:
        """Whether decoding runs natively; an error if it does not and ``dtype`` needs it to."""
        weight = self.projection.weight
        devices = ("cpu", "cuda") if HAS_CUDA else ("cpu",)
        lstm = self._layout.unit == "lstm"
        native = lstm and weight.device.type in devices and weight.dtype != torch.float64
        if not native and dtype != "float32":
            plain = "" if lstm else " with plain recurrent layers"
            raise NotImplementedError(
                f"prepare: dtype must be float32 for a {weight.dtype} model{plain} on {weight.device}, "
                f"which decodes in eager PyTorch, got {dtype}"
            )
        if dtype == "int8" and weight.is_cuda:
            raise NotImplementedError("prepare: dtype must be float32 or bfloat16 on CUDA, got int8")
        return native

    def _packed(self) -> Tensor:
        """The packed weights of the parameters as they are now."""
        pack = self._pack
        if pack is not None:
            parameters = self._parameters_packed()
            same = len(parameters) == len(pack.made_from)
            same = same and all(a is b for a, b in zip(parameters, pack.made_from, strict=True))
            if same and _versions(parameters) == pack.versions:
                return pack.packed
        pack = self._make_pack()
        if not self.training:
            self._pack = pack
        return pack.packed

    def _parameters_packed(self) -> tuple[Tensor, ...]:
        tensors: list[Tensor | None] = [self.embedding.weight, self.projection.weight, self.projection.bias]
        for weights in self._weights():
            tensors += weights.tensors
        return tuple(tensor for tensor in tensors if tensor is not None)

    @torch.no_grad()
    def _make_pack(self) -> _Pack:
        layers, parameters = [w.float() for w in self._weights()], self._parameters_packed()
        bias, dtype = self.projection.bias, _PACK_DTYPES[self._prepared]
        if self.projection.weight.is_cuda and dtype == torch.float32:
            # float16 and bfloat16 as they are: the same numbers, half the bytes.
            dtype = self.projection.weight.dtype
        packed = ops_decode.decode_pack(
            self.embedding.weight.float(),
            [w.w_ih for w in layers],
            [w.w_hh for w in layers],
            [w.bias for w in layers],
            self.projection.weight.float(),
            None if bias is None else bias.float(),
            static_layer=self.static_layer,
            image_first=self.image_first,
            dtype=dtype,
        )
        return _Pack(packed, parameters, _versions(parameters))

    def _drop_pack(self) -> None:
        self._pack = None

    def train(self, mode: bool = True) -> Self:
        """Set the mode and drop the packed weights."""
        self._drop_pack()
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self._drop_pack()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._drop_pack()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pack": None}


def _versions(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    # A tensor made in inference mode has no version counter: a write to it is one that autograd cannot see.
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)

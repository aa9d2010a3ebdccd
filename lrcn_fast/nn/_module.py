"""What LSTM and LSTMCell share: parameters under torch.nn's names, and packed inference weights.

A *pack* is one direction's weights in the layout of the CPU kernels. It is a cache, and a stale cache is a
wrong answer, so the rules are strict:

- A pack remembers the very tensors it was made from and their version counters, and is remade when either
  differs. That is not enough: fused optimisers and writes through ``.data`` change neither.
- So everything that usually surrounds such writes drops the packs: ``train()``, ``eval()``,
  ``load_state_dict()`` and whatever goes through ``_apply`` (``to()``, ``half()``, ``share_memory()``, ...).
- Packs are never pickled or copied: their layout depends on the instruction set of the machine.
- Training never reads one.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from lrcn_fast import ops, reference
from lrcn_fast.nn._checks import compute_dtype, in_func_transform
from lrcn_fast.ops_layer import lstm_layer, lstm_layer_pack, lstm_packed

PACK_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


class Weights(NamedTuple):
    """The parameters of one direction of one layer, or what stands in for them (casts, functional_call)."""

    ih: Tensor  # [4H, I]
    hh: Tensor  # [4H, P]
    b_ih: Tensor | None  # [4H]
    b_hh: Tensor | None  # [4H]
    hr: Tensor | None  # [P, H]

    @property
    def bias(self) -> Tensor | None:
        """The sum of both biases. [4H]."""
        return None if self.b_ih is None or self.b_hh is None else self.b_ih + self.b_hh

    def to(self, dtype: torch.dtype) -> "Weights":
        """Cast every tensor."""
        return Weights(*(None if w is None else w.to(dtype) for w in self))  # type: ignore[arg-type]


class Source(NamedTuple):
    """A parameter that packs were made from."""

    name: str
    weight: Tensor
    # None for a tensor made in inference mode, which has no counter: autograd cannot see a write to it. None
    # while tracing.
    version: int | None


class Packs(NamedTuple):
    """Packed weights of all layers and directions, and what they were made from."""

    weights: list[Tensor]  # lstm_layer_pack of each
    made_from: list[Source]


class RecurrentModule(nn.Module):
    """Parameters of one or more directions, and their packs."""

    input_size: int
    hidden_size: int
    bias: bool
    proj_size: int = 0
    bidirectional: bool = False

    # One tuple per direction of each layer: the names of its parameters, in the order of `Weights`.
    _names: list[tuple[str | None, ...]]
    _packs: Packs | None
    _prepared: str | None  # the dtype asked of prepare(), None if it was not called

    def __init__(self) -> None:
        super().__init__()
        self._names = []
        self._packs = None
        self._prepared = None

    def _torch_names(self) -> Iterator[str]:
        """Names of the parameters that torch.nn's class has too, in its order."""
        return (name for names in self._names for name in names if name is not None)

    def reset_parameters(self) -> None:
        """Draw every weight and bias from U(-1/sqrt(H), 1/sqrt(H)), in torch.nn's order."""
        bound = self.hidden_size**-0.5
        for name in self._torch_names():
            nn.init.uniform_(getattr(self, name), -bound, bound)

    def _weight(self, name: str) -> Tensor:
        # An attribute where it is no parameter: parametrizations and DataParallel put plain tensors there.
        weight: Any = self._parameters.get(name)
        return getattr(self, name) if weight is None else weight  # type: ignore[no-any-return]

    def _weights(self, index: int) -> Weights:
        return Weights(*(None if name is None else self._weight(name) for name in self._names[index]))  # type: ignore[arg-type]

    def _share_parameters(self, module: nn.Module) -> None:
        """Take over the parameters, the hooks and the mode of the torch.nn module this one replaces."""
        if set(self._parameters) != set(module._parameters):
            missing = sorted(set(self._parameters) - set(module._parameters))
            raise ValueError(
                f"from_torch: module must hold {', '.join(missing)} as plain parameters, got a "
                f"{type(module).__name__} with weight_norm, pruning or a parametrization: remove it first"
            )
        for name in self._parameters:
            self._parameters[name] = module._parameters[name]
        for name, value in module.__dict__.items():
            # The dictionaries themselves: the handles users hold then remove hooks from both.
            if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
                self.__dict__[name] = value
        self.train(module.training)

    def _run_direction(
        self, index: int, x: Tensor, h0: Tensor, c0: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Run one direction of one layer with its weights: x [T, B, I] to h [T, B, P] and c [T, B, H].

        The options are those of :func:`lrcn_fast.ops_layer.lstm_layer`; batch_sizes only where it is native.
        """
        weights = self._weights(index)
        dtype = compute_dtype(weights.hh)
        if self._is_native(x):
            if dtype is None:
                return lstm_layer(x, weights.ih, weights.hh, weights.bias, h0, c0, w_hr=weights.hr, **options)
            # The kernel computes in float32 whatever it is given: only what a layer returns is rounded.
            with torch.autocast("cpu", enabled=False):
                w = weights.to(torch.float32)
                x, h0, c0 = x.float(), h0.float(), c0.float()
                h, c = lstm_layer(x, w.ih, w.hh, w.bias, h0, c0, w_hr=w.hr, **options)
            return h.to(dtype), c.to(dtype)
        if dtype is not None:
            weights, x, h0, c0 = weights.to(dtype), x.to(dtype), h0.to(dtype), c0.to(dtype)
        xg = F.linear(x, weights.ih, weights.bias)  # [T, B, 4H]
        lstm = reference.lstm if in_func_transform() else ops.lstm
        return lstm(xg, weights.hh, h0, c0, w_hr=weights.hr, **options)

    # Packs: making and reading them.

    def prepare(self, dtype: str = "float32") -> Self:
        """Pack the weights for inference now, instead of on the first call in eval mode.

        In eval mode the module then computes with weights rounded to ``dtype``, also after ``train()`` and
        ``eval()``, which drop the packs and leave the choice. Input, output and arithmetic stay float32.
        What training computes does not change. Under ``torch.compile`` only packs made here are read.

        In eval mode, a write to the weights that autograd does not see (``.data``, a fused optimiser) needs
        ``prepare()`` again, and so does any write in place once the module is compiled.

        Args:
            dtype: ``"float32"``, ``"bfloat16"`` or ``"int8"``: one scale per row, and what the weights
                multiply is rounded to 8 bits too (7 on a CPU without VNNI), one scale per 128 values of a
                row. What bfloat16 weights multiply is rounded to bfloat16 where
                :func:`lrcn_fast.runtime.isa` is avx512_bf16.

        Returns:
            The module.

        Raises:
            ValueError: ``dtype`` is none of these, or the parameters are not float32.
            NotImplementedError: There is no packed kernel for the module's device or options.
        """
        if not isinstance(dtype, str) or dtype not in PACK_DTYPES:
            raise ValueError(f"prepare: dtype must be float32, bfloat16 or int8, got {dtype!r}")
        for index in range(len(self._names)):
            self._check_can_pack(dtype, self._weights(index).hh)
        self._prepared = dtype
        on_cpu = self._weights(0).hh.device.type == "cpu"
        self._packs = self._make_packs() if on_cpu and not self._is_custom() else None
        return self

    def _is_custom(self) -> bool:
        """Whether the cell is one that the kernels do not compute."""
        return False

    def _is_native(self, x: Tensor) -> bool:
        """Whether a whole layer is one operator, which passes by the rows that do not exist."""
        return x.device.type == "cpu" and not self._is_custom() and not in_func_transform()

    def _check_can_pack(self, dtype: str, weight: Tensor) -> None:
        if dtype != "float32" and self._is_custom():
            raise NotImplementedError(
                f"prepare: dtype must be float32 with layer_norm, zoneout or recurrent_dropout, got {dtype}"
            )
        if dtype != "float32" and weight.device.type != "cpu":
            raise NotImplementedError(
                f"prepare: dtype must be float32 on {weight.device}, got {dtype}; "
                "packed weights are for the CPU, use .bfloat16() or .half() elsewhere"
            )
        if weight.dtype != torch.float32:
            raise ValueError(f"prepare: parameters must be torch.float32, got {weight.dtype}")

    def _reads_packs(self, weight: Tensor, *inputs: Tensor) -> bool:
        """Whether this call is inference that packed weights serve: some weight, the input, hx if given."""
        if self.training or self._is_custom() or in_func_transform():
            return False
        if self._prepared is None or self._prepared == "float32":
            if weight.dtype != torch.float32 or not weight.is_cpu:
                return False
            if torch.is_autocast_enabled("cpu"):
                return False  # it asks for something else
            # A traced program reads packs only where the user has promised to renew them.
            if torch.compiler.is_compiling() and (
                torch.compiler.is_exporting() or self._prepared is None or self._packs is None
            ):
                return False
            # Gradients are exact in float32: leave them to the differentiable path.
            return not torch.is_grad_enabled() or not any(
                t.requires_grad for t in (*inputs, *(self._weight(name) for name in self._torch_names()))
            )
        self._check_can_pack(self._prepared, weight)
        if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
            raise ValueError(
                f"{type(self).__name__}: input and hx must not require grad with weights prepared as "
                f"{self._prepared}, got requires_grad=True; use torch.no_grad() or prepare('float32')"
            )
        return True

    def _make_packs(self) -> Packs:
        dtype = PACK_DTYPES[self._prepared or "float32"]
        with torch.no_grad():
            directions = [self._weights(index) for index in range(len(self._names))]
            weights = [lstm_layer_pack(w.ih, w.hh, w.hr, w.bias, dtype=dtype) for w in directions]
        made_from = []
        for name in self._torch_names():
            weight = self._weight(name)
            counts = not torch.compiler.is_compiling() and not weight.is_inference()
            made_from.append(Source(name, weight, weight._version if counts else None))
        return Packs(weights, made_from)

    def _current_packs(self) -> Packs:
        packs = self._packs
        if torch.compiler.is_compiling():
            # Tracing must not fill the cache. An exported program must not carry packs to another machine:
            # there, packing is part of the program.
            if packs is None or torch.compiler.is_exporting():
                return self._make_packs()
            same = all(self._weight(name) is weight for name, weight, _ in packs.made_from)
            return packs if same else self._make_packs()
        if packs is not None:
            for name, weight, version in packs.made_from:
                if self._weight(name) is not weight or (version is not None and weight._version != version):
                    break
            else:
                return packs
        self._packs = self._make_packs()
        return self._packs

    def _run_packed(
        self, x: Tensor, h0: Tensor | None, c0: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run all layers, float32 in and out whatever the input. Arguments of ops_layer.lstm_packed."""
        packs = self._current_packs()
        return lstm_packed(
            x.float(),
            packs.weights,
            None if h0 is None else h0.float(),
            None if c0 is None else c0.float(),
            hidden_size=self.hidden_size,
            proj_size=self.proj_size,
            bidirectional=self.bidirectional,
            **options,
        )

    # Packs: dropping them.

    def _drop_packs(self) -> None:
        self._packs = None

    def train(self, mode: bool = True) -> Self:
        """Set the mode and drop the packed weights."""
        self._drop_packs()
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self._drop_packs()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._drop_packs()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packs": None}

"""Optimizers, learning-rate schedules, per-parameter multipliers and averaged weights."""

import math
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from lrcn_fast.training.config import OptimizerConfig, ScheduleConfig

__all__ = ["CaffeSGD", "WeightAverage", "make_optimizer", "schedule_factor", "select_parameters"]


class CaffeSGD(torch.optim.Optimizer):
    r"""SGD whose momentum keeps the learning rate inside its history, as Caffe's solver does.

    .. math::
        v &\leftarrow \mu v + \eta (g + \lambda w) \\
        w &\leftarrow w - v

    ``torch.optim.SGD`` multiplies by the rate outside, which differs from the step after a rate change on.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                state = self.state[w]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(w)
                v = state["momentum_buffer"]
                g = w.grad if group["weight_decay"] == 0 else w.grad.add(w, alpha=group["weight_decay"])
                v.mul_(group["momentum"]).add_(g, alpha=group["lr"])
                w.sub_(v)
        return loss


def select_parameters(
    named: Iterable[tuple[str, nn.Parameter]], multipliers: dict[str, float]
) -> list[tuple[str, nn.Parameter, float]]:
    """Set ``requires_grad`` from the multipliers and return the trained parameters with theirs.

    Args:
        named: Candidates, as ``Module.named_parameters`` gives them.
        multipliers: Factor per name pattern (shell wildcards); the first that matches wins, none means 1,
            and 0 freezes.

    Raises:
        ValueError: a pattern that matches no parameter, or nothing left to train.
    """
    used = set()
    selected = []
    for name, parameter in named:
        factor = 1.0
        for pattern, value in multipliers.items():
            if fnmatchcase(name, pattern):
                used.add(pattern)
                factor = value
                break
        parameter.requires_grad_(factor > 0)
        if factor > 0:
            selected.append((name, parameter, factor))
    for pattern in multipliers:
        if pattern not in used:
            raise ValueError(
                f"train: optimizer.multipliers must name trainable parameters, got {pattern!r}, "
                "which matches none or only ones that an earlier pattern takes"
            )
    if not selected:
        raise ValueError("train: optimizer.multipliers must leave something to train, got 0 for everything")
    return selected


def make_optimizer(
    parameters: list[tuple[str, nn.Parameter, float]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Build the optimizer; groups carry ``base_lr``, the rate before the schedule."""
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for _, parameter, factor in parameters:
        decays = config.decay_biases or parameter.dim() > 1
        group = groups.setdefault(
            (factor, decays),
            {
                "params": [],
                "lr": config.lr * factor,
                "base_lr": config.lr * factor,
                "weight_decay": config.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    params = list(groups.values())
    if config.name == "caffe_sgd":
        return CaffeSGD(params, config.lr, config.momentum)
    if config.name == "sgd":
        return torch.optim.SGD(params, config.lr, momentum=config.momentum)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(params, config.lr, betas=(config.beta1, config.beta2))


def schedule_factor(config: ScheduleConfig, step: int, total: int) -> float:
    """Learning-rate factor of step ``step`` of ``total``, counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.name == "step":
        return float(config.gamma ** (step // config.step_size))
    if config.name == "cosine":
        span = max(total - config.warmup_steps, 1)
        wave = 0.5 * (1 + math.cos(math.pi * min((step - config.warmup_steps) / span, 1.0)))
        return config.final + (1 - config.final) * wave
    return 1.0


class WeightAverage:
    """Exponential moving average of the trained parameters, with a short warm-up.

    The decay of step n is min(decay, (1 + n) / (10 + n)), so that early weights fade quickly.
    """

    def __init__(self, parameters: list[tuple[str, nn.Parameter, float]], decay: float) -> None:
        self._parameters = [(name, p) for name, p, _ in parameters]
        self._decay = decay
        self.step_count = 0
        self.average = {name: p.detach().clone() for name, p in self._parameters}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights; called after each optimizer step."""
        decay = min(self._decay, (1 + self.step_count) / (10 + self.step_count))
        self.step_count += 1
        for name, p in self._parameters:
            self.average[name].lerp_(p.detach(), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average; calling it twice changes nothing."""
        for name, p in self._parameters:
            held = p.detach().clone()
            p.copy_(self.average[name])
            self.average[name].copy_(held)

    def state_dict(self) -> dict[str, Any]:
        """Everything ``load_state_dict`` needs."""
        return {"step_count": self.step_count, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict()``."""
        self.step_count = int(state["step_count"])
        for name, value in state["average"].items():
            target: Tensor = self.average[name]
            target.copy_(value)

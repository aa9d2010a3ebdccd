"""What the training loop asks of a system it trains: the ``Task``, and the ``Stage`` of each phase.

The loop (``loop.py``) owns phases, optimizer, schedule, clipping, averaged weights, checkpoints, resuming,
early stopping and reporting, and knows nothing of captions or videos. A task owns the model, its data, its
loss and its scores. To train another system:

1. ``<task>_config.py``: a ``TrainConfig`` with ``task``, ``model``, ``data`` and ``phases``, the last a list
   of a ``PhaseConfig`` with what its phases may set (no torch in this module);
2. ``<task>.py``: a ``Task`` that builds the model and, for each phase, a ``Stage``;
3. one line in ``config.TASKS``; a recipe in ``recipes/`` that starts with ``task: <task>``.

For a run to be resumed bit for bit, batch n of a stage must depend on n alone (seed, phase, n: see
``data.BatchStream``), and whatever is random in the model must come from the generators of Python, numpy or
torch, whose states a checkpoint holds.
"""

import abc
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrcn_fast.training.config import TrainConfig
from lrcn_fast.training.report import Reporter

__all__ = ["Context", "Stage", "Task"]

Batches = Generator[tuple[tuple[Any, ...], float], None, None]


@dataclass(frozen=True)
class Context:
    """Where a task runs.

    Attributes:
        out: Folder of the run.
        accelerator: The Accelerate object of the run.
        report: For progress bars.
    """

    out: Path
    accelerator: Any
    report: Reporter

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def rank(self) -> int:
        """Number of this process."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    def main_first(self) -> AbstractContextManager[None]:
        """``with`` it for work that the first process does and writes, and the others then read."""
        context: AbstractContextManager[None] = self.accelerator.main_process_first()
        return context


@dataclass(frozen=True)
class Stage:
    """What one phase trains on.

    Attributes:
        objective: Called with a batch's inputs; returns the loss of this process's share, summed. It holds
            the model, and is what DistributedDataParallel wraps.
        parameters: Names and parameters that may be trained; ``optimizer.multipliers`` chooses from them.
        batches_per_epoch: Batches that see the data once.
        batches: Called with (start, stop): yields for each batch of that range the inputs, on the device,
            and what the loss is a mean over: the words or steps of the global batch, all processes together.
        scores: Evaluates the model, which is in evaluation mode, on the validation data; "score" is better
            when higher. Every process calls it and gets the same. None: no validation data.
    """

    objective: nn.Module
    parameters: list[tuple[str, nn.Parameter]]
    batches_per_epoch: int
    batches: Callable[[int, int], Batches]
    scores: Callable[[], dict[str, float]] | None


class Task(abc.ABC):
    """One system in training: made once for a run, before a checkpoint is loaded into ``model``.

    Making it reads the data and builds the model on ``context.device``; the loop has seeded every random
    generator before, equally in all processes.
    """

    model: nn.Module

    @abc.abstractmethod
    def __init__(self, config: TrainConfig, context: Context) -> None: ...

    def start(self) -> None:  # noqa: B027
        """Work before the first step of a new run, such as feature statistics; not when one is resumed."""

    @abc.abstractmethod
    def stage(self, index: int) -> Stage:
        """Prepare phase ``index``: set what the model needs for it, and return what it trains on."""

    def finish(self, index: int) -> None:  # noqa: B027
        """Work after phase ``index``, such as forgetting features of a network that has changed."""

    def weights(self) -> dict[str, Tensor]:
        """Entries of ``model.state_dict()`` that a checkpoint must hold: all that training can change."""
        return self.model.state_dict()

    @abc.abstractmethod
    def save(self, folder: Path, details: dict[str, Any]) -> None:
        """Write the trained model, in evaluation mode, with ``details``: configuration and best scores."""

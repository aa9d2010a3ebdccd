"""The training loop: phases of steps over one model, on Accelerate; what is trained is a ``tasks.Task``.

What a step does, in Caffe's order (the solver of the original release):

    for each of ``accumulate`` batches:   g += d(loss_weight * mean loss of a word or step) / dw
    clip the global norm of g; g /= accumulate; weight decay, momentum, update

A run is a function of its configuration: batches come from (seed, phase, step), dropout from random
states that a checkpoint holds, so a run that was killed and resumed ends with the same weights.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrcn_fast.training.checkpoint import load_checkpoint, random_state, save_checkpoint, set_random_state
from lrcn_fast.training.config import PhaseConfig, TrainConfig, parse_config, task_class
from lrcn_fast.training.optim import WeightAverage, make_optimizer, schedule_factor, select_parameters
from lrcn_fast.training.report import Reporter
from lrcn_fast.training.tasks import Context, Stage, Task

__all__ = ["Trainer", "train"]


def train(
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    device: str | None = None,
    restart: bool = False,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train what the configuration describes and write it to ``out/model``.

    A run that stopped half-way continues from its last checkpoint when it is called again with the same
    configuration and folder. Under ``torchrun`` or ``accelerate launch`` the batch is shared between the
    processes: over GPUs, or over CPU processes with ``device="cpu"``.

    Args:
        config: See ``load_config``.
        out: Folder for the checkpoint, the log, TensorBoard events and the trained model.
        device: "cpu" or "cuda"; None takes a GPU if there is one.
        restart: Throw away what ``out`` holds of an earlier run.
        progress: Show progress bars; None: if stderr is a terminal.

    Returns:
        The history of evaluations and the best scores, also written to ``out/history.json``.

    Raises:
        ValueError: the configuration contradicts the data, or ``out`` holds a run of another configuration.
    """
    return Trainer(config, Path(out), device=device, restart=restart, progress=progress).run()


class Trainer:
    """One run; see ``train`` for the arguments."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        *,
        device: str | None = None,
        restart: bool = False,
        progress: bool | None = None,
    ) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.state import AcceleratorState
            from accelerate.utils import set_seed
        except ImportError as error:
            raise ImportError("training needs accelerate: pip install 'lrcn_fast[train]'") from error
        if device not in (None, "cpu", "cuda"):
            raise ValueError(f"train: device must be cpu or cuda, got {device!r}")
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("train: device must be cpu without an NVIDIA GPU, got 'cuda'")
        self.config, self.out = config, out
        # Accelerate remembers the precision of the process's first Accelerator.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision=config.precision)
        self.is_main = self.accelerator.is_main_process
        if self.is_main:
            out.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()

        set_seed(config.seed)
        state = None if restart else self._read_checkpoint()
        self.report = Reporter(out, self.is_main, progress)
        self.task: Task = task_class(config.task, 1)(config, Context(out, self.accelerator, self.report))
        self.model = self.task.model
        # Only now: a run whose data cannot be read must not cost the one before.
        if restart and self.is_main:
            for name in ("checkpoint.pt", "best.pt", "history.json", "log.jsonl"):
                (out / name).unlink(missing_ok=True)
            for name in ("tensorboard", "model"):
                shutil.rmtree(out / name, ignore_errors=True)
        self.history: list[dict[str, Any]] = []
        self._phase, self._step = 0, 0
        self._best: dict[str, Any] | None = None
        self._bad_evaluations = 0
        # Sum of the step losses since the last evaluation, and their number.
        self._losses = [0.0, 0.0]
        self._resume = state
        # Dropout differs between processes; everything else above is the same.
        torch.manual_seed(config.seed + self.accelerator.process_index)
        if state is not None:
            self._phase, self._step = state["phase"], state["step"]
            self._best, self._bad_evaluations = state["best"], state["bad_evaluations"]
            self.history, self._losses = state["history"], state["losses"]
            self.report.rewrite(self.history)
            self.model.load_state_dict(state["model"], strict=False)

    # ---- set-up -------------------------------------------------------------------------------

    def _read_checkpoint(self) -> dict[str, Any] | None:
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return None
        state = load_checkpoint(path)
        # Read through the dataclasses: keys that are newer than the checkpoint have their defaults there.
        before = _flatten(parse_config(state["config"], str(path)).to_dict())
        now = _flatten(self.config.to_dict())
        changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
        if changed:
            raise ValueError(
                f"train: {path} must be of this configuration, got another {changed[0]} "
                f"({before.get(changed[0])!r} there, {now.get(changed[0])!r} here); "
                "choose another folder, or restart"
            )
        if state["world"] != self.accelerator.num_processes:
            raise ValueError(
                f"train: {path} must be resumed with {state['world']} processes, "
                f"got {self.accelerator.num_processes}"
            )
        return state

    # ---- the run ------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run every phase that is left and write the model."""
        try:
            if self._resume is None:
                self.task.start()
            while self._phase < len(self.config.phases):
                self._run_phase(self.config.phases[self._phase])
                self._phase += 1
                self._step, self._best, self._bad_evaluations = 0, None, 0
                self._save({})
            summary = {"history": self.history, "best": self.kept()}
            if self.is_main:
                self._write_model(summary)
            self.accelerator.wait_for_everyone()
            return summary
        finally:
            self.report.close()

    def kept(self) -> dict[str, Any] | None:
        """The evaluation whose weights are kept: the best of the last phase, or its last one."""
        last = self.config.phases[-1]
        found = [e for e in self.history if e["phase"] == last.name and "score" in e]
        if last.keep == "last":
            return found[-1] if found else None
        return max(found, key=lambda e: e["score"], default=None)

    def _write_model(self, summary: dict[str, Any]) -> None:
        best = summary["best"]
        scores = {} if best is None else {k: v for k, v in best.items() if isinstance(v, float)}
        self.model.eval()
        details = {"training": _without_folders(self.config.to_dict()), "validation": scores}
        self.task.save(self.out / "model", details)
        temporary = self.out / ".history.json.tmp"
        temporary.write_text(json.dumps(summary, indent=1) + "\n")
        os.replace(temporary, self.out / "history.json")

    def _run_phase(self, phase: PhaseConfig) -> None:
        accelerator, model = self.accelerator, self.model
        device = accelerator.device
        stage = self.task.stage(self._phase)
        steps_per_epoch = max(1, stage.batches_per_epoch // phase.accumulate)
        total = phase.steps or max(1, round(phase.epochs * steps_per_epoch))
        every = phase.evaluate_every or steps_per_epoch

        for p in model.parameters():
            p.requires_grad_(False)
        selected = select_parameters(stage.parameters, phase.optimizer.multipliers)
        optimizer = make_optimizer(selected, phase.optimizer)
        average = WeightAverage(selected, phase.ema) if phase.ema else None
        objective, prepared = accelerator.prepare(stage.objective, optimizer)
        parameters = [p for _, p, _ in selected]
        if self._resume is not None:
            if self._step:
                optimizer.load_state_dict(self._resume["optimizer"])
                if average is not None:
                    average.load_state_dict(_to(self._resume["average"], device))
                if accelerator.scaler is not None and self._resume["scaler"]:
                    accelerator.scaler.load_state_dict(self._resume["scaler"])
            set_random_state(self._resume["random"][accelerator.process_index])
            self._resume = None

        def extra() -> dict[str, Any]:
            return {
                "optimizer": optimizer.state_dict(),
                "average": None if average is None else average.state_dict(),
                "scaler": {} if accelerator.scaler is None else accelerator.scaler.state_dict(),
            }

        batches = stage.batches(self._step * phase.accumulate, total * phase.accumulate)
        world = accelerator.num_processes
        with self.report.bar(phase.name, total, self._step) as advance:
            stopped = self._stopped_early(phase)
            while self._step < total and not stopped:
                model.train()
                factor = schedule_factor(phase.schedule, self._step, total)
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * factor
                prepared.zero_grad(set_to_none=True)
                step_loss = torch.zeros((), device=device)
                for _ in range(phase.accumulate):
                    inputs, count = next(batches)
                    with accelerator.autocast():
                        loss = objective(*inputs)
                    # Processes hold shares of one batch: DDP averages, so each share counts `world` times.
                    accelerator.backward(loss * (phase.loss_weight * world / count))
                    step_loss += loss.detach() * (world / count / phase.accumulate)
                if phase.clip_norm:
                    accelerator.clip_grad_norm_(parameters, phase.clip_norm)
                if phase.accumulate > 1:
                    for p in parameters:
                        if p.grad is not None:
                            p.grad.div_(phase.accumulate)
                prepared.step()
                if average is not None:
                    average.update()
                self._step += 1
                self._losses = [self._losses[0] + float(step_loss), self._losses[1] + 1]
                advance(self._step, total)
                if self._step % every == 0 or self._step == total:
                    mean_loss = self._losses[0] / self._losses[1]
                    self._losses = [0.0, 0.0]
                    stopped = self._evaluate(phase, stage, average, mean_loss, factor)
                    self._save(extra())
                elif self._step % self.config.checkpoint_every == 0:
                    self._save(extra())
        batches.close()
        if self._best is not None and phase.keep == "best":
            self._load_best()
        elif average is not None:
            average.swap()
        self.task.finish(self._phase)
        accelerator.free_memory()

    # ---- evaluation ---------------------------------------------------------------------------

    def _stopped_early(self, phase: PhaseConfig) -> bool:
        return bool(phase.patience) and self._bad_evaluations >= phase.patience

    def _evaluate(
        self,
        phase: PhaseConfig,
        stage: Stage,
        average: WeightAverage | None,
        train_loss: float,
        factor: float,
    ) -> bool:
        """Score the current (or averaged) weights, keep them if best; returns whether to stop."""
        entry: dict[str, Any] = {
            "phase": phase.name,
            "step": self._step,
            "train_loss": train_loss,
            "lr": phase.optimizer.lr * factor,
        }
        if stage.scores is None:
            self.history.append(entry)
            self.report.log(entry)
            return False
        if average is not None:
            average.swap()
        self.model.eval()
        entry.update(stage.scores())
        better = self._best is None or entry["score"] > self._best["score"]
        if better:
            self._best, self._bad_evaluations = dict(entry), 0
            if self.is_main:
                save_checkpoint(
                    self.out / "best.pt",
                    {"phase": self._phase, "step": self._step, "model": self.task.weights()},
                )
        else:
            self._bad_evaluations += 1
        if average is not None:
            average.swap()
        self.history.append(entry)
        self.report.log(entry)
        return self._stopped_early(phase)

    # ---- state --------------------------------------------------------------------------------

    def _load_best(self) -> None:
        self.accelerator.wait_for_everyone()
        state = load_checkpoint(self.out / "best.pt")
        self.model.load_state_dict(state["model"], strict=False)

    def _save(self, extra: dict[str, Any]) -> None:
        states = [random_state()]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            states = gather_object(states)
        if self.is_main:
            save_checkpoint(
                self.out / "checkpoint.pt",
                {
                    "config": self.config.to_dict(),
                    "world": self.accelerator.num_processes,
                    "phase": self._phase,
                    "step": self._step,
                    "model": self.task.weights(),
                    "random": states,
                    "best": self._best,
                    "bad_evaluations": self._bad_evaluations,
                    "history": self.history,
                    "losses": self._losses,
                    **extra,
                },
            )
        self.accelerator.wait_for_everyone()


def _flatten(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k2: v2 for k, v in value.items() for k2, v2 in _flatten(v, f"{key}.{k}" if key else k).items()
        }
    if isinstance(value, list):
        return {k2: v2 for i, v in enumerate(value) for k2, v2 in _flatten(v, f"{key}[{i}]").items()}
    return {key: value}


def _without_folders(value: Any) -> Any:
    """The same values with every absolute path cut to its name: a model tells nobody's folders."""
    if isinstance(value, dict):
        return {k: _without_folders(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_folders(v) for v in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: _to(v, device) for k, v in value.items()}
    return value

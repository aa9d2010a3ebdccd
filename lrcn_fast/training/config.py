"""Training configuration: dataclasses, and YAML files that map onto them one to one.

A run trains one system, its *task*, in a list of *phases*: for a captioner language-model pre-training on
text, captioning with a frozen CNN, fine-tuning of the CNN, each with its own optimizer, schedule and
stopping rule. What every task's file holds is here; the rest is in ``<task>_config.py``. Every error names
the file and the dotted key, as in ``paper.yaml: phases[1].optimizer.lr must be > 0, got -1``.
"""

import dataclasses
import importlib
import os
import re
import types
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

__all__ = [
    "TASKS",
    "OptimizerConfig",
    "PhaseConfig",
    "ScheduleConfig",
    "TrainConfig",
    "choice",
    "least",
    "load_config",
    "parse_config",
    "recipe_names",
]

TASKS = {
    "captioning": ("captioning_config.CaptioningConfig", "captioning.CaptioningTask"),
    "recognition": ("recognition_config.RecognitionConfig", "recognition.RecognitionTask"),
    "describing": ("describing_config.DescribingConfig", "describing.DescribingTask"),
}
"""Value of the key ``task`` -> its configuration and its ``Task``, inside this package."""

FORMAT = 1


def choice(*names: str) -> Any:
    """Metadata of a field that must be one of ``names``."""
    return {"choices": names}


def least(low: float, *, exclusive: bool = False, below: float | None = None) -> Any:
    """Metadata of a field that must be >= ``low``, or > it if ``exclusive``, and < ``below``."""
    return {"low": low, "exclusive": exclusive, "below": below}


@dataclass(kw_only=True)
class OptimizerConfig:
    """``caffe_sgd`` keeps the learning rate inside the momentum history, as Caffe does."""

    name: str = field(default="adamw", metadata=choice("sgd", "caffe_sgd", "adam", "adamw"))
    lr: float = field(default=1e-3, metadata=least(0.0, exclusive=True))
    momentum: float = field(default=0.9, metadata=least(0.0, below=1.0))
    beta1: float = field(default=0.9, metadata=least(0.0, below=1.0))
    beta2: float = field(default=0.999, metadata=least(0.0, below=1.0))
    weight_decay: float = field(default=0.0, metadata=least(0.0))
    decay_biases: bool = False
    multipliers: dict[str, float] = field(default_factory=dict)
    """Learning-rate factor per parameter name pattern (shell wildcards), first match wins; 0 freezes."""


@dataclass(kw_only=True)
class ScheduleConfig:
    """Factor on every learning rate as a function of the step."""

    name: str = field(default="constant", metadata=choice("constant", "step", "cosine"))
    warmup_steps: int = field(default=0, metadata=least(0))
    step_size: int = field(default=20000, metadata=least(1))
    gamma: float = field(default=0.5, metadata=least(0.0, exclusive=True))
    final: float = field(default=0.0, metadata=least(0.0))
    """Cosine: the factor reached at the last step."""


@dataclass(kw_only=True)
class PhaseConfig:
    """One stage of training: what the loop needs to know of it, whatever the task."""

    name: str
    epochs: float = field(default=0.0, metadata=least(0.0))
    steps: int = field(default=0, metadata=least(0))
    batch_size: int = field(default=100, metadata=least(1))
    """Captions or clips per step, over all processes."""
    accumulate: int = field(default=1, metadata=least(1))
    """Caffe's iter_size: batches per step, each of ``batch_size``."""
    clip_norm: float = field(default=0.0, metadata=least(0.0))
    """Global gradient norm, taken on the sum over ``accumulate`` batches, as Caffe does; 0: off."""
    loss_weight: float = field(default=1.0, metadata=least(0.0, exclusive=True))
    label_smoothing: float = field(default=0.0, metadata=least(0.0, below=1.0))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: float = field(default=0.0, metadata=least(0.0, below=1.0))
    """Decay of the averaged weights that are evaluated and kept; 0: the weights themselves."""
    evaluate_every: int = field(default=0, metadata=least(0))
    """Steps between evaluations on the validation data; 0: once per epoch."""
    patience: int = field(default=0, metadata=least(0))
    """Evaluations without a better score before the phase stops; 0: never."""
    keep: str = field(default="best", metadata=choice("best", "last"))
    """Weights the phase ends with: those of the best evaluation, or the last ones as in the paper."""


@dataclass(kw_only=True)
class TrainConfig:
    """A whole run: what the loop needs to know of it, whatever the task."""

    task: str
    phases: typing.Sequence[PhaseConfig]
    format: int = FORMAT
    seed: int = field(default=1701, metadata=least(0))
    precision: str = field(default="no", metadata=choice("no", "bf16", "fp16"))
    checkpoint_every: int = field(default=500, metadata=least(1))
    """Steps between checkpoints; one is also written at every evaluation and phase end."""
    last_phase: str | None = None
    """Name of the phase to end with, such as the one before fine-tuning; null: all of them."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and scalars, as the YAML file holds."""
        return dataclasses.asdict(self)

    def check(self, name: str) -> None:
        """Check what the fields' types and ranges do not say.

        Args:
            name: Of the file, for the message.

        Raises:
            ValueError: values that contradict each other.
        """
        if self.format != FORMAT:
            raise ValueError(f"{name}: format must be {FORMAT}, got {self.format}")
        if not self.phases:
            raise ValueError(f"{name}: phases must hold at least one phase, got []")
        for i, phase in enumerate(self.phases):
            if (phase.epochs > 0) == (phase.steps > 0):
                raise ValueError(
                    f"{name}: phases[{i}] must set exactly one of epochs and steps, "
                    f"got epochs {phase.epochs:g}, steps {phase.steps}"
                )

    def check_environment(self) -> None:
        """Check that every ``$NAME`` was replaced when the file was read.

        Raises:
            ValueError: a variable that was not set; the message names it and the key.
        """

        def look(value: Any, key: str) -> None:
            if isinstance(value, (dict, list)):
                pairs = value.items() if isinstance(value, dict) else enumerate(value)
                for name, inner in pairs:
                    look(inner, f"{key}.{name}" if key else str(name))
            elif isinstance(value, str) and (found := re.search(r"\$(?:(\w+)|\{(\w+)\})", value, re.ASCII)):
                name = found[1] or found[2]
                raise ValueError(f"{key}: environment variable {name} must be set, got nothing for {value!r}")

        look(self.to_dict(), "")


def recipe_names() -> list[str]:
    """Names of the packaged recipes, usable in place of a path."""
    folder = resources.files("lrcn_fast.training") / "recipes"
    return sorted(p.name[: -len(".yaml")] for p in folder.iterdir() if p.name.endswith(".yaml"))


def load_config(source: str | os.PathLike[str], overrides: typing.Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file, or a packaged recipe by name, into a checked ``TrainConfig``.

    ``$NAME`` in a string is replaced from the environment; see ``TrainConfig.check_environment``.

    Args:
        source: Path of a YAML file, or one of ``recipe_names()``.
        overrides: ``key.path=value`` strings, applied before checking; ``phases.0.epochs=3``. The
            value is YAML.

    Raises:
        ValueError: unknown or missing keys, wrong types, values out of range; the message names the file
            and the dotted key.
        FileNotFoundError: neither a file nor a recipe.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError("training recipes need PyYAML: pip install 'lrcn_fast[train]'") from error

    path = Path(source)
    if path.is_file():
        text, name = path.read_text(encoding="utf-8"), path.name
    elif str(source) in recipe_names():
        name = f"{source}.yaml"
        text = (resources.files("lrcn_fast.training") / "recipes" / name).read_text(encoding="utf-8")
    else:
        raise FileNotFoundError(
            f"load_config: source must be a YAML file or one of the recipes {', '.join(recipe_names())}, "
            f"got {str(source)!r}"
        )
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: must be YAML, got {' '.join(str(error).split())}") from None
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"load_config: overrides must be key=value, got {override!r}")
        _assign(values, key.strip(), _yaml_value(yaml, key, value))
    return parse_config(values, name)


def _yaml_value(yaml: Any, key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"load_config: value of {key} must be YAML, got {text!r}") from None


def parse_config(values: Any, name: str = "config") -> TrainConfig:
    """Check plain values (what ``TrainConfig.to_dict`` returns) and build the dataclasses of their task."""
    task = values.get("task", "captioning") if isinstance(values, dict) else "captioning"
    if task not in TASKS:
        raise ValueError(f"{name}: task must be one of {', '.join(TASKS)}, got {task!r}")
    config = typing.cast(TrainConfig, _build(task_class(task, 0), values, name, ""))
    config.check(name)
    if config.last_phase is not None:
        names = [phase.name for phase in config.phases]
        if config.last_phase not in names:
            raise ValueError(
                f"{name}: last_phase must be one of {', '.join(names)}, got {config.last_phase!r}"
            )
        config.phases = config.phases[: names.index(config.last_phase) + 1]
    return config


def task_class(task: str, which: typing.Literal[0, 1]) -> Any:
    """Import the configuration (0) or the ``Task`` (1) of a key of ``TASKS``."""
    module, _, found = TASKS[task][which].partition(".")
    return getattr(importlib.import_module(f"lrcn_fast.training.{module}"), found)


def _assign(values: Any, key: str, value: Any) -> None:
    at = values
    parts = key.split(".")
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(at, list):
            if not part.isdigit() or int(part) >= len(at):
                where = ".".join(parts[:i])
                raise ValueError(f"load_config: {where} must be indexed below {len(at)}, got {part!r}")
            index: Any = int(part)
        elif isinstance(at, dict):
            index = part
            if not last:
                at.setdefault(part, {})
        else:
            raise ValueError(f"load_config: {'.'.join(parts[:i])} must be a mapping or a list, got {at!r}")
        if last:
            at[index] = value
        else:
            at = at[index]


def _build(kind: Any, value: Any, name: str, key: str) -> Any:
    """Turn plain ``value`` into ``kind``, or raise with the file's name and the dotted key."""
    where = f"{name}: {key}" if key else name
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where}{'' if key else ':'} must be a mapping, got {value!r}")
        hints = typing.get_type_hints(kind)
        known = {f.name: f for f in dataclasses.fields(kind)}
        prefix = f"{key}." if key else ""
        for k in value:
            if k not in known:
                raise ValueError(f"{name}: {prefix}{k} must be one of {', '.join(known)}, got an unknown key")
        built = {}
        for k, f in known.items():
            if k in value:
                built[k] = _build(hints[k], value[k], name, f"{prefix}{k}")
                _check_range(f.metadata, built[k], f"{name}: {prefix}{k}")
            elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise ValueError(f"{name}: {prefix}{k} must be given, got nothing")
        make: Any = kind
        return make(**built)
    if origin is list:
        if typing.get_args(kind)[0] is str and isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {value!r}")
        return [_build(typing.get_args(kind)[0], v, name, f"{key}[{i}]") for i, v in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a mapping, got {value!r}")
        return {str(k): _build(typing.get_args(kind)[1], v, name, f"{key}.{k}") for k, v in value.items()}
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _build(next(a for a in typing.get_args(kind) if a is not type(None)), value, name, key)
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3 as text.
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{where} must be a number, got {value!r}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        noun = {float: "a number", int: "an integer", bool: "true or false", str: "text"}[kind]
        raise ValueError(f"{where} must be {noun}, got {value!r}")
    return os.path.expandvars(value) if kind is str else value


def _check_range(rule: typing.Mapping[str, Any], value: Any, where: str) -> None:
    if "choices" in rule and value not in rule["choices"]:
        raise ValueError(f"{where} must be one of {', '.join(rule['choices'])}, got {value!r}")
    if "low" in rule and value is not None:
        low, below = rule["low"], rule["below"]
        sign = ">" if rule["exclusive"] else ">="
        if not (value > low if rule["exclusive"] else value >= low) or (below and not value < below):
            bound = f" and < {below:g}" if below else ""
            raise ValueError(f"{where} must be {sign} {low:g}{bound}, got {value!r}")

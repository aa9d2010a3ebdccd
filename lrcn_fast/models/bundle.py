"""Models on disk: ``weights.safetensors``, ``config.json``, a model card, ``vocabulary.json`` if they speak.

Weights may be stored as float32, bfloat16 or int8. int8 keeps one float32 scale per row (output
channel), in a tensor named ``<name>.scale``: w ~ scale * q, scale = max |w| / 127. Only the size on disk
changes: a loaded model is float32. A CNN whose weights an installed package provides is not stored.
"""

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from lrcn_fast._files import read_json, staged_folder
from lrcn_fast.data import Vocabulary
from lrcn_fast.models._weights import load_weights, read_state_dict, write_state_dict

__all__ = ["Pretrained", "find_bundle", "load_bundle", "packaged_models", "save_bundle"]

FORMAT = 1
STORAGE = ("float32", "bfloat16", "int8")
FILES = ("config.json", "vocabulary.json", "weights.safetensors")

Model = TypeVar("Model", bound="Pretrained")


class Pretrained(nn.Module):
    """A model that bundles hold.

    Attributes:
        bundle_noun: What it is, with its article, as in "a captioner".
        has_words: Whether it has a ``vocabulary``, which is stored in a file of its own.
        details: Plain values kept with the model, such as its training data and scores.
    """

    bundle_noun: ClassVar[str]
    has_words: ClassVar[bool] = True
    vocabulary: Vocabulary
    details: dict[str, Any]

    def config(self) -> dict[str, Any]:
        """Constructor arguments that are plain values, with the CNN's ``config()`` as "encoder" if any."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Further entries of ``config.json`` that ``from_bundle`` reads."""
        return {}

    def ties(self) -> dict[str, str]:
        """Names of parameters that are others' twins, not to be stored twice -> those others."""
        return {}

    def card(self) -> tuple[str, str, list[str], str]:
        """Pipeline tag of the hub, title, facts and an example (Python) for the model card."""
        raise NotImplementedError

    @classmethod
    def from_bundle(
        cls: type[Model], sizes: dict[str, Any], config: dict[str, Any], vocabulary: Vocabulary | None
    ) -> Model:
        """Build the model, without its weights.

        Args:
            sizes: What ``config()`` returned.
            config: The whole of ``config.json``.
            vocabulary: If the model has one.

        Raises:
            TypeError or ValueError: ``sizes`` describe no such model.
        """
        raise NotImplementedError

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Write a bundle; see ``lrcn_fast.models.bundle.save_bundle`` for the options."""
        save_bundle(self, folder, **options)

    @classmethod
    def from_pretrained(cls: type[Model], name: str | os.PathLike[str], **options: Any) -> Model:
        """Load a bundle in evaluation mode: a folder, a packaged name, or a hub id.

        See ``lrcn_fast.models.bundle.load_bundle`` for the options and the errors.
        """
        return load_bundle(cls, name, **options)

    @classmethod
    def bundle_kind(cls) -> str:
        """Value of "kind" in ``config.json``."""
        return "lrcn_fast " + cls.bundle_noun.partition(" ")[2]


def packaged_models() -> list[str]:
    """Names of the models that come with the package."""
    folder = resources.files("lrcn_fast") / "pretrained"
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if (entry / "config.json").is_file())


def save_bundle(
    model: Pretrained,
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    details: dict[str, Any] | None = None,
    card: str | None = None,
) -> None:
    """Write a model; other files of the folder stay, and a reader never sees half a bundle's file.

    Args:
        model: What to save.
        folder: Created if it does not exist.
        dtype: How weights with two dimensions or more are stored: "float32", "bfloat16" or "int8".
        details: Plain values to keep with the model, such as its training data and scores.
        card: Text of README.md; default: one made from the configuration and ``details``.

    Raises:
        ValueError: an unknown dtype.
    """
    if dtype not in STORAGE:
        raise ValueError(f"save_pretrained: dtype must be one of {', '.join(STORAGE)}, got {dtype!r}")
    details = details if details is not None else model.details
    sizes = model.config()
    config = {
        "format": FORMAT,
        "kind": model.bundle_kind(),
        "weights": dtype,
        "model": sizes,
        **model.settings(),
        "details": details,
    }
    stock, twins = sizes.get("encoder", {}).get("weights") is not None, model.ties()
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if (name.startswith("encoder.") and stock) or name in twins:
            continue
        tensors.update(_stored(name, value.detach().cpu(), dtype))
    with staged_folder(folder) as stage:
        write_state_dict(stage / "weights.safetensors", tensors)
        if model.has_words:
            model.vocabulary.save(stage / "vocabulary.json")
        text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
        (stage / "config.json").write_text(text, encoding="utf-8")
        (stage / "README.md").write_text(card or _card(model, dtype, details), encoding="utf-8")


def load_bundle(
    cls: type[Model],
    name: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> Model:
    """Load a model in evaluation mode.

    Args:
        cls: ``Captioner``, ``ActivityRecognizer``, ..., or a subclass with the same constructor.
        name: A folder, the name of a packaged model, or the id of a repository on the Hugging Face hub.
        device: Where the parameters go.
        revision: Commit, tag or branch of a hub repository.

    Raises:
        FileNotFoundError: no such folder, packaged model or repository, or a file of the bundle is missing.
        ConnectionError: the hub cannot be reached and the model is not in its cache.
        ValueError: a file that is truncated, foreign or of another format; the message names it. Or a
            device that is not there.
    """
    where = _device(device)
    folder = find_bundle(name, revision)
    path = folder / "config.json"
    config = read_json(path, caller="from_pretrained", what=f"the configuration of {cls.bundle_noun}")
    kind = config.get("kind") if isinstance(config, dict) else None
    if kind != cls.bundle_kind():
        raise ValueError(
            f'from_pretrained: {path} must have "kind": "{cls.bundle_kind()}", '
            f"got {'none' if kind is None else repr(kind)}"
        )
    if config.get("format") != FORMAT:
        raise ValueError(f"from_pretrained: {path} must have format {FORMAT}, got {config.get('format')!r}")
    sizes, details = config.get("model"), config.get("details")
    if config.get("weights") not in STORAGE or not isinstance(sizes, dict) or not isinstance(details, dict):
        raise ValueError(
            f"from_pretrained: {path} must have weights, model and details, got {sorted(config)}"
        )
    vocabulary = Vocabulary.load(folder / "vocabulary.json") if cls.has_words else None
    try:
        model = cls.from_bundle(dict(sizes), config, vocabulary)
    except (TypeError, ValueError) as error:
        raise ValueError(f"from_pretrained: {path} must describe {cls.bundle_noun}, got: {error}") from None
    weights = folder / "weights.safetensors"
    stored = read_state_dict(weights, caller="from_pretrained", what=f"the weights of {cls.bundle_noun}")
    tensors = _restored(stored)
    for twin, other in model.ties().items():
        if other in tensors:
            tensors[twin] = tensors[other]
    if isinstance(sizes.get("encoder"), dict) and sizes["encoder"]["weights"] is not None:
        encoder: Any = model.encoder
        tensors.update({f"encoder.{k}": v for k, v in encoder.state_dict().items()})
    load_weights(model, tensors, path=weights, caller="from_pretrained")
    model.details = details
    return model.to(where).eval()


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"from_pretrained: device must be cpu or cuda, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"from_pretrained: device must be cpu without an NVIDIA GPU, got {str(device)!r}")
    return device


def _stored(name: str, value: Tensor, dtype: str) -> dict[str, Tensor]:
    if value.dim() < 2 or not value.is_floating_point() or dtype == "float32":
        return {name: value}
    if dtype == "bfloat16":
        return {name: value.to(torch.bfloat16)}
    rows = value.float().flatten(1)
    scale = rows.abs().amax(1) / 127
    # A row of zeros has scale 0; dividing by 1 instead stores zeros.
    q = torch.round(rows / torch.where(scale > 0, scale, 1.0)[:, None]).to(torch.int8)
    return {name: q.reshape(value.shape), f"{name}.scale": scale}


def _restored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    values = {}
    for name, value in tensors.items():
        if name.endswith(".scale") and name.removesuffix(".scale") in tensors:
            continue
        scale = tensors.get(f"{name}.scale")
        if value.dtype == torch.int8 and scale is not None and scale.shape == value.shape[:1]:
            value = value.float() * scale.reshape(-1, *[1] * (value.dim() - 1))
        values[name] = value.float() if value.is_floating_point() else value
    return values


def find_bundle(name: str | os.PathLike[str], revision: str | None) -> Path:
    """Find the folder of a bundle: one that is there, a packaged one, or one from the hub."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    text = os.fspath(name)
    if text in packaged_models():
        return Path(str(resources.files("lrcn_fast") / "pretrained" / text))
    expected = (
        "from_pretrained: name must be a folder, a packaged model "
        f"({', '.join(packaged_models()) or 'none'}) or a hub id (owner/name)"
    )
    owner, slash, rest = text.partition("/")
    if not (slash and owner and rest) or "/" in rest or owner.startswith("."):
        raise FileNotFoundError(f"{expected}, got {text!r}")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError("hub ids need huggingface_hub: pip install 'lrcn_fast[models]'") from error
    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=[*FILES, "README.md"]))
    except HFValidationError:
        raise FileNotFoundError(f"{expected}, got {text!r}") from None
    except LocalEntryNotFoundError:
        raise ConnectionError(
            f"from_pretrained: {text!r} must be reachable on the hub or be in its cache, got no connection; "
            "without a network, pass a folder or a packaged model"
        ) from None
    except HfHubHTTPError as error:
        line = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"{expected}, got {text!r} ({line})") from None


def _card(model: Pretrained, dtype: str, details: dict[str, Any]) -> str:
    """A short model card from what is known."""
    tag, title, facts, example = model.card()
    encoder = model.config().get("encoder")
    lines = ["---", "library_name: lrcn_fast", f"pipeline_tag: {tag}", "---", f"# {title}", ""]
    if encoder is not None:
        where = "not stored here: an installed package provides them" if encoder["weights"] else "stored here"
        lines.append(f"- CNN: {encoder['name']}, {encoder['features']} features; its weights are {where}.")
    parameters = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("encoder."))
    lines.append(
        f"- {parameters / 1e6:.2f} M parameters{' beside it' if encoder else ''}, stored as {dtype}."
    )
    lines += [f"- {fact}" for fact in facts]
    scores = details.get("validation")
    if isinstance(scores, dict) and scores:
        lines += ["", "Validation:", "", "| metric | value |", "|---|---|"]
        lines += [f"| {k} | {v:.4f} |" for k, v in scores.items() if isinstance(v, float)]
    lines += ["", "```python", *example.splitlines(), "```", ""]
    return "\n".join(lines)

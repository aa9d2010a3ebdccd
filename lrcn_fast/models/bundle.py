"""Captioners on disk: ``weights.safetensors``, ``config.json``, ``vocabulary.json`` and a model card.

Weights may be stored as float32, bfloat16 or int8. int8 keeps one float32 scale per row (output
channel), in a tensor named ``<name>.scale``: w ~ scale * q, scale = max |w| / 127. Only the size on disk
changes: a loaded model is float32. A CNN whose weights an installed package provides is not stored.
"""

import dataclasses
import json
import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrcn_fast._captions import Generation
from lrcn_fast._files import read_json, staged_folder
from lrcn_fast.data import Vocabulary
from lrcn_fast.models._weights import load_weights, read_state_dict, write_state_dict

if TYPE_CHECKING:
    from lrcn_fast.models.captioner import Captioner

__all__ = ["load_bundle", "packaged_models", "save_bundle"]

FORMAT = 1
KIND = "lrcn_fast captioner"
STORAGE = ("float32", "bfloat16", "int8")
FILES = ("config.json", "vocabulary.json", "weights.safetensors")


def packaged_models() -> list[str]:
    """Names of the models that come with the package."""
    folder = resources.files("lrcn_fast") / "pretrained"
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if (entry / "config.json").is_file())


def save_bundle(
    model: "Captioner",
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    details: dict[str, Any] | None = None,
    card: str | None = None,
) -> None:
    """Write a captioner; other files of the folder stay, and a reader never sees half a bundle's file.

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
        "kind": KIND,
        "weights": dtype,
        "model": sizes,
        "generation": dataclasses.asdict(model.generation),
        "details": details,
    }
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name.startswith("encoder.") and sizes["encoder"]["weights"] is not None:
            continue
        if name == "decoder.embedding.weight" and model.tie_weights:
            continue
        tensors.update(_stored(name, value.detach().cpu(), dtype))
    with staged_folder(folder) as stage:
        write_state_dict(stage / "weights.safetensors", tensors)
        model.vocabulary.save(stage / "vocabulary.json")
        text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
        (stage / "config.json").write_text(text, encoding="utf-8")
        (stage / "README.md").write_text(card or _card(model, dtype, details), encoding="utf-8")


def load_bundle(
    cls: "type[Captioner]",
    name: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> "Captioner":
    """Load a captioner in evaluation mode.

    Args:
        cls: ``Captioner``, or a subclass with the same constructor.
        name: A folder, the name of a packaged model, or the id of a repository on the Hugging Face hub.
        device: Where the parameters go.
        revision: Commit, tag or branch of a hub repository.

    Raises:
        FileNotFoundError: no such folder, packaged model or repository, or a file of the bundle is missing.
        ConnectionError: the hub cannot be reached and the model is not in its cache.
        ValueError: a file that is truncated, foreign or of another format; the message names it.
    """
    folder = _find(name, revision)
    path = folder / "config.json"
    config = read_json(path, caller="from_pretrained", what="the configuration of a captioner")
    if not isinstance(config, dict) or config.get("kind") != KIND:
        raise ValueError(f'from_pretrained: {path} must have "kind": "{KIND}", got another file')
    if config.get("format") != FORMAT:
        raise ValueError(f"from_pretrained: {path} must have format {FORMAT}, got {config.get('format')!r}")
    sizes, details = config.get("model"), config.get("details")
    if config.get("weights") not in STORAGE or not isinstance(sizes, dict) or not isinstance(details, dict):
        raise ValueError(
            f"from_pretrained: {path} must have weights, model and details, got {sorted(config)}"
        )
    from lrcn_fast.models.encoders import Encoder

    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    arguments = dict(sizes)
    try:
        encoder = Encoder.from_config(arguments.pop("encoder", None))
        # Bundles of before this key searched as Generation() does.
        generation = Generation(**config.get("generation", {}))
        model = cls(encoder, vocabulary=vocabulary, generation=generation, **arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"from_pretrained: {path} must describe a captioner, got: {error}") from None
    weights = folder / "weights.safetensors"
    tensors = _restored(read_state_dict(weights, caller="from_pretrained", what="the weights of a captioner"))
    if arguments.get("tie_weights") and "decoder.projection.weight" in tensors:
        tensors["decoder.embedding.weight"] = tensors["decoder.projection.weight"]
    if encoder.config()["weights"] is not None:
        tensors.update({f"encoder.{k}": v for k, v in encoder.state_dict().items()})
    load_weights(model, tensors, path=weights, caller="from_pretrained")
    model.details = details
    return model.to(device).eval()


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


def _find(name: str | os.PathLike[str], revision: str | None) -> Path:
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


def _card(model: "Captioner", dtype: str, details: dict[str, Any]) -> str:
    """A short model card from what is known."""
    encoder = model.config()["encoder"]
    parameters = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("encoder."))
    where = "not stored here: an installed package provides them" if encoder["weights"] else "stored here"
    lines = [
        "---",
        "library_name: lrcn_fast",
        "pipeline_tag: image-to-text",
        "---",
        f"# LRCN_{model.variant} image captioner",
        "",
        f"- CNN: {encoder['name']}, {encoder['features']} features; its weights are {where}.",
        f"- Decoder: {parameters / 1e6:.2f} M parameters, embedding {model.embed_dim}, "
        f"hidden {model.hidden_size}, {len(model.vocabulary)} words, stored as {dtype}.",
        f"- Search unless told otherwise: beam {model.generation.num_beams}, length penalty "
        f"{model.generation.length_penalty:g}.",
    ]
    scores = details.get("validation")
    if isinstance(scores, dict) and scores:
        lines += ["", "Validation:", "", "| metric | value |", "|---|---|"]
        lines += [f"| {k} | {v:.4f} |" for k, v in scores.items() if isinstance(v, float)]
    lines += [
        "",
        "```python",
        "from lrcn_fast.models import Captioner",
        "",
        'model = Captioner.from_pretrained("path/to/this/folder")',
        'print(model.caption(["photo.jpg"])[0][0].text)',
        "```",
        "",
    ]
    return "\n".join(lines)

"""Any model from its bundle, without knowing what it is."""

import os
from typing import Any

from lrcn_fast._files import read_json
from lrcn_fast.models.bundle import Pretrained, find_bundle
from lrcn_fast.models.captioner import Captioner
from lrcn_fast.models.describer import VideoDescriber
from lrcn_fast.models.recognizer import ActivityRecognizer

__all__ = ["load_pretrained"]

MODELS: tuple[type[Pretrained], ...] = (Captioner, ActivityRecognizer, VideoDescriber)


def load_pretrained(
    name: str | os.PathLike[str], *, device: str = "cpu", revision: str | None = None
) -> Pretrained:
    """Load the ``Captioner``, ``ActivityRecognizer`` or ``VideoDescriber`` of a bundle, ready to be used.

    Args:
        name: A folder, the name of a packaged model, or the id of a repository on the Hugging Face hub.
        device: Where the parameters go.
        revision: Commit, tag or branch of a hub repository.

    Raises:
        FileNotFoundError: no such folder, packaged model or repository, or a file of the bundle is missing.
        ValueError: a bundle of no model, or a damaged one; the message names the file.
    """
    folder = find_bundle(name, revision)
    path = folder / "config.json"
    config: Any = read_json(path, caller="load_pretrained", what="the configuration of a model")
    kind = config.get("kind") if isinstance(config, dict) else None
    for cls in MODELS:
        if kind == cls.bundle_kind():
            return cls.from_pretrained(folder, device=device)
    nouns = ", ".join(cls.bundle_noun for cls in MODELS)
    raise ValueError(f"load_pretrained: {path} must describe one of {nouns}, got kind {kind!r}")

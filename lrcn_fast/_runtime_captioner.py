"""A captioner without torch: numpy and Pillow for photos, ONNX Runtime for the CNN, native decoding."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lrcn_fast._captions import Caption, Generation, make_captions
from lrcn_fast._files import one_line, read_json
from lrcn_fast.data.vocabulary import Vocabulary
from lrcn_fast.decoding._checks import (
    check_dtype,
    check_flag,
    check_integer,
    check_layout,
    check_tokens,
    check_words,
)
from lrcn_fast.decoding.config import GenerationConfig
from lrcn_fast.models._weights import read_arrays

if TYPE_CHECKING:
    from lrcn_fast.runtime import Decoder

__all__ = ["Captioner"]

FORMAT = 1
KIND = "lrcn_fast runtime captioner"


class Captioner:
    """Captions photos from a folder that ``lrcn_fast.export.export_captioner`` wrote. Imports no torch.

    Args:
        folder: The bundle: encoder.onnx, weights.safetensors, vocabulary.json, config.json.
        dtype: Weights of the decoder in memory: "float32", "bfloat16" or "int8", see
            :class:`lrcn_fast.runtime.Decoder`.
        threads: Threads of the CNN and of the search, 0 for as many as there are cores. The captions are the
            same.

    Raises:
        FileNotFoundError: A file of the bundle is missing.
        ImportError: onnxruntime or Pillow is not installed.
        ValueError: A file is truncated or foreign, or holds a setting out of range, and the message names
            it; or an argument is out of range.

    Example:
        >>> model = Captioner("captioner-runtime")  # doctest: +SKIP
        >>> model.caption(["dog.jpg"])[0][0].text  # doctest: +SKIP
        'A black dog runs through the grass.'
    """

    def __init__(self, folder: str | os.PathLike[str], *, dtype: str = "float32", threads: int = 1) -> None:
        check_dtype("Captioner", dtype)
        check_integer("Captioner", "threads", threads, 0, 1024)
        root = Path(folder)
        path = root / "config.json"
        config = read_json(path, caller="Captioner", what="the configuration of a runtime captioner")
        if not isinstance(config, dict) or config.get("kind") != KIND or config.get("format") != FORMAT:
            raise ValueError(
                f'Captioner: {path} must have "kind": "{KIND}" and "format": {FORMAT}, got another file. '
                "lrcn_fast.export.export_captioner writes such a bundle."
            )
        weights_path = root / "weights.safetensors"
        arrays = read_arrays(weights_path, caller="Captioner", what="the weights of a runtime captioner")
        self.vocabulary = Vocabulary.load(root / "vocabulary.json")
        try:
            self._configure(config)
        except KeyError as error:
            raise ValueError(f"Captioner: {path} must have the key {error}, got none") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"Captioner: {path}: {one_line(error)}") from None
        try:
            self.decoder = _decoder(config, arrays, dtype, threads)
        except KeyError as error:
            raise ValueError(f"Captioner: {weights_path} must have an array {error}, got none") from None
        except ValueError as error:
            raise ValueError(
                f"Captioner: {weights_path} must hold the layers of config.json, got {one_line(error)}"
            ) from None
        V = self.decoder.vocab_size
        if V != len(self.vocabulary):
            raise ValueError(
                f"Captioner: {root / 'vocabulary.json'} must have V = {V} words, got {len(self.vocabulary)}"
            )
        onnx = root / "encoder.onnx"
        self._session = _open_onnx(onnx, threads)
        F, S = self.decoder.feature_dim, self.preprocessing.size
        reads, gives = (v[0].shape for v in (self._session.get_inputs(), self._session.get_outputs()))
        if len(reads) != 4 or reads[1:] != [3, S, S]:
            raise ValueError(
                f"Captioner: {path} must have the image size S of encoder.onnx, images {reads}, "
                f"as preprocessing.size, got {S}"
            )
        if len(gives) != 2 or gives[1] != F:
            raise ValueError(f"Captioner: {onnx} must give F = {F} features, got {gives}")

    def _configure(self, config: Mapping[str, Any]) -> None:
        """Check what config.json holds, before anything is made of it."""
        from lrcn_fast.models.preprocess import Preprocessing

        generation = config.get("generation", {})  # bundles of before this key searched as Generation() does
        if not isinstance(generation, dict):
            raise ValueError(f"generation must be an object, got {generation!r}")
        self.generation = Generation(**generation)
        GenerationConfig(**asdict(self.generation))  # checks it
        self.preprocessing = Preprocessing.from_config(config["preprocessing"])
        for name in ("size", "resize"):
            check_integer("preprocessing", name, getattr(self.preprocessing, name), 1, 2**16)
        check_flag("Decoder", "tied", config["tied"])
        layers = check_integer("Decoder", "layers", config["layers"], 1)
        check_layout("Decoder", layers, *(config[k] for k in ("static_layer", "image_first", "feed_bos")))
        check_words("Decoder", len(self.vocabulary), *(config[k] for k in ("bos_id", "eos_id", "pad_id")))

    def features(self, images: Any, *, batch_size: int = 16) -> npt.NDArray[np.float32]:
        """Compute what the decoder sees of photos.

        Args:
            images: As in :meth:`caption`.
            batch_size: Photos encoded at a time.

        Returns:
            Features [B, F].
        """
        check_integer("Captioner.features", "batch_size", batch_size, 1)
        photos = images if isinstance(images, (list, tuple)) else [images]
        parts = [
            self._session.run(
                ["features"],
                {"images": np.stack([self.preprocessing(p) for p in photos[start : start + batch_size]])},
            )[0]
            for start in range(0, len(photos), batch_size)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.decoder.feature_dim or 0), np.float32)

    def caption(
        self,
        images: Any,
        num_beams: int | None = None,
        *,
        num_return_sequences: int = 1,
        suppress_unk: bool = True,
        batch_size: int = 16,
        suppress_tokens: Sequence[int] = (),
        **options: Any,
    ) -> list[list[Caption]]:
        """Caption photos.

        Args:
            images: A photo or a list of photos: paths, PIL images, or uint8 arrays [H, W, 3].
            num_beams: Beam width; 1 is greedy. None: the model's own, or ``num_return_sequences`` if more.
            num_return_sequences: Captions per photo.
            suppress_unk: Never say the unknown word.
            batch_size: Photos encoded at a time.
            suppress_tokens: Words never said.
            **options: Of the search, as in ``lrcn_fast.runtime.Decoder.generate``; ``length_penalty`` and
                ``max_new_tokens`` default to the model's own (``generation``).

        Returns:
            For each photo, its captions, best first.

        Raises:
            ValueError: A file that is not a photo, or an option out of range.
        """
        if suppress_unk and self.vocabulary.unk_id is not None:
            suppress_tokens = (*check_tokens(suppress_tokens), self.vocabulary.unk_id)
        result = self.decoder.generate(
            self.features(images, batch_size=batch_size),
            suppress_tokens=suppress_tokens,
            **self.generation.options(num_return_sequences, num_beams=num_beams, **options),
        )
        return make_captions(
            self.vocabulary.decode, result.sequences, result.lengths, result.scores, result.token_logprobs
        )


def _decoder(config: Mapping[str, Any], arrays: Mapping[str, Any], dtype: str, threads: int) -> "Decoder":
    from lrcn_fast.runtime import Decoder, LayerWeights

    projection = arrays["projection.weight"]
    layers = [
        LayerWeights(
            *(arrays[f"layers.{index}.{name}"] for name in ("weight_ih", "weight_hh")),
            *(arrays.get(f"layers.{index}.{name}") for name in ("bias_ih", "bias_hh")),
        )
        for index in range(config["layers"])
    ]
    return Decoder(
        projection if config["tied"] else arrays["embedding.weight"],
        layers,
        projection,
        arrays.get("projection.bias"),
        static_layer=config["static_layer"],
        image_first=config["image_first"],
        feed_bos=config["feed_bos"],
        bos_id=config["bos_id"],
        eos_id=config["eos_id"],
        pad_id=config["pad_id"],
        dtype=dtype,
        threads=threads,
    )


def _open_onnx(path: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ImportError("Captioner: onnxruntime is missing. pip install onnxruntime") from None
    if not path.is_file():
        raise FileNotFoundError(f"Captioner: {path} must be an ONNX model, got no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime's exceptions share no base class but Exception.
        raise ValueError(
            f"Captioner: {path} must be an ONNX model, got a truncated or foreign file ({one_line(error)})"
        ) from None
    names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
    if names != ["images", "features"]:
        raise ValueError(f"Captioner: {path} must map images to features, got {', '.join(names)}")
    return session

"""From torch to the torch-free runtime: a CNN as ONNX, a captioner as ONNX and plain weights.

The folder holds four files that need numpy and ONNX Runtime only, see ``lrcn_fast.runtime.Captioner``:

- ``encoder.onnx``: images [B, 3, S, S] -> what the decoder sees of them [B, F]; normalisation and projection
  of the captioner are part of the graph;
- ``weights.safetensors``: embedding, LSTM layers and vocabulary projection of the decoder;
- ``vocabulary.json``;
- ``config.json``: preprocessing, the layout of the decoder, and how it searches.
"""

import dataclasses
import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrcn_fast._files import atomic_path, staged_folder, write_json
from lrcn_fast.models._weights import write_state_dict
from lrcn_fast.models.preprocess import Preprocessing

if TYPE_CHECKING:
    from lrcn_fast.models.captioner import Captioner

__all__ = ["export_captioner", "export_encoder"]

FORMAT = 1
KIND = "lrcn_fast runtime captioner"


def export_encoder(
    encoder: nn.Module, path: str | os.PathLike[str], *, image_size: int | None = None
) -> None:
    """Write a network from images to features as an ONNX file with any batch size.

    Input and output are named "images" [B, 3, S, S] and "features" [B, F], both float32. The graph is of the
    evaluation mode; the module is left as it was.

    Args:
        encoder: An :class:`lrcn_fast.models.Encoder`, or any module with that signature.
        path: The file to write; replaced when the export has succeeded, untouched otherwise.
        image_size: S; the encoder's own when None.

    Raises:
        ImportError: onnx or onnxscript, which torch's exporter needs, is not installed.
        NotImplementedError: torch cannot express the module in ONNX.
        ValueError: `image_size` is None and the module has no ``image_size``.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"export_encoder: {error.name} is missing. pip install onnx onnxscript") from None
    size = image_size if image_size is not None else getattr(encoder, "image_size", None)
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"export_encoder: image_size must be a positive integer, got {size!r}")
    parameter = next(encoder.parameters(), None)
    if parameter is not None and parameter.dtype != torch.float32:
        raise NotImplementedError(f"export_encoder: encoder must be float32, got {parameter.dtype}")
    device = parameter.device if parameter is not None else torch.device("cpu")
    # Each module's own: parts of a network may stay in evaluation mode while it trains.
    modes = {module: module.training for module in encoder.modules()}
    # Two images, because an exporter takes a batch of one for a constant.
    example = torch.zeros(2, 3, size, size, device=device)
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    try:
        encoder.eval()
        exporter_log.setLevel(logging.ERROR)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Images(encoder),
                (example,),
                dynamo=True,
                dynamic_shapes={"images": {0: torch.export.Dim("B")}},
                input_names=["images"],
                output_names=["features"],
                verbose=False,
            )
        assert program is not None
        with atomic_path(path) as temporary:
            program.save(temporary, external_data=False)
    except torch.onnx.OnnxExporterError as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotImplementedError(
            f"export_encoder: encoder must be expressible in ONNX, got {line}"
        ) from error
    finally:
        exporter_log.setLevel(level)
        for module, mode in modes.items():
            module.training = mode


class _Images(nn.Module):
    """Gives the input its name, whatever the module calls it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.module(images)
        return features


def export_captioner(
    captioner: "Captioner", folder: str | os.PathLike[str], *, dtype: str = "float32"
) -> None:
    """Write a captioner as a bundle for ``lrcn_fast.runtime.Captioner``, which needs no torch.

    Args:
        captioner: A captioner in float32.
        folder: Created if it does not exist; other files of it stay. All files are complete before the
            first of them is replaced.
        dtype: How the decoder's matrices are stored: "float32", or "bfloat16" for half the size.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        NotImplementedError: The encoder has no ``preprocessing``, or torch cannot express it in ONNX; a
            captioner with plain recurrent layers, which the runtime has no kernels for.
        ValueError: `dtype` is not one of its choices.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"export_captioner: dtype must be float32 or bfloat16, got {dtype!r}")
    if captioner.unit != "lstm":
        raise NotImplementedError(f"export_captioner: unit must be 'lstm', got {captioner.unit!r}")
    encoder, decoder = captioner.encoder, captioner.decoder
    preprocessing = getattr(encoder, "preprocessing", None)
    if not isinstance(preprocessing, Preprocessing):
        raise NotImplementedError(
            "export_captioner: encoder must have a Preprocessing as its attribute preprocessing, "
            f"got {type(preprocessing).__name__}"
        )
    tied = decoder.embedding.weight is decoder.projection.weight
    tensors = {"projection.weight": decoder.projection.weight}
    if not tied:
        tensors["embedding.weight"] = decoder.embedding.weight
    if decoder.projection.bias is not None:
        tensors["projection.bias"] = decoder.projection.bias
    for index, layer in enumerate(decoder._weights()):
        parts = [layer.w_x] if layer.w_static is None else [layer.w_x, layer.w_static]
        tensors[f"layers.{index}.weight_ih"] = torch.cat(parts, dim=1)
        tensors[f"layers.{index}.weight_hh"] = layer.w_hh
        if layer.b_ih is not None and layer.b_hh is not None:
            tensors[f"layers.{index}.bias_ih"] = layer.b_ih
            tensors[f"layers.{index}.bias_hh"] = layer.b_hh
    stored = getattr(torch, dtype)
    config: dict[str, Any] = {
        "format": FORMAT,
        "kind": KIND,
        "preprocessing": preprocessing.config(),
        "layers": index + 1,
        "tied": tied,
        "static_layer": decoder.static_layer,
        "image_first": decoder.image_first,
        "feed_bos": decoder.feed_bos,
        "bos_id": decoder.bos_id,
        "eos_id": decoder.eos_id,
        "pad_id": decoder.pad_id,
        "generation": dataclasses.asdict(captioner.generation),
    }
    with staged_folder(folder) as stage:
        export_encoder(_Condition(captioner), stage / "encoder.onnx", image_size=preprocessing.size)
        write_state_dict(
            stage / "weights.safetensors",
            {name: t.to(stored) if t.dim() == 2 else t for name, t in tensors.items()},
        )
        captioner.vocabulary.save(stage / "vocabulary.json")
        write_json(stage / "config.json", config)


class _Condition(nn.Module):
    """Images to what the LSTM sees of them."""

    def __init__(self, captioner: "Captioner") -> None:
        super().__init__()
        self.captioner = captioner

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.captioner.condition(self.captioner.encode(images))
        return features

"""A CNN as an ONNX file, for runtimes without torch."""

import logging
import os
import warnings

import torch
from torch import Tensor, nn

from lrcn_fast.models._files import atomic_path

__all__ = ["export_encoder"]


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
    was_training = encoder.training
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
        encoder.train(was_training)


class _Images(nn.Module):
    """Gives the input its name, whatever the module calls it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.module(images)
        return features

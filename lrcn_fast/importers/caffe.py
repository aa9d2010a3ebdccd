"""Models of the original LRCN release, and the ImageNet networks it starts from, out of Caffe files.

What a file holds is told by the names and shapes of its weights. With E the embedding, H the hidden size,
S the image features and V the vocabulary, Caffe's LSTM layer (section 2 of the paper) has the blobs ::

    0 W_xc [4H, E]   1 b_c [4H]   2 W_hc [4H, H]                             without a static input: 3 blobs
    0 W_xc [4H, E]   1 b_c [4H]   2 W_xc_static [4H, S]   3 W_hc [4H, H]     with one: 4 blobs

with the gates in the order i, f, o, g; here, as in torch, it is i, f, g, o, the static part makes the last
columns of ``weight_ih``, and the second bias is zero. Which layers have 3 and 4 blobs tells the variants of
the captioner apart:

=======  ======  ======
variant  lstm1   lstm2
=======  ======  ======
1u       4       absent
2u       4       3
2f       3       4
=======  ======  ======

An activity model has ``lstm1`` (3 blobs) and ``fc8-final``; the single-frame baseline has ``fc8-ucf``.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lrcn_fast._files import read_text, staged_folder
from lrcn_fast.data import Vocabulary
from lrcn_fast.importers.caffe_wire import read_caffemodel
from lrcn_fast.models._weights import load_weights, write_state_dict
from lrcn_fast.models.captioner import Captioner, Generation
from lrcn_fast.models.encoders import Encoder, create_encoder
from lrcn_fast.models.recognizer import ActivityRecognizer

__all__ = ["convert_caffe", "load_caffe", "read_vocabulary", "summary"]

PathLike = str | os.PathLike[str]
Array = npt.NDArray[np.float32]


def load_caffe(
    path: PathLike,
    *,
    vocabulary: Vocabulary | PathLike | None = None,
    classes: Sequence[str] | PathLike | None = None,
    stream: str | None = None,
    encoder: Any = None,
) -> Captioner | ActivityRecognizer | Encoder:
    """Load a model of the original release, or CaffeNet, VGG-16 or the hybrid network, from a Caffe file.

    Args:
        path: A ``.caffemodel`` or ``.caffemodel.h5`` file.
        vocabulary: Words of a captioner: a ``Vocabulary``, or the release's vocabulary.txt.
        classes: Names of an activity model's classes: a list, or a file with one a line, such as UCF101's
            classInd.txt; None: "0", "1", ...
        stream: What an activity model reads, "rgb" or "flow", which its weights do not tell; None: "rgb".
        encoder: The CNN of a captioner or an activity model, from ``create_encoder``; None takes the one in
            the file.

    Returns:
        A ``Captioner``, an ``ActivityRecognizer`` or an ``Encoder``, in evaluation mode, with the
        preprocessing of the release. An encoder gives fc8 where the file has it, otherwise the last layer
        that it has.

    Raises:
        FileNotFoundError: There is no such file.
        NotImplementedError: A recurrent network of a kind that this package does not have.
        ValueError: The file is damaged, is of no known kind, its weights do not fit each other, or the
            vocabulary is missing; or an argument does not fit the file. The message names the file.

    Example:
        >>> model = load_caffe("lrcn.caffemodel", vocabulary="vocabulary.txt")  # doctest: +SKIP
        >>> model.caption(["dog.jpg"])[0][0].text  # doctest: +SKIP
    """
    weights = _Weights(path)
    given = {"vocabulary": vocabulary, "classes": classes, "stream": stream, "encoder": encoder}
    if "embedding" in weights.layers and "predict" in weights.layers:
        kind, takes = "a captioner", {"vocabulary", "encoder"}
    elif "fc8-final" in weights.layers or "fc8-ucf" in weights.layers:
        kind, takes = "an activity model", {"classes", "stream", "encoder"}
    else:
        kind, takes = "neither a captioner nor an activity model", set()
    for name, value in given.items():
        if value is not None and name not in takes:
            raise ValueError(f"load_caffe: {name} must be None, as {path} is {kind}, got one")
    if "vocabulary" in takes:
        if vocabulary is None:
            raise ValueError(f"load_caffe: vocabulary must be given for the captioner in {path}, got None")
        return _captioner(weights, vocabulary, encoder)
    if "classes" in takes:
        return _recognizer(weights, classes, stream or "rgb", encoder)
    return _encoder(weights)


def convert_caffe(
    path: PathLike,
    out: PathLike,
    *,
    vocabulary: Vocabulary | PathLike | None = None,
    classes: Sequence[str] | PathLike | None = None,
    stream: str | None = None,
    dtype: str = "float32",
) -> Captioner | ActivityRecognizer | Encoder:
    """Write what :func:`load_caffe` loads in the files of this package.

    A captioner or activity model becomes a folder for its ``from_pretrained``. An encoder becomes
    ``weights.safetensors`` in the folder, for ``create_encoder(name, weights=...)`` or ``encoder_weights`` of
    a recipe.

    Args:
        path: As for :func:`load_caffe`.
        out: The folder, created if needed. Nothing is written where the file cannot be loaded.
        vocabulary: As for :func:`load_caffe`.
        classes: As for :func:`load_caffe`.
        stream: As for :func:`load_caffe`.
        dtype: How weights are stored: "float32", "bfloat16" or "int8"; an encoder's always as "float32".

    Returns:
        The model.

    Raises:
        FileNotFoundError, NotImplementedError, ValueError: As :func:`load_caffe`.
    """
    model = load_caffe(path, vocabulary=vocabulary, classes=classes, stream=stream)
    if not isinstance(model, Encoder):
        model.save_pretrained(out, dtype=dtype, details=model.details)
        return model
    if dtype != "float32":
        raise ValueError(f"convert_caffe: dtype must be float32 for an encoder, got {dtype!r}")
    with staged_folder(out) as stage:
        write_state_dict(stage / "weights.safetensors", model.net.state_dict())
    return model


def summary(model: Captioner | ActivityRecognizer | Encoder) -> dict[str, Any]:
    """What a converted model is, in plain values."""
    if isinstance(model, Captioner):
        return {
            "kind": f"captioner LRCN_{model.variant}",
            "encoder": f"{model.encoder.name} {model.encoder.features}",
            "words": len(model.vocabulary),
            "hidden_size": model.hidden_size,
        }
    if isinstance(model, ActivityRecognizer):
        return {
            "kind": f"activity model, {model.stream_kind}, {'LSTM' if model.recurrent else 'single frames'}",
            "encoder": f"{model.encoder.name} {model.encoder.features}",
            "classes": len(model.classes),
            **({"hidden_size": model.hidden_size} if model.recurrent else {}),
        }
    return {"kind": "encoder", "encoder": f"{model.name} {model.features}"}


def read_vocabulary(path: PathLike) -> Vocabulary:
    """Read the release's vocabulary.txt: one word a line, "<unk>" first.

    Word n of the file (from 0) is index n + 1 of the network: index 0, which has no line, ends and begins
    a sentence.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is another file; the message names it.
    """
    lines = [line.rstrip("\r") for line in read_text(Path(path), "read_vocabulary").split("\n")]
    if lines[-1] == "":
        lines.pop()
    if not lines or lines[0] != "<unk>":
        got = f"{lines[0][:40]!r}" if lines else "an empty file"
        raise ValueError(f"read_vocabulary: {path} must start with a line <unk>, got {got}")
    try:
        return Vocabulary(["<eos>", *lines])
    except ValueError as error:
        raise ValueError(f"read_vocabulary: {path} must hold one word a line, got: {error}") from None


class _Weights:
    """The blobs of a file by layer, and errors that name the file."""

    def __init__(self, path: PathLike) -> None:
        self.path = path
        self.order = read_caffemodel(path)
        # Of several layers with one name the last counts, as when Caffe copies weights by name.
        self.layers = {layer.name: layer for layer in self.order if layer.blobs}

    def error(self, must: str, got: object) -> ValueError:
        return ValueError(f"load_caffe: {self.path} must {must}, got {got}")

    def found(self) -> str:
        names = [name[:40].encode("unicode_escape").decode() for name in self.layers]
        return ", ".join(names[:12]) + (" ..." if len(names) > 12 else "")

    def blobs(self, layer: str, count: int) -> Sequence[npt.NDArray[Any]]:
        if layer not in self.layers:
            raise self.error(f"have a layer {layer}", f"layers {self.found()}")
        blobs = self.layers[layer].blobs
        if len(blobs) != count:
            raise self.error(f"have {count} blobs in layer {layer}", len(blobs))
        return blobs

    def array(self, blob: npt.NDArray[Any], where: str, shape: Sequence[int | None]) -> Array:
        """A blob as float32; ones in front of old files' shapes go. None in `shape` is any length."""
        dims = blob.shape
        while len(dims) > len(shape) and dims[0] == 1:
            dims = dims[1:]
        if len(dims) != len(shape) or any(n not in (m, None) for m, n in zip(dims, shape, strict=True)):
            wanted = [n or "any" for n in shape]
            raise self.error(f"have {where} of shape {wanted}".replace("'", ""), list(blob.shape))
        return np.array(blob, np.float32).reshape(dims)

    def lstm(self, layer: str, static: bool) -> dict[str, Array]:
        """An LSTM in torch's layout: weight_ih_l0 [4H, D + S], weight_hh_l0, bias_ih_l0, bias_hh_l0."""
        blobs = self.blobs(layer, 4 if static else 3)
        w_hc = self.array(blobs[-1], f"W_hc (the last blob) of {layer}", (None, None))
        H = w_hc.shape[1]
        if w_hc.shape[0] != 4 * H:
            raise self.error(f"have W_hc (the last blob) of {layer} of shape [4H, H]", list(w_hc.shape))
        inputs = [self.array(blobs[0], f"W_xc (blob 0) of {layer}", (4 * H, None))]
        if static:
            inputs.append(self.array(blobs[2], f"W_xc_static (blob 2) of {layer}", (4 * H, None)))
        bias = self.array(blobs[1], f"b_c (blob 1) of {layer}", (4 * H,))
        return {
            "weight_ih_l0": _ifgo(np.concatenate(inputs, 1)),
            "weight_hh_l0": _ifgo(w_hc),
            "bias_ih_l0": _ifgo(bias),
            "bias_hh_l0": np.zeros_like(bias),
        }


def _ifgo(rows: Array) -> Array:
    """Order i, f, o, g to i, f, g, o."""
    i, f, o, g = np.split(rows, 4)
    return np.concatenate([i, f, g, o])


# ---- captioners -------------------------------------------------------------------------------

_VARIANTS = {(4, 0): "1u", (4, 3): "2u", (3, 4): "2f"}


def _captioner(weights: _Weights, words: Vocabulary | PathLike, encoder: Any) -> Captioner:
    counts = tuple(
        len(weights.layers[name].blobs) if name in weights.layers else 0 for name in ("lstm1", "lstm2")
    )
    kind = f"{counts[0]} blobs in lstm1 and {counts[1]} in lstm2"
    if counts not in _VARIANTS:
        what = "load_caffe: a captioner must have an image input and LSTM layers"
        if counts[0] in (5, 6):
            raise NotImplementedError(f"{what}, got the plain recurrent layers of {weights.path} ({kind})")
        if counts in ((3, 0), (3, 3)):
            raise NotImplementedError(f"{what}, got the language model {weights.path} ({kind})")
        raise weights.error(
            "have 4 blobs in lstm1 (1u), 4 and 3 in lstm1 and lstm2 (2u), or 3 and 4 (2f)", kind
        )
    variant = _VARIANTS[counts]
    (table,) = weights.blobs("embedding", 1)
    embedding = weights.array(table, "the embedding", (None, None))
    V, E = embedding.shape
    layers = [weights.lstm("lstm1", static=counts[0] == 4)]
    if counts[1]:
        layers.append(weights.lstm("lstm2", static=counts[1] == 4))
    H = layers[-1]["weight_hh_l0"].shape[1]
    static_layer = 0 if counts[0] == 4 else 1
    inputs = [E] + [layers[0]["weight_hh_l0"].shape[1]] * (len(layers) - 1)
    F = layers[static_layer]["weight_ih_l0"].shape[1] - inputs[static_layer]
    w, b = weights.blobs("predict", 2)
    state = {
        "embedding.weight": embedding,
        "projection.weight": weights.array(w, "the weights of predict", (V, H)),
        "projection.bias": weights.array(b, "the bias of predict", (V,)),
    }
    for number, layer in enumerate(layers):
        state |= {f"layers.{number}.{name}": value for name, value in layer.items()}

    vocabulary = words if isinstance(words, Vocabulary) else read_vocabulary(words)
    if len(vocabulary) != V:
        where = "the vocabulary" if isinstance(words, Vocabulary) else str(words)
        raise weights.error(
            f"have a row of the embedding for each entry of {where} = {len(vocabulary)} (one for the end of "
            "a sentence, and one a word)", V
        )  # fmt: skip
    if encoder is None:
        encoder = _encoder(weights, "fc8")
    if F != encoder.feature_dim:
        raise weights.error(f"have an LSTM that reads the encoder's {encoder.feature_dim} features", F)
    # 50 words at most is the release's limit, and 3 to 5 beams are what the paper found best.
    model = Captioner(
        encoder,
        variant,
        vocabulary,
        embed_dim=E,
        hidden_size=H,
        generation=Generation(num_beams=5, max_new_tokens=50),
    )
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    load_weights(model.decoder, tensors, path=weights.path, caller="load_caffe")
    model.details = {"converted_from": Path(weights.path).name}
    return model.eval()


# ---- activity models --------------------------------------------------------------------------


def _recognizer(
    weights: _Weights, classes: Sequence[str] | PathLike | None, stream: str, encoder: Any
) -> ActivityRecognizer:
    recurrent = "fc8-final" in weights.layers
    last = "fc8-final" if recurrent else "fc8-ucf"
    blobs = weights.blobs(last, 2)
    classifier = weights.array(blobs[0], f"the weights of {last}", (None, None))
    K, reads = classifier.shape
    bias = weights.array(blobs[1], f"the bias of {last}", (K,))
    lstm: dict[str, Array] = {}
    sizes = {}
    if recurrent:
        if "lstm1" in weights.layers and len(weights.layers["lstm1"].blobs) == 5:
            raise NotImplementedError(
                f"load_caffe: lstm1 of {weights.path} must be an LSTM (3 blobs), got a plain recurrent layer"
            )
        lstm = weights.lstm("lstm1", static=False)
        H = lstm["weight_hh_l0"].shape[1]
        if reads != H:
            raise weights.error(f"have {last} read the {H} outputs of lstm1", reads)
        reads, sizes = lstm["weight_ih_l0"].shape[1], {"hidden_size": H}
    names = _class_names(classes) if isinstance(classes, (str, os.PathLike)) else classes
    if names is not None and len(names) != K:
        raise weights.error(f"have an output of {last} for each of the {len(names)} classes", K)
    if encoder is None:
        encoder = _encoder(weights, "fc7" if "fc7" in weights.layers else "fc6", frames=True)
    if reads != encoder.feature_dim:
        what = "lstm1" if recurrent else last
        raise weights.error(f"have {what} read the encoder's {encoder.feature_dim} features", reads)
    # The LSTMs on RGB were trained with the red mean of the release's loader. The other thing that
    # caffe_release does, mirrored flow that is not negated, nobody wants.
    model = ActivityRecognizer(
        encoder,
        K,
        classes=names,
        recurrent=recurrent,
        stream=stream,
        caffe_release=recurrent and stream == "rgb",
        **sizes,
    )
    parts: list[tuple[nn.Module, dict[str, Array]]] = [
        (model.classifier, {"weight": classifier, "bias": bias})
    ]
    if model.lstm is not None:
        parts.append((model.lstm, lstm))
    for module, arrays in parts:
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
        load_weights(module, tensors, path=weights.path, caller="load_caffe")
    model.details = {"converted_from": Path(weights.path).name}
    return model.eval()


def _class_names(path: PathLike) -> list[str]:
    """One name a line; numbers in front of all lines, as in UCF101's classInd.txt, go."""
    lines = [line.strip() for line in read_text(Path(path), "load_caffe").splitlines()]
    lines = [line for line in lines if line]
    numbered = [line.partition(" ") for line in lines]
    if all(number == str(n) and name for n, (number, _, name) in enumerate(numbered, 1)):
        return [name.strip() for _, _, name in numbered]
    return lines


# ---- networks ---------------------------------------------------------------------------------


def _encoder(weights: _Weights, features: str | None = None, *, frames: bool = False) -> Encoder:
    """The CNN in a file, with the last of fc6, fc7 and fc8 that it has unless told which.

    With `frames`, the release's preprocessing of video: the shorter side to 240 pixels, the centre cut.
    """
    name = _network(weights)
    if features is None:
        features = next((layer for layer in ("fc8", "fc7") if layer in weights.layers), "fc6")
    encoder = create_encoder(name, weights=None, features=features)
    if frames:
        held = encoder.preprocessing
        encoder.preprocessing = dataclasses.replace(held, mode="short", resize=240)
    tensors = _network_weights(weights, encoder.net)
    load_weights(encoder.net, tensors, path=weights.path, caller="load_caffe")
    return encoder


def _network(weights: _Weights) -> str:
    """Name of the encoder: the three differ in their first layer."""
    if "conv1_1" in weights.layers:
        return "vgg16"
    kernel = weights.layers["conv1"].blobs[0].shape[-1] if "conv1" in weights.layers else 0
    if kernel not in (7, 11) or "conv5" not in weights.layers:
        raise weights.error(
            "hold a captioner (embedding, lstm1, predict), an activity model (fc8-final or fc8-ucf), or "
            "CaffeNet, the hybrid network (conv1..conv5, fc6) or VGG-16 (conv1_1..conv5_3, fc6)",
            f"layers {weights.found()}",
        )  # fmt: skip
    order = [layer.name for layer in weights.order]
    if "norm1" in order and "pool1" in order[order.index("norm1") :]:
        raise NotImplementedError(
            f"load_caffe: CaffeNet must pool before it normalises, got {weights.path}, which normalises "
            "first: that is AlexNet, with the same shapes"
        )
    return "caffenet" if kernel == 11 else "hybrid"


def _network_weights(weights: _Weights, net: nn.Module) -> dict[str, Tensor]:
    """Blobs 0 and 1 of the layer of every weight and bias of a network."""
    tensors = {}
    for name, parameter in net.named_parameters():
        layer, _, kind = name.rpartition(".")
        blob = weights.blobs(layer, 2)[0 if kind == "weight" else 1]
        tensors[name] = torch.from_numpy(weights.array(blob, f"the {kind} of {layer}", parameter.shape))
    return tensors

"""An LSTM layer of torch in other libraries, each at its best setting.

ONNX Runtime and OpenVINO take the same ONNX model, with as many threads as torch has. ONNX Runtime
optimises the graph and packs the weights when the session is made; its int8 is DynamicQuantizeLSTM, one
scale a row, and weights of 7 bits on CPUs without VNNI, where its 8-bit products overflow (errors of 0.1
were seen). OpenVINO compiles for the shapes of the inputs and for one stream. It takes bfloat16 as a hint:
where the CPU has no instructions for it, it runs in float32, and then the name says so. It does not compile
an LSTM with quantised weights (2026.4), so there is none. Torch's int8 is its dynamic quantisation by the
engine x86, its own choice of kernels and the fastest of its four engines here.
"""

import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Arrays = dict[str, NDArray[Any]]
Run = Callable[[Arrays], list[NDArray[np.float32]]]


def torch_int8(module: nn.Module) -> nn.Module:
    """A copy whose LSTM, LSTMCell and Linear modules are dynamically quantised."""
    torch.backends.quantized.engine = "x86"
    kinds = {nn.LSTM, nn.LSTMCell, nn.Linear}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated in favour of another package
        wrapped = torch.ao.quantization.quantize_dynamic(nn.Sequential(module), kinds, dtype=torch.qint8)
    return wrapped[0]


def onnx_runs(lstm: nn.LSTM, feeds: Arrays, precisions: tuple[str, ...]) -> dict[str, Run]:
    """One LSTM layer in ONNX Runtime and OpenVINO, as far as they are installed.

    Args:
        lstm: One layer, one direction.
        feeds: The inputs: x [T, B, I]; lengths int32 [B]; h and c [1, B, H]. All but x may be missing.
        precisions: Of float32, bfloat16, int8.

    Returns:
        By name functions of such inputs; they return y [T, 1, B, H], h and c [1, B, H].
    """
    try:
        model = _onnx_model(lstm, feeds)
    except ImportError:
        return {}
    return _onnx_runtime(model, precisions) | _openvino(model, feeds, precisions)


def _onnx_model(lstm: nn.LSTM, feeds: Arrays) -> Any:
    import onnx
    from onnx import helper, numpy_helper

    def reorder(w: Tensor) -> Tensor:  # i, f, g, o to ONNX's i, o, f, c
        i, f, g, o = w.detach().chunk(4)
        return torch.cat([i, o, f, g])

    weights = {
        "w": reorder(lstm.weight_ih_l0),
        "r": reorder(lstm.weight_hh_l0),
        "b": torch.cat([reorder(lstm.bias_ih_l0), reorder(lstm.bias_hh_l0)]),
    }
    optional = [name if name in feeds else "" for name in ("lengths", "h", "c")]
    outputs = {name: [None] * rank for name, rank in (("y", 4), ("h_n", 3), ("c_n", 3))}
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", *weights, *optional], list(outputs), hidden_size=lstm.hidden_size)],
        "lstm",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for name, a in feeds.items()
        ],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims) for name, dims in outputs.items()],
        [numpy_helper.from_array(w.unsqueeze(0).numpy(), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _onnx_runtime(model: Any, precisions: tuple[str, ...]) -> dict[str, Run]:
    try:
        import onnxruntime
    except ImportError:
        return {}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1

    def session(model: Any) -> Run:
        made = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        return lambda feeds: made.run(None, feeds)

    runs = {}
    if "float32" in precisions:
        runs["ONNX Runtime float32"] = session(model)
    if "int8" in precisions:
        runs["ONNX Runtime int8"] = session(_quantised(model))
    return runs


def _quantised(model: Any) -> Any:
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    vnni = "vnni" in Path("/proc/cpuinfo").read_text()
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/int8.onnx"
        logging.disable()  # it recommends a preprocessing that does nothing here
        quantize_dynamic(model, path, op_types_to_quantize=["LSTM"], per_channel=True, reduce_range=not vnni)
        logging.disable(logging.NOTSET)
        return onnx.load(path)


def _openvino(model: Any, feeds: Arrays, precisions: tuple[str, ...]) -> dict[str, Run]:
    try:
        import openvino
    except ImportError:
        return {}
    core = openvino.Core()
    hints = {"float32": "f32", "bfloat16": "bf16"}
    runs = {}
    for precision in filter(hints.get, precisions):
        compiled = core.compile_model(
            core.read_model(model.SerializeToString()),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": hints[precision],
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
            },
        )
        ran_in = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        remark = "" if ran_in == hints[precision] else f", ran in {ran_in}"
        request = compiled.create_infer_request()

        def run(feeds: Arrays, request: Any = request) -> list[NDArray[np.float32]]:
            out = request.infer(feeds, share_inputs=True, share_outputs=True)
            return [out[k] for k in range(len(out))]

        runs[f"OpenVINO {precision}{remark}"] = run
    return runs

"""nn.LSTM on the CPU against torch.nn.LSTM and ONNX Runtime: inference and a training step.

One layer, I = H, T = 20 steps. torch.nn.LSTM runs in eval mode under no_grad (its inference primitive); ONNX
Runtime has its weights packed by its session; ours are packed by prepare(). Packing is not timed in inference
and is part of every training step, for torch as for us. Float32 variants must match torch to 1e-5 before
anything is timed, bfloat16 and int8 weights to 0.02 and 0.05.
"""

from collections.abc import Callable, Iterator
from typing import Any

import harness
import torch
from torch import Tensor, nn

from lrcn_fast.nn import LSTM

T = 20
SIZES = [(H, B) for H in (256, 1000) for B in (1, 5, 32)]

Result = tuple[float, Tensor]  # tolerance, what was computed


def measure() -> Iterator[tuple[dict[str, Any], harness.Variants, Any]]:
    for H, B in SIZES:
        torch.manual_seed(H + B)
        peer = nn.LSTM(H, H).eval()
        x = torch.randn(T, B, H)
        case = {"T": T, "B": B, "I=H": H, "threads": torch.get_num_threads()}
        yield {"what": "inference"} | case, inference(peer, x), check
        yield {"what": "training step"} | case, training(peer, x), check


def inference(peer: nn.LSTM, x: Tensor) -> harness.Variants:
    def timed(module: nn.Module, tolerance: float) -> Callable[[], Result]:
        def run() -> Result:
            with torch.no_grad():
                return tolerance, module(x)[0]

        return run

    variants: harness.Variants = {"torch": timed(peer, 0.0)}
    session = onnx_session(peer)
    if session is not None:
        feed = {"x": x.numpy()}
        variants["ONNX Runtime"] = lambda: (1e-5, torch.from_numpy(session.run(None, feed)[0]).squeeze(1))
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.02), ("int8", 0.05)):
        variants[f"lrcn_fast {dtype}"] = timed(LSTM.from_torch(peer).eval().prepare(dtype), tolerance)
    return variants


def training(peer: nn.LSTM, x: Tensor) -> harness.Variants:
    def timed(module: nn.Module, tolerance: float) -> Callable[[], Result]:
        parameters = list(module.parameters())

        def run() -> Result:
            gradients = torch.autograd.grad(module(x)[0].square().sum(), parameters)
            return tolerance, torch.cat([(g / g.abs().max()).flatten() for g in gradients])

        return run

    ours = LSTM.from_torch(peer).train()
    return {"torch": timed(peer.train(), 0.0), "lrcn_fast float32": timed(ours, 1e-5)}


def check(actual: Result, expected: Result) -> None:
    tolerance, value = actual
    torch.testing.assert_close(value, expected[1], rtol=tolerance, atol=tolerance)


def onnx_session(peer: nn.LSTM) -> Any:
    """The same layer as one ONNX LSTM node, or None where onnx and onnxruntime are not installed."""
    try:
        import onnx
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return None

    def reorder(w: Tensor) -> Tensor:  # i, f, g, o to ONNX's i, o, f, c
        i, f, g, o = w.detach().chunk(4)
        return torch.cat([i, o, f, g])

    weights = {
        "w": reorder(peer.weight_ih_l0),
        "r": reorder(peer.weight_hh_l0),
        "b": torch.cat([reorder(peer.bias_ih_l0), reorder(peer.bias_hh_l0)]),
    }
    H = peer.hidden_size
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=H)],
        "lstm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", "B", peer.input_size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", 1, "B", H])],
        [numpy_helper.from_array(w.unsqueeze(0).numpy(), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


if __name__ == "__main__":
    harness.main(__file__, "lstm", measure)

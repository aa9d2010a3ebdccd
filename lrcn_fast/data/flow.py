"""Dense optical flow, and the pictures of it that a CNN reads.

The pictures are those of Donahue et al., TPAMI 2017, section 4, and of the code that came with it. With u, v
the displacement of a pixel to the next frame, in pixels, right and down::

    R = clip(16 u + 128, 0, 255)    G = clip(16 v + 128, 0, 255)    B = min(16 |(u, v)| + 128, 255)

so 8 pixels saturate, and a flow network subtracts 128 from all three. N frames give N - 1
flows; flow k is from frame k to frame k + 1. The camera's motion is not subtracted.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from lrcn_fast._files import one_line
from lrcn_fast.data.video import Frame, Video, open_video

__all__ = ["FLOW_METHODS", "flow_images", "flow_video", "iterate_flow", "mirror_flow_images", "optical_flow"]

Flow = npt.NDArray[np.float32]
Grey = npt.NDArray[np.uint8]

FLOW_METHODS = ("dis", "farneback", "tvl1", "brox")
SCALE, CENTRE = 16.0, 128.0


def optical_flow(frames: Iterable[Frame], method: str = "dis") -> Flow:
    """Compute the flow between consecutive frames.

    Args:
        frames: RGB [N, H, W, 3] or grey [N, H, W] uint8, N >= 2; a :class:`~lrcn_fast.data.video.Video`, or
            anything else that yields frames.
        method: "dis" (Kroeger et al. 2016, OpenCV's medium preset), "farneback" (Farneback 2003; about 1.5
            times as slow), "tvl1" (Zach et al. 2007; needs opencv-contrib) or "brox" (Brox et al. 2004, the
            paper's; needs an OpenCV built with its contrib modules and CUDA).

    Returns:
        Displacements (right, down) in pixels, [N - 1, H, W, 2].

    Raises:
        ImportError: OpenCV is missing, or lacks the method.
        ValueError: Fewer than two frames, frames of another kind or too small, or an unknown method.
    """
    flows = list(iterate_flow(frames, method))
    if not flows:
        raise ValueError("optical_flow: frames must be at least 2, got fewer")
    return np.stack(flows)


def iterate_flow(frames: Iterable[Frame], method: str = "dis") -> Iterator[Flow]:
    """Yield what :func:`optical_flow` returns, one flow [H, W, 2] at a time, holding two frames."""
    estimate = _estimator(method)
    before: Grey | None = None
    for frame in frames:
        grey = _grey(frame, before)
        if before is not None:
            try:
                yield np.asarray(estimate(before, grey), np.float32)
            except _cv2().error as error:
                raise ValueError(
                    f"optical_flow: frames must be of a size that {method} can do, got "
                    f"{grey.shape[1]} x {grey.shape[0]} ({one_line(error)})"
                ) from None
        before = grey


def flow_images(flow: Flow) -> Frame:
    """Turn flow into the paper's pictures; see this module.

    Args:
        flow: Displacements (right, down) in pixels, [..., H, W, 2].

    Returns:
        Pictures [..., H, W, 3] uint8: horizontal, vertical, magnitude; rounded to nearest.

    Raises:
        ValueError: Another shape, or NaN.
    """
    flow = np.asarray(flow, np.float32)
    if flow.ndim < 3 or flow.shape[-1] != 2:
        raise ValueError(f"flow_images: flow must be [..., H, W, 2], got {list(flow.shape)}")
    if np.isnan(flow).any():
        raise ValueError("flow_images: flow must not contain NaN")
    magnitude = np.hypot(flow[..., 0], flow[..., 1])
    values = np.concatenate((flow, magnitude[..., None]), -1) * SCALE + CENTRE
    return np.floor(np.clip(values, 0, 255) + 0.5).astype(np.uint8)


def mirror_flow_images(images: Frame) -> Frame:
    """Mirror flow pictures left to right, as the flow of mirrored frames would be.

    The columns are reversed and the horizontal channel becomes 255 - value, as in the original release; that
    is one level off the exact negation (256 - value), so a still pixel turns from 128 to 127.

    Args:
        images: From :func:`flow_images`, [..., H, W, 3] uint8, horizontal flow first.

    Returns:
        A copy of the same shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim < 3 or images.shape[-1] != 3:
        raise ValueError(
            "mirror_flow_images: images must be uint8 [..., H, W, 3], got "
            f"{images.dtype} {list(images.shape)}"
        )
    mirrored = images[..., ::-1, :].copy()
    mirrored[..., 0] = 255 - mirrored[..., 0]
    return mirrored


def flow_video(video: Video, cache: str | os.PathLike[str], method: str = "dis") -> Video:
    """Return the flow pictures of a video as a video, computed once and kept on disk.

    They are kept as PNG files (lossless) in a folder whose name is a hash of the video's content, its
    decoder, the method and OpenCV's version. The folder appears when it is complete.

    Args:
        video: N frames.
        cache: Folder that holds the folders of all videos; made if needed.
        method: As in :func:`optical_flow`.

    Returns:
        N - 1 frames [H, W, 3]; frame k is the flow from frame k to k + 1 of `video`.

    Raises:
        ImportError: As :func:`optical_flow`.
        ValueError: The video has fewer than two frames.
    """
    cv2 = _cv2()
    _estimator(method)
    folder = Path(cache) / video.key(f"flow {method}, opencv {cv2.__version__}, scale {SCALE}").hex()
    if not folder.exists():
        _write_pictures(map(flow_images, iterate_flow(video, method)), folder, video.name)
    return open_video(folder, fps=video.fps or 30.0)


def _write_pictures(pictures: Iterable[Frame], folder: Path, name: str) -> None:
    """Write numbered PNG files beside `folder` and rename the whole."""
    cv2 = _cv2()
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".flow-", dir=folder.parent))
    try:
        count = 0
        for count, picture in enumerate(pictures, 1):
            ok, content = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
            if not ok:
                raise RuntimeError("flow_video: OpenCV could not encode a PNG")
            (stage / f"{count:06d}.png").write_bytes(content.tobytes())
        if not count:
            raise ValueError(f"flow_video: {name} must have at least 2 frames, got fewer")
        stage.chmod(0o755)
        with contextlib.suppress(OSError):  # another process was faster; its pictures are the same
            stage.rename(folder)
        if not folder.is_dir():
            raise OSError(f"flow_video: {folder} could not be written")
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _grey(frame: Frame, before: Grey | None) -> Grey:
    if frame.dtype != np.uint8 or frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] != 3):
        raise ValueError(
            "optical_flow: frames must be uint8 [N, H, W, 3] or [N, H, W], got a frame of "
            f"{frame.dtype} {list(frame.shape)}"
        )
    if before is not None and frame.shape[:2] != before.shape:
        raise ValueError(
            f"optical_flow: frames must have one size, got {before.shape[1]} x {before.shape[0]} and "
            f"{frame.shape[1]} x {frame.shape[0]}"
        )
    cv2 = _cv2()
    grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) if frame.ndim == 3 else frame
    return cast(Grey, np.ascontiguousarray(grey))


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ImportError("optical_flow: OpenCV is missing: pip install 'lrcn_fast[video]'") from error
    return cv2


def _estimator(method: str) -> Callable[[Grey, Grey], Any]:
    """Return a function from two grey frames [H, W] to the flow [H, W, 2] between them."""
    if method not in FLOW_METHODS:
        raise ValueError(f"optical_flow: method must be one of {', '.join(FLOW_METHODS)}, got {method!r}")
    cv2 = _cv2()
    if method == "dis":
        dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        return lambda a, b: dis.calc(a, b, None)
    if method == "farneback":
        # Pyramid of 5 levels, windows of 15 pixels, 3 iterations, polynomials over 5 pixels: the values of
        # OpenCV's own sample, with two levels more for fast motion.
        return lambda a, b: cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 5, 15, 3, 5, 1.2, 0)
    if method == "tvl1":
        if not hasattr(getattr(cv2, "optflow", None), "createOptFlow_DualTVL1"):
            raise ImportError(
                'optical_flow: method "tvl1" needs OpenCV with its contrib modules: pip uninstall '
                "opencv-python-headless; pip install opencv-contrib-python-headless"
            )
        return lambda a, b: cv2.optflow.createOptFlow_DualTVL1().calc(a, b, None)
    if not hasattr(getattr(cv2, "cuda", None), "BroxOpticalFlow_create"):
        raise ImportError(
            'optical_flow: method "brox" needs an OpenCV built from source with its contrib modules and '
            'CUDA; "dis" needs neither'
        )
    brox = cv2.cuda.BroxOpticalFlow_create()

    def calculate(a: Grey, b: Grey) -> Any:
        device = []
        for frame in (a, b):
            matrix = cv2.cuda_GpuMat()
            matrix.upload(frame.astype(np.float32) / 255)
            device.append(matrix)
        return brox.calc(device[0], device[1], None).download()

    return calculate

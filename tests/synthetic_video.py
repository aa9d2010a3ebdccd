"""Tiny videos whose frames carry their number, and what reads the number back."""

import io
from fractions import Fraction

import numpy as np

HEIGHT, WIDTH = 48, 64


def numbered(n, height=HEIGHT, width=WIDTH):
    """Frames [n, H, W, 3] with their number as eight black or white columns, which survive lossy coding."""
    bits = (np.arange(n)[:, None] >> np.arange(8)) & 1
    columns = np.repeat(40 + 175 * bits, -(-width // 8), axis=1)[:, :width]
    frames = np.broadcast_to(columns[:, None, :, None], (n, height, width, 3))
    return np.ascontiguousarray(frames.astype(np.uint8))


def number_of(frame):
    """Number of one frame [H, W, 3] of a numbered video, whatever its size."""
    columns = np.array_split(frame[frame.shape[0] // 2].mean(-1), 8)
    return int(sum((column.mean() > 128) << bit for bit, column in enumerate(columns)))


def encode(frames, target, *, codec="libx264", format=None, fps=30, gop=12, b_frames=2, skip=()):
    """Write frames to a path or file object; the time stamps of `skip` are left out (variable rate)."""
    import av

    with av.open(target, "w", format=format) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        if codec != "mjpeg":
            stream.codec_context.max_b_frames = b_frames
        time = 0
        for frame in frames:
            while time in skip:
                time += 1
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = time
            picture.time_base = Fraction(1, fps)
            container.mux(stream.encode(picture))
            time += 1
        container.mux(stream.encode())


def encoded(n=60, format="mp4", **options):
    """Bytes of a numbered video."""
    target = io.BytesIO()
    encode(numbered(n), target, format=format, **options)
    return target.getvalue()

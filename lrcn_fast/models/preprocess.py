"""From a photo to the numbers a CNN reads: decoding, geometry, channel order, normalisation.

Needs numpy and Pillow only, so that the torch-free runtime prepares images exactly as training did. A
:class:`Preprocessing` is data: it is written into a model's configuration and read back.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

try:
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as error:
    raise ImportError("lrcn_fast.models.preprocess: Pillow is missing. pip install pillow") from error

__all__ = ["Preprocessing", "load_image", "to_rgb"]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a photo as RGB, upright, whatever its format.

    The EXIF orientation is applied; palettes, greyscale, CMYK and YCbCr are converted; transparent pixels are
    blended with white; 16-bit greyscale is scaled to 8 bits; an animation gives its first frame.

    Args:
        path: The image file.

    Returns:
        An image of mode RGB that no longer needs the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty, truncated, not an image, or of a pixel type without a known conversion.
    """
    expected = f"load_image: {os.fspath(path)} must be an image"
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise ValueError(f"{expected}, got an empty file")
            file.seek(0)
            with Image.open(file) as image:
                image.load()
                return to_rgb(image, name=os.fspath(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{expected}, got no such file") from None
    except UnidentifiedImageError:
        raise ValueError(f"{expected}, got a file of no known image format") from None
    except ValueError as error:
        if str(error).startswith(("load_image", "to_rgb")):
            raise
        raise _broken(expected, error) from None
    except Exception as error:
        # Decoders raise OSError, SyntaxError, struct.error, zlib.error, IndexError and more for broken files.
        raise _broken(expected, error) from None


def _broken(expected: str, error: Exception) -> ValueError:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(f"{expected}, got a broken or unreadable file ({text})")


def to_rgb(image: Any, *, name: str = "image") -> Image.Image:
    """Convert an image in memory to RGB, upright.

    Args:
        image: A PIL image of any mode, or unsigned bytes as a numpy array [height, width], [height, width,
            1], [height, width, 3] (RGB) or [height, width, 4] (RGBA), or as a torch tensor [1, height,
            width] or [3, height, width].
        name: What to call it in an error message.

    Raises:
        ValueError: It has no pixels, or a shape or pixel type without a known conversion. Floating-point
            pixels are refused, because [0, 1] and [0, 255] cannot be told apart.
    """
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"to_rgb: {name} must have pixels, got {image.width} x {image.height}")
        return _mode_to_rgb(ImageOps.exif_transpose(image), name)
    expected = (
        f"to_rgb: {name} must be a path, a PIL image, a uint8 array [H, W, 3] or a uint8 tensor [3, H, W]"
    )
    is_tensor = type(image).__module__.partition(".")[0] == "torch" and hasattr(image, "permute")
    if not is_tensor and not isinstance(image, np.ndarray):
        raise ValueError(f"{expected}, got {type(image).__name__}")
    shape = list(image.shape)
    grey_or_colour = (
        len(shape) == 3 and shape[0] in (1, 3)
        if is_tensor
        else len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))
    )
    dtype = str(image.dtype).removeprefix("torch.")
    if not grey_or_colour or dtype != "uint8" or 0 in shape:
        raise ValueError(f"{expected}, got {dtype} {shape}")
    array = image.detach().permute(1, 2, 0).cpu().numpy() if is_tensor else image
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _mode_to_rgb(Image.fromarray(np.ascontiguousarray(array)), name)


def _mode_to_rgb(image: Image.Image, name: str) -> Image.Image:
    mode = image.mode
    if mode.startswith("I"):  # 16-bit greyscale; Pillow's own conversion clips at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"to_rgb: {name} must have 8 or 16 bits a channel, got values up to {values.max()}"
            )
        wide = mode.startswith("I;16") or values.max() > 255
        return Image.fromarray(((values + 128) // 257 if wide else values).astype(np.uint8)).convert("RGB")
    if mode == "F":
        raise ValueError(f"to_rgb: {name} must have integer pixels, got mode F (floating point)")
    try:
        if mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image.convert("RGB")
    except ValueError:
        raise ValueError(
            f"to_rgb: {name} must have a pixel type with a conversion to RGB, got {mode}"
        ) from None


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Geometry and normalisation in front of a CNN: ``(pixel - mean) / std`` with pixels 0..255.

    Attributes:
        size: Side S of the square the network reads.
        resize: Length R of the mode.
        mode: "short": the shorter side is resized to R, then the centre S x S is cut (torchvision's and
            timm's evaluation). "warp": the image is squashed to R x R, then the centre is cut. "centre":
            the centre S/R of each side is cut from the original, then squashed to S x S; the LRCN release
            tests this way (margin ``int(side * (R - S) / (2 R) + 0.5)``). "pad": the longer side is resized
            to R, the image is padded with the mean to R x R and the centre is cut: with R = S nothing of the
            image is lost and its shape stays.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos", all antialiased.
        channels: "rgb" or "bgr", the order the network reads.
        mean: Subtracted per channel, in that order.
        std: Divided by per channel, in that order.
    """

    size: int
    resize: int
    mode: Literal["short", "warp", "centre", "pad"] = "short"
    interpolation: str = "bilinear"
    channels: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(x) for x in getattr(self, name)))
        if self.size < 1 or self.resize < self.size:
            raise ValueError(f"Preprocessing: resize must be >= size >= 1, got {self.resize} and {self.size}")
        choices = {
            "mode": ("short", "warp", "centre", "pad"),
            "interpolation": tuple(_RESAMPLING),
            "channels": ("rgb", "bgr"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                got = getattr(self, name)
                raise ValueError(f"Preprocessing: {name} must be one of {', '.join(allowed)}, got {got!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ValueError(
                f"Preprocessing: mean and std must be 3 numbers, std > 0, got {self.mean} and {self.std}"
            )

    def config(self) -> dict[str, Any]:
        """Plain values for a JSON file; ``Preprocessing.from_config`` reads them back."""
        return dataclasses.asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """Build from :meth:`config`'s values.

        Raises:
            ValueError: A key is missing, unknown, or has a bad value.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(config, Mapping) or set(config) != known:
            got = sorted(config) if isinstance(config, Mapping) else type(config).__name__
            raise ValueError(
                f"Preprocessing.from_config: config must have the keys {sorted(known)}, got {got}"
            )
        try:
            return cls(**config)
        except TypeError as error:
            raise ValueError(
                f"Preprocessing.from_config: config must have valid values, got {error}"
            ) from None

    def __call__(self, image: Any) -> npt.NDArray[np.float32]:
        """Prepare one image for evaluation.

        Args:
            image: A path, or what :func:`to_rgb` takes.

        Returns:
            Pixels [3, S, S].
        """
        return self.view(image, 0.5, 0.5)

    def view(self, image: Any, x: float, y: float) -> npt.NDArray[np.float32]:
        """Prepare one image with the crop elsewhere than in the centre.

        Args:
            image: A path, or what :func:`to_rgb` takes.
            x: Where the crop is in what room it has: 0 at the left, 0.5 in the centre, 1 at the right.
            y: 0 at the top, 1 at the bottom.

        Returns:
            Pixels [3, S, S].

        Raises:
            ValueError: `x` or `y` is not in [0, 1].
        """
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ValueError(f"Preprocessing.view: x and y must be in [0, 1], got {x} and {y}")
        rgb = _open(image)
        size = (self.size, self.size)
        if self.mode == "centre":
            # Margins of the release: equal on both sides, rounded to whole pixels.
            margins = [int(side * (self.resize - self.size) / (2 * self.resize) + 0.5) for side in rgb.size]
            margins = [min(margin, (side - 1) // 2) for margin, side in zip(margins, rgb.size, strict=True)]
            left, top = (round(2 * margin * at) for margin, at in zip(margins, (x, y), strict=True))
            box = (left, top, rgb.width - 2 * margins[0] + left, rgb.height - 2 * margins[1] + top)
            return self._normalise(rgb.crop(box).resize(size, _RESAMPLING[self.interpolation]))
        resized = self._resize(rgb)
        left, top = (round((side - self.size) * at) for side, at in zip(resized.size, (x, y), strict=True))
        return self._normalise(resized.crop((left, top, left + self.size, top + self.size)))

    def augment(
        self, image: Any, uniform: Callable[[], float], *, scale: tuple[float, float] = (0.4, 1.0)
    ) -> npt.NDArray[np.float32]:
        """Prepare one image for training: a random part of it, mirrored half of the time.

        Modes "warp" and "centre" do as the LRCN release: squash to R x R, then a random S x S crop; "pad"
        pads to R x R instead. Mode "short" cuts a random rectangle of a share `scale` of the area and an
        aspect ratio within 3/4 to 4/3 (Szegedy et al. 2015), and resizes it to S x S.

        Args:
            image: A path, or what :func:`to_rgb` takes.
            uniform: Draws from [0, 1), e.g. ``numpy.random.default_rng(0).random``. Called 3 to 4 times.
            scale: Smallest and largest share of the area, for mode "short".

        Returns:
            Pixels [3, S, S].

        Raises:
            ValueError: `scale` is not 0 < low <= high <= 1.
        """
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"Preprocessing.augment: scale must be 0 < low <= high <= 1, got {scale}")
        rgb = _open(image)
        resampling = _RESAMPLING[self.interpolation]
        if self.mode == "short":
            area = rgb.width * rgb.height * (scale[0] + (scale[1] - scale[0]) * uniform())
            ratio = math.exp(math.log(4 / 3) * (2 * uniform() - 1))  # width / height
            width = min(rgb.width, max(1, round(math.sqrt(area * ratio))))
            height = min(rgb.height, max(1, round(math.sqrt(area / ratio))))
            left, top = int(uniform() * (rgb.width - width + 1)), int(uniform() * (rgb.height - height + 1))
            crop = rgb.resize((self.size, self.size), resampling, box=(left, top, left + width, top + height))
        else:
            rgb = self._resize(rgb) if self.mode == "pad" else rgb.resize((self.resize,) * 2, resampling)
            left, top = (int(uniform() * (self.resize - self.size + 1)) for _ in range(2))
            crop = rgb.crop((left, top, left + self.size, top + self.size))
        if uniform() < 0.5:
            crop = ImageOps.mirror(crop)
        return self._normalise(crop)

    def _resize(self, rgb: Image.Image) -> Image.Image:
        resampling = _RESAMPLING[self.interpolation]
        if self.mode == "warp":
            return rgb.resize((self.resize, self.resize), resampling)
        if self.mode == "pad":
            longest = max(rgb.size)
            wide, high = (max(1, round(side * self.resize / longest)) for side in rgb.size)
            mean = self.mean if self.channels == "rgb" else self.mean[::-1]
            square = Image.new("RGB", (self.resize, self.resize), tuple(round(m) for m in mean))
            small = rgb.resize((wide, high), resampling)
            square.paste(small, ((self.resize - wide) // 2, (self.resize - high) // 2))
            return square
        # A strip of 1 x 5000 pixels would become a huge image of which only the centre is used: cut that
        # first.
        short = min(rgb.size)
        width, height = (min(side, 16 * short) for side in rgb.size)
        left, top = (rgb.width - width) // 2, (rgb.height - height) // 2
        box = (left, top, left + width, top + height)
        target = (int(self.resize * width / short), int(self.resize * height / short))
        return rgb.resize(target, resampling, box=box) if target != rgb.size else rgb

    def _normalise(self, rgb: Image.Image) -> npt.NDArray[np.float32]:
        pixels = np.asarray(rgb, dtype=np.float32)
        if self.channels == "bgr":
            pixels = pixels[:, :, ::-1]
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


def _open(image: Any) -> Image.Image:
    return load_image(image) if isinstance(image, (str, os.PathLike)) else to_rgb(image)

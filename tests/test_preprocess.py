"""Photos to pixels: decoding every kind of file, geometry against torchvision and timm, the paper's crops."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from lrcn_fast.models.preprocess import Preprocessing, load_image, to_rgb


def photo(width=60, height=40, seed=0):
    """A smooth random RGB photo: noise, enlarged."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def save(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


# Decoding


@pytest.mark.parametrize("kind", ["L", "1", "LA", "P", "RGBA", "PA", "CMYK", "YCbCr", "HSV", "I;16", "RGBa"])
def test_every_mode_becomes_rgb(kind):
    rgb = photo()
    if kind == "I;16":
        wide = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
        got, want = to_rgb(Image.fromarray(wide)), rgb.convert("L").convert("RGB")
    elif kind == "RGBa":
        got, want = to_rgb(rgb.convert("RGBA").convert("RGBa")), rgb
    elif kind == "PA":
        got, want = to_rgb(rgb.convert("P").convert("PA")), rgb.convert("P").convert("RGB")
    else:
        got, want = to_rgb(rgb.convert(kind)), rgb.convert(kind).convert("RGB")
    assert got.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_transparent_pixels_become_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    rgba[0, 1] = (10, 20, 30, 0)
    rgba[1, 0] = (0, 0, 0, 128)
    got = np.asarray(load_image(save(tmp_path, Image.fromarray(rgba), "a.png")))
    np.testing.assert_array_equal(got[0, 0], (10, 20, 30))
    np.testing.assert_array_equal(got[0, 1], (255, 255, 255))
    np.testing.assert_array_equal(got[1, 0], (127, 127, 127))
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([9, 8, 7, 1, 2, 3])
    got = np.asarray(load_image(save(tmp_path, palette, "p.png", transparency=1)))
    np.testing.assert_array_equal(got, [[(9, 8, 7), (255, 255, 255)]])


def test_sixteen_bit_greyscale_file(tmp_path):
    values = np.array([[0, 128, 129, 257, 65535]], np.uint16)
    got = np.asarray(load_image(save(tmp_path, Image.fromarray(values), "deep.png")))
    np.testing.assert_array_equal(got[0, :, 0], [0, 0, 1, 1, 255])
    # The same pixels as a 32-bit image, which is how some files are opened.
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(values.astype(np.int32)))), got)
    eight = Image.fromarray(np.array([[0, 7, 255]], np.int32))
    np.testing.assert_array_equal(np.asarray(to_rgb(eight))[0, :, 1], [0, 7, 255])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    # What the camera stored for an upright photo, for each value of the tag (EXIF 2.3, 4.6.4).
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a[:, ::-1].swapaxes(0, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a[::-1].swapaxes(0, 1),
    }
    upright = np.asarray(photo(6, 4))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored[orientation](upright)))
    got = load_image(save(tmp_path, image, "o.png", exif=exif))
    np.testing.assert_array_equal(np.asarray(got), upright)


def test_animation_gives_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    path = save(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(np.asarray(load_image(path))[0, 0], (255, 0, 0))


def png_with_bad_checksum():
    buffer = io.BytesIO()
    photo().save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[data.index(b"IDAT") + 30] ^= 255
    return bytes(data)


def png_bomb():
    """A PNG that claims 60000 x 60000 pixels and holds none."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


def jpeg():
    buffer = io.BytesIO()
    photo(300, 200).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b"not an image", "got a file of no known image format"),
        (jpeg()[:2], "got a file of no known image format"),
        (jpeg()[: len(jpeg()) // 2], "got a broken or unreadable file"),
        (png_with_bad_checksum(), "got a broken or unreadable file"),
        (png_bomb(), "got a broken or unreadable file"),
        (b"BM" + bytes(60), "got a (file of no known|broken or unreadable)"),
    ],
    ids=["empty", "text", "two-bytes", "truncated-jpeg", "damaged-png", "bomb", "zero-bmp"],
)
def test_broken_files_are_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "holiday photo.jpg"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"load_image: .*holiday photo\.jpg must be an image, {message}"
    ) as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"load_image: .*none\.jpg must be an image, got no such file"
    ):
        load_image(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match="must be an image, got a broken or unreadable file"):
        load_image(tmp_path)


def test_floating_point_pixels_are_refused(tmp_path):
    path = save(tmp_path, Image.fromarray(np.ones((4, 4), np.float32)), "depth.tiff")
    with pytest.raises(ValueError, match=r"depth\.tiff must have integer pixels, got mode F"):
        load_image(path)
    with pytest.raises(ValueError, match=r"must be .* uint8 .*, got float32 \[4, 4, 3\]"):
        to_rgb(np.ones((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"got float32 \[3, 4, 4\]"):
        to_rgb(torch.rand(3, 4, 4))
    with pytest.raises(ValueError, match="must have 8 or 16 bits a channel, got values up to 70000"):
        to_rgb(Image.fromarray(np.array([[70000]], np.int32)))


@pytest.mark.parametrize(
    "image",
    [None, 3, [[1]], np.zeros((4, 4, 2), np.uint8), np.zeros((3, 0, 3), np.uint8), np.zeros(4, np.uint8),
     torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.uint8)],
    ids=str,
)  # fmt: skip
def test_other_things_are_refused(image):
    with pytest.raises(ValueError, match="to_rgb: image must be a path, a PIL image, a uint8 array"):
        to_rgb(image)
    with pytest.raises(ValueError, match="must have pixels, got 0 x 3"):
        to_rgb(Image.new("RGB", (0, 3)))


def test_same_pixels_from_path_image_array_and_tensor(tmp_path):
    image = photo()
    array = np.asarray(image)
    prepare = Preprocessing(16, 20)
    want = prepare(save(tmp_path, image, "a.png"))
    for same in (str(tmp_path / "a.png"), image, array, torch.from_numpy(array.copy()).permute(2, 0, 1)):
        np.testing.assert_array_equal(prepare(same), want)
    grey = np.asarray(image.convert("L"))
    want = prepare(image.convert("L"))
    for same in (grey, grey[:, :, None], torch.from_numpy(grey.copy())[None]):
        np.testing.assert_array_equal(prepare(same), want)


# Geometry


@pytest.mark.parametrize("size", [(60, 40), (40, 61), (33, 33), (20, 20), (7, 300), (3, 2), (1, 1)], ids=str)
def test_short_equals_torchvision(size):
    transforms = pytest.importorskip("torchvision.transforms")
    image = photo(*size)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    want = transforms.Compose(
        [
            transforms.Resize(20, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(16),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )(image).numpy()
    scaled = [tuple(255 * x for x in values) for values in (mean, std)]
    got = Preprocessing(16, 20, "short", "bicubic", "rgb", *scaled)(image)
    # Rounding of mean, std and the quotient: values up to 2.7; worst seen 4 eps.
    exact = max(size) <= 16 * min(size)  # beyond it the strip is cut before it is resized, not after
    tolerance = 8 * np.finfo(np.float32).eps if exact else 2 / 255 / 0.22
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


def test_timm_models_see_timm_preprocessing():
    timm = pytest.importorskip("timm")
    from lrcn_fast.models import create_encoder

    image = photo(300, 220)
    for name in ("resnet18", "mobilenetv3_small_050"):
        net = timm.create_model(name)
        transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=net))
        got = create_encoder(f"timm/{name}", weights=None).preprocess(image)
        torch.testing.assert_close(got, transform(image), rtol=0, atol=8 * torch.finfo(torch.float32).eps)


def test_strips_stay_cheap():
    image = Image.new("RGB", (3, 30000), (10, 20, 30))  # 224/3 * 30000 rows if it were resized as it is
    for mode in ("short", "warp", "centre"):
        prepare = Preprocessing(224, 256, mode)
        assert prepare(image).shape == (3, 224, 224)
        assert prepare.augment(image, np.random.default_rng(0).random).shape == (3, 224, 224)


def test_warp_squashes_then_cuts_the_centre():
    image = photo(50, 30)
    got = Preprocessing(8, 10, "warp")(image)
    want = np.asarray(image.resize((10, 10), Image.Resampling.BILINEAR))[1:9, 1:9].transpose(2, 0, 1)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("side", "net", "margin"),
    # int(side * 29 / 512 + 0.5) for the 227 nets, 32/512 for the 224 ones; 256 itself keeps 228 pixels of 227
    [(640, 227, 36), (480, 227, 27), (256, 227, 15), (640, 224, 40), (9, 227, 1), (8, 227, 0)],
)
def test_centre_cuts_the_margins_of_the_release(side, net, margin):
    image = photo(side, side + 100)
    tall = int((side + 100) * (256 - net) / 512 + 0.5)
    want = image.crop((margin, tall, side - margin, side + 100 - tall)).resize(
        (net, net), Image.Resampling.BILINEAR
    )
    got = Preprocessing(net, 256, "centre")(image)
    np.testing.assert_array_equal(got, np.asarray(want).transpose(2, 0, 1))


def test_channel_order_and_mean():
    image = Image.new("RGB", (30, 20), (200, 100, 50))
    caffe = Preprocessing(8, 10, "warp", channels="bgr", mean=(104, 117, 123))(image)
    np.testing.assert_array_equal(caffe[:, 0, 0], [50 - 104, 100 - 117, 200 - 123])
    lite = Preprocessing(8, 10, mean=(127,) * 3, std=(128,) * 3)(image)
    np.testing.assert_allclose(lite[:, 0, 0], [73 / 128, -27 / 128, -77 / 128], rtol=1e-7)


# Augmentation


@pytest.mark.parametrize("mode", ["short", "warp"])
def test_augment_is_random_seeded_and_mirrors(mode):
    ramp = np.zeros((40, 60, 3), np.uint8)
    ramp[:, :, 0] = np.arange(60) * 4
    ramp[:, :, 1] = np.arange(40)[:, None] * 6
    prepare = Preprocessing(16, 20, mode)
    views = [prepare.augment(ramp, np.random.default_rng(seed).random) for seed in range(40)]
    again = prepare.augment(ramp, np.random.default_rng(7).random)
    np.testing.assert_array_equal(views[7], again)
    rising = [view[0, 8, -1] > view[0, 8, 0] for view in views]
    assert 10 <= sum(rising) <= 30  # mirrored half of the time
    assert all(view[1, -1, 8] > view[1, 0, 8] for view in views)  # never upside down
    assert len({view.tobytes() for view in views}) > 20  # of 5 x 5 x 2 for warp


def test_warp_augment_reaches_every_offset():
    prepare = Preprocessing(3, 5, "warp")
    image = np.arange(25, dtype=np.uint8).reshape(5, 5)
    generator = np.random.default_rng(0)
    # The smallest value of a crop is its corner, mirrored or not.
    corners = {int(prepare.augment(image, generator.random)[0].min()) for _ in range(200)}
    assert corners == {row * 5 + column for row in range(3) for column in range(3)}


def test_augment_scale_is_checked():
    with pytest.raises(ValueError, match=r"scale must be 0 < low <= high <= 1, got \(0, 1\)"):
        Preprocessing(8, 10).augment(photo(), np.random.default_rng(0).random, scale=(0, 1))


# Settings


def test_config_round_trip():
    prepare = Preprocessing(227, 256, "centre", "bilinear", "bgr", (104, 117, 123))
    assert Preprocessing.from_config(prepare.config()) == prepare


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "stretch"}, "mode must be one of short, warp, centre, pad, got 'stretch'"),
        (
            {"interpolation": "cubic"},
            "interpolation must be one of nearest, bilinear, bicubic, lanczos, got 'cubic'",
        ),
        ({"channels": "gray"}, "channels must be one of rgb, bgr, got 'gray'"),
        ({"resize": 4}, "resize must be >= size >= 1, got 4 and 8"),
        ({"std": (1, 0, 1)}, r"must be 3 numbers, std > 0"),
        ({"mean": (1,)}, r"must be 3 numbers, std > 0, got \(1.0,\)"),
        ({"colour": 1}, "config must have the keys"),
        ({"size": "big"}, "config must have valid values"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_config(Preprocessing(8, 10).config() | change)


def test_config_must_be_a_mapping():
    with pytest.raises(ValueError, match=r"config must have the keys .*, got list"):
        Preprocessing.from_config([1])

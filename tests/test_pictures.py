"""Pictures of every kind come out as NumPy makes them of the numbers that were written, or are refused."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFile

from liteframe.pictures import PictureError, read_picture, rgb

RNG = np.random.default_rng(0)
GRAY, COLOR = RNG.integers(0, 256, (6, 10), dtype=np.uint8), RNG.integers(0, 256, (6, 10, 3), dtype=np.uint8)
ALPHA, DEEP = RNG.integers(0, 256, (6, 10, 1), dtype=np.uint8), RNG.integers(0, 65536, (6, 10), dtype=np.uint16)
PALETTE = RNG.integers(0, 256, (8, 3), dtype=np.uint8)
PLACES = RNG.integers(0, 8, (6, 10), dtype=np.uint8)


def gray_rgb(gray):
    return np.repeat(gray[..., None], 3, axis=-1)


def on_white(color, alpha):
    return np.round((color * (alpha / 255)) + 255 * (1 - alpha / 255)).astype(np.uint8)


def scaled(deep):
    return np.round(deep / 65535 * 255).astype(np.uint8)


def with_palette():
    image = Image.fromarray(PLACES, "P")
    image.putpalette(PALETTE.tobytes())
    return image


def stored(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


SHOWN = {
    "gray 16 bits": (Image.fromarray(DEEP), {}, gray_rgb(scaled(DEEP))),
    "gray 16 bits, one of them transparent": (
        Image.fromarray(DEEP), {"transparency": int(DEEP[0, 0])},
        gray_rgb(np.where(DEEP[0, 0] == DEEP, 255, scaled(DEEP)).astype(np.uint8)),
    ),
    "alpha": (Image.fromarray(np.concatenate([COLOR, ALPHA], -1)), {}, on_white(COLOR, ALPHA)),
    "gray with alpha": (
        Image.fromarray(np.stack([GRAY, ALPHA[..., 0]], -1)), {}, on_white(gray_rgb(GRAY), ALPHA),
    ),
    "palette": (with_palette(), {}, PALETTE[PLACES]),
    "palette, one color transparent": (
        with_palette(), {"transparency": 2}, np.where(PLACES[..., None] == 2, 255, PALETTE[PLACES]).astype(np.uint8),
    ),
    "palette, each color with its alpha": (
        with_palette(), {"transparency": bytes(range(0, 256, 32))},
        on_white(PALETTE[PLACES], np.arange(0, 256, 32)[PLACES][..., None]),
    ),
    "one gray transparent": (
        Image.fromarray(GRAY), {"transparency": int(GRAY[1, 1])},
        gray_rgb(np.where(GRAY[1, 1] == GRAY, 255, GRAY).astype(np.uint8)),
    ),
    "one color transparent": (
        Image.fromarray(COLOR), {"transparency": tuple(map(int, COLOR[2, 2]))},
        np.where((COLOR[2, 2] == COLOR).all(-1, keepdims=True), 255, COLOR).astype(np.uint8),
    ),
    "black and white": (Image.fromarray(GRAY > 127), {}, gray_rgb(np.where(GRAY > 127, 255, 0).astype(np.uint8))),
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_a_file_is_shown_as_it_is_meant(tmp_path, name):
    image, options, expected = SHOWN[name]
    (tmp_path / "a.png").write_bytes(stored(image, "PNG", **options).read())
    shown = read_picture(tmp_path / "a.png")
    assert shown.dtype == np.uint8
    # Pillow's own blending is one level off in a few places.
    assert np.abs(shown.astype(int) - expected).max() <= ("alpha" in name)


def test_kinds_that_png_does_not_have(tmp_path):
    inks = RNG.integers(0, 256, (6, 10, 4), dtype=np.uint8)
    paper = 255.0 - inks
    printed = np.round(paper[..., :3] * paper[..., 3:] / 255).astype(np.uint8)
    assert np.array_equal(rgb(Image.open(stored(Image.fromarray(inks, "CMYK"), "TIFF"))), printed)
    flat = Image.fromarray(np.broadcast_to(inks[:1, :1], (16, 16, 4)).copy(), "CMYK")
    jpeg = rgb(Image.open(stored(flat, "JPEG", quality=100)))  # whose inks are stored upside down
    assert np.abs(jpeg.astype(int) - printed[0, 0]).max() <= 2
    motorola = Image.frombytes("I;16B", (10, 6), DEEP.byteswap().tobytes())
    assert np.array_equal(rgb(motorola), gray_rgb(scaled(DEEP)))
    assert np.array_equal(rgb(Image.open(stored(Image.fromarray(DEEP), "TIFF"))), gray_rgb(scaled(DEEP)))
    luma = np.array([[[120, 90, 240]]], dtype=np.uint8)  # ITU-R BT.601, full range
    y, blue, red = (luma[0, 0] - np.array([0, 128, 128.0])).tolist()
    expected = [y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue]
    assert np.abs(rgb(Image.fromarray(luma, "YCbCr"))[0, 0] - np.clip(expected, 0, 255)).max() <= 1


TURNED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_a_picture_stands_upright(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(rgb(Image.open(stored(Image.fromarray(COLOR), kind, exif=exif))), TURNED[orientation](COLOR))
    deep = Image.open(stored(Image.fromarray(DEEP), kind, exif=exif))
    assert np.array_equal(rgb(deep), TURNED[orientation](gray_rgb(scaled(DEEP))))


def test_a_broken_exif_does_not_matter():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    data = bytearray(stored(Image.fromarray(COLOR), "JPEG", exif=exif).read())
    data[data.index(b"\x01\x0f\x00\x02") + 1] = 0  # the maker's name has become a width, which Pillow cannot write
    assert rgb(Image.open(io.BytesIO(data))).shape == (10, 6, 3)


def test_arrays_are_pictures_too():
    assert rgb(COLOR) is COLOR
    assert np.array_equal(rgb(GRAY), gray_rgb(GRAY))
    assert np.array_equal(rgb(GRAY[..., None]), gray_rgb(GRAY))
    assert np.array_equal(rgb(GRAY > 127), gray_rgb(np.where(GRAY > 127, 255, 0)))
    assert np.array_equal(rgb(np.stack([DEEP] * 3, -1)), gray_rgb(scaled(DEEP)))
    assert np.array_equal(rgb(DEEP.astype(">u2")), gray_rgb(scaled(DEEP)))
    assert np.abs(rgb(np.concatenate([COLOR, ALPHA], -1)).astype(int) - on_white(COLOR, ALPHA)).max() <= 1


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (Image.fromarray(RNG.random((4, 5), dtype=np.float32)), "an image of floats, of which nothing says"),
        (Image.fromarray(DEEP.astype(np.int32)), "an image of 32-bit integers, of which nothing says"),
        (RNG.random((4, 5, 3)), r"an array \[4, 5, 3\] float64; a picture is"),
        (np.zeros((3, 40, 50), np.uint8), r"an array \[3, 40, 50\] uint8"),
        (np.zeros((0, 5, 3), np.uint8), r"an array \[0, 5, 3\]"),
        (Image.new("1", (8193, 8193)), "8193x8193 pixels"),
    ],
)
def test_what_cannot_be_shown_is_refused(picture, reason):
    with pytest.raises(PictureError, match=reason):
        rgb(picture)


@pytest.mark.parametrize("truncated_allowed", [False, True])
def test_files_that_are_no_pictures_are_refused(tmp_path, monkeypatch, truncated_allowed):
    """Also where another library (lmms-eval) has told Pillow to fill what a cut file lacks with gray."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated_allowed)
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(stored(Image.fromarray(COLOR), "PNG").read()[:150])
    kinds = {"none.png": "missing", "text.png": "not_video", "cut.png": "corrupt", ".": "corrupt"}
    for name, kind in kinds.items():
        with pytest.raises(PictureError) as error:
            read_picture(tmp_path / name)
        assert error.value.kind == kind
    Image.fromarray(RNG.random((4, 5), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(PictureError, match="floats"):
        read_picture(tmp_path / "float.tif")

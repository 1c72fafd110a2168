"""Every way a picture can be bad, and every way a good one can be unusual (rows 1-20 of the torture list)."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlchat import images
from vlchat.errors import ImageError
from vlchat.images import ImageLimits, decode, header

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def noise(width: int = 64, height: int = 48, mode: str = "RGB", seed: int = 0) -> Image.Image:
    size = (height, width) + ((len(mode),) if len(mode) > 1 else ())
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8))


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    width: int, height: int, *, bits: int = 8, colour: int = 2, extra: bytes = b"", data: bytes | None = None
) -> bytes:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    pixels = zlib.compress(bytes(height * (1 + width * channels * bits // 8)) if data is None else data, 9)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return SIGNATURE + header + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def png_header_only(width: int, height: int) -> bytes:
    return png(width, height, data=b"\x00")


def text_bomb() -> bytes:
    body = b"comment\x00\x00" + zlib.compress(bytes(200_000_000), 9)
    return png(8, 8, extra=chunk(b"zTXt", body))


def apng(frames: int) -> bytes:
    control = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 8, 8, 0, 0, 1, 10, 0, 0))
    return png(8, 8, extra=chunk(b"acTL", struct.pack(">II", frames, 0)) + control)


JPEG = encoded(noise(), "JPEG")
PNG = encoded(noise(), "PNG")

REFUSED: dict[str, tuple[bytes, int, str]] = {
    "1 empty": (b"", 400, "0 bytes"),
    "2 jpeg signature": (b"\xff\xd8\xff", 400, "damaged"),
    "2 png signature": (SIGNATURE, 400, "damaged"),
    "2 half a signature": (SIGNATURE[:4], 400, "4 bytes"),
    "2 webp signature": (b"RIFF\x00\x00\x00\x00WEBP", 400, "damaged"),
    "3 truncated jpeg": (JPEG[: len(JPEG) // 2], 400, "cut short"),
    "4 truncated png": (PNG[: len(PNG) // 2], 400, "cut short"),
    "5 broken stream": (png(64, 64, data=b"\x07" * 50), 400, "damaged"),
    "5 not deflate": (PNG.replace(b"IDAT", b"IDAT" + b"\xff" * 40, 1), 400, "damaged"),
    "6 text bomb": (text_bomb(), 400, "damaged"),
    "7 apng of zero frames": (apng(0), 400, "damaged"),
    "7 apng of too many frames": (apng(0x80000001), 400, "damaged"),
    "7 short acTL": (png(8, 8, extra=chunk(b"acTL", b"\x00")), 400, "damaged"),
    "8 huge header": (png_header_only(100_000, 100_000), 413, "million"),
    "9 13300 x 13300": (png_header_only(13_300, 13_300), 413, "13300 x 13300"),
    "10 20000 x 1": (png(20_000, 1), 400, "ratio of 20000"),
    "10 1 x 20000": (png(1, 20_000), 400, "ratio of 20000"),
    "12 0 x 10": (png_header_only(0, 10), 400, "picture"),
    "14 svg": (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', 415, "SVG"),
    "14 svg with a declaration": (b'\xef\xbb\xbf <?xml version="1.0"?><svg/>', 415, "SVG"),
    "15 eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", 415, "EPS"),
    "15 pdf": (b"%PDF-1.7\n", 415, "PDF"),
    "16 tiff": (encoded(noise(), "TIFF"), 415, "TIFF"),
    "bmp": (encoded(noise(), "BMP"), 415, "BMP"),
    "heic": (b"\x00\x00\x00\x18ftypheic" + bytes(40), 415, "HEIC"),
    "words": (b"hello, this is no picture", 415, "not a picture"),
    "wav": (b"RIFF\x24\x00\x00\x00WAVEfmt ", 415, "not a picture"),
    "too many bytes": (JPEG + bytes(images.DEFAULT_LIMITS.max_bytes), 413, "bytes"),
}
CODES = {400: "invalid_image", 413: "image_too_large", 415: "unsupported_image"}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_bytes_are_refused_in_one_sentence(case: str) -> None:
    data, status, words = REFUSED[case]
    with pytest.raises(ImageError, match=words) as caught:
        decode(data)
    assert (caught.value.status, caught.value.code) == (status, CODES[status])
    message = str(caught.value)
    assert "0x" not in message and "<" not in message and "\n" not in message


def test_huge_headers_are_refused_at_once_and_without_pixels() -> None:
    for data in (png_header_only(100_000, 100_000), png_header_only(13_300, 13_300)):
        started = time.perf_counter()
        with pytest.raises(ImageError):
            decode(data)
        assert time.perf_counter() - started < 0.05


def test_a_large_flat_picture_costs_no_memory() -> None:
    # Row 9 in a process of its own, whose peak memory nothing else has raised.
    program = """
import resource, sys, zlib, struct
from vlchat.errors import ImageError
from vlchat.images import decode
from tests.test_images import png
data = png(13300, 13300, bits=8, colour=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(data)
except ImageError as error:
    print(len(data), error.status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    size, status, kilobytes = map(int, run.stdout.split())
    assert size < 600_000 and status == 413 and kilobytes < 20_000


def test_extreme_but_allowed_shapes() -> None:
    assert decode(png(1, 1)).size == (1, 1)  # row 11
    assert decode(png(100, 1)).size == (100, 1)


def test_moving_pictures_are_refused_and_single_frames_are_not() -> None:
    frames = [Image.new("P", (4, 4), index % 256) for index in range(10_000)]
    for index, frame in enumerate(frames):
        frame.putpixel((index % 4, 0), 255 - index % 256)
    long_gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    started = time.perf_counter()
    with pytest.raises(ImageError, match="moving picture") as caught:  # row 13
        decode(long_gif)
    assert caught.value.status == 415 and time.perf_counter() - started < 0.5
    two = [noise(seed=1), noise(seed=2)]
    for format_name in ("GIF", "WEBP", "PNG"):
        with pytest.raises(ImageError, match="moving picture"):
            decode(encoded(two[0], format_name, save_all=True, append_images=two[1:]))
    assert decode(encoded(two[0], "GIF")).size == two[0].size
    assert decode(apng(1)).size == (8, 8)


def test_a_jpeg_of_more_pixels_than_its_bytes_can_hold_is_damaged() -> None:
    at = JPEG.index(b"\xff\xc0") + 5
    with pytest.raises(ImageError, match="damaged or cut short"):
        decode(JPEG[:at] + struct.pack(">HH", 7999, 7999) + JPEG[at + 4 :])
    for mode in ("L", "RGB"):  # the smallest files that there are
        flat = encoded(Image.new(mode, (1000, 1000)), "JPEG", optimize=True, progressive=True, quality=1)
        assert decode(flat).size == (1000, 1000)


def test_phone_pictures_with_a_second_image_behind_them() -> None:
    first, second = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (40, 30), "blue")
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    red, green, blue = decode(data).getpixel((20, 15))  # type: ignore[misc]
    assert red > 240 and green < 15 and blue < 15


def test_declared_types_must_match() -> None:  # row 17
    for mime in ("image/jpeg", "image/jpg", "IMAGE/JPEG; q=1", "application/octet-stream", None):
        assert decode(JPEG, mime=mime).size == (64, 48)
    for mime in ("image/png", "text/html", "image/svg+xml"):
        with pytest.raises(ImageError, match="image/jpeg") as caught:
            decode(JPEG, mime=mime)
        assert caught.value.status == 415


def test_a_tiff_named_jpg_and_a_png_named_jpg(tmp_path: Path) -> None:
    tiff, misnamed = tmp_path / "a.jpg", tmp_path / "b.jpg"
    tiff.write_bytes(encoded(noise(), "TIFF"))
    misnamed.write_bytes(PNG)
    with pytest.raises(ImageError, match="TIFF") as caught:
        decode(tiff)
    assert str(tiff) in str(caught.value)
    assert decode(str(misnamed)).tobytes() == noise().tobytes()


def ramp() -> np.ndarray:
    return np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (16, 1))  # (16, 64)


def sixteen_bit_png(transparent: int | None = None) -> bytes:
    rows = (ramp().astype(">u2") * 257).tobytes()
    data = b"".join(b"\x00" + rows[start : start + 128] for start in range(0, len(rows), 128))
    extra = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    return png(64, 16, bits=16, colour=0, data=data, extra=extra)


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    assert np.array_equal(np.asarray(decode(sixteen_bit_png()))[..., 0], ramp())
    shown = np.asarray(decode(sixteen_bit_png(transparent=0)))[..., 1]
    assert (shown[:, 0] == 255).all() and np.array_equal(shown[:, 1:], ramp()[:, 1:])


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "La", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I"])
def test_every_mode_keeps_its_brightness(mode: str) -> None:
    grey = Image.fromarray(ramp())
    through = {"PA": "P", "RGBa": "RGBA", "La": "LA", "HSV": "RGB", "YCbCr": "RGB", "CMYK": "RGB", "RGBX": "RGB"}
    source = grey.convert(through.get(mode, mode)).convert(mode)
    before = source.tobytes()
    result = decode(source)
    values = np.asarray(result).astype(float)
    assert result.mode == "RGB" and np.isfinite(values).all()
    assert abs(values.mean() - ramp().mean()) < (20 if mode == "1" else 2)
    assert source.tobytes() == before and result is not source


@pytest.mark.parametrize(("scale", "kind"), [(1 / 255, "F"), (1, "F"), (257, "F"), (257, "I"), (257, "I;16")])
def test_numbers_as_pictures_find_their_range(scale: float, kind: str) -> None:
    dtype = {"F": np.float32, "I": np.int32, "I;16": np.uint16}[kind]
    image = Image.fromarray((ramp().astype(float) * scale).astype(dtype))
    assert image.mode == kind
    assert np.abs(np.asarray(decode(image)).astype(int)[..., 2] - ramp()).max() <= 1


def test_not_a_number_is_black_not_a_crash() -> None:
    values = ramp().astype(np.float32) / 255
    values[0, :3] = [np.nan, np.inf, -np.inf]
    assert np.asarray(decode(Image.fromarray(values)))[0, 0].tolist() == [0, 0, 0]


def test_cmyk_jpeg_is_not_inverted() -> None:
    data = encoded(Image.new("RGB", (32, 32), (250, 250, 250)).convert("CMYK"), "JPEG")
    assert np.asarray(decode(data)).mean() > 230


@pytest.mark.parametrize("orientation", range(1, 9))
def test_phone_photos_are_turned_upright(orientation: int) -> None:  # row 19
    stored = noise(40, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_270],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_90],
    }
    upright = stored
    for turn in turns.get(orientation, []):
        upright = upright.transpose(turn)
    assert decode(encoded(stored, "PNG", exif=exif)).tobytes() == upright.tobytes()
    for kind in ("PNG", "JPEG", "WEBP"):
        assert header(encoded(stored, kind, exif=exif)) == upright.size


@pytest.mark.parametrize("tag", [0x0128, 0x02BC])  # the unit of the resolution, XMP
def test_a_mistyped_tag_does_not_cost_a_turned_photo(tag: int) -> None:
    turned = struct.pack("<HHI4s", 0x0112, 3, 1, b"\x06\x00")
    as_text = struct.pack("<HHI4s", tag, 2, 2, b"2\x00")
    exif = b"Exif\x00\x00II*\x00" + struct.pack("<IH", 8, 2) + turned + as_text + bytes(4)
    assert decode(encoded(noise(40, 24), "JPEG", exif=exif)).size == (24, 40)


def test_nonsense_exif_does_not_cost_the_picture() -> None:
    for body in (b"garbage", b"II*\x00\xff\xff\xff\xff", b"MM\x00*\x00\x00\x00\x08\x00\x05"):
        assert decode(encoded(noise(), "JPEG", exif=b"Exif\x00\x00" + body)).size == (64, 48)


def test_transparency_is_laid_on_white() -> None:  # row 20
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.putpixel((0, 0), (200, 0, 0, 255))
    clear.putpixel((1, 0), (0, 0, 0, 128))
    for data in (encoded(clear, "PNG"), encoded(clear, "WEBP", lossless=True, exact=True)):
        shown = decode(data)
        assert shown.getpixel((5, 5)) == (255, 255, 255)
        assert shown.getpixel((0, 0)) == (200, 0, 0)
        assert shown.getpixel((1, 0)) == (127, 127, 127)
    palette = Image.new("L", (4, 4), 3).convert("P")
    assert decode(encoded(palette, "PNG", transparency=3)).getpixel((1, 1)) == (255, 255, 255)
    assert decode(encoded(Image.new("L", (4, 4), 9), "PNG", transparency=9)).getpixel((1, 1)) == (255, 255, 255)
    key = encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert decode(key).getpixel((1, 1)) == (255, 255, 255)


def test_paths_that_are_no_pictures(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in [
        (tmp_path / "missing.png", "no such file"),
        (tmp_path, "not a file"),
        (tmp_path / "pipe", "not a file"),
        ("nul\x00byte.png", "not valid"),
        ("x" * 5000, "cannot be read"),
    ]:
        with pytest.raises(ImageError, match=words) as caught:
            decode(path)
        assert caught.value.status == 400 and "\x00" not in str(caught.value)


def test_a_given_name_replaces_the_path_in_messages(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        decode(tmp_path / "secret.png", name="holiday\n.png")
    assert str(tmp_path) not in str(caught.value) and 'The picture "holiday?.png"' in str(caught.value)


def test_limits_are_the_callers() -> None:
    assert decode(PNG, limits=ImageLimits(max_pixels=64 * 48)).size == (64, 48)
    for limits in (ImageLimits(max_pixels=64 * 48 - 1), ImageLimits(max_bytes=len(PNG) - 1)):
        with pytest.raises(ImageError) as caught:
            decode(PNG, limits=limits)
        assert caught.value.status == 413
    with pytest.raises(ImageError, match="side ratio"):
        decode(noise(64, 4), limits=ImageLimits(max_side_ratio=15.9))


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF"])
def test_flipped_bytes_give_a_picture_or_a_sentence(format_name: str) -> None:
    data = encoded(noise(24, 24), format_name)
    chance = random.Random(format_name)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            assert decode(bytes(damaged[: chance.randint(1, len(damaged))])).mode == "RGB"
        except ImageError as error:
            assert error.status in (400, 413, 415)

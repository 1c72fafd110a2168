"""Untrusted bytes -> a few frames of a video, as pictures: the one place where videos are decoded.

Moving GIF, WebP and PNG are read by Pillow. MP4, MOV, WebM, Matroska and AVI need PyAV: `pip install 'vlchat[video]'`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlchat import images
from vlchat.errors import ImageError
from vlchat.images import ImageLimits

FRAMES = 8


@dataclass(frozen=True)
class VideoLimits:
    """What is refused before, or while, frames are decoded.

    Attributes:
        max_bytes: size of the file.
        max_frames: how many frames may be asked for; each becomes a picture with all its tokens.
        max_decoded_pixels: width x height x the frames that have to be decoded on the way to those asked for.
        max_seconds: how long it may last.
        picture: of each frame.
    """

    max_bytes: int = 256 * 1024 * 1024
    max_frames: int = 64
    max_decoded_pixels: int = 4_000_000_000
    max_seconds: float = math.inf
    picture: ImageLimits = ImageLimits()


DEFAULT_LIMITS = VideoLimits()
_MOVING_PICTURES = {"GIF": (b"GIF87a", b"GIF89a"), "WEBP": (b"RIFF",), "PNG": (b"\x89PNG\r\n\x1a\n",)}
_IN_WORDS = "MP4, MOV, WebM, Matroska, AVI, and moving GIF, WebP and PNG"


def frames(
    source: bytes | str | Path, count: int = FRAMES, *, limits: VideoLimits = DEFAULT_LIMITS, name: str | None = None
) -> list[Image.Image]:
    """Frames sampled uniformly over a video: the middle one of each of `count` equal parts, in order.

    Of moving pictures in GIF, WebP or PNG the parts are equal in frames, else in time. A video with fewer frames gives
    all that it has.

    Args:
        source: the file's bytes, or a path.
        name: what messages call the video.

    Returns:
        PIL images of mode RGB, as `vlchat.images.decode` gives them.

    Raises:
        ImageError: a file that is missing, damaged, too large, or of another format; PyAV is needed and not installed.
    """
    return [frame for _, frame in timed_frames(source, count, limits=limits, name=name)]


def timed_frames(
    source: bytes | str | Path, count: int = FRAMES, *, limits: VideoLimits = DEFAULT_LIMITS, name: str | None = None
) -> list[tuple[float, Image.Image]]:
    """As `frames`, each with the second at which it comes on."""
    label = images.label_of(name if name is not None or isinstance(source, bytes) else str(source), "video")
    if type(count) is not int or not 1 <= count <= limits.max_frames:
        raise ImageError(f"{label} is to give {count} frames; from 1 to {limits.max_frames} are possible.")
    data = source
    if not isinstance(data, bytes):
        data = images.read_file(data, label, ImageLimits(max_bytes=limits.max_bytes))
    if len(data) > limits.max_bytes:
        raise _too_large(f"{label} has {len(data):,} bytes; at most {limits.max_bytes:,} are accepted.")
    container = _container(data, label)
    try:
        if container in _MOVING_PICTURES:
            found = list(_from_pillow(data, container, count, label, limits))
        else:
            found = list(_from_pyav(data, container, count, label, limits))
    except ImageError:
        raise
    except ImportError as error:
        raise ImageError(
            f"{label} needs PyAV, which is not installed: pip install 'vlchat[video]'. Without it moving GIF, WebP and "
            "PNG are read.",
            code="unsupported_image",
            status=415,
            kind="unsupported_file",
        ) from error
    except Exception as error:  # decoders raise far more than OSError
        raise ImageError(f"{label} is damaged or cut short: its frames cannot be decoded. Save it again.") from error
    if not found:
        raise ImageError(f"{label} has no frames.")
    return found


def expanded(messages: Any, count: int = FRAMES) -> Any:
    """The same messages with `{"type": "video", "video": path | bytes}` parts replaced by pictures of their frames.

    A part may say how many with `"frames": number`. What is not such a part is left as it is.

    Raises:
        ImageError: as `frames`.
    """
    if not isinstance(messages, list | tuple):
        return messages
    result: list[Any] = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list | tuple) and any(_is_video(part) for part in content):
            parts: list[Any] = []
            for part in content:
                if _is_video(part):
                    sampled = frames(part["video"], part.get("frames", count))
                    parts += [{"type": "image", "image": frame} for frame in sampled]
                else:
                    parts.append(part)
            message = {**message, "content": parts}
        result.append(message)
    return result


def sampled_places(total: int, count: int) -> list[int]:
    """The middle frame of each of `count` equal parts of `total` frames; all frames when there are fewer."""
    count = min(count, total)
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


def _is_video(part: Any) -> bool:
    if not isinstance(part, Mapping) or part.get("type") != "video":
        return False
    return isinstance(part.get("video"), bytes | str | Path)


def _container(data: bytes, label: str) -> str:
    """The format by its first bytes. A decoder is told which one it is and never guesses: among those that FFmpeg
    would guess are play lists, which open other files and addresses."""
    for format_name, signatures in _MOVING_PICTURES.items():
        if data.startswith(signatures) and (format_name != "WEBP" or data[8:12] == b"WEBP"):
            return format_name
    if data[4:8] == b"ftyp":
        return "mov"
    if data.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "avi"
    raise ImageError(
        f"{label} is not a video in a known format; accepted are {_IN_WORDS}.",
        code="unsupported_image",
        status=415,
        kind="unsupported_file",
    )


def _from_pillow(
    data: bytes, format_name: str, count: int, label: str, limits: VideoLimits
) -> Iterator[tuple[float, Image.Image]]:
    with Image.open(io.BytesIO(data), formats=[format_name]) as moving:
        width, height = moving.size
        _check_work(width * height, limits, label)
        total = getattr(moving, "n_frames", 1)
        _check_work(width * height * total, limits, label)  # each frame is drawn on the one before
        places, seconds = sampled_places(total, count), 0.0
        for place in range(places[-1] + 1):
            moving.seek(place)
            moving.load()  # of a WebP, the duration is known only then
            if place in places:
                _check_length(seconds, limits, label)
                yield seconds, images.decode(moving.copy(), limits=limits.picture, name="a frame")
            seconds += float(moving.info.get("duration", 0)) / 1000


def _from_pyav(
    data: bytes, format_name: str, count: int, label: str, limits: VideoLimits
) -> Iterator[tuple[float, Image.Image]]:
    import av

    opened: Any = av.open(io.BytesIO(data), format=format_name)
    with opened as container:
        stream = next(iter(container.streams.video), None)
        if stream is None:
            raise ImageError(f"{label} has sound but no pictures.")
        pixels = stream.codec_context.width * stream.codec_context.height
        _check_work(pixels, limits, label)
        length = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        begins = float((stream.start_time or 0) * stream.time_base)
        if not length:  # what browsers record does not tell it; its last packet does
            times = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
            length = float(max(times, default=0) * stream.time_base) - begins
        _check_length(length, limits, label)
        decoded = 0
        last = None
        for part in range(count):
            wanted = begins + (part + 0.5) / count * length
            container.seek(int(wanted / stream.time_base), stream=stream, backward=True)
            frame = None
            for following in container.decode(stream):
                decoded += 1
                _check_work(pixels * decoded, limits, label)
                if frame is not None and (following.time is None or following.time > wanted):
                    break
                frame = following  # what is on the screen at that moment
            if frame is not None and frame.pts != last:  # a video with fewer frames gives one of them twice
                last = frame.pts
                # Phones film lying down and write beside it how the picture is to be turned.
                upright = frame.to_image().rotate(frame.rotation, expand=True)
                seconds = max(0.0, float(frame.time or 0.0) - begins)
                yield seconds, images.decode(upright, limits=limits.picture, name="a frame")


def _check_length(seconds: float, limits: VideoLimits, label: str) -> None:
    if seconds > limits.max_seconds:
        raise _too_large(
            f"{label} lasts {seconds / 60:,.0f} minutes; at most {limits.max_seconds / 60:,.0f} are taken. Cut it."
        )


def _check_work(pixels: int, limits: VideoLimits, label: str) -> None:
    if pixels > limits.max_decoded_pixels:
        raise _too_large(
            f"{label} takes the decoding of more than {limits.max_decoded_pixels / 1e6:,.0f} million pixels. Make it "
            "shorter or smaller."
        )


def _too_large(message: str) -> ImageError:
    return ImageError(message, code="image_too_large", status=413, kind="too_many_bytes")

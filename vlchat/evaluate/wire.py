"""A conversation as the chat completions of OpenAI's API take it."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from vlchat import images, prompt, video
from vlchat.evaluate.items import Request

PNG_PIXELS = 4_000_000  # above it a picture goes as JPEG: a photograph's PNG would have tens of megabytes
PICTURES = f"PNG, pixel for pixel; above {PNG_PIXELS / 1e6:.0f} million pixels JPEG of quality 95"


def wire(request: Request) -> list[dict[str, Any]]:
    """The messages as a chat completion takes them, pictures as `data:` URLs; a video as its frames."""
    result = []
    for message in prompt.validate(video.expanded(request.messages)):
        parts: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "text":
                parts.append({"type": "text", "text": prompt.clean(part["text"])})
            else:
                parts.append({"type": "image_url", "image_url": {"url": data_url(images.decode(part["image"]))}})
        # Templates of text models take a system prompt only as a string.
        plain = message["role"] != "user" and all(part["type"] == "text" for part in parts)
        content = "".join(part["text"] for part in parts) if plain else parts
        result.append({"role": message["role"], "content": content})
    return result


def data_url(picture: Image.Image) -> str:
    """An RGB picture as a `data:` URL, in the format that `PICTURES` says."""
    held = io.BytesIO()
    if picture.width * picture.height > PNG_PIXELS:
        kind = "jpeg"
        picture.save(held, "JPEG", quality=95, subsampling=0)
    else:
        kind = "png"
        picture.save(held, "PNG", compress_level=1)
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}"

"""What comes into the question box: the camera, and a look at what is dropped, pasted or chosen before it is sent."""

from __future__ import annotations

import gradio as gr

from serve.decoding import MOST_PICTURES
from serve.guard import LONGEST_BODY, MIB
from serve.page.template import template
from serve.page.words import LANGUAGES, told
from vlchat import images

# As `gr.MultimodalTextbox` takes them, and as browsers and people name them.
FILE_TYPES = ["image", "video", ".pdf"]
_TAKEN = (
    "image/jpeg", "image/png", "image/apng", "image/webp", "image/gif", "video/mp4", "video/quicktime", "video/webm",
    "video/x-matroska", "video/x-msvideo", "application/pdf",
)  # fmt: skip
_ENDINGS = ("jpg", "jpeg", "png", "apng", "webp", "gif", "mp4", "m4v", "mov", "webm", "mkv", "avi", "pdf")
_WORDS = ("camera", "close", "media-closed", "media-large", "media-many-files", "media-take", "media-taken",
          "media-together", "media-unknown")  # fmt: skip

_LEFT = {name: f"{{{name}}}" for name in ("name", "names", "size", "most", "count")}  # the script fills them in


def media() -> gr.HTML:
    """The component: a button for the camera, and sentences for what is not taken. It stands beside `#question`.

    Its script gives files to the question box as if they were dropped there, those of a camera and of the clipboard
    too.
    """
    words = {
        language: {name.replace("-", "_"): told(f"chat.{name}", language, **_LEFT) for name in _WORDS}
        for language in LANGUAGES
    }
    most = {"file": images.DEFAULT_LIMITS.max_bytes, "together": LONGEST_BODY, "pictures": MOST_PICTURES, "unit": MIB}
    return gr.HTML(
        {"words": words, "taken": _TAKEN, "endings": _ENDINGS, "most": most}, elem_id="media", apply_default_css=False,
        scale=0, min_width=44, **template("media"),
    )  # fmt: skip

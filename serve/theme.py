"""How the page looks: one calm accent, system fonts only, so that it is the same without a network."""

from __future__ import annotations

from typing import Any

FONTS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"]
FIXED_FONTS = ["ui-monospace", "SFMono-Regular", "Menlo", "Liberation Mono", "monospace"]

# Gradio keeps the rules of an @media only for what is inside its own columns, so widths here are fluid instead.
CSS = """
.gradio-container { width: 100% !important; max-width: 880px !important; margin: 0 auto !important; }
.gradio-container > .main { width: 100%; padding: 8px clamp(8px, 2.5vw, 32px) !important; }
footer { display: none !important; }
.gradio-container h1 { font-size: 1.5rem; font-weight: 650; margin: 0.25rem 0 0 !important; }
#about { font-size: 0.875rem; color: var(--body-text-color-subdued); text-align: center; line-height: 1.45; }
#welcome { text-align: center; line-height: 1.7; color: var(--body-text-color-subdued); }
#welcome b { font-size: 1.15rem; color: var(--body-text-color); }
#conversation .message-content, #conversation .md { white-space: pre-wrap; overflow-wrap: anywhere; }
#conversation .example-image-container { width: 96px; height: 96px; }
#conversation .example-image { width: 96px; height: 96px; object-fit: contain; border-radius: 10px; }
#conversation .placeholder-content { justify-content: center; min-height: 100%; }
#conversation .message img { max-height: min(260px, 34vh); border-radius: 10px; }
#conversation .examples { grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px; margin: 0 auto; }
#conversation .example { padding: 12px; }
/* The conversation scrolls inside the page, so that the question box stays where it is. */
#conversation { flex: 1 1 0 !important; height: 0; }
#conversation .bubble-wrap { padding-bottom: 12px; }
#conversation .user-row .user.message { display: flex; flex-flow: row wrap; }
#conversation .user-row .user.message > .message { flex: 1 0 100%; }
#conversation .user-row .user.message > .message.component { flex: 0 1 auto; width: auto; order: -1; }
#conversation .user-row .image-frame img { width: auto; }
#conversation .message-buttons button { color: var(--body-text-color-subdued) !important; }
/* Sharing would upload the picture to a public site. */
#conversation button[aria-label="Share"] { display: none; }
#conversation .message-buttons:has(button[aria-label="Share"]:only-child) { display: none; }
"""


def theme() -> Any:
    """A Gradio theme: slate and teal, soft corners, no web fonts."""
    from gradio.themes import Soft

    return Soft(
        primary_hue="teal",
        secondary_hue="slate",
        neutral_hue="slate",
        radius_size="lg",
        font=FONTS,
        font_mono=FIXED_FONTS,
    ).set(
        body_background_fill="#f6f7f9",
        body_background_fill_dark="#12161c",
        block_shadow="none",
        block_border_width="1px",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_text_color="white",
        body_text_color_subdued="*neutral_500",
        color_accent_soft="#e7f3f1",
        border_color_accent_subdued="#b9dcd6",
    )

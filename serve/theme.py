"""How the page looks: one calm accent, system fonts only, so that it is the same without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FONTS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"]
FIXED_FONTS = ["ui-monospace", "SFMono-Regular", "Menlo", "Liberation Mono", "monospace"]

# Gradio keeps the rules of an @media only for what is inside its own columns, so widths there are fluid instead.
CSS = Path(__file__).with_name("page").joinpath("page.css").read_text(encoding="utf-8")


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
        body_text_color_subdued="*neutral_600",  # 4.5 to 1 on its ground (WCAG 2.2, 1.4.3)
        body_text_color_subdued_dark="*neutral_300",
        color_accent="#0f766e",
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_title_padding="0",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_text_color="*body_text_color",
        block_label_text_color_dark="*body_text_color",
        button_primary_background_fill_dark="#0f766e",
        button_primary_background_fill_hover_dark="#115e59",
        checkbox_label_background_fill_selected="#0f766e",
        checkbox_label_background_fill_selected_dark="#0f766e",
        checkbox_label_text_color_selected="white",
        link_text_color="#0f766e",
        link_text_color_dark="#5eead4",
        color_accent_soft="#e7f3f1",
        border_color_accent_subdued="#b9dcd6",
    )

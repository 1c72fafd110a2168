"""Prompts for zero-shot classification, by name; `{}` stands for the class."""

from __future__ import annotations

from collections.abc import Sequence

from vlchat.errors import ConfigError, nearest

_EIGHTY = (
    "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.", "a photo of the hard to see {}.",
    "a low resolution photo of the {}.", "a rendering of a {}.", "graffiti of a {}.", "a bad photo of the {}.",
    "a cropped photo of the {}.", "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}.",
    "a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.", "a dark photo of the {}.",
    "a drawing of a {}.", "a photo of my {}.", "the plastic {}.", "a photo of the cool {}.",
    "a close-up photo of a {}.", "a black and white photo of the {}.", "a painting of the {}.", "a painting of a {}.",
    "a pixelated photo of the {}.", "a sculpture of the {}.", "a bright photo of the {}.", "a cropped photo of a {}.",
    "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.", "a blurry photo of the {}.",
    "a photo of the {}.", "a good photo of the {}.", "a rendering of the {}.", "a {} in a video game.",
    "a photo of one {}.", "a doodle of a {}.", "a close-up photo of the {}.", "a photo of a {}.",
    "the origami {}.", "the {} in a video game.", "a sketch of a {}.", "a doodle of the {}.", "a origami {}.",
    "a low resolution photo of a {}.", "the toy {}.", "a rendition of the {}.", "a photo of the clean {}.",
    "a photo of a large {}.", "a rendition of a {}.", "a photo of a nice {}.", "a photo of a weird {}.",
    "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.", "a sketch of the {}.", "a embroidered {}.",
    "a pixelated photo of a {}.", "itap of the {}.", "a jpeg corrupted photo of the {}.", "a good photo of a {}.",
    "a plushie {}.", "a photo of the nice {}.", "a photo of the small {}.", "a photo of the weird {}.",
    "the cartoon {}.", "art of the {}.", "a drawing of the {}.", "a photo of the large {}.",
    "a black and white photo of a {}.", "the plushie {}.", "a dark photo of a {}.", "itap of a {}.",
    "graffiti of the {}.", "a toy {}.", "itap of my {}.", "a photo of a cool {}.", "a photo of a small {}.",
    "a tattoo of the {}.",
)  # fmt: skip

# "openai-80" and, chosen from it, "openai-7" are CLIP's for ImageNet: notebooks/Prompt_Engineering_for_ImageNet.ipynb
# of github.com/openai/CLIP. "itap" is "I took a picture".
TEMPLATES: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of a {}.",),
    "none": ("{}",),
    "openai-7": (
        "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
        "a {} in a video game.", "art of the {}.", "a photo of the small {}.",
    ),
    "openai-80": _EIGHTY,
}  # fmt: skip


def templates_of(wanted: str | Sequence[str]) -> tuple[str, ...]:
    """Templates by a name of `TEMPLATES`, or one or several as they are.

    Raises:
        ConfigError: no such name, or a template that does not say once where the class stands.
    """
    if isinstance(wanted, str):
        if wanted in TEMPLATES:
            return TEMPLATES[wanted]
        if "{}" not in wanted:
            known = ", ".join(TEMPLATES)
            raise ConfigError(
                f'templates is "{wanted}"{nearest(wanted, TEMPLATES)} Known: {known}; or text with {{}} in it.'
            )
        wanted = [wanted]
    for template in wanted:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ConfigError(f'The template "{template}" must have {{}} once, where the name of the class belongs.')
    if not wanted:
        raise ConfigError("templates is empty; at least one is needed")
    return tuple(wanted)


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every class in every template, class by class, (classes * templates,)."""
    return [template.replace("{}", name) for name in names for template in templates]

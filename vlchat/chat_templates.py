"""Chat templates: the ones that ship with vlchat, a file of one's own, or the tokenizer's."""

from __future__ import annotations

import re
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from vlchat.errors import ConfigError, nearest

IMAGE_TOKEN = "<image>"
TEMPLATES = Path(__file__).parent / "templates"
# Put before a text-only template, so that it can be given lists of parts like any other.
_FLATTEN = (
    "{%- set flat = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- set text = namespace(value='') -%}"
    "{%- if message['content'] is string -%}{%- set text.value = message['content'] -%}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- set text.value = text.value + ('<image>\\n' if part['type'] == 'image' else part['text']) -%}{%- endfor -%}"
    "{%- endif -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=text.value)] -%}{%- endfor -%}"
    "{%- set messages = flat.messages -%}\n"
)


def template_names() -> list[str]:
    """The templates that ship with vlchat."""
    return sorted(path.stem for path in TEMPLATES.glob("*.jinja"))


def template_source(template: str | Path | None, tokenizer: PreTrainedTokenizerBase) -> str:
    if template is None:
        own = tokenizer.get_chat_template() if tokenizer.chat_template else None
        if own is None:
            raise ConfigError(
                "This tokenizer has no chat template: say which one to use as template (in a run, objective.template): "
                f"{', '.join(template_names())}, or a .jinja file."
            )
        return own if IMAGE_TOKEN in own else _FLATTEN + own
    if str(template) in template_names():
        return (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    path = Path(template)
    if path.suffix == ".jinja" and path.is_file():
        return path.read_text(encoding="utf-8")
    raise ConfigError(
        f"There is no chat template {str(template)!r}: give a .jinja file that exists or one of "
        f"{', '.join(template_names())}{nearest(str(template), template_names()) or '.'}"
    )


def checked_template(
    template: str | Path | None, tokenizer: PreTrainedTokenizerBase, image_token: str = IMAGE_TOKEN
) -> str:
    """A chat template's source, which this tokenizer has all control tokens for.

    Args:
        template: a name from `vlchat/templates`, the path of a `.jinja` file, or None for the tokenizer's own.

    Raises:
        ConfigError: for an unknown template, or one whose control tokens the tokenizer does not have.
    """
    source = template_source(template, tokenizer).replace(IMAGE_TOKEN, image_token)
    missing = [name for name in written_tokens(source) if name not in tokenizer.get_vocab()]
    if missing:
        raise ConfigError(
            f"The template {str(template)!r} writes {', '.join(missing)}, which this tokenizer has no tokens for. "
            f"Choose another template: {', '.join(template_names())}."
        )
    if template is not None and "eos_token" in source and tokenizer.eos_token is None:
        raise ConfigError(f"The template {str(template)!r} ends answers with the end token this tokenizer lacks.")
    return source


def written_tokens(source: str) -> list[str]:
    """Tokens such as `<|im_end|>` that a template writes out in full."""
    return sorted(set(re.findall(r"<\|[a-z_]+\|>", re.sub(r"\{#.*?#\}", "", source, flags=re.DOTALL))))

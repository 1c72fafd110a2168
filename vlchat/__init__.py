"""Chat about images, ask visual questions in bulk, and fine-tune on your own pictures."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlchat.chat import Chat
    from vlchat.config import VLChatConfig
    from vlchat.model import VLChatForConditionalGeneration
    from vlchat.processor import VLChatProcessor

__version__ = "0.1.0"
__all__ = ["Chat", "VLChatConfig", "VLChatForConditionalGeneration", "VLChatProcessor"]

# torch and transformers take seconds to import: `import vlchat` alone and `vlchat --help` don't pay for them.
_HOME = {
    "Chat": "vlchat.chat",
    "VLChatConfig": "vlchat.config",
    "VLChatForConditionalGeneration": "vlchat.model",
    "VLChatProcessor": "vlchat.processor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for home in ("vlchat.config", "vlchat.model", "vlchat.processor"):  # transformers' Auto classes know all or none
        importlib.import_module(home)
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

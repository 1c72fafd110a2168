"""The chat page in a browser. Gradio is imported when a page is made, not before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vlchat.errors import VLChatError

if TYPE_CHECKING:
    from serve.policy import Policy


def main(
    model: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    quantize: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attn: str | None = None,
    revision: str | None = None,
    adapters: Mapping[str, str] | None = None,
    open_browser: bool = False,
    policy: Policy | None = None,
) -> int:
    """Loads a model, and adapters to choose from, see `vlchat.chat.Chat.load`, and serves the page until Ctrl-C.

    `policy` says who may ask how often, see `serve.policy`.

    Raises:
        VLChatError: no such model, gradio is not installed, or the address is none or cannot be listened on.
    """
    if not 1 <= port <= 65535:
        raise VLChatError(f"--port is {port}; a port is a number from 1 to 65535.")
    if ":" in host:
        raise VLChatError(f"--host is {host}: the page is served on IPv4 addresses and names only, such as 0.0.0.0.")
    try:
        from serve.app import run
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise VLChatError('The page needs gradio: pip install "vlchat[serve]".') from error
    from vlchat.chat import Chat

    print("Loading the model ...", flush=True)
    chat = Chat.load(
        model, quantize=quantize, dtype=dtype, device=device, attn=attn, revision=revision, adapters=adapters
    )
    return run(chat, host=host, port=port, open_browser=open_browser, policy=policy)

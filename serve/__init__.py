"""The chat page in a browser. Gradio is imported when a page is made, not before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlchat.errors import VLChatError

if TYPE_CHECKING:
    from serve.policy import Policy


def main(
    model: str | None = None,
    *,
    backend: str = "local",
    host: str = "127.0.0.1",
    port: int = 7860,
    open_browser: bool = False,
    allow_images_from: Sequence[str] = (),
    policy: Policy | None = None,
    **options: Any,
) -> int:
    """Opens a backend, by default a model that is loaded here, and serves the page until Ctrl-C.

    Args:
        backend, options: see `serve.backends`; None, "auto" and nothing are options that were not given.

    `allow_images_from` are hosts that a program may name in a picture's address, see `serve.fetching.Hosts`.

    `policy` says who may ask how often, see `serve.policy`.

    Raises:
        VLChatError: no such model or backend, gradio is not installed, or the address is none or cannot be listened on.
    """
    if not 1 <= port <= 65535:
        raise VLChatError(f"--port is {port}; a port is a number from 1 to 65535.")
    if ":" in host:
        raise VLChatError(f"--host is {host}: the page is served on IPv4 addresses and names only, such as 0.0.0.0.")
    try:
        from serve.app import run
        from serve.fetching import Hosts
        from serve.policy import Policy
        from serve.trainings import Trainings
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise VLChatError('The page needs gradio: pip install "vlchat[serve]".') from error
    from serve.backends import opened

    hosts = Hosts(allow_images_from)
    given = {name: value for name, value in options.items() if value not in (None, "auto", {})}
    trainings = None
    if (policy or Policy()).has_training_room(host, backend):
        trainings = Trainings(model=model, revision=given.get("revision"), quantize=given.get("quantize"))
    chat = opened(backend, model, given)
    return run(chat, host=host, port=port, open_browser=open_browser, hosts=hosts, policy=policy, trainings=trainings)

"""Who answers behind the page and the API, by the name that `vlchat serve --backend` takes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serve.tickets import Backend
from vlchat.chat import Chat
from vlchat.errors import ConfigError, nearest


def local(
    model: str | None, quantize: str | None = None, dtype: str = "auto", device: str = "auto", attn: str | None = None,
    revision: str | None = None, adapters: Mapping[str, str] | None = None,
) -> Chat:  # fmt: skip
    """A model that is loaded here, see `Chat.load`."""
    print("Loading the model ...", flush=True)
    return Chat.load(
        model, quantize=quantize, dtype=dtype, device=device, attn=attn, revision=revision, adapters=adapters
    )


def openai(
    model: str | None, base_url: Sequence[str] = (), backend_timeout: float = 300.0, backend_cache_salt: bool = False
) -> Backend:
    """Other servers, see `serve.gateway.Gateway`; their key is the variable VLCHAT_BACKEND_KEY."""
    from serve.gateway import Gateway

    if not base_url:
        raise ConfigError("--backend openai needs --base-url: where the servers are, such as http://localhost:8000.")
    if not backend_timeout > 0:
        raise ConfigError(f"--backend-timeout is {backend_timeout:g}; it must be above 0 seconds.")
    key = os.environ.get("VLCHAT_BACKEND_KEY", "").strip()
    gateway = Gateway(base_url, model=model, key=key or None, patience=backend_timeout, cache_salt=backend_cache_salt)
    for one in gateway.upstreams:
        print(f"{one.url} answers." if one.alive else f"{one.url} does not answer yet: {one.amiss}.", flush=True)
    return gateway


BACKENDS: dict[str, Callable[..., Chat | Backend]] = {"local": local, "openai": openai}
_OTHERWISE = {"adapters": "--adapter"}  # options that are called otherwise than their flag


def opened(name: str, model: str | None, given: Mapping[str, Any]) -> Chat | Backend:
    """The backend of a name.

    Args:
        model: which one; what a model's name is depends on the backend.
        given: the options that people gave; what they left out is as the backend has it.

    Raises:
        ConfigError: there is no such backend, or an option is not for it.
        VLChatError: it can't be opened.
    """
    if name not in BACKENDS:
        raise ConfigError(f'There is no backend "{name}"; known: {", ".join(BACKENDS)}{nearest(name, BACKENDS) or "."}')
    takes = {one: inspect.signature(opener).parameters for one, opener in BACKENDS.items()}
    for option in given:
        if option not in takes[name]:
            others = " or ".join(one for one in BACKENDS if option in takes[one])
            flag = _OTHERWISE.get(option) or "--" + option.replace("_", "-")
            raise ConfigError(
                f"{flag} goes with --backend {others}, and this is --backend {name}: leave one of them out."
            )
    return BACKENDS[name](model, **given)

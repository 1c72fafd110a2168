"""Which names a request may call this server by, so that no other site's name can be made to point here."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from serve.requests import RequestError

_PORT = re.compile(r":[0-9]*$")


class AllowedHosts:
    """Against DNS rebinding: a page of evil.example whose name comes to mean 127.0.0.1 is, to a browser, of our origin.

    The Host header still tells its name. Nobody's name is an address, and `localhost` always means the visitor's own
    machine (RFC 6761, section 6.3).

    Args:
        names: what else the operator calls this server; `*.example.org` is every name under it.
        local: whether only this machine reaches it, without a key. Otherwise all names are taken, where none is given.
    """

    def __init__(self, names: Sequence[str], local: bool) -> None:
        self._names = {_plain(name) for name in names}
        self._all = not names and not local

    def check(self, host: str | None) -> None:
        """Takes a Host header; browsers always send one.

        Raises:
            RequestError: it names another server.
        """
        if self._all or host is None:
            return
        name = _plain(_PORT.sub("", host))
        if not (_is_address(name) or name == "localhost" or name.endswith(".localhost") or self._named(name)):
            raise RequestError(
                "This server is not called so. Whoever runs it can allow the name in your address with --host-name.",
                403,
                "host_not_allowed",
            )

    def _named(self, name: str) -> bool:
        return name in self._names or any("*" + name[place:] in self._names for place in _dots(name))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _plain(name: str) -> str:
    return name.lower().rstrip(".")


def _dots(name: str) -> list[int]:
    return [place for place, letter in enumerate(name) if letter == "."]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") else name)
    except ValueError:
        return False
    return True

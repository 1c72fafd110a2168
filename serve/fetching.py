"""Pictures by address, from hosts that the server's operator named: `--allow-images-from`.

A request can make this machine speak to those hosts and to nothing else: names are resolved once, every address that
they resolve to must be a public one, the connection goes to the address that was looked at, and redirects begin anew.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore

from vlchat import images
from vlchat.errors import ImageError, VLChatError

_SECONDS, _BYTES = 10.0, 64 * 2**20  # for all pictures of a request
_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_NOT_GLOBAL = [ipaddress.ip_network(one) for one in ("192.0.0.0/24", "3fff::/20")]  # newer than Python 3.11
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # IPv4 behind a translator, RFC 6052
_RESOLVERS = ThreadPoolExecutor(8, "vlchat-names")  # getaddrinfo knows no time limit
_HEADERS: dict[bytes | str, bytes | str] = {
    "User-Agent": "vlchat", "Accept": "image/jpeg, image/png, image/webp, image/gif", "Accept-Encoding": "identity",
    "Connection": "close",
}  # fmt: skip


class Hosts:
    """Where pictures may be fetched from.

    Args:
        entries: `HOST` on its usual ports, or `HOST:PORT`. A name must resolve to public addresses alone; an address
            may be a private one, since it was named as such.

    Raises:
        VLChatError: an entry is no host.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._allowed: set[tuple[str, int | None]] = set()
        for entry in entries:
            try:
                parts = urlsplit(f"//{entry}")
                host, port = parts.hostname, parts.port
            except ValueError:
                host = port = None
            if host is None or parts.netloc != entry or "@" in entry or not entry.isascii():
                raise VLChatError(
                    f"--allow-images-from {entry}: name a host, such as images.example.org, or HOST:PORT."
                )
            self._allowed.add((host, port))

    def __bool__(self) -> bool:
        return bool(self._allowed)

    def has(self, host: str, scheme: str, port: int) -> bool:
        return (host, port) in self._allowed or (port == _PORTS[scheme] and (host, None) in self._allowed)


class Errand:
    """The fetching for one request, within one limit of time and of bytes.

    Args:
        hosts: where it may go.
    """

    def __init__(self, hosts: Hosts, *, seconds: float = _SECONDS, most: int = _BYTES) -> None:
        self.hosts, self._seconds, self._bytes = hosts, seconds, most

    def fetch(self, url: str) -> bytes:
        """The file at an address.

        Raises:
            ImageError: the address or one that it leads to is not allowed, or nothing usable comes from there in time.
                Messages hold no address.
        """
        started = time.monotonic()
        clock = _Clock(started + self._seconds)
        try:
            for _ in range(_REDIRECTS + 1):
                found = self._ask(url, clock)
                if isinstance(found, bytes):
                    self._bytes -= len(found)
                    return found
                url = urljoin(url, found)
            raise _failed(f"is behind more than {_REDIRECTS} redirects")
        except (TimeoutError, httpcore.TimeoutException):
            raise _failed(f"did not arrive within {_SECONDS:.0f} seconds") from None
        except (OSError, ssl.SSLError, httpcore.NetworkError, httpcore.ProtocolError):
            raise _failed("could not be fetched from its host") from None
        finally:
            self._seconds -= time.monotonic() - started

    def _ask(self, url: str, clock: _Clock) -> bytes | str:
        """The file, or where it is said to be."""
        parts, host, port = self._checked(url)
        address = _address(host, port, clock)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        asked = httpcore.URL(scheme=parts.scheme, host=host, port=parts.port, target=target)
        with (
            httpcore.ConnectionPool(network_backend=_Pinned(address, clock)) as pool,
            pool.stream("GET", asked, headers={"Host": parts.netloc, **_HEADERS}) as response,
        ):
            headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in (301, 302, 303, 307, 308) and b"location" in headers:
                return headers[b"location"]
            if response.status != 200:
                raise _failed(f"could not be fetched: its host answers {response.status}")
            if headers.get(b"content-encoding", "identity").strip().lower() != "identity":
                raise _failed("comes packed, with a Content-Encoding")
            data = b""
            most = min(images.DEFAULT_LIMITS.max_bytes, self._bytes)
            stated = headers.get(b"content-length", "0")
            parts_of_it = response.iter_stream()
            while len(data) <= most and not (stated.isdigit() and int(stated) > most):
                part = next(parts_of_it, None)
                if part is None:
                    return data
                data += part
        raise ImageError("A picture by address has too many bytes.", code="image_too_large", status=413)

    def _checked(self, url: str) -> tuple[SplitResult, str, int]:
        # Parsers differ on what these mean, and the one that looks must be the one that connects.
        if not url.isascii() or not url.isprintable() or set(url) & set(' \\<>"^`{|}'):
            raise _not_allowed()
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise _not_allowed() from None
        if parts.scheme not in _PORTS or "@" in parts.netloc:
            raise _not_allowed()
        port = _PORTS[parts.scheme] if port is None else port
        if not self.hosts.has(host, parts.scheme, port):
            raise _not_allowed()
        return parts, host, port


class _Clock:
    """Time until a deadline."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    def left(self) -> float:
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


class _Pinned(httpcore.NetworkBackend):
    """Connects to the address that was looked at, whatever the name is; Host and SNI stay the name's."""

    def __init__(self, address: str, clock: _Clock) -> None:
        self.address, self.clock = address, clock

    def connect_tcp(self, host: str, port: int, *_: Any, **more: Any) -> httpcore.NetworkStream:
        stream = httpcore.SyncBackend().connect_tcp(self.address, port, self.clock.left())
        return _Timed(stream, self.clock)


class _Timed(httpcore.NetworkStream):
    """A stream all of whose reads and writes together have one time limit: a body by drops ends at it too."""

    def __init__(self, stream: httpcore.NetworkStream, clock: _Clock) -> None:
        self.stream, self.clock = stream, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, self.clock.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, self.clock.left())

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Timed(self.stream.start_tls(ssl_context, server_hostname, self.clock.left()), self.clock)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


def _address(host: str, port: int, clock: _Clock) -> str:
    """The address to connect to, of a host that is allowed."""
    try:
        return str(ipaddress.ip_address(host))  # named by the operator as an address
    except ValueError:
        pass
    try:
        looked_up = _RESOLVERS.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = [str(one[4][0]) for one in looked_up.result(clock.left())]
    except (socket.gaierror, UnicodeError):
        raise _failed("could not be fetched: its host is not found") from None
    if not found or not all(is_public(address) for address in found):
        raise _not_allowed()
    return found[0]


def is_public(address: str) -> bool:
    """Whether an address is one of the open network, not private, local, reserved or for many."""
    one = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(one, ipaddress.IPv6Address):
        wrapped = one.ipv4_mapped or one.sixtofour or (one.teredo or (None, None))[1]
        if wrapped is None and one in _TRANSLATED:
            wrapped = ipaddress.IPv4Address(int(one) & 0xFFFFFFFF)
        if wrapped is not None:
            return is_public(str(wrapped))
    if getattr(one, "is_site_local", False) or any(one in network for network in _NOT_GLOBAL):
        return False
    return one.is_global and not (one.is_multicast or one.is_reserved or one.is_unspecified)


def _not_allowed() -> ImageError:
    return _failed("is at an address that pictures are not fetched from")


def _failed(what: str) -> ImageError:
    return ImageError(f"A picture {what}. Send it as a data: URL.", kind="picture_address")

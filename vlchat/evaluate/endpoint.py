"""The HTTP side of an OpenAI-compatible server: its address, its key, waiting and asking again, and what it refuses."""

from __future__ import annotations

import base64
import email.utils
import http.client
import json
import os
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

import vlchat
from vlchat.errors import ConfigError, VLChatError

_MOST_BYTES = 64 * 1024 * 1024  # of a reply
_LONGEST_WAIT = 600.0  # seconds; a server that asks for more will not come back while somebody waits
_AGAIN = {408, 429, 500, 502, 503, 504, 529}
_NO_MONEY = re.compile(r"insufficient_quota|billing|credit balance", re.I)


class ServerError(VLChatError):
    """A server that is not there, does not take the key, has not the model, or cannot do what is asked at all.

    No other request would fare better, so a run ends here, with what it was told so far.
    """


class Refused(VLChatError):
    """One request that the server does not answer, whether it says so or fails at it; the next one may fare better.

    Attributes:
        status: of HTTP; 0 where the answer came and could not be read, or none came in time.
        parameter: the field of the request that the server complains of, where it names one.
    """

    def __init__(self, message: str, status: int = 0, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.parameter = parameter


class Endpoint:
    """A base URL with a key, asked in JSON. Any number of threads may ask at once.

    Args:
        url: as people paste it: with or without `/v1`, with a closing slash, `/chat/completions`, `user:password@`, or
            a query.
        key: goes into the Authorization header and nowhere else; by default OPENAI_API_KEY.
        timeout: seconds to wait for a server that says nothing.
        retries: how often a request is sent again after 429, 5xx, silence or a cut connection, with growing, random
            pauses of 1, 2, 4 ... seconds, or as long as `Retry-After` says. What a server refuses is not sent again.

    Attributes:
        shown: the base URL without password and query, for people and files.

    Raises:
        ConfigError: it is no URL, or says who asks twice.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout: float = 120.0, retries: int = 4) -> None:
        parts = split_url(url)
        path = re.sub(r"/(chat/completions|completions|models)$", "", parts.path.rstrip("/"))
        host = parts.netloc.rpartition("@")[2]
        self.shown = f"{parts.scheme}://{host}{path or '/v1'}"
        self._query = f"?{parts.query}" if parts.query else ""
        self._headers = {"User-Agent": f"vlchat/{vlchat.__version__}", "Accept": "application/json"}
        if parts.username is not None:
            if key is not None:
                raise ConfigError(f"The URL {self.shown} names a user and there is a key beside it: give one of them.")
            name, password = (urllib.parse.unquote(part or "") for part in (parts.username, parts.password))
            self._headers["Authorization"] = "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
        elif key := (key or os.environ.get("OPENAI_API_KEY") or "").strip():
            self._headers["Authorization"] = bearer(key)
        # What a server repeats in its complaints: the key, and whatever a query or a password may be.
        self._secrets = [key, parts.password, *(value for _, value in urllib.parse.parse_qsl(parts.query))]
        self.timeout, self.retries = timeout, retries
        self.stopped = threading.Event()  # ends the pauses: somebody else has found that there is no sense in waiting
        self._opener = urllib.request.build_opener(_NoRedirect)

    def get(self, path: str) -> Any:
        """What the server answers to GET, as JSON; errors as of `post`. Where nobody answers, it asks only once."""
        return self._ask(path, None)

    def post(self, path: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """What the server answers to POST, a JSON object.

        Raises:
            ServerError: it is not there, or will not have this key.
            Refused: it does not answer this request.
        """
        found = self._ask(path, json.dumps(payload, ensure_ascii=True).encode())
        if not isinstance(found, dict):
            raise Refused(f"{self.shown}/{path} answered with JSON that is not an object.")
        return found

    def _ask(self, path: str, body: bytes | None) -> Any:
        tries = 0
        while True:
            try:
                return self._once(path, body)
            except _Later as later:
                tries += 1
                if body is None and not later.status:
                    raise ServerError(str(later)) from None
                pause = later.pause if later.pause is not None else 2 ** (tries - 1) * random.uniform(0.5, 1.0)
                if tries > self.retries or pause > _LONGEST_WAIT or self.stopped.is_set():
                    sentence = f"{later}" + (f" Asked {tries} times." if tries > 1 else "")
                    raise (ServerError(sentence) if later.absent else Refused(sentence, later.status)) from None
                self.stopped.wait(pause)

    def _once(self, path: str, body: bytes | None) -> Any:
        """One exchange.

        Raises:
            _Later: it may go better another time. ServerError, Refused: as `post`.
        """
        where = f"{self.shown}/{path}"
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        request = urllib.request.Request(where + self._query, data=body, headers=headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                data = answer.read(_MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise self._meaning(where, error) from None
        except urllib.error.URLError as error:
            raise _lost(where, error.reason) from None
        except (OSError, http.client.HTTPException) as error:
            raise _lost(where, error) from None
        if len(data) > _MOST_BYTES:
            raise Refused(f"{where} answered with more than {_MOST_BYTES:,} bytes.")
        try:
            return json.loads(data)
        except ValueError:
            raise _Later(f"{where} answered with {_kind(data)} instead of JSON. Is this the URL of the API?") from None

    def _meaning(self, where: str, error: urllib.error.HTTPError) -> Exception:
        """What an answer with an error status is to us."""
        try:
            data = error.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException):
            data = b""
        said, parameter, code, kind, _ = complaint(data)
        for secret in self._secrets:
            said = said.replace(secret, "[key]") if secret and len(secret) > 3 else said
        told = f"{where} answered {error.code}: {said or http.client.responses.get(error.code, 'no reason')}"
        told = told if told.endswith((".", "!", "?")) else told + "."
        if error.code in (401, 403):
            have = "The key that was given" if "Authorization" in self._headers else "No key was given, so"
            does = "is not accepted: give another" if "Authorization" in self._headers else "give one"
            return ServerError(f"{told} {have} {does} with --api-key or in the variable OPENAI_API_KEY.")
        if error.code in (402, 429) and _NO_MONEY.search(f"{code} {kind} {said}"):
            return ServerError(f"{told} More asking will not help: look at the account.")
        if 300 <= error.code < 400:
            return ServerError(f"{told} It sends askers to {_place(error)}: give that URL.")
        if error.code in _AGAIN:
            return _Later(told, error.code, pause=_pause(error.headers.get("Retry-After")))
        return Refused(told, error.code, parameter)


class _Later(Exception):
    """A failure that may pass. `absent`: there was nobody to answer; `pause`: the seconds that the server asks for."""

    def __init__(self, message: str, status: int = 0, *, absent: bool = False, pause: float | None = None) -> None:
        super().__init__(message)
        self.status, self.absent, self.pause = status, absent, pause


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key is for the server it was given for, and for no other that this one names."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def bearer(key: str) -> str:
    """The Authorization header of a key.

    Raises:
        ConfigError: no key looks so.
    """
    if not key.isascii() or not key.isprintable():
        raise ConfigError("The key has characters that no key has (a line break, perhaps): copy it again.")
    return f"Bearer {key}"


def split_url(url: str) -> urllib.parse.SplitResult:
    """The parts of a server's URL.

    Raises:
        ConfigError: it is none.
    """
    if "://" not in url:
        raise ConfigError(f'"{url}" is no URL: it must begin with http:// or https://, as in http://localhost:8000/v1.')
    try:
        parts = urllib.parse.urlsplit(url.strip())
        parts.port  # noqa: B018  raises for one that is no number
    except ValueError as error:
        raise ConfigError(f"The URL cannot be read: {error}. It should look like http://localhost:8000/v1.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f'A URL with "{parts.scheme}://" cannot be asked: it should look like http://localhost:8000/v1.'
        )
    return parts


def _lost(where: str, reason: Any) -> Exception:
    """What a connection that failed means."""
    if isinstance(reason, TimeoutError):
        return _Later(f"{where} said nothing in time. Give it longer, or ask fewer things at once (--concurrency).")
    named = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    if isinstance(reason, ConnectionRefusedError):
        return _Later(f"There is no server at {where}: {named}. Start it, or correct the URL.", absent=True)
    if isinstance(reason, ConnectionError | http.client.HTTPException):
        return _Later(f"{where} broke off the connection ({named}).")
    # A name that does not resolve, a certificate that does not hold: waiting mends neither.
    return ServerError(f"{where} cannot be reached: {named}. Correct the URL, or look at the network.")


class Complaint(NamedTuple):
    """What a server says of a request that it does not answer; empty where it does not say.

    Attributes:
        code, kind, shaped: as OpenAI's errors have them, and whether it is one.
    """

    said: str
    parameter: str | None = None
    code: str = ""
    kind: str = ""
    shaped: bool = False


def complaint(data: bytes) -> Complaint:
    """An error's body in any of the usual shapes."""
    try:
        found = json.loads(data)
    except ValueError:
        text = data.decode("utf-8", "replace").strip()
        return Complaint("a web page" if text.startswith("<") else _short(text))
    error = found.get("error", found) if isinstance(found, dict) else found
    if isinstance(error, dict):
        said = next((error[name] for name in ("message", "detail", "error") if error.get(name)), error)
        parameter = error.get("param")
        code, kind = (str(error.get(name) or "") for name in ("code", "type"))
        shaped = isinstance(found.get("error"), dict) and isinstance(error.get("message"), str)
        return Complaint(_short(said), parameter if isinstance(parameter, str) else None, code, kind, shaped)
    return Complaint(_short(error))


def _short(said: Any) -> str:
    text = said if isinstance(said, str) else json.dumps(said)
    text = " ".join(re.sub(r"data:[\w/+.-]+;base64,[\w+/=]+", "data:...", text).split())
    return text if len(text) <= 500 else text[:500] + "..."


def _kind(data: bytes) -> str:
    head = data[:200].lstrip()
    return "a web page" if head.startswith(b"<") else "nothing" if not head else "something cut short or foreign"


def _place(error: urllib.error.HTTPError) -> str:
    """Where a redirect leads, without what may be a secret in it."""
    parts = urllib.parse.urlsplit(error.headers.get("Location") or "")
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if host else parts.path or "nowhere"


def _pause(header: str | None) -> float | None:
    """Seconds of a `Retry-After` header: a number or a date (RFC 9110, 10.2.3)."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError):
        return None

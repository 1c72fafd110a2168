"""What stands before the page and the API: who may come in, with how much, from where, and until when.

Everything is decided from a request's head and the bytes that come, before anything reads them as JSON or as a form.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import re
import secrets
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import requests
from serve.allowed_hosts import AllowedHosts, is_loopback
from serve.policy import Policy
from serve.rates import Uploads
from serve.requests import RequestError
from serve.tickets import Closed
from vlchat.errors import VLChatError

MIB = 2**20
LONGEST_BODY = 64 * MIB  # of pictures: a question of a program, or what the page uploads
LONGEST_WORDS = 4 * MIB  # of everything else
LONGEST_UNTOLD = 8 * MIB  # of a body that comes without Content-Length
PATIENCE = 60.0  # seconds in which a body must come, and
SLOWEST = 64 * 2**10  # bytes a second that it may take longer for its size
_UPLOADS = "/gradio_api/upload"
_PICTURES = ("/v1/", _UPLOADS)
_OPEN = ("/health", "/ready")  # for probes, which have no key
_COOKIE = "vlchat_browser"  # a secret: who shows it is shown its conversations
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_KNOWN = 400 * 86400  # seconds, the longest that browsers keep one
_BASIC = 'Basic realm="vlchat", charset="UTF-8"'
_BEARER = 'Bearer realm="vlchat"'


class Guard:
    """ASGI. For those behind it, `scope["state"]` has

    - `tenant`: the key's name, "" where there are no keys; what is kept for one is not for another;
    - `caller`: whose questions are counted together;
    - `owner`: whose conversations the page shows: the key's, else the browser's by a cookie; "" for programs without.

    Args:
        app: what answers.
        policy: see there.
        host: where it listens.
        refused: is told the reason of each refusal.

    Attributes:
        stopping: no more questions are taken.
        answering: questions on their way.
    """

    def __init__(self, app: ASGIApp, policy: Policy, host: str, refused: Callable[[str], None]) -> None:
        self.app, self.policy, self.stopping, self.answering = app, policy, False, 0
        self._hosts = AllowedHosts(policy.host_names, local=is_loopback(host) and not policy.keys)
        self._refused, self._uploads = refused, Uploads(policy.uploads)
        self._headers = _security_headers(policy.embedders)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        headers, cookie = Headers(scope=scope), list[str]()

        async def safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                raw = MutableHeaders(raw=message.setdefault("headers", []))
                raw.update(self._headers)
                for one in cookie:
                    raw.append("set-cookie", one)
            await send(message)

        try:
            limit = self._enter(scope, headers)
            cookie += _recognize(scope, headers)
        except VLChatError as error:
            self._count(error)
            await refusal(error, scope["path"])(scope, receive, safe)
            return
        # Gradio's own middleware would let pages of other sites read its answers; without an origin it does nothing.
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"origin"]
        asks = scope["method"] == "POST"
        self.answering += asks
        try:
            body = _Body(receive, limit, told="content-length" in headers)
            await body.answered(self.app, scope, safe)
            if body.error is not None:
                self._count(body.error)
        finally:
            self.answering -= asks

    def _count(self, error: VLChatError) -> None:
        self._refused(requests.told(error)[1]["error"]["code"])

    def _enter(self, scope: Scope, headers: Headers) -> int:
        """Bytes that the body may have.

        Raises:
            VLChatError: this request is not taken.
        """
        self._hosts.check(headers.get("host"))
        path, method, state = scope["path"], scope["method"], scope["state"]
        name = self._name(headers)
        if self.policy.keys:
            state["line"].fields["key"] = name
            if name is None and path not in _OPEN:
                raise _Unauthorized("authorization" in headers)
        state["tenant"], state["caller"] = name or "", name or _address(scope)
        if method not in ("GET", "HEAD", "OPTIONS"):
            _same_site(headers)
            if self.stopping and path != "/gradio_api/cancel":
                raise Closed()
        if path.startswith("/gradio_api/") and "://" in path:  # Gradio would fetch it
            raise RequestError("No address is fetched.", 403, "not_allowed")
        limit = LONGEST_BODY if path.startswith(_PICTURES) else LONGEST_WORDS
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise _too_long(limit)
        if path.startswith(_UPLOADS) and method == "POST":
            self._uploads.admit(state["caller"], int(length) if length.isdigit() else LONGEST_UNTOLD)
        return limit

    def _name(self, headers: Headers) -> str | None:
        """Of the key that a request shows: as a token, or as the password of a browser's own dialog."""
        kind, _, told = headers.get("authorization", "").partition(" ")
        told = told.strip()
        if kind.lower() == "basic":
            try:
                told = base64.b64decode(told, validate=True).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                told = ""
        elif kind.lower() != "bearer":
            told = ""
        return self.policy.keys.name_of(told)


class _Unauthorized(RequestError):
    def __init__(self, shown: bool) -> None:
        self.shown = shown
        told = "This API key is not known here." if shown else "An API key is needed: Authorization: Bearer KEY."
        super().__init__(told, 401, "invalid_api_key")


class _Body:
    """The body of a request on its way in, up to its limits; the answer on its way out.

    Whoever reads a body that breaks a limit sees its sender leave, and what they answer to that is replaced by the
    reason. Nothing of the body is kept here.

    Attributes:
        error: which limit it broke, once it has.
    """

    def __init__(self, receive: Receive, limit: int, told: bool) -> None:
        self._receive, self._limit, self._told = receive, limit if told else min(limit, LONGEST_UNTOLD), told
        self._size, self._whole = 0, False
        self._began = asyncio.get_running_loop().time()
        self.error: RequestError | None = None
        self._started = False

    async def answered(self, app: ASGIApp, scope: Scope, send: Send) -> None:
        async def checked(message: Message) -> None:
            if self.error is None or self._started:
                self._started = True
                await send(message)

        try:
            await app(scope, self._checked, checked)
        except Exception:
            if self.error is None:
                raise
        if self.error is not None and not self._started:
            await refusal(self.error, scope["path"])(scope, self._receive, send)

    async def _checked(self) -> Message:
        if self.error is not None:
            return {"type": "http.disconnect"}
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._began + PATIENCE + self._size / SLOWEST):
                message = await self._receive()
        except TimeoutError:
            return self._broken(RequestError("The body came too slowly. Ask again.", 408, "timeout"))
        self._size += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._size > self._limit:
            return self._broken(_too_long(self._limit, self._told))
        return message

    def _broken(self, error: RequestError) -> Message:
        self.error = error
        return {"type": "http.disconnect"}


def _recognize(scope: Scope, headers: Headers) -> list[str]:
    """Sets the owner; returns the cookie that makes a browser known, if it is not yet."""
    state = scope["state"]
    if state["tenant"]:
        state["owner"] = f"key/{state['tenant']}"
        return []
    secret = cookie_parser(headers.get("cookie", "")).get(_COOKIE, "")
    if _SECRET.fullmatch(secret):
        state["owner"] = f"browser/{secret}"
        return []
    state["owner"] = ""
    if scope["method"] != "GET" or "text/html" not in headers.get("accept", ""):
        return []  # only who opens the page
    secret = secrets.token_urlsafe(32)
    state["owner"] = f"browser/{secret}"
    secure = "; Secure" if scope["scheme"] == "https" else ""
    return [f"{_COOKIE}={secret}; HttpOnly; SameSite=Lax; Path=/; Max-Age={_KNOWN}{secure}"]


def refusal(error: VLChatError, path: str = "/v1/") -> JSONResponse:
    """The answer that tells an error, in OpenAI's shape.

    Args:
        error: a sentence.
        path: of the request; programs are asked for a key as a token, browsers by their own dialog.
    """
    status, body = requests.told(error)
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = str(getattr(error, "retry_after", 10))
    elif status == 408:
        headers["Connection"] = "close"
    elif isinstance(error, _Unauthorized):
        invalid = ', error="invalid_token"' if error.shown else ""
        headers["WWW-Authenticate"] = _BEARER + invalid if path.startswith("/v1/") else _BASIC
    if path.startswith("/gradio_api/"):
        body["detail"] = str(error)  # which Gradio's page shows
    return JSONResponse(body, status, headers)


async def failure(request: Request, error: Exception) -> Response:
    """The answer to what nobody foresaw; `serve.logs` tells the operator of it."""
    return refusal(RequestError("The server failed at this. Ask again.", 500, "failed"))


def _security_headers(embedders: Sequence[str]) -> dict[str, str]:
    # Gradio's page has scripts and styles of its own in it, and builds some on the way; nothing comes from elsewhere,
    # and nothing goes there, whatever an answer holds.
    policy = {
        "default-src": "'self'",
        "script-src": "'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "media-src": "'self' data: blob:",
        "connect-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "worker-src": "'self' blob:",
        "object-src": "'none'",
        "base-uri": "'self'",
        "form-action": "'self'",
        "frame-ancestors": " ".join(["'self'", *embedders]),
    }
    headers = {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
    }
    # It knows no list of origins, and browsers that know frame-ancestors pass it over.
    return headers if embedders else headers | {"x-frame-options": "SAMEORIGIN"}


def _same_site(headers: Headers) -> None:
    """As Go's `net/http.CrossOriginProtection` decides: by what the browser says, else by the origin's host.

    Raises:
        RequestError: the page of another site has a visitor's browser ask.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        same = site in ("same-origin", "none")
    else:
        origin = headers.get("origin")
        same = origin is None or origin.partition("://")[2] == headers.get("host")
    if not same:
        raise RequestError("Pages of other sites may not ask here.", 403, "cross_origin")


def _address(scope: Scope) -> str:
    """Whose questions are counted together: an address, or the network of 64 bits that one caller of IPv6 has."""
    host = (scope.get("client") or ("", 0))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    address = getattr(address, "ipv4_mapped", None) or address
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


def _too_long(limit: int, told: bool = True) -> RequestError:
    untold = "" if told else " without Content-Length"
    return RequestError(f"The body is larger than {limit // MIB} MiB{untold}. Send less at once.", 413, "too_large")

"""What a program asks of `/v1/chat/completions` -> messages and options for the engine; errors in OpenAI's words."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from serve.decoding import MOST_PICTURES, Album, Decoder
from serve.fetching import Errand, Hosts
from serve.tickets import Busy, Closed, Failed, Options
from vlchat.errors import ImageError, VLChatError

MOST_TOKENS = 65_536
_MOST_MESSAGES = 1024
_MOST_FIELDS = 64
_MOST_PARTS = 200_000  # of a body: lists, objects and what they hold take a hundred times their bytes
_DATA = re.compile(r"data:(?P<mime>[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE)


class RequestError(VLChatError):
    """A request that can't be answered.

    Attributes:
        status: of HTTP.
        code, param: for programs, as in OpenAI's errors.
    """

    def __init__(
        self, message: str, status: int = 400, code: str = "invalid_request", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, told: Any) -> Any:
        """Each field that is not known would be an error of its own."""
        if isinstance(told, dict) and len(told) > _MOST_FIELDS:
            raise ValueError(f"more than {_MOST_FIELDS} fields")
        return told


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 5.0 is as whole as 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS), BeforeValidator(_whole)]
_Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), BeforeValidator(_whole)]
_One = Annotated[int, Field(ge=1, le=1), BeforeValidator(_whole)]
_Zero = Annotated[float, Field(ge=0, le=0)]


_Stop = Annotated[str, Field(max_length=1000)]


class _Text(_Strict):
    type: Literal["text"]
    text: str


class _Url(_Strict):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class _Picture(_Strict):
    type: Literal["image_url"]
    image_url: _Url


_Part = Annotated[_Text | _Picture, Field(discriminator="type")]


class _Turn(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[_Part], Field(max_length=_MOST_MESSAGES, fail_fast=True)]
    name: str | None = None  # of a speaker; not told to the model


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatRequest(_Strict):
    """The body of a request. What would change the answer and is not offered is refused, not passed over.

    Attributes:
        cache_salt: as of vLLM: what was computed is used for requests with the same one alone.
        store, metadata, user, service_tier, safety_identifier, prompt_cache_key: of no meaning here.
    """

    model: str
    messages: Annotated[list[_Turn], Field(min_length=1, max_length=_MOST_MESSAGES, fail_fast=True)]
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    seed: _Seed | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: _One | None = None
    presence_penalty: _Zero | None = None
    frequency_penalty: _Zero | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    store: Any = None
    metadata: Any = None
    user: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None

    @property
    def stops(self) -> list[str]:
        """Words at which the answer ends."""
        return [word for word in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if word]

    @property
    def words(self) -> str:
        """Of the last turn."""
        content = self.messages[-1].content
        return content if isinstance(content, str) else " ".join(p.text for p in content if isinstance(p, _Text))

    def options(self, adapter: str | None, scope: str) -> Options:
        """For the engine. By default answers are drawn at temperature 1, as OpenAI's are."""
        return Options(
            self.max_completion_tokens or self.max_tokens or 256,
            1.0 if self.temperature is None else self.temperature,
            1.0 if self.top_p is None else self.top_p,
            self.seed,
            adapter,
            f"{scope}/{self.cache_salt}" if self.cache_salt else scope,
            (self.top_logprobs or 0) if self.logprobs else None,
            tuple(self.stops),
        )

    def conversation(self, decoder: Decoder, hosts: Hosts) -> list[dict[str, Any]]:
        """The messages, their pictures opened.

        Args:
            decoder: opens them.
            hosts: where they may be fetched from.

        Raises:
            RequestError: too many pictures.
            ImageError: a picture that can't be fetched or used.
        """
        count = sum(isinstance(part, _Picture) for turn in self.messages for part in turn.content)
        if count > MOST_PICTURES:
            raise RequestError(
                f"The conversation has {count} pictures; at most {MOST_PICTURES} are taken.", param="messages"
            )
        errand, album = Errand(hosts), Album(decoder)
        return [{"role": turn.role, "content": _parts(turn.content, album, errand)} for turn in self.messages]


def _parts(content: str | Sequence[_Text | _Picture], album: Album, errand: Errand) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, _Text)
        else {"type": "image", "image": _opened(part.image_url.url, album, errand)}
        for part in content
    ]


def _opened(url: str, album: Album, errand: Errand) -> Image.Image:
    found = _DATA.match(url)
    if found is None and errand.hosts and not url[:5].lower() == "data:":
        return album.add(errand.fetch(url))
    if found is None:
        raise ImageError("Send pictures as data: URLs with base64, data:image/jpeg;base64,...; no address is fetched.")
    try:
        data = base64.b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("A picture's base64 is damaged. Encode its bytes anew.") from None
    return album.add(data, mime=found["mime"])


def read(body: bytes) -> ChatRequest:
    """The request in a body.

    Raises:
        RequestError: it is no JSON, or a field that is missing, unknown or out of range; the field is named.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > _MOST_PARTS:
        raise RequestError("The body has too many parts. Send less at once.", 413, "too_large")
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError("The body is not JSON that can be read.", code="invalid_json") from None
    if not isinstance(told, dict):
        raise RequestError("The body is not a JSON object.", code="invalid_json")
    if "chat_template" in told:
        raise RequestError("A chat template is the model's own and can't be sent.", param="chat_template")
    try:
        asked = ChatRequest.model_validate(told)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        field = "".join(character if character.isprintable() else "?" for character in field)[:100]
        raise RequestError(f"{field}: {first['msg']}.", 422, "invalid_value", field) from None
    if asked.top_logprobs is not None and not asked.logprobs:
        raise RequestError("top_logprobs: set logprobs to true as well.", 422, "invalid_value", "top_logprobs")
    return asked


def told(error: VLChatError) -> tuple[int, dict[str, Any]]:
    """The status and body of an error's answer."""
    status, code = 400, "invalid_request"
    if isinstance(error, (ImageError, RequestError)):
        status, code = error.status, error.code
    elif isinstance(error, Busy):
        status, code = 429, "queue_full"
    elif isinstance(error, Failed):
        status, code = error.status, error.code
    elif isinstance(error, Closed):
        status, code = 503, "stopping"
    kind = "invalid_request_error" if status < 429 else "rate_limit_error" if status == 429 else "server_error"
    param = getattr(error, "param", None)
    return status, {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


class Until:
    """Text up to the first of some words; what may be the beginning of one is held back.

    Attributes:
        reached: whether one has come.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words, self.reached, self._held = list(words), False, ""

    def add(self, text: str) -> str:
        """What of the text so far can be told."""
        if self.reached:
            return ""
        text = self._held + text
        places = [place for word in self.words if (place := text.find(word)) >= 0]
        if places:
            self.reached, self._held = True, ""
            return text[: min(places)]
        held = max((size for word in self.words for size in range(len(word)) if text.endswith(word[:size])), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What was held back, when the answer has ended."""
        held, self._held = self._held, ""
        return held

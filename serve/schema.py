"""What the API takes and answers, as OpenAPI 3.1 tells it, and its answer to whoever asks for anything else."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

import vlchat
from serve.guard import refusal
from serve.requests import ChatRequest, RequestError

_REFERENCE = "#/components/schemas/{model}"
# What any route may answer, and what a question may.
_ANY = {401: "No key, or a wrong one.", 405: "Another method is needed; `Allow` names it."}
_ASKED = {
    400: "The question can't be answered; the message says why.",
    403: "A page of another site had a browser ask.",
    404: "There is no such model.",
    408: "The body came too slowly.",
    413: "The body, or a picture, is too large.",
    415: "A picture of a kind that is not taken.",
    422: "A field is missing, unknown or out of range; `param` names it.",
    429: "Too many questions; `Retry-After` says in how many seconds.",
    500: "The answer failed.",
    503: "The server stops.",
}


class _Message(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class _Choice(BaseModel):
    index: int
    message: _Message
    logprobs: Any
    finish_reason: Literal["stop", "length"]


class _Known(BaseModel):
    cached_tokens: int


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _Known


class Completion(BaseModel):
    """An answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[_Choice]
    usage: _Usage


class _Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    """The model and its adapters."""

    object: Literal["list"]
    data: list[_Model]


class Status(BaseModel):
    """How it is."""

    status: Literal["ok"]


class _Fault(BaseModel):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class Error(BaseModel):
    """Why there is no answer."""

    error: _Fault


_ANSWERS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": Completion,
    "/v1/models": Models,
    "/health": Status,
    "/ready": Status,
}


def described(routes: Sequence[Route], models: Sequence[str]) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        routes: of `serve.api.Api`.
        models: the names that a request may give.
    """
    shown: list[type[BaseModel]] = [*_ANSWERS.values(), Error, ChatRequest]
    _, together = models_json_schema([(one, "validation") for one in dict.fromkeys(shown)], ref_template=_REFERENCE)
    schemas = together["$defs"]
    schemas["ChatRequest"]["properties"]["model"]["enum"] = list(models)
    paths: dict[str, Any] = {}
    for route in routes:
        paths[route.path] = {
            method.lower(): _operation(route) for method in sorted(route.methods or ()) if method != "HEAD"
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "vlchat", "version": vlchat.__version__, "description": "Chat about pictures."},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    asks = route.path == "/v1/chat/completions"
    answer = _ANSWERS.get(route.path)
    content = _content(answer) if answer else {"text/plain": {}}
    if asks:
        content["text/event-stream"] = {}
    refusals = _ANY | (_ASKED if asks else {503: _ASKED[503]} if route.path == "/ready" else {})
    answers = {"200": {"description": "The answer.", "content": content}}
    for status, reason in refusals.items():
        answers[str(status)] = {"description": reason, "content": _content(Error)}
        if status in (429, 503):
            whole = {"description": "Seconds.", "required": True, "schema": {"type": "integer", "minimum": 1}}
            answers[str(status)]["headers"] = {"Retry-After": whole}
    operation: dict[str, Any] = {
        "summary": (inspect.getdoc(route.endpoint) or "").partition("\n")[0],
        "responses": answers,
    }
    if asks:
        operation["requestBody"] = {"required": True, "content": _content(ChatRequest)}
    return operation


def _content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}}


def complete_routes(routes: Sequence[Route], models: Sequence[str]) -> list[BaseRoute]:
    """The API's routes, their description at `/openapi.json`, and refusals in OpenAI's shape for all else under them.

    The page, which comes behind, would answer in its own words.
    """
    document = described(routes, models)

    async def schema(request: Request) -> Response:
        return JSONResponse(document)

    own = [*routes, Route("/openapi.json", schema, methods=["GET"])]
    others = [Route(route.path, _Refused(sorted(route.methods or ()))) for route in own]
    return [*own, *others, Route("/v1/{rest:path}", _Refused())]


class _Refused:
    """ASGI: there is no such thing, or not by this method.

    Args:
        methods: those that there are.
    """

    def __init__(self, methods: Sequence[str] = ()) -> None:
        self.methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed = ", ".join(self.methods)
        if self.methods:
            error = RequestError(f"Ask for it by {allowed}.", 405, "method_not_allowed")
        else:
            error = RequestError("There is no such address here; see /openapi.json.", 404, "not_found")
        response = refusal(error)
        if self.methods:
            response.headers["Allow"] = allowed
        await response(scope, receive, send)

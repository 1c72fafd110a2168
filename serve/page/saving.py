"""Conversations as files: what the list's menu saves."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve import transcript
from serve.guard import refusal
from serve.page.talk import Talk
from serve.requests import RequestError
from vlchat.errors import VLChatError


def saving(talk: Talk) -> list[Route]:
    """Routes `/conversations/ID.zip` (Markdown and pictures) and `/conversations/ID.json` (a request of OpenAI's).

    Each gives a conversation to whose it is, and to nobody else.
    """

    def route(kind: str, media: str, written: Callable[[str, str], bytes | str]) -> Route:
        async def save(request: Request) -> Response:
            owner, id = request.state.owner, request.path_params["id"]
            store = talk.store_of(owner)
            try:
                name = transcript.name_of(store.conversation(owner, id))
                content = await run_in_threadpool(written, owner, id)
            except VLChatError as error:
                return refusal(RequestError(str(error), 404, "not_found"))
            told = f"attachment; filename*=UTF-8''{quote(f'{name}.{kind}')}"
            return Response(content, media_type=media, headers={"content-disposition": told})

        return Route(f"/conversations/{{id:str}}.{kind}", save, methods=["GET"])

    def request(owner: str, id: str) -> str:
        store, names = talk.store_of(owner), talk.asking.engine.names
        settings = store.conversation(owner, id).settings
        return transcript.as_request(
            store, owner, id, model=settings.get("adapter") or names[0], system=settings.get("system", "")
        )

    return [
        route("zip", "application/zip", lambda owner, id: transcript.as_markdown(talk.store_of(owner), owner, id)),
        route("json", "application/json", request),
    ]

"""The page's own scripts and styles, from memory: a browser asks for a hundred of them before the page can be used.

Gradio would open and compress each one anew, for every visitor.
"""

from __future__ import annotations

import mimetypes
from pathlib import Path

import brotli  # type: ignore[import-untyped]
from gradio.route_utils import BUILD_PATH_LIB
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.guard import refusal
from serve.requests import RequestError

_QUALITY = 5  # of 11
_COMPRESSED = (".js", ".css", ".svg", ".ttf")


def assets() -> Route:
    """Route `/assets/NAME`."""
    # Whatever was asked for is looked up among them, so that no path leads elsewhere.
    files = {file.name: file for file in Path(BUILD_PATH_LIB).iterdir() if file.is_file()}
    kept: dict[tuple[str, bool], bytes] = {}

    def read(name: str, compressed: bool) -> bytes:
        found = files[name].read_bytes()
        return brotli.compress(found, quality=_QUALITY) if compressed else found

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            return refusal(RequestError("There is no such thing here.", 404, "not_found"), request.url.path)
        told = [one.partition(";")[0].strip() for one in request.headers.get("accept-encoding", "").split(",")]
        compressed = "br" in told and name.endswith(_COMPRESSED)
        # Their names change with what is in them.
        headers = {"cache-control": "public, max-age=31536000, immutable", "vary": "Accept-Encoding"}
        if compressed:
            headers["content-encoding"] = "br"
        if (content := kept.get((name, compressed))) is None:
            content = kept[name, compressed] = await run_in_threadpool(read, name, compressed)
        media = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(content, media_type=media, headers=headers)

    return Route("/assets/{name}", asset, methods=["GET"])

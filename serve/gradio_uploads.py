"""Uploads as Gradio takes them, mended: of one that breaks off nothing stays, on the disk or in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from gradio import route_utils, routes
from gradio.utils import LRUCache
from starlette.datastructures import FormData

_MOST_FOLLOWED = 1000  # uploads whose progress is told
_written: ContextVar[list[str]] = ContextVar("written")
_upload = route_utils.upload_fn


class _Parser(route_utils.GradioMultiPartParser):
    """Gradio's own forgets its files where the connection breaks, and those of parts that never end."""

    async def parse(self) -> FormData:
        try:
            form = await super().parse()
        except BaseException:
            for file in self._files_to_close_on_error:
                file.close()
            _remove(file.name for file in self._files_to_close_on_error)
            raise
        with contextlib.suppress(LookupError):  # not of an upload
            _written.get().extend(file.name for file in self._files_to_close_on_error)
        return form


async def _uploaded(*given: Any, **more: Any) -> tuple[list[str], list[str], list[str]]:
    """As `route_utils.upload_fn`. A file that is taken no longer has the name under which it was written."""
    written: list[str] = []
    token, copied = _written.set(written), list[str]()
    try:
        found: tuple[list[str], list[str], list[str]] = await _upload(*given, **more)
        copied = found[1]
        return found
    finally:
        _written.reset(token)
        _remove(name for name in written if name not in copied)


class _Signals(LRUCache[str, asyncio.Event]):
    """Who asks for the progress of an upload that never comes makes a signal, too."""

    def __missing__(self, name: str) -> asyncio.Event:
        self[name] = asyncio.Event()
        return self[name]


def mend_uploads() -> None:
    """Once a process, before a page is made."""
    vars(route_utils).update(GradioMultiPartParser=_Parser)
    vars(routes).update(GradioMultiPartParser=_Parser, upload_fn=_uploaded)
    vars(routes.file_upload_statuses).update(_statuses=LRUCache(_MOST_FOLLOWED), _signals=_Signals(_MOST_FOLLOWED))


def _remove(names: Iterable[str]) -> None:
    for name in names:
        Path(name).unlink(missing_ok=True)

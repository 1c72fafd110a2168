"""What Gradio would do for whoever asks and this server does not: fetch addresses, print what people sent, and more."""

from __future__ import annotations

import logging
import sys
import traceback
import types
from typing import Any

import gradio as gr
from gradio import processing_utils, queueing, route_utils, routes, utils

from serve.gradio_routes import mend_routes
from serve.gradio_uploads import mend_uploads

_log = logging.getLogger(__name__)


def mend() -> None:
    """Once a process, before a page is made."""
    vars(processing_utils).update(
        async_ssrf_protected_download=_fetch_nothing,
        ssrf_protected_download=_fetch_nothing_now,
        save_url_to_cache=_fetch_nothing_now,
    )
    quiet = types.ModuleType("traceback", "As the library's; but errors are told by kind and place.")
    vars(quiet).update({name: value for name, value in vars(traceback).items() if not name.startswith("__")})
    vars(quiet).update(print_exc=_tell)
    mend_uploads()
    mend_routes()
    for module in (queueing, route_utils, routes, utils):
        if hasattr(module, "traceback"):
            vars(module).update(traceback=quiet)


async def _fetch_nothing(*told: Any) -> str:
    return _fetch_nothing_now()


def _fetch_nothing_now(*told: Any) -> str:
    raise gr.Error("No address is fetched.", print_exception=False)


def _tell(*told: Any, **more: Any) -> None:
    """Its message may quote what was asked."""
    kind, _, trace = sys.exc_info()
    places = traceback.extract_tb(trace)
    _log.error("%s in %s", kind.__name__ if kind else "?", f"{places[-1].name}:{places[-1].lineno}" if places else "?")

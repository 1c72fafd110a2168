"""The page's one route for programs, `/chat` of `gradio_client`: it remembers the conversation of a client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr

from serve.messages import conversation, escaped, in_line, refusal
from serve.page.asking import Asking
from serve.page.chat_tab import Conversing
from serve.tickets import Options

NO_WORD = "The model ended its answer before the first word. Try other words or another setting."


def programs(asking: Asking, roots: Sequence[Path], here: Conversing) -> None:
    """Adds it to the page. It takes what the conversation's components hold.

    Args:
        roots: the folders that pictures may come from.
    """
    adapter, _, system, temperature, _, longest, *_ = here.chosen

    async def chat(
        message: dict[str, Any], history: list[dict[str, Any]], system: str, temperature: float, longest: int,
        adapter: str, request: gr.Request | None = None,
    ) -> AsyncIterator[tuple[Any, list[dict[str, Any]]]]:  # fmt: skip
        def messages() -> list[dict[str, Any]]:
            return conversation(message, history, system, roots, asking.decoder)

        try:
            options = Options(int(longest), float(temperature), adapter=adapter or None)
        except (TypeError, ValueError):
            yield refusal("The settings hold something that is no number."), history
            return
        words = str(message.get("text") or "")
        files = [{"path": file["path"] if isinstance(file, dict) else file} for file in message.get("files") or []]
        asked = escaped({"role": "user", "content": [*files, *filter(None, [words])]})
        async with aclosing(asking.answers(messages, options, words, request)) as answers:
            async for one in answers:
                told: Any = one.text
                if one.refused or (one.end is not None and not one.text):
                    told = refusal(one.refused or NO_WORD)
                elif one.place and not one.text:
                    told = in_line(one.place)
                reply = told if isinstance(told, dict) else escaped({"role": "assistant", "content": told})
                yield told, [*history, asked, reply]

    remembered = gr.State([])
    gr.Button(visible=False).click(
        chat, [here.question, remembered, system, temperature, longest, adapter],
        [gr.JSON(visible=False, label="Response"), remembered],
        api_name="chat", concurrency_limit=None, postprocess=False,
    )  # fmt: skip

"""lmms-eval's own `openai` model, unchanged, asks our API and gets the model's own answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from talkative import save_talkative, serving

from vlchat.chat import Chat

pytest.importorskip("gradio", reason="gradio is not installed")
pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: pip install lmms-eval")


def test_both_of_its_openai_models_get_the_models_own_answers(
    tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any, picture: Callable
) -> None:
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.chat.openai import OpenAICompatible as ByMessages
    from lmms_eval.models.simple.openai import OpenAICompatible as ByPrompts

    chat = Chat.load(save_talkative(tmp_path / "model", tiny_clip, tiny_tokenizer))
    chat.description["name"] = "tiny"
    rows = [{"picture": picture(number), "question": question} for number, question in enumerate(["two cats?", "red?"])]
    how = {"max_new_tokens": 8, "temperature": 0, "until": ["\n"]}

    def parts(row: dict[str, Any], picture: str) -> list[dict[str, Any]]:
        return [{"type": "image", picture: row["picture"]}, {"type": "text", "text": row["question"]}]

    def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": parts(row, "url")}]

    by_messages = [("", messages, how, number, "drawn", "test") for number in range(len(rows))]
    by_prompts = [
        (row["question"], how, lambda row: [row["picture"]], number, "drawn", "test") for number, row in enumerate(rows)
    ]
    expected = [[{"role": "user", "content": parts(row, "image")}] for row in rows]
    reversed_parts = [[{"role": "user", "content": parts(row, "image")[::-1]}] for row in rows]  # the words come first
    with serving(chat) as address:
        for kind, asked, said in ((ByMessages, by_messages, expected), (ByPrompts, by_prompts, reversed_parts)):
            model = kind(model_version="tiny", base_url=f"{address}/v1", api_key="none", max_retries=1, timeout=60)
            model.task_dict = {"drawn": {"test": rows}}
            requests = [
                Instance("generate_until", one, number, {"task": "drawn", "doc_id": number, "repeats": 1})
                for number, one in enumerate(asked)
            ]
            found = [getattr(answer, "text", answer).strip() for answer in model.generate_until(requests)]
            assert found == [chat.batch([one], max_new_tokens=8)[0] for one in said]

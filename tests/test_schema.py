"""The real server against its own description: whatever schemathesis thinks of, each answer is one that it promises."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from talkative import save_talkative, serving
from tiny_tokenizers import byte_level
from transformers import CLIPVisionConfig, CLIPVisionModel

from vlchat.chat import Chat

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
pytest.importorskip("gradio", reason="gradio is not installed")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from schemathesis.checks import CHECKS, load_all_checks  # noqa: E402
from schemathesis.generation import GenerationMode  # noqa: E402

# `make schema` asks for more.
EXAMPLES = int(os.environ.get("VLCHAT_SCHEMA_EXAMPLES", "25"))
# A question of the right shape may still be refused: its picture is none, its words are too many.
LEFT_OUT = ("positive_data_acceptance",)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tower = CLIPVisionModel(CLIPVisionConfig(image_size=24, patch_size=12, **small)).eval()
    folder = save_talkative(tmp_path_factory.mktemp("served") / "model", tower, byte_level())
    chat = Chat.load(folder)
    chat.description.update(name="tiny")
    with serving(chat) as address:
        yield address


@pytest.fixture(scope="module")
def description(address: str) -> Any:
    return schemathesis.openapi.from_url(f"{address}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", ["POST /v1/chat/completions", "GET /v1/models", "GET /health", "GET /ready"])
def test_every_answer_is_as_described(description: Any, label: str, mode: GenerationMode) -> None:
    """By hypothesis itself: schemathesis' own loop over operations does not know pytest 9."""
    load_all_checks()
    (operation,) = [one.ok() for one in description.get_all_operations() if one.ok().label == label]
    if operation.body.items == [] and mode is GenerationMode.NEGATIVE:
        pytest.skip("nothing is sent that could be wrong")

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if isinstance(case.body, dict) and type(case.body.get("max_tokens")) is int:
            case.body["max_tokens"] = min(case.body["max_tokens"], 4)  # as described still, and quick
        answer = case.call(timeout=120)
        case.validate_response(answer, excluded_checks=CHECKS.get_by_names(list(LEFT_OUT)))
        assert answer.status_code < 500 or answer.status_code == 503

    ask()


def test_every_route_is_described_and_none_of_gradios(address: str) -> None:
    told = httpx.get(f"{address}/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/models", "/health", "/ready"} <= set(told["paths"])
    assert not [path for path in told["paths"] if "gradio" in path]
    request = told["components"]["schemas"]["ChatRequest"]
    assert request["properties"]["model"]["enum"] == ["tiny"]
    assert request["properties"]["max_tokens"]["anyOf"][0] == {"maximum": 65536, "minimum": 1, "type": "integer"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/health", "/ready", "/openapi.json"])
def test_another_method_is_405_and_names_those_there_are(address: str, path: str) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        if method == ("POST" if "completions" in path else "GET"):
            continue
        answer = httpx.request(method, f"{address}{path}", timeout=60)
        assert answer.status_code == 405 and method not in answer.headers["allow"].split(", ")
        assert answer.json()["error"]["code"] == "method_not_allowed"


def test_what_is_not_there_is_told_as_openais_clients_expect(address: str) -> None:
    answer = httpx.post(f"{address}/v1/embeddings", json={}, timeout=60)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"

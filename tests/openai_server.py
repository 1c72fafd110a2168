"""A small OpenAI-compatible server around a real model, which can be told to misbehave as real servers do."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from vlchat import images
from vlchat.chat import Chat

MODEL = "tiny-vlm"


class Server(ThreadingHTTPServer):
    """Answers from `chat`; a test sets the attributes.

    Attributes:
        trouble: what goes wrong with the next POSTs, one each: (status, headers, message), an answer, "slow",
            "cut", "html", "malformed".
        refuses: fields of a request that are answered with 400.
        key: what the Authorization header must be; None lets everybody in.
        logprobs, prompt_logprobs: whether it says them where it is asked.
        seen: bodies of the POSTs, with the time at which each came and its headers.
    """

    daemon_threads = True

    def __init__(self, chat: Chat) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.chat = chat
        self.models = [MODEL]
        self.root = "/v1"
        self.trouble: list[Any] = []
        self.always: Any = None
        self.refuses: set[str] = set()
        self.key: str | None = None
        self.logprobs = self.prompt_logprobs = True
        self.alternatives = 20
        self.seen: list[tuple[float, dict[str, Any], dict[str, str]]] = []
        self.most = 0  # requests that were under way at a time
        self.under_way = 0
        self.lock = threading.Lock()
        self.turn = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""

    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        messages = [opened(message) for message in asked["messages"]]
        with self.turn, torch.inference_mode():
            prompt_logprobs = self._prompt(messages, asked) if "prompt_logprobs" in asked else None
            if messages[-1]["role"] == "assistant":
                written, tokens, read = "", [], 0
            else:
                written, tokens, read = self._written(messages, asked)
        answer: dict[str, Any] = {
            "id": "x", "object": "chat.completion", "model": asked["model"], "system_fingerprint": "fp_1",
            "usage": {"prompt_tokens": read, "completion_tokens": len(tokens)},
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": written}}],
        }  # fmt: skip
        if self.logprobs and asked.get("logprobs"):
            answer["choices"][0]["logprobs"] = {"content": tokens}
        if self.prompt_logprobs and prompt_logprobs is not None:
            answer["prompt_logprobs"] = prompt_logprobs
        return answer

    def _written(self, messages: list[Any], asked: dict[str, Any]) -> tuple[str, list[dict[str, Any]], int]:
        chat = self.chat
        inputs = chat._inputs([messages])
        read = inputs["input_ids"].shape[1]
        config = chat._generation_config(read, asked.get("max_tokens") or asked["max_completion_tokens"], 0.0, 1.0)
        config.update(return_dict_in_generate=True, output_logits=True)
        found = chat.model.generate(**inputs, generation_config=config)
        ids = found.sequences[0, -len(found.logits) :]
        tokens = []
        for token, logits in zip(ids.tolist(), found.logits, strict=True):
            likely = logits[0].double().log_softmax(-1)
            best = likely.topk(min(asked.get("top_logprobs", 0), self.alternatives))
            shown = [
                {"token": chat.tokenizer.decode([index]), "logprob": value}
                for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
            tokens.append(
                {"token": chat.tokenizer.decode([token]), "logprob": likely[token].item(), "top_logprobs": shown}
            )
        return chat.tokenizer.decode(ids, skip_special_tokens=True), tokens, read

    def _prompt(self, messages: list[Any], asked: dict[str, Any]) -> list[Any]:
        """vLLM's shape: nothing for the first token, then {its id: {logprob, rank, decoded_token}}."""
        options = {name: asked[name] for name in ("continue_final_message",) if name in asked}
        inputs = self.chat.processor.apply_chat_template(
            [messages], tokenize=True, return_dict=True, return_tensors="pt",
            add_generation_prompt=asked.get("add_generation_prompt", True), **options,
        )  # fmt: skip
        ids = inputs["input_ids"][0].tolist()
        likely = self.chat.model(**inputs).logits[0].double().log_softmax(-1)
        return [None] + [
            {str(token): {"logprob": likely[place, token].item(), "rank": 1, "decoded_token": "?"}}
            for place, token in enumerate(ids[1:])
        ]


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    counted = False

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self._let_in():
            if self.path.partition("?")[0] == f"{self.server.root}/models":
                listed = [{"id": name, "created": time.time_ns(), "max_model_len": 512} for name in self.server.models]
                self._json({"object": "list", "data": listed})
            else:
                self._json({"detail": "Not Found"}, 404)

    def do_POST(self) -> None:
        server = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._let_in():
            return
        with server.lock:
            server.seen.append((time.monotonic(), asked, dict(self.headers)))
            trouble = server.trouble.pop(0) if server.trouble else server.always
            server.under_way += 1
            server.most = max(server.most, server.under_way)
        self.counted = True
        try:
            self._post(asked, trouble)
        finally:
            self._over()

    def _over(self) -> None:
        """It is no longer under way: before its answer is sent, after which its client may ask the next one."""
        with self.server.lock:
            self.server.under_way -= self.counted
        self.counted = False

    def _post(self, asked: dict[str, Any], trouble: Any) -> None:
        if trouble == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif trouble == "slow":
            time.sleep(1.5)
            self._json(self.server.complete(asked))
        elif trouble == "malformed":
            self._bytes(b'{"choices": [{', 200)
        elif trouble == "html":
            self._bytes(b"<html><body>Welcome to nginx</body></html>", 200)
        elif isinstance(trouble, dict):
            self._json({"id": "x", **trouble})
        elif trouble is not None:
            status, headers, message = trouble
            self._json({"error": {"message": message, "type": "x", "code": status}}, status, headers)
        elif refused := next((name for name in asked if name in self.server.refuses), None):
            other = ". Use 'max_completion_tokens' instead" if refused == "max_tokens" else ""
            message = f"Unsupported parameter: '{refused}' is not supported with this model{other}."
            self._json({"error": {"message": message, "param": refused, "code": "unsupported_parameter"}}, 400)
        elif asked["model"] not in self.server.models:
            self._json({"error": {"message": f"The model `{asked['model']}` does not exist."}}, 404)
        elif asked.get("top_logprobs", 0) > self.server.alternatives:
            self._json({"error": {"message": "top_logprobs must be at most 5", "param": "top_logprobs"}}, 400)
        else:
            try:
                self._json(self.server.complete(asked))
            except ValueError as error:
                self._json({"error": {"message": str(error), "type": "BadRequestError", "code": 400}}, 400)

    def _let_in(self) -> bool:
        given = self.headers.get("Authorization")
        if self.server.key is not None and given != self.server.key:
            self._json({"error": {"message": f"Incorrect API key provided: {given}."}}, 401)
            return False
        return True

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._bytes(json.dumps(content).encode(), status, headers)

    def _bytes(self, data: bytes, status: int, headers: dict[str, str] | None = None) -> None:
        self._over()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def opened(message: dict[str, Any]) -> dict[str, Any]:
    """A message as it came over the wire, its `data:` URLs decoded."""
    if isinstance(message["content"], str):
        return {**message, "content": [{"type": "text", "text": message["content"]}]}
    parts = []
    for part in message["content"]:
        if part["type"] == "image_url":
            kind, _, data = part["image_url"]["url"].partition(";base64,")
            picture = images.decode(base64.b64decode(data), mime=kind.removeprefix("data:"))
            parts.append({"type": "image", "image": picture})
        else:
            parts.append(part)
    return {**message, "content": parts}


@contextmanager
def serving(chat: Chat) -> Iterator[Server]:
    with Server(chat) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()

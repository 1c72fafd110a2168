"""A score certificate: what was asked of whom and how it was scored, so that anyone can ask again and compare."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlchat.errors import VLChatError
from vlchat.evaluate.blind import images_of
from vlchat.evaluate.identity import model_identity, picture_key
from vlchat.evaluate.items import Item, Request
from vlchat.evaluate.known import TASKS, make_task
from vlchat.evaluate.result import Result
from vlchat.evaluate.tasks.base import Task
from vlchat.folders import sha256

FILE = "certificate.json"
FORMAT = 1


def prompts_of(task: Task, items: Sequence[Item]) -> dict[str, Any]:
    """What is asked before any reply: hashes of the words and of the pictures, and the first item's words to read."""
    words, pictures = hashlib.sha256(), hashlib.sha256()
    first = ""
    for item in items:
        for request in task.requests(item, []):
            text = _words(request)
            first = first or text
            words.update(text.encode(errors="surrogatepass") + b"\n")
            for picture in images_of(request.messages):
                shown = picture["video"] if isinstance(picture, dict) else picture
                pictures.update(f"{picture_key(shown)}\n".encode())
    return {"words": words.hexdigest(), "pictures": pictures.hexdigest(), "first": first}


def parser_of(task: type[Task]) -> str:
    """A hash of the code that reads and scores replies: the task's own and what it says it is read by."""
    files = {Path(inspect.getfile(one)) for one in task.__mro__ if one.__module__.startswith("vlchat.")}
    for name in task.read_by:
        place = Path(inspect.getfile(importlib.import_module(name)))
        files |= set(place.parent.glob("*.py")) if place.name == "__init__.py" else {place}
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: (file.parent.name, file.name)):
        digest.update(f"{file.parent.name}/{file.name} {sha256(file)}\n".encode())
    return digest.hexdigest()


def certificate(result: Result) -> dict[str, Any]:
    """What a result stands on and came to; `sha256` is that of everything else in it."""
    written = result.to_dict()
    replies = [[row["id"], row["reply"], row["answer"], row["score"]] for row in result.rows]
    content = {
        "certificate": FORMAT,
        "task": result.task,
        "protocol": result.protocol,
        "parser": parser_of(TASKS[result.task]) if result.task in TASKS else None,  # type: ignore[arg-type]
        "prompts": result.prompts,
        "data": written["data"],
        "model": written["model"],
        "settings": written["settings"],
        "versions": result.versions,
        "questions": len(result.rows),
        "replies": hashlib.sha256(json.dumps(replies).encode()).hexdigest(),
        "scores": written["overall"],
        "controls": {name: found["blind"] for name, found in written["controls"].items()},
    }
    content = json.loads(json.dumps(content, default=str))
    return content | {"sha256": _digest(content)}


@dataclass
class Verified:
    """What came of asking again.

    Attributes:
        changed: sentences on what the score stands on and is not what it was; then nothing was asked again.
        differs: sentences on what came out otherwise.
        notes: what is otherwise and need not matter, such as versions of libraries.
    """

    changed: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not (self.changed or self.differs)


def read(path: str | Path) -> dict[str, Any]:
    """A certificate, by its file or the folder that holds it.

    Raises:
        VLChatError: there is none, it is damaged, or was changed after it was written.
    """
    place = Path(path)
    if place.is_dir() and not (place / FILE).exists() and (parts := sorted(place.glob(f"*/{FILE}"))):
        names = ", ".join(str(part.parent) for part in parts)
        raise VLChatError(f"{place} holds several results, each with a certificate of its own: verify {names}.")
    place = place / FILE if place.is_dir() else place
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VLChatError(
            f"There is no certificate to verify at {place}: {error}. `vlchat eval --out FOLDER` writes one."
        ) from error
    if not isinstance(content, dict) or content.get("certificate") != FORMAT:
        raise VLChatError(f"{place} is no certificate of this version of vlchat.")
    if content.get("sha256") != _digest({name: value for name, value in content.items() if name != "sha256"}):
        raise VLChatError(f"{place} was changed after it was written: its sha256 is not that of its content.")
    return content


def verify(
    path: str | Path,
    *,
    model: str | Path | None = None,
    data: str | None = None,
    device: str | None = None,
    **running: Any,
) -> Verified:
    """Asks everything again that a certificate says was asked, and compares.

    Args:
        path: the certificate, or the folder that holds it.
        model, data: where these are now, if elsewhere.
        device: where the model runs.
        running: `batch_size` and `progress` of `vlchat.evaluate.run`.

    Raises:
        VLChatError: there is no certificate, or what it names cannot be loaded.
    """
    from vlchat.evaluate.runner import run, versions

    known = read(path)
    settings = dict(known["settings"])
    options = dict(settings.get("options", {})) | ({"data": data} if data is not None else {})
    task = make_task(known["task"], **options, **({"seed": settings["seed"]} if known["task"] == "scenes" else {}))
    found = Verified()
    now = {"parser": parser_of(type(task)), "protocol": task.protocol, "data": json.loads(json.dumps(task.data))}
    if now["protocol"] != known["protocol"]:
        found.changed.append(f'The protocol was "{known["protocol"]}" and is now "{now["protocol"]}".')
    if now["parser"] != known["parser"]:
        found.changed.append("The parser has changed: the code that reads and scores replies is not what it was.")
    found.changed += list(_changed_data(known["data"], now["data"]))
    prompts = prompts_of(task, task.items())
    if prompts["words"] != known["prompts"]["words"]:
        found.changed.append(f"The prompts have changed. The first was {known['prompts']['first']!r}, and is now "
                             f"{prompts['first']!r}.")  # fmt: skip
    if prompts["pictures"] != known["prompts"]["pictures"]:
        found.changed.append("The pictures have changed: their bytes are not what they were.")
    model = settings["model"] if model is None else model
    if known["model"].get("weights") not in (None, weights := _weights(model, settings)):
        found.changed.append(f"The model has changed: its weights or settings are not what they were ({weights}).")
    for name, version in versions().items():
        if known["versions"].get(name) != version:
            found.notes.append(f"{name} was {known['versions'].get(name)} and is {version}.")
    if found.changed:
        return found
    names = ("url", "controls", "control_rows", "seed", "max_new_tokens", "batch_size")
    chosen = {name: settings[name] for name in names} | running
    loading = settings["loading"] | ({} if device is None else {"device": device})
    again = certificate(run(model, known["task"], remember=False, loading=loading, **chosen, **options))
    for name, was in known["scores"].items():
        value = again["scores"].get(name, {}).get("value")
        if value != was["value"]:
            found.differs.append(f"{name} was {was['value']} and is {value}.")
    for name, was in known["controls"].items():
        value = again["controls"].get(name, {}).get("value")
        if value != was["value"]:
            found.differs.append(f"The control {name} was {was['value']} and is {value}.")
    if again["replies"] != known["replies"]:
        found.differs.append("Not every reply is the same, to the letter.")
    return found


def _weights(model: str | Path | None, settings: dict[str, Any]) -> str | None:
    return None if settings["url"] is not None else model_identity(model, settings["loading"].get("revision"))


def _words(request: Request) -> str:
    turns = []
    for message in request.messages:
        parts = [part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in message["content"]]
        turns.append(f"{message['role']}: {chr(10).join(parts)}")
    return "\n".join(turns + [f"choice: {choice}" for choice in request.choices])


def _changed_data(was: dict[str, Any], now: dict[str, Any], name: str = "data") -> Iterator[str]:
    """What of the data is not what it was. Where it lies does not matter, what it holds does."""
    for key in sorted({*was, *now} - {"path"}):
        if isinstance(was.get(key), dict) and isinstance(now.get(key), dict):
            yield from _changed_data(was[key], now[key], f"{name}.{key}")
        elif was.get(key) != now.get(key):
            file = f" ({now.get('path') or was.get('path')})" if was.get("path") or now.get("path") else ""
            yield f"The data has changed{file}: {name}.{key} was {was.get(key)} and is now {now.get(key)}."


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

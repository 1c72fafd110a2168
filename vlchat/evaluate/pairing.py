"""Whether two results are of the same questions, so that their rows can be paired, and what else differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from vlchat.errors import VLChatError
from vlchat.evaluate.result import Result

_IGNORED = ("path", "floor")  # of a result's data: neither changes what was asked or how it was scored
_ASIDE = ("controls", "control_rows", "options.floor")  # of its settings: likewise


def check_same(before: Result, after: Result, names: tuple[str, str], *, but: Sequence[str] = ()) -> None:
    """Whether two results are of the same questions, scored in the same way.

    Args:
        but: fields of `data` that may differ.

    Raises:
        VLChatError: they are not; the message says which field differs, and how.
    """
    told = _different(names)
    if before.protocol != after.protocol:
        told("the protocol", before.protocol, after.protocol, "Score both by the same task and options.")
    was, now = _flat(before.data), _flat(after.data)
    ignored = (*_IGNORED, *but)
    for key in [key for key in {**was, **now} if key.split(".")[0] not in ignored]:
        if was.get(key) != now.get(key):
            told(f"data.{key}", was.get(key), now.get(key), "Evaluate both on the same file with the same options.")
    if not any(was.get(name) != now.get(name) for name in but):
        for key in ("words", "pictures"):
            one, two = before.prompts.get(key), after.prompts.get(key)
            if one != two:
                first = before.prompts.get("first"), after.prompts.get("first")
                shown = first if key == "words" and first[0] != first[1] else (one, two)
                told(f"prompts.{key}", shown[0], shown[1], "What was asked is not the same: evaluate both again.")
        ids, others = [row["id"] for row in before.rows], [row["id"] for row in after.rows]
        for number, (one, two) in enumerate(zip(ids, others, strict=False), start=1):
            if one != two:
                told(f"the id of row {number}", one, two, "Evaluate both on the same rows.")
        if len(ids) != len(others):
            told("the number of rows", len(ids), len(others), "Evaluate both on the same rows.")
    if [one.name for one in before.measures] != [two.name for two in after.measures]:
        measures = [", ".join(one.name for one in result.measures) for result in (before, after)]
        told("the measure", measures[0], measures[1], "Score both by the same version of vlchat.")


def differing(before: Result, after: Result) -> Iterator[tuple[str, str, str]]:
    """What of the models, settings and versions is not the same."""
    for name in ("model", "settings", "versions"):
        was, now = _flat(getattr(before, name)), _flat(getattr(after, name))
        for key in {**was, **now}:
            if was.get(key) != now.get(key) and not (name == "settings" and key in _ASIDE):
                yield f"{name}: {key}", _shown(key, was.get(key)), _shown(key, now.get(key))


def _different(names: tuple[str, str]) -> Callable[[str, Any, Any, str], NoReturn]:
    def told(what: str, one: Any, two: Any, advice: str) -> NoReturn:
        raise VLChatError(
            f"{names[0]} and {names[1]} cannot be compared: {what} is {_quoted(one)} in the one and {_quoted(two)} in "
            f"the other. {advice}"
        )

    return told


def _flat(content: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= _flat(value, f"{within}{key}.") if isinstance(value, Mapping) else {f"{within}{key}": value}
    return found


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "-"
    text = str(value)
    return text[:12] if key.split(".")[-1] in ("weights", "identity", "sha256") else text


def _quoted(value: Any) -> str:
    return "missing" if value is None else f'"{value}"'

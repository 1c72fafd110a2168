"""`{type: name, **kwargs}` -> the entry of that name in a dict, and its arguments, checked."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from vlchat.errors import ConfigError, nearest

Entry = TypeVar("Entry")


def named(table: dict[str, Entry], spec: dict[str, Any], kind: str, given: int) -> tuple[Entry, dict[str, Any]]:
    """The entry of `table` that `spec` names, and its keyword arguments.

    Args:
        kind: what messages call an entry.
        given: how many of its first parameters the caller passes; a spec can't.

    Raises:
        ConfigError: for an unknown type, an argument that type does not take (with the nearest right name), or a
            missing one.
    """
    kwargs = dict(spec)
    name = kwargs.pop("type", None)
    if name not in table:
        hint = nearest(str(name), table) or "."
        raise ConfigError(f"There is no {kind} {name!r}; known ones are {', '.join(table)}{hint}")
    parameters = inspect.signature(table[name]).parameters  # type: ignore[arg-type]
    accepted = [key for key in list(parameters)[given:] if parameters[key].kind is not inspect.Parameter.VAR_KEYWORD]
    for key in kwargs:
        if key not in accepted:
            hint = nearest(key, accepted) or "."
            raise ConfigError(f"The {name} {kind} has no option {key!r}; it takes {', '.join(accepted)}{hint}")
    missing = [key for key in accepted if parameters[key].default is inspect.Parameter.empty and key not in kwargs]
    if missing:
        raise ConfigError(f"The {name} {kind} lacks {', '.join(missing)}.")
    return table[name], kwargs

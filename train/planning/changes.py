"""What makes a run fit that does not: changes as they are typed, each planned anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from train.config import RunConfig, override, typed
from train.planning.plan import RunPlan, plan
from vlchat.errors import VLChatError

WANTED = 3
_SAFE = 0.97  # share of the memory that a change must come down to


@dataclass(frozen=True)
class Change:
    """Keys to type after the configuration, what the run takes then, and its cost in time as a share (0.3: a third
    longer)."""

    keys: tuple[str, ...]
    plan: RunPlan
    slower: float


def changed(config: RunConfig, keys: Sequence[str]) -> RunConfig:
    """The configuration with `key=value` changes, as the command line makes them."""
    tree = config.to_dict()
    for key in keys:
        override(tree, key)
    return typed(RunConfig, tree, "the changed configuration")


def cheapest(found: RunPlan, wanted: int = WANTED) -> list[Change]:
    """The changes after which a run fits, those that cost the least time first; single ones before pairs."""
    fits: list[Change] = []
    smaller = _smaller_micro_batch(found)
    singles = [*([smaller] if smaller else []), *_keys(found)]
    fits += _tried(found, [(key,) if isinstance(key, str) else key for key in singles])
    if len(fits) < wanted:
        one_row = _one_row(found)
        rest = [(key,) if isinstance(key, str) else key for key in _keys(found)]
        pairs = [(*one_row, *keys) for keys in rest] if one_row else []
        pairs += [(*first, *second) for number, first in enumerate(rest) for second in rest[number + 1 :]
                  if not {key.split("=")[0] for key in first} & {key.split("=")[0] for key in second}]  # fmt: skip
        for pair in pairs:
            fits += _tried(found, [pair])
            if len(fits) >= wanted:
                break
    return sorted(fits, key=lambda change: change.slower)[:wanted]


def _tried(found: RunPlan, candidates: Sequence[tuple[str, ...]]) -> list[Change]:
    fits = []
    for keys in candidates:
        try:
            new = plan(changed(found.config, keys), found.target, found.ranks, bool(found.shard))
        except VLChatError:  # such as packing in a model that can't
            continue
        if new.peak <= _SAFE * found.target.memory:
            fits.append(Change(keys, new, new.seconds_a_step / found.seconds_a_step - 1))
    return fits


def _rows_at_once(found: RunPlan) -> int:
    return -(-found.config.loop.batch // (found.ranks * found.step.pieces))


def _one_row(found: RunPlan) -> tuple[str, ...]:
    return ("loop.micro_batch=1",) if found.step.divisible and _rows_at_once(found) > 1 else ()


def _smaller_micro_batch(found: RunPlan) -> str | None:
    """The most rows at once that should fit, by what one takes."""
    rows = _rows_at_once(found)
    if rows == 1:
        return None
    moving = sum(found.at_peak.get(kind, 0) for kind in ("activations", "logits"))
    still = found.peak - moving + found.step.held["gradients"]
    fitting = int((0.9 * found.target.memory - still) / (moving / rows))
    if fitting < 1:
        return None
    if not found.step.divisible:  # rows that are compared with each other: fewer of them learn less from a step
        return f"loop.batch={min(fitting, rows - 1)}" if fitting > 1 else None
    return f"loop.micro_batch={min(fitting, rows // 2 or 1)}"


def _keys(found: RunPlan) -> Iterator[str | tuple[str, ...]]:
    """Changes that this configuration does not make yet."""
    config, lengths = found.config, found.step.lengths
    objective = config.objective
    kind = objective.get("type")
    if config.loop.precision == "no":
        yield "loop.precision=bf16"
    if kind == "tune":
        if not objective.get("checkpointing"):
            yield "objective.checkpointing=true"
        if not objective.get("packing") and not objective.get("company"):
            yield "objective.packing=true"
        if objective.get("lora") is None:
            yield "objective.lora={r: 16, alpha: 32}"
    if kind in ("tune", "align"):
        if objective.get("attention") == "eager":
            yield "objective.attention=sdpa"
        if objective.get("quantize") is None:
            adapter = ("objective.lora={r: 16, alpha: 32}",) if kind == "tune" and not objective.get("lora") else ()
            yield (*adapter, "objective.quantize=int8")
            yield (*adapter, "objective.quantize=nf4")
        if lengths is not None and not lengths.assumed and lengths.tokens[1] < lengths.tokens[2]:
            yield f"objective.max_length={lengths.tokens[1]}"
    if config.optim.name == "adamw" and objective.get("lora") is None:
        yield "optim.name=muon"

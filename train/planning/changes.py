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
    """Changes after which a run fits, those that cost the least time first.

    They are tried in the order of what they usually cost, single ones before pairs, until enough of them fit.
    """
    fits: list[Change] = []
    for keys in _candidates(found):
        if change := _tried(found, keys):
            fits.append(change)
        if len(fits) == wanted:
            break
    return sorted(fits, key=lambda change: change.slower)


def _candidates(found: RunPlan) -> Iterator[tuple[str, ...]]:
    if found.target.taken >= found.target.memory:
        return  # not even the program fits
    if smaller := _smaller_micro_batch(found):
        yield (smaller,)
    single = list(_keys(found))
    yield from single
    if one_row := _one_row(found):
        yield from ((*one_row, *keys) for keys in single)
    for number, first in enumerate(single):
        for second in single[number + 1 :]:
            if not {key.split("=")[0] for key in first} & {key.split("=")[0] for key in second}:
                yield (*one_row, *first, *second)


def _tried(found: RunPlan, keys: tuple[str, ...]) -> Change | None:
    try:
        new = plan(changed(found.config, keys), found.target, found.ranks, bool(found.shard))
    except VLChatError:  # such as packing in a model that can't
        return None
    if new.peak > _SAFE * found.target.memory:
        return None
    return Change(keys, new, new.seconds_a_step / found.seconds_a_step - 1)


def _moving(found: RunPlan) -> int:
    return sum(found.at_peak.get(kind, 0) for kind in ("activations", "logits"))


def _rows_at_once(found: RunPlan) -> int:
    return -(-found.config.loop.batch // (found.ranks * found.step.pieces))


def _one_row(found: RunPlan) -> tuple[str, ...]:
    return ("loop.micro_batch=1",) if found.step.divisible and _rows_at_once(found) > 1 else ()


def _smaller_micro_batch(found: RunPlan) -> str | None:
    """The most rows at once that should fit, by what one takes."""
    rows = _rows_at_once(found)
    if rows == 1:
        return None
    moving = _moving(found)
    still = found.peak - moving + found.step.held["gradients"]
    fitting = int((0.9 * found.target.memory - still) / (moving / rows))
    if fitting < 1:
        return None
    if not found.step.divisible:  # rows that are compared with each other: fewer of them learn less from a step
        return f"loop.batch={min(fitting, rows - 1)}" if fitting > 1 else None
    return f"loop.micro_batch={min(fitting, rows // 2 or 1)}"


def _keys(found: RunPlan) -> Iterator[tuple[str, ...]]:
    """Changes that this configuration does not make yet, those first that usually cost the least time."""
    config, lengths = found.config, found.step.lengths
    objective = config.objective
    kind = objective.get("type")
    adapter = ("objective.lora={r: 16, alpha: 32}",) if kind == "tune" and objective.get("lora") is None else ()
    if kind in ("tune", "align") and objective.get("attention") == "eager":
        yield ("objective.attention=sdpa",)
    if kind == "tune" and not objective.get("packing") and not objective.get("company"):
        yield ("objective.packing=true",)
    if config.loop.precision == "no":
        yield ("loop.precision=bf16",)
    if config.optim.name == "adamw" and objective.get("lora") is None:
        yield ("optim.name=muon",)
    if kind in ("tune", "align") and lengths is not None and not lengths.assumed:
        if lengths.tokens[1] < lengths.tokens[2]:
            yield (f"objective.max_length={lengths.tokens[1]}",)
    if adapter:
        yield adapter
    if kind == "tune" and not objective.get("checkpointing"):
        yield ("objective.checkpointing=true",)
    if kind in ("tune", "align") and objective.get("quantize") is None:
        yield (*adapter, "objective.quantize=int8")
        yield (*adapter, "objective.quantize=nf4")

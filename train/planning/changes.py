"""What makes a run fit that does not: changes as they are typed, each planned anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from train.config import RunConfig, override, typed
from train.planning.plan import RunPlan, plan
from vlchat.errors import VLChatError

WANTED = 3
_SAFE = 0.97  # share of the memory that a change must come down to
_RECOMPUTED = "objective.checkpointing=true"
_AT_ONCE = {"loop.micro_tokens": "at once", "loop.micro_batch": "at once"}
# What besides time a change costs.
_MEANS = {
    "loop.batch": "fewer rows are compared with each other",
    "optim.name": "another optimizer",
    "objective.max_length": "longer rows are cut or left out",
    "objective.lora": "an adapter learns, not the whole language model",
    "objective.quantize": "a language model of rounded numbers",
}


@dataclass(frozen=True)
class Change:
    """Keys to type after the configuration, what the run takes then, and its cost in time a row as a share (0.3: a
    third longer)."""

    keys: tuple[str, ...]
    plan: RunPlan
    slower: float

    @property
    def means(self) -> str:
        """What it costs besides time, in words; empty where the run learns the same."""
        names = [key.partition("=")[0] for key in self.keys]
        return "; ".join(_MEANS[name] for name in names if name in _MEANS)


def changed(config: RunConfig, keys: Sequence[str]) -> RunConfig:
    """The configuration with `key=value` changes, as the command line makes them."""
    tree = config.to_dict()
    for key in keys:
        override(tree, key)
    return typed(RunConfig, tree, "the changed configuration")


def cheapest(found: RunPlan, wanted: int = WANTED) -> list[Change]:
    """Changes after which a run fits, those that cost the least time first.

    All single ones are tried. Where fewer than `wanted` of them fit, so are pairs of them, with one row at once, in the
    order of what they usually cost, until enough fit.
    """
    if found.target.taken >= found.target.memory:
        return []  # not even the program fits
    single = list(_single(found))
    fits = [change for keys in single if (change := _tried(found, keys))]
    pairs = _pairs(found, single)
    while len(fits) < wanted and (keys := next(pairs, None)):
        if change := _tried(found, keys):
            fits.append(change)
    return sorted((_some_layers(found, change) for change in fits), key=lambda change: change.slower)[:wanted]


def _pairs(found: RunPlan, single: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    one_row = _one_row(found)
    if one_row:
        yield from ((*one_row, *keys) for keys in single if not _same(one_row, keys))
    for number, first in enumerate(single):
        for second in single[number + 1 :]:
            if not _same(first, second) and not _same(one_row, (*first, *second)):
                yield (*one_row, *first, *second)


def _same(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two changes set a key in common, or both say what is taken at once."""
    names = [{_AT_ONCE.get(name, name) for name in (key.partition("=")[0] for key in keys)} for keys in (first, second)]
    return bool(names[0] & names[1])


def _tried(found: RunPlan, keys: tuple[str, ...]) -> Change | None:
    try:
        new = plan(changed(found.config, keys), found.target, found.ranks, bool(found.shard))
    except VLChatError:  # such as packing in a model that can't
        return None
    if new.peak > _SAFE * found.target.memory:
        return None
    before = found.seconds_a_step / found.config.loop.batch
    return Change(keys, new, new.seconds_a_step / new.config.loop.batch / before - 1)


def _some_layers(found: RunPlan, change: Change) -> Change:
    """The same with as few layers that compute their activations again as fit, where all would do so."""
    if change.keys != (_RECOMPUTED,) or change.plan.step.layers < 2:
        return change
    layers = change.plan.step.layers
    saved = (found.peak - change.plan.peak) / layers  # nearly the same by each
    fewest = -int(-(found.peak - _SAFE * found.target.memory) // saved)
    if not 0 < fewest < layers:
        return change
    return _tried(found, (f"objective.checkpointing={fewest}",)) or change


def _moving(found: RunPlan) -> int:
    return sum(found.at_peak.get(kind, 0) for kind in ("activations", "logits"))


def _one_row(found: RunPlan) -> tuple[str, ...]:
    if not found.step.divisible or found.step.at_once == 1:
        return ()
    limit = () if found.config.loop.micro_tokens is None else ("loop.micro_tokens=null",)
    return (*limit, "loop.micro_batch=1")


def fewer_at_once(found: RunPlan) -> Iterator[tuple[str, ...]]:
    """The most at once that should fit, by what a row takes."""
    rows, moving = found.step.at_once, _moving(found)
    if rows == 1 or not moving:
        return
    room = 0.9 * found.target.memory - (found.peak - moving + found.step.held["gradients"])
    fitting, batch = int(room / (moving / rows)), found.config.loop.batch // found.ranks
    if not found.step.divisible:  # rows that are compared with each other: fewer of them learn less from a step
        if fitting > 1:
            yield (f"loop.batch={min(fitting, batch - 1) * found.ranks}",)
    elif found.config.loop.micro_tokens is not None:
        if room > 0:
            yield (f"loop.micro_tokens={max(1, int(found.config.loop.micro_tokens * min(0.5, room / moving)))}",)
    elif fitting >= 1:
        yield (f"loop.micro_batch={min(fitting, rows // 2)}",)


def _single(found: RunPlan) -> Iterator[tuple[str, ...]]:
    """Changes that this configuration does not make yet, those first that usually cost the least time."""
    yield from fewer_at_once(found)
    config, lengths = found.config, found.step.lengths
    objective = config.objective
    kind = objective.get("type")
    adapter: tuple[str, ...] = ()
    if kind == "tune" and objective.get("lora") is None:
        rules = () if config.trainable is None else ("trainable=null",)  # else they would open the whole model again
        adapter = ("objective.lora={r: 16, alpha: 32}", *rules)
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
    if kind == "tune" and objective.get("checkpointing") in (None, False):
        yield (_RECOMPUTED,)
    if kind in ("tune", "align") and objective.get("quantize") is None:
        yield (*adapter, "objective.quantize=int8")
        yield (*adapter, "objective.quantize=nf4")

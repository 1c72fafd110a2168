"""One optimizer step of a run, with its own code and real shapes, and without weights: nothing is read or computed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.batches import Batch, Plan
from train.checkpointing import recomputable_layers
from train.config import RunConfig, construct, typed
from train.features import FeatureCacheConfig
from train.grouping import Budget
from train.heldout import count_of
from train.loop import precision_of
from train.objectives import OBJECTIVES
from train.optim import parameter_groups
from train.planning.features import Foreseen
from train.planning.rehearsal import Rehearsal
from train.planning.rows import Lengths, Pieces, Row, assumed_data, lengths, pieces, sample
from train.planning.trace import Costs
from vlchat.errors import ConfigError
from vlchat.weightless import weightless


@dataclass(frozen=True)
class Step:
    """What was seen.

    Attributes:
        parameters: by part: how many there are, and how many train.
        held: bytes by kind that are there all the time, and the gradients.
        at_peak: bytes by kind when their sum is the largest.
        checkpoint: bytes of one checkpoint on disk.
        feature_cache: bytes on disk that the run's pictures take there at most; None without such a cache.
        costs: of the watched micro-batch, on average over the run.
        pieces: micro-batches of a step on one process; the largest of them was watched.
        at_once: its rows.
        divisible: the rows of a step may come in pieces.
        layers: of the language model that can compute their activations again.
        rows: the data's rows without those held out, where it has a number of them.
        steps: of the run; None where that rests on data that is not there.
        lengths: tokens of a row, where the objective has rows.
        table: what trains, as `vlchat train` prints it.
    """

    parameters: dict[str, tuple[int, int]]
    held: dict[str, int]
    at_peak: dict[str, int]
    checkpoint: int
    feature_cache: int | None
    costs: Costs
    pieces: Pieces
    at_once: int
    divisible: bool
    layers: int
    rows: int | None
    steps: int | None
    lengths: Lengths | None
    table: str

    @property
    def flops(self) -> float:
        """Of an optimizer step, on average."""
        return self.costs.flops * self.pieces.share * self.pieces.count

    def seconds(self, rate: float, bandwidth: float) -> float:
        """Of an optimizer step, as of `Costs.seconds`."""
        return self.costs.seconds(rate, bandwidth) * self.pieces.share * self.pieces.count


def watch(config: RunConfig, device: str, ranks: int = 1) -> Step:
    """A run's step on one process of `ranks`, on a machine whose models go to `device`.

    The micro-batch is the largest of those that rows like the data's make. Where a step has several, gradients of
    earlier ones are there already.

    Raises:
        VLChatError: what in the configuration or the data is wrong, in a sentence, as `vlchat train` has it.
    """
    with contextlib.ExitStack() as stack:
        assumed = bool(config.data) and not _is_there(config.data)
        data = stack.enter_context(assumed_data()) if assumed else config.data
        mode = stack.enter_context(weightless(device))
        given = {"data": data} if data else {}
        objective = construct(OBJECTIVES, config.objective, "objective", seed=config.seed, **given)
        rules: Any = config.trainable
        if rules is None:
            rules = objective.default_trainable() if hasattr(objective, "default_trainable") else {".*": 1e-3}
        groups, table = parameter_groups(objective, rules, config.optim)
        precision = precision_of(config.loop.precision, objective)
        cache = Foreseen.of(objective, precision)
        found = drawn(objective, split(objective, config, ranks))
        trained = None if assumed or not found.rows else _trained_rows(objective, config)
        steps = config.loop.steps
        if steps is None and hasattr(objective, "steps") and not assumed:
            share = 1.0 if trained is None else trained / len(objective.mixture)
            steps = objective.steps(config.loop.epochs * share, config.loop.batch)

        rehearsal = Rehearsal(objective, mode, groups, config)
        rehearsal.update(keep=found.pieces.count > 1)
        costs = rehearsal.watched(found.batch, precision)
        on_disk = None
        if cache is not None:
            on_disk, again = _kept_features(cache, config, found.rows, trained, steps)
            if again:
                costs = costs.mixed(rehearsal.watched(objective.batch(found.pieces.positions), precision), again)
        return Step(
            parameters=rehearsal.parameters,
            held=rehearsal.held,
            at_peak=rehearsal.at_peak,
            checkpoint=rehearsal.checkpoint,
            feature_cache=on_disk,
            costs=costs,
            pieces=found.pieces,
            at_once=len(found.pieces.positions),
            divisible=not objective.whole_batch,
            layers=len(recomputable_layers(objective.model)) if config.objective["type"] == "tune" else 0,
            rows=trained,
            steps=steps,
            lengths=lengths(found.rows, found.left_out, assumed) if found.rows else None,
            table=table,
        )


def _is_there(data: Sequence[dict[str, Any]]) -> bool:
    return all("path" not in spec or Path(str(spec["path"])).exists() for spec in data)


def split(objective: Any, config: RunConfig, ranks: int = 1) -> Plan:
    """Who takes how many rows at once, as `train.loop.fit` has it.

    Raises:
        ConfigError: as `Plan.of`.
    """
    loop, countable = config.loop, getattr(objective, "row_lengths", None) is not None
    return Plan.of(
        loop.batch, loop.micro_batch, 0, ranks, objective.whole_batch, loop.micro_tokens, loop.by_length, countable
    )


@dataclass(frozen=True)
class Drawn:
    """Rows like a run's.

    Attributes:
        pieces: of its steps.
        batch: the tensors of the largest.
        rows: that were looked at and can be used; none where an objective makes its own as it goes.
        left_out: how many more are too long.
    """

    pieces: Pieces
    batch: Batch
    rows: list[Row]
    left_out: int


def drawn(objective: Any, plan: Plan) -> Drawn:
    """Rows like those that an objective trains on.

    Raises:
        ConfigError: none of the rows that were looked at can be used.
    """
    if not hasattr(objective, "mixture"):
        first = plan.micro_batches(0)
        share = sum(map(len, first)) / len(first) / len(first[0])
        return Drawn(Pieces(list(first[0]), len(first), share), objective.batch(first[0]), [], 0)
    rows, left_out = sample(objective)
    packed = bool(getattr(objective, "packing", False))
    counted = getattr(objective, "row_lengths", None)
    by_length = counted is not None and plan.gains_by_length(packed)
    budget = Budget(plan.micro, plan.tokens, packed, counted.multiple if counted is not None else 1)
    while rows:
        found = pieces(rows, plan, budget, by_length)
        batch = objective.batch(found.positions)
        broken = set(found.positions) - set(batch["positions"].tolist())  # such as a picture that can't be decoded
        if not broken:
            return Drawn(found, batch, rows, left_out)
        rows = [row for row in rows if row.position not in broken]
    raise ConfigError(
        f"None of {left_out or 'the'} rows looked at fits objective.max_length={objective.max_length} or can be "
        "read: vlchat check says what is wrong with each."
    )


def _trained_rows(objective: Any, config: RunConfig) -> int:
    """The rows of an epoch without those held out."""
    total = sum(len(source) for source in objective.mixture.sources)
    return round(len(objective.mixture) * (1 - count_of(config.heldout, total) / total))


def _kept_features(
    cache: Foreseen, config: RunConfig, rows: Sequence[Row], trained: int | None, steps: int | None
) -> tuple[int, float]:
    """Bytes on disk that the features of a run's pictures take, and the share of its steps that find them there.

    They are there from the second time on that a row comes, unless the cache is too small for all of them. What another
    run left there is not counted on.
    """
    limit = int(typed(FeatureCacheConfig, config.objective["feature_cache"], "objective.feature_cache").gib * 2**30)
    if trained is None or steps is None:
        return limit, 0.0
    pictures = trained * sum(row.pictures for row in rows) / len(rows)
    wanted = round(pictures * cache.size)
    return min(wanted, limit), 0.0 if wanted > limit else max(0.0, 1 - trained / (steps * config.loop.batch))

"""What an evaluation found: its rows, and the figures that are made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import cached_property
from typing import Any

from vlchat.evaluate.calibration import Abstention, Calibration, abstain_threshold, calibration
from vlchat.evaluate.items import Item
from vlchat.evaluate.leakage import Leakage
from vlchat.evaluate.measures import Measure
from vlchat.evaluate.statistics import Figure, Table, figure, figures
from vlchat.evaluate.verdicts import CHANCE, Verdict, beats_chance, beats_floor, looks

FORMAT = 2  # of result.json and replies.jsonl
ABSTAIN_AT = 0.1  # of the answers that are shown, so many may be wrong


@dataclass
class Control:
    """A blind control beside the score of the same rows.

    Attributes:
        rows: how many rows were asked again.
        blind: the headline measure without their pictures.
        seen: the same rows with them.
        verdict: what the pictures are worth, paired by row, and that in a sentence.
    """

    rows: int
    blind: Figure
    seen: Figure
    verdict: Verdict


@dataclass
class Result:
    """Everything a reader needs to trust or repeat a score.

    Attributes:
        task: its name in `TASKS`.
        protocol: name and version of the way of scoring.
        measures: what is shown, the headline first.
        model: what the model says of itself, and its `identity`.
        data: where the questions come from, with hashes.
        settings: everything that was chosen.
        rows: one a question, in the task's order; see `vlchat.evaluate.rows`.
        counts: `questions`, `unanswered`, `asked`, `known` and the rows a control left as they were.
        notes: sentences for the reader.
        prompts: what was asked; see `vlchat.evaluate.certificate.prompts_of`.
        leakage: what of the rows is in the training data, where these are known; the rows' slice "in training" says it
            of each.
        items, chat: what was asked, and the model (once called), where they are at hand: for pictures and evidence.
    """

    task: str
    protocol: str
    measures: Sequence[Measure]
    model: dict[str, Any]
    data: dict[str, Any]
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    counts: dict[str, int]
    notes: list[str]
    seconds: float
    versions: dict[str, str]
    prompts: dict[str, Any] = field(default_factory=dict)
    leakage: Leakage | None = None
    items: Sequence[Item] = field(default=(), repr=False)
    chat: Callable[[], Any] | None = field(default=None, repr=False)

    @cached_property
    def table(self) -> Table:
        """Each measure over all rows that have it, and by slice and its value."""
        return self._table([row["stats"] for row in self.rows])

    @property
    def headline(self) -> Figure:
        """The first measure over all rows."""
        return self.table.overall[self.measures[0].name]

    @cached_property
    def controls(self) -> dict[str, Control]:
        """Each blind control that was asked, by name."""
        return {name: self._control(name) for name in self.settings["controls"]}

    def _control(self, name: str) -> Control:
        rows = [row for row in self.rows if name in row.get("controls", {})]
        seen = [row["stats"] for row in rows]
        blind = [row["controls"][name]["stats"] for row in rows]
        clusters = [row["cluster"] for row in rows]
        measure = self.measures[0]
        verdict = (
            beats_chance(measure, seen, blind, clusters)
            if name == CHANCE
            else looks(measure, seen, blind, clusters, name=name)
        )
        return Control(len(rows), figure(measure, blind, clusters), figure(measure, seen, clusters), verdict)

    def control_slice(self, name: str, slice_name: str, value: str) -> Figure:
        """The headline of a blind control among the rows of a slice."""
        rows = [row for row in self.rows if row["slices"].get(slice_name) == value and name in row.get("controls", {})]
        stats = [row["controls"][name]["stats"] for row in rows]
        return figure(self.measures[0], stats, [row["cluster"] for row in rows])

    @cached_property
    def floor(self) -> Table | None:
        """The same for the guess from the question alone; None where the task has none."""
        if not self.rows or any("floor" not in row for row in self.rows):
            return None
        return self._table([row["floor"]["stats"] for row in self.rows])

    @property
    def verdicts(self) -> list[Verdict]:
        """What the controls and the floor say, in sentences."""
        found = [control.verdict for control in self.controls.values()]
        if self.floor is not None:
            shown = [row["stats"] for row in self.rows]
            floor = [row["floor"]["stats"] for row in self.rows]
            found.append(beats_floor(self.measures[0], shown, floor, [row["cluster"] for row in self.rows]))
        return found

    @cached_property
    def calibration(self) -> Calibration:
        """How well the model's confidence tells what is right."""
        return calibration([row["confidence"] for row in self.rows], [row["score"] for row in self.rows])

    def abstention(self, target: float = ABSTAIN_AT) -> Abstention:
        """From which confidence on no more than a share of `target` of the shown answers is wrong."""
        sure, scores = [row["confidence"] for row in self.rows], [row["score"] for row in self.rows]
        return abstain_threshold(sure, scores, target, clusters=[row["cluster"] for row in self.rows])

    def _table(self, stats: Sequence[Mapping[str, float]]) -> Table:
        clusters = [row["cluster"] for row in self.rows]
        return figures(self.measures, stats, clusters, [row["slices"] for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """The result without its rows, as plain JSON values."""
        plain = ("task", "protocol", "model", "data", "settings", "prompts", "counts", "notes", "seconds", "versions")
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in plain},
            "measures": [
                {"name": measure.name, "percent": measure.percent, "better": measure.better}
                for measure in self.measures
            ],
            **_plain(self.table),
            "controls": {name: _plain(control) for name, control in self.controls.items()},
            "floor": None if self.floor is None else _plain(self.floor),
            "leakage": None if self.leakage is None else self.leakage.to_dict(),
            "verdicts": [verdict.sentence for verdict in self.verdicts],
            "calibration": self.calibration.to_dict(),
            "abstention": _plain(self.abstention()),
        }


def _plain(content: Any) -> Any:
    """Dataclasses as JSON values; JSON knows no NaN."""
    if is_dataclass(content):
        content = vars(content)
    if isinstance(content, Mapping):
        return {name: _plain(value) for name, value in content.items()}
    return None if isinstance(content, float) and not math.isfinite(content) else content

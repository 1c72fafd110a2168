"""From an evaluation's result to the page that shows it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlchat.errors import VLChatError
from vlchat.evaluate.blind import CONTROLS
from vlchat.evaluate.metrics import wilson
from vlchat.evaluate.page.inputs import Beside, Calibration, Line, Report, Row, Said, Score, confusion
from vlchat.evaluate.plots import Bin

if TYPE_CHECKING:
    from vlchat.chat import Chat

WORST, RIGHT, LISTED = 24, 12, 1_000  # rows that a page shows as cards, and in its table
_A_PICTURE = 2  # of the worst rows at most so many share their pictures
_FLOOR = "guessed from the question alone"
_FEW = 20  # rows, whose confidence says nothing yet

Explained = tuple[Sequence[Any], str]  # pictures with their evidence, and a sentence about them


def choose(
    rows: Sequence[Mapping[str, Any]], worst: int = WORST, right: int = RIGHT, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Which rows a page shows as cards, by their numbers: the worst, and a sample of those that are right.

    The worst are those of the lowest score, the surest first. No picture fills the list while others are wrong, too.
    Rows without a reply are told apart from these.
    """
    answered = [number for number, row in enumerate(rows) if "error" not in row]
    wrong = [number for number in answered if rows[number]["score"] < 1]
    wrong.sort(key=lambda number: (rows[number]["score"], -(rows[number].get("confidence") or 0.0)))
    seen: Counter[str] = Counter()
    first: list[int] = []
    later: list[int] = []
    for number in wrong:
        cluster = rows[number]["cluster"]
        (first if seen[cluster] < _A_PICTURE else later).append(number)
        seen[cluster] += 1
    lowest = [*first, *later][:worst]
    hits = [number for number in answered if rows[number]["score"] >= 1]
    return lowest, sorted(random.Random(seed).sample(hits, min(right, len(hits))))


def explain(chat: Chat, messages: Sequence[Any], row: Mapping[str, Any], method: str = "integrated") -> Explained:
    """The evidence for what a row replied, drawn over its pictures; or none, and the sentence that says why.

    Args:
        messages: what the model was asked.
    """
    from vlchat.evidence import evidence

    reply = next((text for text in row["reply"] if text.strip()), row["answer"])
    try:
        found = evidence(chat, messages, reply, method=method)
    except VLChatError as error:
        return [], str(error)
    return [heat.overlay((320, round(320 * heat.seen.height / heat.seen.width))) for heat in found.maps], ""


def report_of(
    result: Any,
    *,
    pictures: Callable[[int], Sequence[Any]] = lambda number: (),
    explained: Callable[[int], Explained] = lambda number: ((), ""),
    certificate: Mapping[str, Any] | None = None,
    worst: int = WORST,
    right: int = RIGHT,
    listed: int = LISTED,
    seed: int = 0,
) -> Report:
    """A result as a page shows it.

    Args:
        result: a `vlchat.evaluate.result.Result`.
        pictures: the pictures of a row by its number; only those of cards are asked for.
        explained: of a row by its number, as `explain` gives it.
        certificate: shown where there is one.
        worst, right, listed: how many rows are shown as cards, and in the table.
        seed: draws the rows that were right.
    """
    measure = result.measures[0]
    lowest, hits = choose(result.rows, worst, right, seed)
    beside = _beside(result, measure)

    def card(number: int) -> Row:
        overlays, note = explained(number)
        return _row(result.rows[number], pictures(number), overlays, note)

    model = result.model.get("name") or result.settings.get("model") or "model"
    return Report(
        task=str(result.task),
        protocol=result.protocol,
        model=str(model),
        scores=[score_of(one, result.table.overall[one.name]) for one in result.measures],
        beside=beside,
        notes=result.notes,
        slices=_slices(result, measure),
        calibration=_calibration(result),
        confusion=confusion([(row["reference"], row["answer"]) for row in result.rows if "error" not in row]),
        worst=[card(number) for number in lowest],
        right=[card(number) for number in hits],
        listed=[_row(row) for row in result.rows[:listed]],
        total=len(result.rows),
        refused=[_row(row) for row in result.rows if "error" in row],
        facts=_facts(result, str(model)),
        settings=result.settings,
        certificate=certificate,
    )


def score_of(measure: Any, figure: Any) -> Score:
    """A `Figure` or `Difference` of a measure."""
    return Score(measure.name, figure.value, figure.low, figure.high, measure.percent, measure.better, figure.rows)


def _beside(result: Any, measure: Any) -> list[Beside]:
    """The blind controls with what they say, and the floor."""
    found = [
        Beside(
            name,
            CONTROLS.get(name, ""),
            score_of(measure, control.blind),
            score_of(measure, control.seen),
            score_of(measure, control.verdict.difference),
            control.verdict.sentence,
            control.verdict.holds,
        )
        for name, control in result.controls.items()
    ]
    if result.floor is not None:
        floor, verdict = result.floor.overall[measure.name], result.verdicts[-1]
        gap, own = score_of(measure, verdict.difference), score_of(measure, result.headline)
        found.append(Beside("floor", _FLOOR, score_of(measure, floor), own, gap, verdict.sentence, verdict.holds))
    return found


def _slices(result: Any, measure: Any) -> dict[str, list[Line]]:
    """The headline measure of each value of each slice, the largest first, with what stands beside it."""
    floor = result.floor.slices if result.floor is not None else {}
    found: dict[str, list[Line]] = {}
    for name, values in result.table.slices.items():
        lines = []
        for value, figures in values.items():
            others = [result.control_slice(control, name, value) for control in result.controls]
            others += [floor[name][value][measure.name]] if result.floor is not None else []
            beside = tuple(score_of(measure, other) if other.rows else None for other in others)
            lines.append(Line(value, score_of(measure, figures[measure.name]), beside))
        found[name] = sorted(lines, key=lambda line: -line.score.rows)
    return found


def _calibration(result: Any) -> Calibration | None:
    """Of the rows that have a confidence; None where these are too few to say anything."""
    found, promise = result.calibration, result.abstention()
    if found.rows < _FEW:
        return None
    bins = []
    for one in found.bins:
        low, high = wilson(one.score * one.rows, one.rows)
        bins.append(Bin(one.confidence, one.score, low, high, one.rows))
    return Calibration(
        bins,
        [(point.coverage, point.risk) for point in found.curve],
        Score("expected calibration error", found.ece, rows=found.rows, better="lower"),
        [*found.sentences(), promise.sentence],
        None if promise.threshold is None else (promise.coverage, promise.risk),
    )


def _row(row: Mapping[str, Any], pictures: Sequence[Any] = (), overlays: Sequence[Any] = (), note: str = "") -> Row:
    controls = {name: said_of(said) for name, said in row.get("controls", {}).items()}
    return Row(
        row["id"], row["question"], row["reference"], said_of(row), row.get("confidence"), row["slices"], controls,
        pictures, overlays, note, row.get("error"),
    )  # fmt: skip


def said_of(said: Mapping[str, Any]) -> Said:
    """What a line of `replies.jsonl`, or a control in it, holds."""
    return Said("\n".join(said["reply"]) or said["answer"], said["answer"], float(said["score"]))


def _facts(result: Any, model: str) -> list[tuple[str, str]]:
    about = result.model
    facts = [("model", model)]
    facts += [("trained on", str(about["trained_on"]))] if about.get("trained_on") else []
    facts += [("parameters", f"{about['parameters']:,}")] if isinstance(about.get("parameters"), int) else []
    facts += [("identity", str(about["identity"]))] if about.get("identity") else []
    facts += [("protocol", result.protocol)]
    facts += [("data", ", ".join(f"{key} {value}" for key, value in result.data.items() if value is not None))]
    facts += [("rows", f"{len(result.rows):,}")]
    facts += [("decoding", f"{result.settings.get('decoding', '')}, seed {result.settings.get('seed', '')}")]
    facts += [("seconds", f"{result.seconds:,.0f}")]
    facts += [("versions", ", ".join(f"{name} {version}" for name, version in result.versions.items()))]
    return facts

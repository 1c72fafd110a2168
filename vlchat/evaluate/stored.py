"""Results of earlier evaluations, read back from their folders as `Result`s."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlchat.errors import VLChatError
from vlchat.evaluate import certificate, report
from vlchat.evaluate.items import Item
from vlchat.evaluate.known import TASKS, make_task
from vlchat.evaluate.measures import Measure, mean_of
from vlchat.evaluate.result import Result
from vlchat.evaluate.statistics import figure
from vlchat.evaluate.tasks.base import Task

SUITE = "suite.json"  # in a suite's folder: its tasks, in its order
_ROW = "the row's score"  # a statistic for tasks whose measures cannot be made again


def read_result(folder: str | Path) -> Result:
    """What `vlchat eval --out` wrote, with its measures made again from the task's name.

    A task whose measures depend on its options or data is made again, too. Where that cannot be, as the data are
    elsewhere, the measure is the mean of the rows' scores, and a note says so.

    Raises:
        VLChatError: there is no result, it is damaged, or its rows do not give the figures that it states.
    """
    found, rows = report.load(folder)
    try:
        result = Result(
            **{name: found[name] for name in ("task", "protocol", "model", "data", "settings", "counts", "seconds")},
            measures=[],
            rows=rows,
            notes=[],
            versions={**found["versions"], **_parser(folder)},
            prompts=found["prompts"],
        )
        result.measures = _measures(result, {one["name"] for one in found["measures"]})
        if not result.measures:
            for row in rows:
                row["stats"] = {_ROW: row["score"]}
            result.measures = [mean_of(_ROW, "mean score of the rows")]
            result.notes.append(
                f'The measures of "{result.task}" depend on its data, which are not at hand: what is compared is the '
                "mean of the rows' scores."
            )
        _check(result, found, folder)
    except (KeyError, TypeError, AttributeError) as error:
        raise VLChatError(
            f"{folder} holds a damaged result ({type(error).__name__}: {error}): evaluate again."
        ) from error
    return result


def read_results(folder: str | Path) -> dict[str, Result]:
    """Each result of a suite's folder by the task's name, in the suite's order; or the one result, by its task.

    Raises:
        VLChatError: as `read_result`; or there is neither a result nor a suite.
    """
    place = Path(folder)
    if not place.is_dir():
        raise VLChatError(f"There is no folder {folder}. Name one that `vlchat eval --out FOLDER` wrote.")
    parts = sorted(part.parent.name for part in place.glob(f"*/{report.RESULT}"))
    if (place / report.RESULT).is_file() or not parts:
        result = read_result(place)
        return {result.task: result}
    order = _order(place)
    parts.sort(key=lambda name: order.index(name) if name in order else len(order))
    return {name: read_result(place / name) for name in parts}


def write_order(folder: Path, names: Sequence[str]) -> None:
    """Notes the order of a suite's tasks in its folder."""
    (folder / SUITE).write_text(json.dumps({"tasks": list(names)}, indent=2) + "\n", encoding="utf-8")


def _parser(folder: str | Path) -> dict[str, str]:
    """The hash of the code that read the replies, where the folder's certificate says it: one more version."""
    try:
        parser = certificate.read(folder).get("parser")
    except VLChatError:
        return {}
    return {} if parser is None else {"parser": str(parser)[:12]}


def items_of(result: Result) -> Sequence[Item]:
    """The questions of a result with their pictures, where its data are on this machine and unchanged; else none."""
    if result.items:
        return result.items
    try:
        task = _task(result)
        items = [] if task is None else task.items()
        same = task is not None and certificate.prompts_of(task, items) == result.prompts
    except (VLChatError, OSError):
        return []
    return items if same else []


def _task(result: Result) -> Task | None:
    """The task as it was asked; None where its data lie elsewhere. Nothing is downloaded for it."""
    options = {name: value for name, value in result.settings.get("options", {}).items() if name != "floor"}
    if result.task == "scenes":
        return make_task("scenes", **options, seed=result.settings["seed"])
    if result.task not in TASKS or not isinstance(options.get("data"), str) or not Path(options["data"]).exists():
        return None
    return make_task(result.task, **options)


def _measures(result: Result, names: set[str]) -> list[Measure]:
    """The task's measures, if they are those that the result states."""
    made: Sequence[Measure] = getattr(TASKS.get(result.task), "measures", ())
    if not made:
        try:
            task = _task(result)
        except (VLChatError, OSError):
            task = None
        made = () if task is None else task.measures
    return list(made) if {measure.name for measure in made} == names else []


def _check(result: Result, found: dict[str, Any], folder: str | Path) -> None:
    """Whether the rows give what the result states: the two files may be of different evaluations."""
    stats, clusters = [row["stats"] for row in result.rows], [row["cluster"] for row in result.rows]
    for measure in result.measures:
        stated = found["overall"].get(measure.name)
        if stated is None:
            continue
        value, was = figure(measure, stats, clusters, resamples=1).value, stated["value"]
        if was is None and math.isnan(value):
            continue
        if was is None or not math.isclose(value, was, rel_tol=1e-9, abs_tol=1e-12):
            raise VLChatError(
                f"{Path(folder) / report.ROWS} gives {measure.name} {value:.6g}, and {report.RESULT} states {was}: one "
                "of the two files was changed, or another version of vlchat scored them. Evaluate again."
            )


def _order(folder: Path) -> list[str]:
    try:
        return list(json.loads((folder / SUITE).read_text(encoding="utf-8"))["tasks"])
    except (OSError, ValueError, KeyError, TypeError):
        return []

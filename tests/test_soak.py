"""The soak on the real server, small: every answer is the right one, over a kill -9 too; a wrong one is noticed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import disconnects  # noqa: E402
from served import MIB, Server, save_tiny, vlchat  # noqa: E402
from soak import Watch, soak  # noqa: E402
from soak_clients import Settings, judged  # noqa: E402
from soak_conversations import TURNS, Conversation, conversations  # noqa: E402
from soak_plot import draw  # noqa: E402


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("soak")


@pytest.fixture(scope="module")
def pool(work: Path) -> list[Conversation]:
    return conversations(save_tiny(work / "model"), 10, 8, work / "answers.json")


@pytest.fixture(scope="module")
def server(work: Path, pool: list[Conversation]) -> Iterator[Server]:
    with vlchat(work / "model", work / "log", kept=MIB, pictures=MIB // 64).running() as server:
        yield server


def run(server: Server, pool: list[Conversation], settings: Settings) -> dict[str, Any]:
    return asyncio.run(soak(server, pool, settings, say=print))


def test_answers_that_are_not_the_models_own_are_noticed(server: Server, pool: list[Conversation]) -> None:
    """The second and the third conversation are said to have each other's answers, the fourth has none of anybody's."""
    first, second, third, fourth = pool[:4]
    changed = [
        first,
        replace(second, answers=third.answers),
        replace(third, answers=second.answers),
        replace(fourth, answers=[answer + " indeed" for answer in fourth.answers]),
    ]
    found = run(server, changed, Settings(clients=4, requests=40, tokens=8))
    blamed = {who.split(",")[0]: what for what, who, _ in found["what_went_wrong"]}
    assert first.canary not in blamed and found["failed"] == 0
    assert blamed[second.canary] == blamed[third.canary] == "mixed" and blamed[fourth.canary] == "wrong"


def test_many_clients_get_their_own_answers_and_a_killed_server_loses_none(
    server: Server, pool: list[Conversation], tmp_path: Path
) -> None:
    found = run(server, pool, Settings(clients=20, requests=200, tokens=8, kill=100))
    assert found["requests"] == {"ask": 170, "leave": 20, "bad picture": 10}
    assert found["wrong"] == found["mixed"] == found["failed"] == 0, found["what_went_wrong"]
    assert found["killed_at"] is not None and sum(found["tried_again"].values()) > 0
    assert not found["not_given_back"]
    draw({**found, "hardware": "a machine", "date": "today"}, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 10_000


def test_an_answer_is_its_own_or_anothers_or_nobodys(pool: list[Conversation]) -> None:
    one, other = pool[:2]
    for turn in range(TURNS):
        answer = one.answers[turn]
        assert judged(pool, one, turn, answer, whole=True) is None
        assert judged(pool, one, turn, answer[:5], whole=False) is None
        assert judged(pool, one, turn, answer + " and more", whole=False) is None
        assert judged(pool, one, turn, answer[:5], whole=True) == "wrong"
        assert judged(pool, other, turn, answer, whole=True) == "mixed"


@pytest.mark.parametrize("killed", [None, (1000, 100.0)])
def test_growth_is_told_between_a_fifth_and_the_end(server: Server, killed: tuple[int, float] | None) -> None:
    watch = Watch(server, 5000)
    watch.killed = killed
    first = killed[0] if killed else 0
    watch.series = [[second, second * 10, 500 if second * 10 < first + 0.3 * (5000 - first) else 510]
                    for second in range(501)]  # fmt: skip
    assert watch.growth() == pytest.approx(0.02)
    watch.series = watch.series[:10]
    assert watch.growth() is None


def test_a_slot_that_is_freed_late_fails_the_benchmark_of_disconnects() -> None:
    in_time = [0.01, disconnects.TARGET]
    assert disconnects.verdict({"streaming": in_time, "whole": in_time}) == 0
    assert disconnects.verdict({"streaming": in_time, "whole": [0.01, disconnects.TARGET + 0.001]}) == 1

"""Several seeds: Welch's and Student's figures by their formulas, and what is said of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from stored import stored

from vlchat.cli import main
from vlchat.errors import ConfigError, VLChatError
from vlchat.evaluate.measures import mean_of
from vlchat.evaluate.seeds import between, compare_runs, spread

ACCURACY = mean_of("score", "accuracy")
# A published example of Welch's test with unequal sizes (Wikipedia, "Welch's t-test", example 3).
A = [19.8, 20.4, 19.6, 17.8, 18.5, 18.9, 18.3, 18.9, 19.5, 22.0]
B = [28.2, 26.6, 20.1, 23.3, 25.2, 22.1, 17.7, 27.6, 20.6, 13.7, 23.2, 17.5, 20.6, 18.0, 23.9, 21.6, 24.3, 20.4, 24.0,
     13.2]  # fmt: skip


def test_welch_on_the_published_example() -> None:
    found = between(A, B)
    assert (found.first.mean, found.second.mean) == pytest.approx((19.37, 21.59), abs=0.01)
    assert (found.first.deviation**2, found.second.deviation**2) == pytest.approx((1.45, 17.1), abs=0.05)
    assert found.degrees == pytest.approx(24.5, abs=0.05) and found.p == pytest.approx(0.036, abs=0.0006)
    error = math.sqrt(found.first.deviation**2 / 10 + found.second.deviation**2 / 20)
    assert found.value == pytest.approx(found.second.mean - found.first.mean)
    assert (found.high - found.low) / 2 == pytest.approx(2.0616 * error, rel=1e-3), "t(24.5) is 2.0616 at 97.5 %"


def test_the_interval_of_a_few_runs_is_student_s() -> None:
    found = spread([0.5, 0.6, 0.7])
    assert (found.mean, found.deviation) == pytest.approx((0.6, 0.1))
    assert (found.low, found.high) == pytest.approx((0.6 - 4.302653 * 0.1 / 3**0.5, 0.6 + 4.302653 * 0.1 / 3**0.5))
    said = found.sentence(ACCURACY)
    assert "accuracy 60.0 % on average over 3 runs (95 % interval 35.2 % to 84.8 %)" in said
    assert "the same recipe with another seed swings by 20.0 points (standard deviation 10.0 points)" in said
    assert "how far another seed swings is not known" in spread([0.5]).sentence(ACCURACY)
    with pytest.raises(ConfigError, match="must be numbers"):
        spread([0.5, math.nan])


def test_two_recipes() -> None:
    assert between([0.5, 0.51, 0.52], [0.7, 0.71, 0.73]).sentence(ACCURACY).startswith("Better: +20.3 points")
    assert between([0.7, 0.71, 0.73], [0.5, 0.51, 0.52]).sentence(ACCURACY).startswith("Worse: -20.3 points")
    assert between([0.3, 0.7, 0.5], [0.4, 0.8, 0.5]).sentence(ACCURACY).startswith("It cannot be told")
    lower = mean_of("score", "error rate", better="lower")
    assert between([0.5, 0.51, 0.52], [0.7, 0.71, 0.73]).sentence(lower).startswith("Worse: ")
    for first, second in (([0.5], [0.7]), ([0.5, 0.5], [0.7, 0.7])):
        assert math.isnan(between(first, second).p) and "cannot be told" in between(first, second).sentence(ACCURACY)


def test_folders_of_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = {"generator": "scenes", "seed": 0}
    for number, right in enumerate((4, 5, 6, 8, 9, 10)):
        scores = [1.0] * right + [0.0] * (10 - right)
        stored(tmp_path / str(number), scores, "scenes", data=drawn | {"seed": number})
    folders = [str(tmp_path / str(number)) for number in range(6)]
    assert main(["compare", ",".join(folders[:3]), ",".join(folders[3:]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["first"]["right"]["values"] == [0.4, 0.5, 0.6] and found["second"]["right"]["mean"] == 0.9
    # Equal deviations of 0.1 and three runs each: t = 0.4 / (0.1 sqrt(2/3)) with 4 degrees of freedom.
    assert found["difference"]["right"]["degrees"] == pytest.approx(4)
    assert found["difference"]["right"]["p"] == pytest.approx(0.00805, abs=1e-5)
    assert main(["compare", ",".join(folders[:3])]) == 0
    assert "swings by 20.0 points" in capsys.readouterr().out
    with pytest.raises(VLChatError, match="is given twice"):
        compare_runs([folders[0], folders[0]])
    stored(tmp_path / "other", [1.0], "scenes", data=drawn, protocol="another")
    with pytest.raises(VLChatError, match="the protocol is"):
        compare_runs([folders[0], tmp_path / "other"])

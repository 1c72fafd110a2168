"""Intervals and tests against published examples, exact enumeration and a simulation of rows that share pictures."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from vlchat.evaluate.calibration import clopper_pearson_upper
from vlchat.evaluate.measures import Measure, divided, mean_of, ratio_of
from vlchat.evaluate.metrics import wilson
from vlchat.evaluate.statistics import detectable, difference, figure, figures, holm, mcnemar_exact, plain

ACCURACY = mean_of("score", "accuracy")
ERRORS = ratio_of("errors", "words", "WER", better="lower")
F1 = Measure("F1", lambda sums: divided(2 * sums["tp"], 2 * sums["tp"] + sums["fp"] + sums["fn"]), ("tp", "fp", "fn"))


def scores(values: list[float] | np.ndarray) -> list[dict[str, float]]:
    return [{"score": float(value)} for value in values]


def names(clusters: list[int] | np.ndarray) -> list[str]:
    return [f"picture {number}" for number in clusters]


@pytest.mark.parametrize(
    ("failures", "tries", "error"), [(0, 10, 0.025), (1, 10, 0.05), (13, 100, 0.1), (99, 100, 0.1)]
)
def test_at_the_upper_bound_so_few_failures_are_as_rare_as_stated(failures: int, tries: int, error: float) -> None:
    bound = Fraction(clopper_pearson_upper(failures, tries, error))
    rare = sum(math.comb(tries, k) * bound**k * (1 - bound) ** (tries - k) for k in range(failures + 1))
    assert float(rare) == pytest.approx(error, rel=1e-9)
    assert clopper_pearson_upper(10, 10, 0.05) == clopper_pearson_upper(0, 0, 0.05) == 1.0


def test_the_interval_is_that_of_all_resamples_of_a_few_clusters() -> None:
    """Three clusters can be drawn in 27 ways, which are written out here."""
    rows, clusters = [1, 1, 0, 0.5, 1], [0, 0, 1, 2, 2]
    members = [[1, 1], [0], [0.5, 1]]
    every = [np.mean(sum((members[k] for k in drawn), [])) for drawn in itertools.product(range(3), repeat=3)]
    found = figure(ACCURACY, scores(rows), names(clusters), resamples=40_000)
    assert found.value == pytest.approx(0.7)
    assert (found.rows, found.clusters) == (5, 3)
    # Hesterberg's tail for three clusters: Phi(-sqrt(3/2) 4.3027), one in fifteen million, so the ends of what there is
    assert (found.low, found.high) == (min(every), max(every))
    assert found.error == pytest.approx(math.sqrt(3 / 2) * np.std(every), rel=0.01)


def test_the_interval_of_many_clusters_is_the_normal_one() -> None:
    generator = np.random.default_rng(5)
    values = generator.random(900)
    found = figure(ACCURACY, scores(values), names(np.arange(900)), resamples=20_000)
    error = values.std(ddof=1) / math.sqrt(900)
    assert found.error == pytest.approx(error, rel=0.02)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.05 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.05 * error)


def test_rows_that_share_a_picture_are_drawn_together() -> None:
    """Every row nine times over under the same picture says no more than once; under pictures of its own it would."""
    values = np.random.default_rng(1).integers(0, 2, 60)
    once = figure(ACCURACY, scores(values), names(np.arange(60)))
    nine = figure(ACCURACY, scores(np.repeat(values, 9)), names(np.repeat(np.arange(60), 9)))
    assert (nine.low, nine.high, nine.clusters) == (once.low, once.high, 60)
    naive = figure(ACCURACY, scores(np.repeat(values, 9)), names(np.arange(540)))
    assert naive.high - naive.low < 0.4 * (once.high - once.low)


def test_the_clustered_interval_covers_and_the_naive_one_does_not() -> None:
    """40 pictures, 8 questions each, much of an answer is decided by the picture: 200 simulated sets."""
    generator = np.random.default_rng(7)
    covered = {"clustered": 0, "naive": 0}
    for trial in range(200):
        hard = generator.random(40) < 0.6  # on these pictures mostly right, on the others mostly wrong: mean 0.62
        right = (generator.random((40, 8)) < np.where(hard, 0.9, 0.2)[:, None]).ravel()
        for name, clusters in (("clustered", np.repeat(np.arange(40), 8)), ("naive", np.arange(320))):
            found = figure(ACCURACY, scores(right), names(clusters), resamples=300, seed=trial)
            covered[name] += found.low <= 0.62 <= found.high
    assert 0.91 <= covered["clustered"] / 200 <= 0.99
    assert covered["naive"] / 200 < 0.75


def test_the_order_of_rows_changes_nothing_and_the_seed_does() -> None:
    generator = np.random.default_rng(3)
    values, clusters = generator.random(50), generator.integers(0, 12, 50)
    order = generator.permutation(50)
    one = figure(ACCURACY, scores(values), names(clusters), seed=4)
    other = figure(ACCURACY, scores(values[order]), names(clusters[order]), seed=4)
    assert [other.value, other.low, other.high] == pytest.approx([one.value, one.low, one.high], abs=1e-12)
    assert figure(ACCURACY, scores(values), names(clusters), seed=5).low != one.low


def test_all_right_is_no_point_and_one_picture_has_no_interval() -> None:
    found = figure(ACCURACY, scores([1.0] * 30), names(np.repeat(np.arange(10), 3)))
    assert (found.value, found.low, found.high) == (1.0, *wilson(10, 10))
    none = figure(ACCURACY, scores([0.0] * 30), names(np.repeat(np.arange(10), 3)))
    assert (none.value, none.low, none.high) == (0.0, *wilson(0, 10))
    alone = figure(ACCURACY, scores([1.0, 0.0]), names([0, 0]))
    assert alone.value == 0.5 and math.isnan(alone.low) and math.isnan(alone.high) and alone.clusters == 1
    assert plain(alone)["low"] is None
    distance = mean_of("distance", "mean distance", percent=False, better="lower")
    exact = figure(distance, [{"distance": 0.0}] * 4, names(range(4)))
    assert exact.value == 0 and math.isnan(exact.high), "how far off a distance may be is not known from hits alone"


def test_a_row_without_the_statistic_is_not_counted() -> None:
    stats = [{"errors": 1, "words": 4}, {"errors": 0, "words": 6}, {"score": 1.0}, {}]
    table = figures([ERRORS, ACCURACY, F1], stats, names([0, 1, 1, 2]))
    assert (table.overall["WER"].value, table.overall["WER"].rows, table.overall["WER"].clusters) == (0.1, 2, 2)
    assert (table.overall["accuracy"].value, table.overall["accuracy"].rows) == (1.0, 1)
    assert table.overall["F1"].rows == 0 and math.isnan(table.overall["F1"].value)
    with pytest.raises(ValueError, match="every row needs its statistics and its cluster"):
        figure(ACCURACY, stats, names([0]))


def test_a_table_has_what_each_slice_alone_gives() -> None:
    generator = np.random.default_rng(2)
    counts = generator.integers(0, 3, (80, 3))
    stats = [
        dict(zip(("tp", "fp", "fn"), map(float, row), strict=True)) | {"score": float(row[0] > 0)} for row in counts
    ]
    clusters = names(generator.integers(0, 20, 80))
    slices = [{"kind": "open" if row % 3 else "closed"} for row in range(80)]
    table = figures([F1, ACCURACY], stats, clusters, slices)
    closed = [row for row in range(80) if row % 3 == 0]
    alone = figure(F1, [stats[row] for row in closed], [clusters[row] for row in closed])
    assert table.slices["kind"]["closed"]["F1"] == alone
    assert table.overall["F1"].value == 2 * counts[:, 0].sum() / (2 * counts[:, 0] + counts[:, 1] + counts[:, 2]).sum()
    assert table.slices["kind"]["open"]["accuracy"].rows + alone.rows == table.overall["accuracy"].rows


def test_the_permutation_test_gives_fisher_s_figure_for_darwin_s_plants() -> None:
    """Fisher (1935), The Design of Experiments, section 21: of 32,768 signs 863 reach 314 eighths of an inch."""
    eighths = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    height = mean_of("height", "height", percent=False)
    crossed, selfed = [{"height": float(e)} for e in eighths], [{"height": 0.0}] * 15
    found = difference(height, selfed, crossed, names(range(15)))
    assert found.value * 15 == 314
    assert found.p == 2 * 863 / 32768
    assert (found.gained, found.lost, found.mcnemar) == (13, 2, None)


@pytest.mark.parametrize("measure", [ERRORS, F1])
def test_swaps_of_whole_clusters_are_those_written_out(measure: Measure) -> None:
    generator = np.random.default_rng(11)
    parts = {name: generator.integers(1, 9, (2, 12)).astype(float) for name in (*measure.needs,)}
    cluster = np.repeat(np.arange(6), 2)
    sides = [[{name: values[side, row] for name, values in parts.items()} for row in range(12)] for side in (0, 1)]

    def score(rows: list[dict[str, float]]) -> float:
        return float(measure.value({name: np.array(sum(row[name] for row in rows)) for name in measure.needs}))

    observed = score(sides[1]) - score(sides[0])
    extreme = 0
    for swap in itertools.product((0, 1), repeat=6):
        first = [sides[swap[cluster[row]]][row] for row in range(12)]
        second = [sides[1 - swap[cluster[row]]][row] for row in range(12)]
        extreme += abs(score(second) - score(first)) >= abs(observed) - 1e-12
    found = difference(measure, sides[0], sides[1], names(cluster))
    assert found.value == pytest.approx(observed, abs=1e-12)
    assert found.p == extreme / 64


def test_random_swaps_come_near_to_all_of_them() -> None:
    """With 17 clusters swaps are drawn; the share of all 131,072 is counted here."""
    gaps = np.array([1, -1, 1, 0, 1, 1, -1, 1, 1, 0, 1, 1, -1, 1, 0, 1, 1], dtype=float)
    signs = 1 - 2 * (np.arange(2**17)[:, None] >> np.arange(17) & 1)
    exact = (np.abs(signs @ gaps) >= gaps.sum()).mean()
    found = difference(ACCURACY, scores(np.zeros(17)), scores(gaps), names(range(17)), permutations=20_000)
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))
    sure = difference(ACCURACY, scores(np.zeros(40)), scores(np.ones(40)), names(range(40)), permutations=999)
    assert sure.p == 1 / 1000, "what was observed is one of the possible swaps: never 0"


def test_a_test_that_finds_nothing_errs_as_often_as_it_says() -> None:
    """Two equally good models on 25 pictures with 4 questions each: p below 5 % in about 5 % of 400 sets."""
    generator = np.random.default_rng(13)
    wrong = 0
    for trial in range(400):
        ease = generator.random(25)[:, None]
        sides = [scores((generator.random((25, 4)) < ease).ravel()) for _ in range(2)]
        found = difference(
            ACCURACY, *sides, names(np.repeat(np.arange(25), 4)), resamples=10, permutations=200, seed=trial
        )
        wrong += found.p < 0.05
    assert 0.02 <= wrong / 400 <= 0.08


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 15), (15, 5), (8, 8), (59, 6), (0, 400)])
def test_mcnemar_is_a_fair_coin_s_two_tails(gained: int, lost: int) -> None:
    changed = gained + lost
    heads = (Fraction(math.comb(changed, k), 2**changed) for k in range(min(gained, lost) + 1))
    assert mcnemar_exact(gained, lost) == pytest.approx(float(min(Fraction(1), 2 * sum(heads))), rel=1e-9)


def test_a_paired_difference_is_told_where_single_intervals_overlap() -> None:
    generator = np.random.default_rng(17)
    before = generator.integers(0, 2, 300)
    after = np.where((before == 0) & (generator.random(300) < 0.1), 1, before)
    clusters = names(np.repeat(np.arange(100), 3))
    one, other = (figure(ACCURACY, scores(values), clusters) for values in (before, after))
    found = difference(ACCURACY, scores(before), scores(after), clusters)
    assert one.high > other.low, "side by side nothing could be said"
    assert found.told and found.low > 0
    assert found.value == pytest.approx(other.value - one.value)
    assert found.mcnemar == pytest.approx(2 / 2**found.gained) and found.lost == 0
    back = difference(ACCURACY, scores(after), scores(before), clusters)
    assert (back.value, back.low, back.high, back.p) == pytest.approx((-found.value, -found.high, -found.low, found.p))


def test_equal_replies_are_no_proof_of_equal_models() -> None:
    values = scores([1, 0, 1, 1, 0, 1])
    found = difference(ACCURACY, values, values, names(range(6)))
    assert (found.value, found.p, found.told, found.mcnemar) == (0, 1, False, 1)
    assert (found.low, found.high) == (-wilson(0, 6)[1], wilson(0, 6)[1])
    assert math.isnan(found.detectable) and found.rows_needed() is None
    empty = difference(ACCURACY, [{}], [{"score": 1.0}], names([0]))
    assert empty.rows == 0 and math.isnan(empty.value) and not empty.told


def test_a_difference_as_large_as_the_detectable_one_is_found_four_times_in_five() -> None:
    """Differences of 60 pictures drawn around the one that `detectable` states, from 300 sets."""
    least = detectable(0.3 / math.sqrt(60), 60)
    assert least == pytest.approx(0.3 / math.sqrt(60) * (2.001 + 0.848), rel=1e-3)
    generator = np.random.default_rng(19)
    found = [
        difference(
            mean_of("gain", "gain", percent=False),
            [{"gain": 0.0}] * 60,
            [{"gain": float(gain)} for gain in generator.normal(least, 0.3, 60)],
            names(range(60)),
            resamples=50,
            permutations=200,
            seed=trial,
        )
        for trial in range(300)
    ]
    assert 0.74 <= np.mean([one.p < 0.05 for one in found]) <= 0.86
    assert np.mean([one.detectable for one in found]) == pytest.approx(least, rel=0.1)
    some = found[0]
    assert some.rows_needed() == math.ceil(60 * (some.detectable / some.value) ** 2)


def test_holm_on_his_steps() -> None:
    """Four tests: the smallest p four times, the next three times, never less than the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    with_gap = holm([0.02, math.nan, 0.01])
    assert with_gap[0] == 0.02 and math.isnan(with_gap[1]) and with_gap[2] == 0.02

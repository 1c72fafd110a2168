"""Which look was the best, and when a run has waited too long."""

import json
import math

from train.best import Best
from train.config import HeldoutConfig


def test_patience_counts_looks_that_are_not_better_by_enough() -> None:
    best = Best(HeldoutConfig(rows=1, patience=3, least=0.1))
    values = [9.0, 5.0, 4.95, math.nan, 4.8, 4.79, 4.78, 4.75, 1.0]
    decided = []
    for step, value in enumerate(values):
        best.add(step, value, lower_is_better=True)
        decided.append((best.step, best.waited, best.reason is not None))
    assert decided[:5] == [(None, 0, False), (1, 0, False), (2, 1, False), (2, 2, False), (4, 0, False)]
    assert decided[7] == (7, 3, True)
    assert best.reason == (
        "heldout_loss has not become better for 3 looks; the best heldout_loss was 4.75 at step 7, 9 before training."
    )


def test_more_is_better_for_what_is_no_loss() -> None:
    best = Best(HeldoutConfig(rows=1, metric="exact"))
    for step, value in enumerate([0.0, 0.2, 0.5, 0.4]):
        best.add(step, value, lower_is_better=False)
    assert (best.step, best.value, best.waited) == (2, 0.5, 1)


def test_what_was_best_goes_on_with_a_resumed_run_unless_the_metric_is_another() -> None:
    best = Best(HeldoutConfig(rows=1, patience=2))
    for step, value in enumerate([9.0, 5.0, 6.0]):
        best.add(step, value, lower_is_better=True)
    state = json.loads(json.dumps(best.state()))
    again, other = Best(HeldoutConfig(rows=1, patience=2)), Best(HeldoutConfig(rows=1, metric="exact"))
    again.restore(state)
    other.restore(state)
    assert (other.step, other.value, other.waited) == (None, None, 0)
    again.add(3, 5.5, lower_is_better=True)
    assert again.step == 1 and again.reason is not None and again.reason.endswith("at step 1, 9 before training.")

"""Fewer rows at once where the memory is full."""

from collections.abc import Sequence

import pytest
import torch

from train.memory import halving, is_out_of_memory


def too_much() -> RuntimeError:
    """What torch raises on this CPU for 2 EiB."""
    with pytest.raises(RuntimeError) as told:
        torch.empty(2**59, dtype=torch.float32)
    return told.value


@pytest.mark.parametrize("most", range(1, 8))
def test_rows_are_halved_until_they_fit_and_keep_their_order_and_numbers(most: int) -> None:
    def work(rows: Sequence[str], first: int) -> list[tuple[int, str]]:
        if len(rows) > most:
            raise torch.OutOfMemoryError if most % 2 else too_much()
        return [(first + number, row) for number, row in enumerate(rows)]

    assert halving(work, "abcdefg", 10) == list(zip(range(10, 17), "abcdefg", strict=True))


def test_one_row_that_compared_rows_and_other_errors_are_not_tried_again() -> None:
    def short(rows: Sequence[str], first: int) -> list[str]:
        raise torch.OutOfMemoryError(f"{len(rows)} rows")

    def wrong(rows: Sequence[str], first: int) -> list[str]:
        raise RuntimeError(f"a shape of {len(rows)} rows")

    with pytest.raises(torch.OutOfMemoryError, match="^1 rows"):
        halving(short, "abc", 0)
    with pytest.raises(torch.OutOfMemoryError, match="^3 rows"):
        halving(short, "abc", 0, divisible=False)
    with pytest.raises(RuntimeError, match="^a shape of 3 rows"):
        halving(wrong, "abc", 0)


def test_a_cpu_that_is_full_is_told_from_other_errors() -> None:
    assert is_out_of_memory(too_much()) and not is_out_of_memory(RuntimeError("a shape"))

"""The few distributions that intervals and tests need, in float64, so that scores depend on no further package."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

_NORMAL = NormalDist()


def normal_quantile(share: float) -> float:
    """The value that a standard normal variable stays below with this probability."""
    return _NORMAL.inv_cdf(share)


def normal_cdf(value: float) -> float:
    """The probability that a standard normal variable is below `value`; exact far out in the tail as well."""
    return 0.5 * math.erfc(-value / math.sqrt(2))


def beta_cdf(value: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_value(a, b), by its continued fraction (DLMF 8.17.22).

    A binomial variable of n tries is at most k with probability I_{1-p}(n - k, k + 1) (DLMF 8.17.5).
    """
    if value <= 0 or value >= 1:
        return float(value >= 1)
    if value > (a + 1) / (a + b + 2):  # there the fraction converges slowly, and that of the other side fast
        return 1 - beta_cdf(1 - value, b, a)
    front = a * math.log(value) + b * math.log1p(-value) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(front) * _beta_fraction(value, a, b) / a


def beta_quantile(share: float, a: float, b: float) -> float:
    """Where `beta_cdf` reaches `share`."""
    return _crossing(lambda value: beta_cdf(value, a, b) >= share, 0.0, 1.0)


def t_cdf(value: float, degrees: float) -> float:
    """Student's t distribution; `degrees` of freedom may be a fraction."""
    tail = beta_cdf(degrees / (degrees + value * value), degrees / 2, 0.5) / 2
    return tail if value < 0 else 1 - tail


def t_quantile(share: float, degrees: float) -> float:
    """The value that a t variable stays below with this probability, between 1e-6 and 1 - 1e-6."""
    if share == 0.5:
        return 0.0
    if share < 0.5:
        return -t_quantile(1 - share, degrees)
    most = 1.0
    while t_cdf(most, degrees) < share:
        most *= 2
    return _crossing(lambda value: t_cdf(value, degrees) >= share, 0.0, most)


def clopper_pearson_upper(failures: float, tries: float, error: float) -> float:
    """The upper bound of a rate that errs with probability `error` at most (Clopper & Pearson 1934).

    Numbers may be fractions: an effective number of tries (Korn & Graubard 1998), or a sum of losses between 0 and 1.
    """
    if tries <= 0 or failures >= tries:
        return 1.0
    return beta_quantile(1 - error, failures + 1, tries - failures)


def _beta_fraction(value: float, a: float, b: float) -> float:
    """Lentz's evaluation, with the start that Thompson & Barnett (1986) give it."""
    tiny = 1e-300

    def safe(number: float) -> float:
        return number if abs(number) > tiny else tiny

    c, d = 1.0, 1 / safe(1 - (a + b) * value / (a + 1))
    result = d
    for m in range(1, 10_000):
        even = m * (b - m) * value / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * value / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1 / safe(1 + step * d)
            c = safe(1 + step / c)
            result *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return result


def _crossing(above: Callable[[float], bool], low: float, high: float) -> float:
    """Where `above` becomes true between `low` and `high`, by halving, to the last bit."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if above(middle) else (middle, high)
    return high

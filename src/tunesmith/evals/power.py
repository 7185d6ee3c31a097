"""What a suite of this size can show: the smallest change that it finds in four of five evaluations.

    detectable(sd=0.45, n=40)     0.20: a true change of 20 points is shown in 80 of 100 such suites, a smaller one in fewer
    items_needed(0.05, sd=0.31)   306 items show 5 points as often

Both follow from a two-sided test at 5% of paired differences, each with the standard deviation `sd`:
change = (1.96 + 0.84) * sd / sqrt(n)   (Card et al. 2020, "With little power comes great responsibility").
"""

from __future__ import annotations

import math

Z = 1.959963984540054 + 0.8416212335729143
"""Of a two-sided test at 5% that finds what is there in 80 of 100."""
TWO_POINTS = 0.02


def detectable(sd: float, n: int) -> float:
    """The smallest change, in the metric's unit, that n items show with a power of 80%."""
    return Z * sd / math.sqrt(n)


def items_needed(change: float, sd: float) -> int:
    """How many items show a change of this size with a power of 80%. Raises ValueError for no change."""
    if change == 0:
        raise ValueError("no number of items shows a change of nothing")
    return math.ceil((Z * sd / change) ** 2)


def paired_sd(discordance: float, change: float = 0.0) -> float:
    """Standard deviation of a paired difference of zeros and ones, when this share of items changes either way and the share
    of right ones by `change`. Before there is a measurement, a discordance of 0.1 to 0.3 is usual."""
    return math.sqrt(max(discordance, abs(change)) - change**2)


def sentence(n: int, label: str, unit: str, change: float) -> str:
    """`change` is what is detectable. `40 items can show a change of 12.4 points (exact match), not one of 2 points, ...`"""
    items = f"{n:,} item{'s' * (n != 1)}"
    if unit != "share":
        shown = f"{change:.2g}" + (f" {unit}" if unit == "nats" else "")
        return f"{items} can show a change of {shown} in {label}; one much smaller looks like none"
    if change > 1:
        return f"{items} can show no change of {label} at all"
    words = f"{items} can show a change of {100 * change:.3g} points ({label})"
    if change <= TWO_POINTS:
        return words
    return f"{words}, not one of 2 points: that takes about {_round(n * (change / TWO_POINTS) ** 2):,}"


def _round(count: float) -> int:
    """Two digits are all that is known of it."""
    step = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return math.ceil(count / step) * step

"""Fewer items without changing what they are of."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence

from tunesmith.evals.items import Item


def stratified(items: Sequence[Item], count: int, seed: Hashable) -> list[Item]:
    """At most `count` items in their order: of each first tag the same share, to within one, drawn with the seed."""
    if count >= len(items):
        return list(items)
    draw, groups = random.Random(str(seed)), defaultdict(list)
    for i, item in enumerate(items):
        groups[item.tags[:1]].append(i)
    for members in groups.values():
        draw.shuffle(members)
    # Every group's k-th of n members stands at (k + 1/2) / n: the first `count` of all are the same share of each.
    ranked = sorted(((k + 0.5) / len(members), i) for members in groups.values() for k, i in enumerate(members))
    return [items[i] for i in sorted(i for _, i in ranked[:count])]

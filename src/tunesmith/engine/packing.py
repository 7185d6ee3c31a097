"""Many rows in one sequence that cannot see each other.

Shapes: R = rows, T = tokens in the pack (sum of the rows' lengths, no padding), L = longest row of a bucket.

    rows         [aaaa][bb][ccc]
    tokens_T      a a a a b b c c c
    positions_T   0 1 2 3 0 1 0 1 2
    bucket        a a a a              attention alone unpacks the rows into a rectangle. It is causal and
                  b b . .              the padding is on the right, so no real token can see a pad, and
                  c c c .              no token of one row can see another: isolation by construction

Rows are bucketed by length so that the rectangles waste little. Everything else in the model works token by
token and never pays for padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BUCKET_GROWTH = 1.5
"""A bucket takes rows until the longest is this many times the shortest. Larger: fewer, emptier rectangles."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows of similar length. `gather_RL` are indices into the pack's T tokens; pads repeat the row's last token."""

    gather_RL: torch.Tensor
    keep: torch.Tensor
    """Indices into the flattened R*L rectangle of the real tokens."""
    scatter: torch.Tensor
    """Where in T each of them goes back to."""
    full: bool
    """The rectangle has no padding."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each row of a pack lies."""

    lengths: tuple[int, ...]
    starts: torch.Tensor
    """R + 1 numbers on the CPU: row r is tokens starts[r] to starts[r + 1]."""
    positions_T: torch.Tensor
    buckets: tuple[Bucket, ...]
    whole: bool
    """One row only: the pack is its own rectangle."""


def layout(lengths: list[int], device: torch.device | str = "cpu") -> Layout:
    """Plan a pack of rows with these lengths, in this order."""
    starts = torch.tensor([0, *lengths]).cumsum(0)
    positions = torch.cat([torch.arange(n) for n in lengths])
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    groups: list[list[int]] = []
    for i in order:
        if groups and lengths[i] <= BUCKET_GROWTH * lengths[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    buckets = tuple(_bucket([(int(starts[i]), lengths[i]) for i in sorted(g)], device) for g in groups)
    return Layout(tuple(lengths), starts, positions.to(device), buckets, whole=len(lengths) == 1)


def _bucket(spans: list[tuple[int, int]], device: torch.device | str) -> Bucket:
    longest = max(n for _, n in spans)
    column = torch.arange(longest)
    gather = torch.stack([start + column.clamp(max=n - 1) for start, n in spans])
    real = torch.stack([column < n for _, n in spans])
    keep = real.flatten().nonzero().squeeze(1)
    return Bucket(gather.to(device), keep.to(device), gather.flatten()[keep].to(device), bool(real.all()))

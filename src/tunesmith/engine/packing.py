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

Rows may come in families: all rows of a family see its first one, as if it stood before each of them, and not each other. So a
prompt is computed once for all of its answers (docs/adr/0011-a-prompt-is-computed-once.md).

    family       [pppp][aa][bbb]            prompt, and two answers to it
    tokens_T      p p p p a a b b b
    positions_T   0 1 2 3 4 5 4 5 6
    as if         [ppppaa][ppppbbb]         the same numbers, of 13 tokens instead of 9
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
    keys_RK: torch.Tensor | None = None
    """What each row sees, where that is more than itself: the first row of its family, itself, and pads."""
    positions_RL: torch.Tensor | None = None
    """Of the queries; and of the keys, larger than any for a pad."""
    key_positions_RK: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each row of a pack lies."""

    lengths: tuple[int, ...]
    starts: torch.Tensor
    """R + 1 numbers on the CPU: row r is tokens starts[r] to starts[r + 1]."""
    families: torch.Tensor
    """F + 1 numbers on the CPU: family f is rows families[f] to families[f + 1], all of which see the first."""
    positions_T: torch.Tensor
    buckets: tuple[Bucket, ...]
    whole: bool
    """One row only: the pack is its own rectangle."""


def layout(lengths: list[int], device: torch.device | str = "cpu", families: list[int] | None = None) -> Layout:
    """Plan a pack of rows with these lengths, in this order. `families`: rows in each family; None: each row by itself."""
    sizes = families or [1] * len(lengths)
    if sum(sizes) != len(lengths):
        raise ValueError(f"families of {sum(sizes)} rows, and {len(lengths)} rows")
    starts, borders = torch.tensor([0, *lengths]).cumsum(0), torch.tensor([0, *sizes]).cumsum(0)
    first = [int(begin) for begin, size in zip(borders, sizes, strict=False) for _ in range(size)]
    before = [0 if first[i] == i else lengths[first[i]] for i in range(len(lengths))]
    positions = torch.cat([torch.arange(n) + b for n, b in zip(lengths, before, strict=True)])
    spans = [(int(starts[i]), lengths[i], int(starts[first[i]]), before[i]) for i in range(len(lengths))]
    buckets = tuple(_bucket([spans[i] for i in sorted(group)], device)
                    for kind in (0, 1)
                    for group in _similar([i for i, b in enumerate(before) if lengths[i] and (b > 0) == kind], spans))
    return Layout(tuple(lengths), starts, borders, positions.to(device), buckets, whole=len(lengths) == 1)


def _similar(rows: list[int], spans: list[tuple[int, int, int, int]]) -> list[list[int]]:
    groups: list[list[int]] = []
    size = {i: spans[i][1] + spans[i][3] for i in rows}
    for i in sorted(rows, key=lambda i: size[i]):
        if groups and size[i] <= BUCKET_GROWTH * size[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _bucket(spans: list[tuple[int, int, int, int]], device: torch.device | str) -> Bucket:
    """Of rows (start, length, start and length of what each also sees)."""
    longest = max(n for _, n, _, _ in spans)
    column = torch.arange(longest)
    gather = torch.stack([start + column.clamp(max=n - 1) for start, n, _, _ in spans])
    real = torch.stack([column < n for _, n, _, _ in spans])
    keep = real.flatten().nonzero().squeeze(1)
    made = [gather, keep, gather.flatten()[keep]]
    if not spans[0][3]:
        return Bucket(*(x.to(device) for x in made), bool(real.all()))
    width = max(n + before for _, n, _, before in spans)
    keys = [torch.cat([begin + torch.arange(before), start + torch.arange(n)]) for start, n, begin, before in spans]
    seen = torch.stack([torch.nn.functional.pad(k, (0, width - len(k))) for k in keys])
    key_positions = torch.stack([torch.arange(width).masked_fill(torch.arange(width) >= len(k), 1 << 40) for k in keys])
    positions = torch.stack([column.clamp(max=n - 1) + before for _, n, _, before in spans])
    return Bucket(*(x.to(device) for x in made), bool(real.all()), *(x.to(device) for x in (seen, positions, key_positions)))

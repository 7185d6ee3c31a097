"""How much of its rank a LoRA adapter uses: from the singular values of its update s B A, layer by layer.

    B = Qb Rb     A^T = Qa Ra        B A = Qb (Rb Ra^T) Qa^T        both Q have orthonormal columns

so the singular values of B A, [out, in], are those of Rb Ra^T, [r, r]: the whole matrix is never made. Both numbers below
are the same for every scale s > 0, so it is left out.

Shapes: A [r, in], B [out, r].
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

HELD = 0.9
"""Of the squared sum of the singular values."""
A, B = ".lora_A.", ".lora_B."


def singular_values(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of B A, descending, [min(r, in, out)], in float64."""
    import torch

    thin_b, thin_a = torch.linalg.qr(b.double()).R, torch.linalg.qr(a.double().T).R
    return torch.linalg.svdvals(thin_b @ thin_a.T)


def effective_rank(values: torch.Tensor) -> float:
    """exp of the entropy of the singular values as shares of their sum (Roy and Vetterli 2007, "The effective rank").

    k equal values give k, and it is at most their number. Values that are all zero give 0.
    """
    import torch

    total = values.sum()
    if not total > 0:
        return 0.0
    shares = values / total
    return float(torch.exp(torch.special.entr(shares).sum()))


def held_by(values: torch.Tensor, share: float = HELD) -> int:
    """How many of the largest singular values have this share of the squared sum. Values that are all zero give 0."""
    energy = values.double().square().cumsum(0)
    if not energy[-1] > 0:
        return 0
    return int((energy < share * energy[-1] * (1 - 1e-12)).sum()) + 1


def spectrum(adapter: Path) -> dict | None:
    """`{effective_rank, held_by_90_percent, layers}` of an adapter's directory: medians over its adapted layers.

    None where it has no A and B (other methods than LoRA and QLoRA). Of PiSSA it is the change of the base, which has up to
    twice the rank; of DoRA the part that B A adds.

    Raises:
        AdapterError: the file is damaged.
    """
    from tunesmith.methods.files import read_tensors

    tensors = read_tensors(adapter)
    pairs = [(tensors[name], tensors[name.replace(A, B)]) for name in tensors if A in name]
    if not pairs:
        return None
    found = [singular_values(a, b) for a, b in pairs]
    return {"effective_rank": statistics.median(map(effective_rank, found)),
            "held_by_90_percent": statistics.median(map(held_by, found)), "layers": len(found)}

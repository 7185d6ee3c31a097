"""Which method for this base, these rows and this memory: a few rules, each with the numbers it goes by.

| rule | says | goes by |
|---|---|---|
| memory | the next cheaper of full, lora and qlora that fits | estimated peaks against free memory |
| qlora for nothing | lora | its estimated peak is at most FITS of free memory |
| wide task | lora or qlora instead of prompt or prefix | the Vendi Score says that the rows are no narrow task |
| too small | a higher rank, or full where memory holds it | trained tokens against what the adapter can hold |
| full for nothing | lora | a LoRA of the usual rank could hold the trained tokens many times |
| large rank | a sweep over smaller ones | the adapter could hold the trained tokens AMPLE times |

What an adapter can hold: 2 bits a parameter (Allen-Zhu and Li 2024, arXiv 2404.05405), against about 1 bit a trained token
(the rule of thumb of Schulman et al. 2025, "LoRA Without Regret"). Both are orders of magnitude, so the rules leave a wide gap
between them in which nothing is said. A recipe that is what a rule would say hears nothing from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tunesmith.data.diversity import NARROW
from tunesmith.recipe.methods import Full, Lora, LowRank, Qlora
from tunesmith.recipe.section import Section

MOST = 3
FITS = 0.8
"""Of free memory: estimates are not exact, and something else may want some (docs/measurements.md)."""
BITS_A_PARAMETER, BITS_A_TOKEN = 2.0, 1.0
AMPLE = 100.0
"""Times the trained tokens that an adapter can hold before its rank is called large."""
LARGE_RANK, USUAL_RANK, LARGEST_RANK = 32, 16, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    method: Section
    peaks: Mapping[str, int]
    """Estimated peak bytes of `lora`, `qlora` and `full` on this base with this data, where they can be trained at all."""
    parameters: Mapping[str, int]
    """Trainable parameters of the same."""
    free_bytes: int | None
    """None: not known on this system, and then no rule speaks of memory."""
    trained_tokens: int
    """Of one pass over the training rows."""
    varied: float | None
    """Vendi Score as a share of the rows; None: not measured."""


def alternatives(method: Section) -> dict[str, Section]:
    """LoRA, QLoRA and full fine-tuning in place of `method`, with its rank and targets where it has them."""
    kept = {key: getattr(method, key) for key in LowRank.model_fields if key != "type"} if isinstance(method, LowRank) else {
        "rank": USUAL_RANK}
    made = {"lora": Lora(**kept), "qlora": Qlora(**kept), "full": Full()}
    return made | ({method.type: method} if method.type in made else {})


def advise(f: Facts) -> list[str]:
    """At most MOST lines; none when nothing speaks against the recipe."""
    return [line for line in (_memory(f), _wide(f), _room(f)) if line][:MOST]


def _memory(f: Facts) -> str | None:
    kind = f.method.type
    if f.free_bytes is None or kind not in f.peaks:
        return None
    if f.peaks[kind] > f.free_bytes:
        cheaper = next((k for k in ("lora", "qlora") if k != kind and f.peaks.get(k, f.free_bytes) < min(
            f.peaks[kind], FITS * f.free_bytes)), None)
        return cheaper and (f"method.type: {cheaper} takes about {_gb(f.peaks[cheaper])}; {kind} takes {_gb(f.peaks[kind])}, "
                            f"and {_gb(f.free_bytes)} are free")
    if kind == "qlora" and _fits(f, "lora"):
        return (f"method.type: lora fits ({_gb(f.peaks['lora'])} of {_gb(f.free_bytes)} free, qlora {_gb(f.peaks['qlora'])}): "
                "qlora dequantises every layer twice a step for nothing")
    return None


def _wide(f: Facts) -> str | None:
    if f.method.type not in ("prompt", "prefix") or f.varied is None or f.varied < NARROW:
        return None
    better = next((k for k in ("lora", "qlora") if _fits(f, k)), None)
    return better and (f"method.type: {better}: the rows are no narrow task (Vendi Score {f.varied:.0%} of the rows, narrow is "
                       f"below {NARROW:.0%}), and {f.method.type} tuning is for one")


def _room(f: Facts) -> str | None:
    """The adapter's size against the trained tokens."""
    kind, needed = f.method.type, f.trained_tokens * BITS_A_TOKEN
    if kind == "full":
        room = f.parameters.get("lora", 0) * BITS_A_PARAMETER
        enough = room > AMPLE * needed and _fits(f, "lora")
        return (f"method.type: lora: {f.trained_tokens:,} trained tokens are few for every weight; LoRA of rank {USUAL_RANK} "
                f"has room for {room / needed:,.0f} times as many") if enough else None
    if not isinstance(f.method, LowRank):
        return None
    room, rank = f.parameters[kind] * BITS_A_PARAMETER, f.method.rank
    if room < needed:
        wanted = 2 ** (int(rank * needed / room) - 1).bit_length()
        much = f"{f.trained_tokens:,} trained tokens are more than rank {rank} can hold ({f.parameters[kind]:,} parameters)"
        if wanted <= LARGEST_RANK:
            return f"method.rank: {wanted}: {much}"
        return f"method.type: full fits into memory: {much}" if _fits(f, "full") else None
    if rank >= LARGE_RANK and room > AMPLE * needed:
        return (f"method.rank: {rank} has room for {room / needed:,.0f} times the trained tokens; smaller may do: "
                f"tunesmith sweep RECIPE --set method.rank={rank // 16},{rank // 4},{rank}")
    return None


def _fits(f: Facts, kind: str) -> bool:
    """Whether it is known to."""
    return f.free_bytes is not None and kind in f.peaks and f.peaks[kind] <= FITS * f.free_bytes


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"

"""What an audit has to say: one kind of fault, how often, and where the first few are."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Finding:
    code: str
    severity: str
    """error, warning or info."""
    count: int
    message: str
    fix: str
    examples: list[str] = field(default_factory=list)
    """The first few, as `file:line ...`."""

    def as_dict(self) -> dict:
        return asdict(self)

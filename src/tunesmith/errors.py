"""Every error a user can meet: what happened, where, why, and what to do about it.

One tree, one root. Each member also inherits the standard exception it is closest to, so that
`except ValueError` around `tunesmith.run(...)` works as a Python programmer expects.
Exit codes: 1 failed, 2 wrong usage or invalid input, 3 a gate refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One finding about the input. `where` is `file:line` or `file:line: field` when there is one."""

    code: str
    message: str
    severity: Literal["error", "warning", "info"] = "error"
    where: str | None = None
    fix: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        return asdict(self)


class TunesmithError(Exception):
    """Root of the tree. `problems` carries every finding when more than one thing is wrong."""

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        why: str | None = None,
        fix: str | None = None,
        problems: list[Problem] | None = None,
    ):
        self.what, self.where, self.why, self.fix = what, where, why, fix
        self.problems = problems or []
        super().__init__(self.render())

    def render(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        for p in self.problems:
            lines.append(f"  {p.where + ': ' if p.where else ''}{p.message}")
            if p.fix:
                lines.append(f"    do: {p.fix}")
        if self.fix:
            lines.append(f"  do:  {self.fix}")
        return "\n".join(lines)

    def as_dict(self) -> dict:
        return {
            "error": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "why": self.why,
            "fix": self.fix,
            "problems": [p.as_dict() for p in self.problems],
            "exit_code": self.exit_code,
        }


class RecipeError(TunesmithError, ValueError):
    """The recipe does not describe a run: unknown key, wrong type, rules that contradict."""

    exit_code = 2


class DataError(TunesmithError, ValueError):
    """The data cannot be trained on as it is."""

    exit_code = 2


class TemplateError(DataError):
    """The chat template and the row do not give a training example that can be trusted."""


class BaseModelError(TunesmithError, LookupError):
    """The base cannot be found, or is not a model we can train."""

    exit_code = 2


class NotFoundError(TunesmithError, LookupError):
    """A run, release, channel or adapter that does not exist."""

    exit_code = 2


class UsageError(TunesmithError, ValueError):
    """A command that cannot be carried out as written, such as a port that is taken."""

    exit_code = 2


class TrainingError(TunesmithError, RuntimeError):
    """Training stopped because going on would end with a wrong model."""


class MemoryShortage(TunesmithError, MemoryError):
    """What was to be computed does not fit into memory."""


class AdapterError(TunesmithError, ValueError):
    """An adapter that does not fit its base, or changes nothing."""


class StoreError(TunesmithError, OSError):
    """A file could not be written or read back: full disk, no permission, changed bytes."""


class BusyError(TunesmithError, RuntimeError):
    """Too much is waiting already; the same may be asked again in a moment."""


class TrackingError(TunesmithError, RuntimeError):
    """The tracking store cannot be reached or written."""


class NotMeasured(TunesmithError, RuntimeError):
    """A metric has no number: its judge gave no verdicts, say. `facts` are what is known; a gate that needs it refuses."""

    def __init__(self, what: str, *, facts: dict | None = None, **told):
        super().__init__(what, **told)
        self.facts = facts or {}


class GateRefused(TunesmithError):
    """A gate said no, or could not be measured. Nothing was released."""

    exit_code = 3


def out_of_memory(error: BaseException) -> MemoryShortage | None:
    """The same error with what to do, if it says that memory ran out; None for any other.

    torch says it in many ways: on a GPU, in its own allocator on a CPU, in oneDNN's.
    """
    said = str(error)
    words = ("can't allocate memory", "not enough memory", "bad_alloc", "create a memory object", "Cannot allocate memory")
    if not (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or any(w in said for w in words)):
        return None
    return MemoryShortage("out of memory", why=said.splitlines()[0] if said else type(error).__name__,
                          fix="`tunesmith check RECIPE` says what a training takes and which knob helps; other programs' "
                              "memory counts too")

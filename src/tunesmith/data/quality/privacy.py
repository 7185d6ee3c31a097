"""Personal data and secrets in rows: a model repeats rare strings of its training data word for word."""

from __future__ import annotations

from tunesmith.data.finding import Finding
from tunesmith.data.quality import credentials, personal
from tunesmith.data.quality.evidence import Tally, point, texts
from tunesmith.data.rows import Row


class Privacy:
    """Rows with each kind of personal data, and of secret."""

    def __init__(self, region: str = personal.REGION) -> None:
        self.region = region
        self.personal: dict[str, Tally] = {}
        self.secrets: dict[str, Tally] = {}
        self.tallies: dict[str, Tally] = {}

    def see(self, row: Row) -> None:
        seen: set[str] = set()
        for _role, place, text in texts(row):
            pieces = [(self.secrets, p) for p in credentials.find(text)]
            # `postgres://jane:password@host.org` is one secret, and no mail address.
            pieces += [(self.personal, p) for p in personal.find(text, self.region)
                       if not any(p.start < s.end and s.start < p.end for _tallies, s in pieces)]
            for tallies, piece in pieces:
                if piece.kind not in seen:
                    seen.add(piece.kind)
                    tally = tallies.setdefault(piece.kind, Tally())
                    family = "secret" if tallies is self.secrets else "personal_data"
                    self.tallies[f"{family}:{_slug(piece.kind)}"] = tally
                    tally.add(lambda: point(row, place, text, piece.start, piece.end))  # noqa: B023

    def findings(self) -> list[Finding]:
        found = []
        for kind, tally in sorted(self.secrets.items()):
            found += tally.finding(f"secret:{_slug(kind)}", "warning", f"{tally.count} rows carry a secret: {kind}",
                                   "revoke it, then remove it from the data: a tuned model can repeat it")
        for kind, tally in sorted(self.personal.items()):
            found += tally.finding(f"personal_data:{_slug(kind)}", "warning", f"{tally.count} rows carry personal data: {kind}",
                                   "replace it with an invented value, or make sure that the model may know it")
        return found


def _slug(kind: str) -> str:
    return "_".join(kind.lower().split())

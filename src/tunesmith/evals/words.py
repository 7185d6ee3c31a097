"""What the numbers say of the other ways to get there: examples in the prompt, documents beside the question.

A baseline costs no training. So the fine-tune has to be shown to be better, item by item; a higher mean is not enough, and
neither is a lower one to call it worse:

    tuned - baseline, 95% interval, turned so that more is better
    all above 0     the fine-tune earns its cost, and is shorter to ask
    all below 0     the baseline beats the fine-tune
    contains 0      the baseline is as good as this suite can tell: not shown to be worse
"""

from __future__ import annotations

from tunesmith.evals.metrics import METRICS
from tunesmith.training.compose import PARENT

BETTER, NOT_SHOWN, WORSE = "better", "not_shown", "worse"
FIXES = {"few_shot": "prompting", "retrieval": "retrieval"}


def amount(value: float, unit: str, signed: bool = False) -> str:
    """A difference for people: shares and scores in points."""
    sign = "+" if signed else ""
    suffix = {"share": " points", "score": " points", "nats": " nats"}.get(unit, "")
    return f"{100 * value if unit == 'share' else value:{sign}.3g}{suffix}"


def level(value: float, unit: str) -> str:
    """A value for people: shares in percent, scores out of 100."""
    return f"{100 * value:.1f}%" if unit == "share" else f"{value:.1f}" if unit == "score" else f"{value:.3g}" + (
        " nats" if unit == "nats" else "")


def compared(report: dict, target: str) -> list[dict]:
    """Each baseline with help against the fine-tune: `[{set, metric, a, b, delta, ci95, call, message}]`.

    `call` is what `a` is against `b`: better, worse, or not_shown to be either. One metric of a set speaks: the target gate's
    where it was measured, else the first that was.
    """
    found = []
    for name, part in report["sets"].items():
        paired = [m for m in (target, *part["metrics"]) if part["metrics"].get(m, {}).get("pairs")]
        for pair in part["metrics"][paired[0]]["pairs"] if paired else ():
            if pair["b"].startswith(PARENT):  # `evals.parents` speaks of them
                continue
            found.append(_compared(report, name, paired[0], pair))
    return found


def call(delta: float, ci95: list[float], higher_is_better: bool) -> str:
    """What the interval of a difference says: better, worse or not_shown."""
    low, high = ci95 if higher_is_better else (-ci95[1], -ci95[0])
    return BETTER if low > 0 else WORSE if high < 0 else NOT_SHOWN


def _compared(report: dict, name: str, metric: str, pair: dict) -> dict:
    part, known = report["sets"][name], METRICS[metric]
    m = part["metrics"][metric]
    said = call(pair["delta"], pair["ci95"], known.higher_is_better)
    a, b = pair["a"], pair["b"]
    ours, theirs = (level(m["systems"][s]["value"], m["unit"]) for s in (a, b))
    low, high = (amount(end, m["unit"], signed=True) for end in pair["ci95"])
    values = f"{m['label']} {ours} against {theirs}, {amount(pair['delta'], m['unit'], signed=True)}, 95% interval " \
             f"{low.split(' ')[0]} to {high}"
    message = _documents(said, b, values, part["n"]) if a == "tuned_retrieval" else _base(
        report, said, part, b, values, _no_better_than_the_base(m, b))
    return {"set": name, "metric": metric, **pair, "call": said, "message": f"On {name}, {message}"}


def _base(report: dict, said: str, part: dict, helped: str, values: str, idle: bool) -> str:
    """Fine-tune against the base with help."""
    way, other = FIXES[helped], _way(report, helped)
    cost = _cost(part, helped)
    if said == BETTER:
        return f"the fine-tune beats {other} ({values}): it earns its cost{cost and ', and ' + cost}."
    if said == WORSE:
        return (f"{other} beats the fine-tune ({values}). Use {way}, which needs no training, or give the fine-tune more or "
                "better data and measure again.")
    if idle:
        return (f"neither the fine-tune nor {other} is shown to be better than the base as it is ({values}): there "
                "is no reason yet for either.")
    power = part.get("power") or "More items could tell them apart"
    reason = f"the length of the prompt matters ({cost})" if cost else "the prompt has no room for it"
    return (f"{other} is as good as the fine-tune, as far as {part['n']} items can tell: not shown to be worse ({values}). "
            f"Prefer {way}, which needs no training, unless {reason}. {power}.")


def _no_better_than_the_base(m: dict, helped: str) -> bool:
    """The base with help does not even score better than without, and the fine-tune is not shown to."""
    sign = 1 if m["higher_is_better"] else -1
    return (sign * (m["systems"][helped]["value"] - m["base"]) <= 0
            and call(m["delta"], m["ci95"], m["higher_is_better"]) != BETTER)


def _documents(said: str, other: str, values: str, n: int) -> str:
    """The fine-tune with documents against one of the two alone."""
    if other == "tuned":
        return {BETTER: f"documents help the fine-tune ({values}): serve it with retrieval.",
                WORSE: f"documents make the fine-tune worse ({values}): serve it without them, or train with passages in its "
                       "prompts.",
                NOT_SHOWN: f"documents are not shown to help the fine-tune on {n} items ({values})."}[said]
    return {BETTER: f"with the same documents the fine-tune beats the base ({values}): it earns its cost beside retrieval.",
            WORSE: f"with the same documents the base beats the fine-tune ({values}): use retrieval with the base.",
            NOT_SHOWN: f"with the same documents the base is as good as the fine-tune, as far as {n} items can tell "
                       f"({values}): retrieval with the base needs no training."}[said]


def _way(report: dict, helped: str) -> str:
    settings = report["settings"]
    if helped == "few_shot":
        count = settings["few_shot"]
        return f"the base with {count} example{'s' * (count > 1)} in its prompt"
    count = settings["retrieval"]["top"]
    return f"the base with {count} passage{'s' * (count > 1)} of the documents"


def _cost(part: dict, helped: str) -> str:
    """How much longer the other prompt is."""
    tokens = part.get("prompt_tokens", {})
    if helped not in tokens or tokens[helped] <= tokens.get("tuned", tokens[helped]):
        return ""
    return f"the fine-tune is asked in {tokens['tuned']:.0f} tokens instead of {tokens[helped]:.0f}"

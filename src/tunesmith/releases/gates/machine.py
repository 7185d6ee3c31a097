"""Is it what it seems to be, and fast enough? Facts with thresholds: nothing is tested here, so nothing needs correction."""

from __future__ import annotations

from typing import Any

from tunesmith.releases.gates.evidence import Evidence, Gate


def template(evidence: Evidence) -> Gate:
    """Run, dataset, adapter, report and the tokenizer that the bundle will hold agree on one fingerprint of the chat template,
    and every trained answer ends in a token that stops a generation."""
    if evidence.template is None:
        return Gate("template", "not_measured", {"message": "nobody looked at the tokenizer", "fix": "release a run"})
    prints, stops = evidence.template["fingerprints"], evidence.template["stop_ids"]
    endless = [t for t in evidence.template["answers_end_in"] if t not in stops]
    facts = evidence.template | {"see": "report/report.html#facts"}
    if missing := [part for part, found in prints.items() if found is None]:
        return Gate("template", "not_measured", facts | {
            "message": f"no fingerprint of the chat template in {', '.join(missing)}",
            "fix": "tunesmith eval RUN" if missing == ["report"] else "train and evaluate again with this version"})
    odd = [part for part, found in prints.items() if found != prints["run"]]
    if odd:
        return Gate("template", "fail", facts | {
            "message": f"the chat template of {', '.join(odd)} is not the one that the run was trained with",
            "fix": "bring back the base's template or the recipe's data.template, or train again"})
    if endless:
        return Gate("template", "fail", facts | {
            "message": f"trained answers end in tokens {endless}, and generation stops at {stops}: it would never stop",
            "fix": "set data.template to one whose assistant turns end in the base's stop token, and train again"})
    return Gate("template", "pass", facts | {"message": f"{', '.join(prints)} have one chat template, and "
                                                        "answers end in a stop token"})


def no_op(evidence: Evidence) -> Gate:
    """The adapter changes what the model says: on some probe prompts the logits move by more than rounding does."""
    least = evidence.recipe.gates.no_op.min_ratio
    found = (evidence.report or {}).get("effect")
    if found is None:
        return Gate("no_op", "not_measured", {"min_ratio": least, "message": "the report does not say what the adapter changes",
                                              "fix": "tunesmith eval RUN"})
    ratio = found["logits"] / found["rounding"]
    facts: dict[str, Any] = found | {"ratio": ratio, "min_ratio": least, "see": "report/report.html#facts"}
    words = f"on {found['prompts']} probe prompts the adapter moves the logits by up to {found['logits']:.3g}, " \
            f"{ratio:,.1f} times what rounding does ({found['rounding']:.2g}); after {found['other_tokens']} of them another " \
            "token is the likeliest"
    if ratio < least:
        return Gate("no_op", "fail", facts | {
            "message": f"{words}: it does nothing",
            "fix": "see whether the adapter's weights were saved and trained (`tunesmith show RUN`), and train longer"})
    return Gate("no_op", "pass", facts | {"message": words})


def serving(evidence: Evidence) -> Gate:
    """Latency, speed, memory and the adapter's cost are within the thresholds that the recipe gives, at `clients` clients."""
    rule = evidence.recipe.gates.serving
    found = (evidence.report or {}).get("serving")
    if found is None:
        return Gate("serving", "not_measured", {"message": "serving was not measured", "fix": "tunesmith eval RUN --serving"})
    clients = rule.clients or max((load["clients"] for load in found["tuned"]), default=0)
    load = next((one for one in found["tuned"] if one["clients"] == clients), None)
    facts: dict[str, Any] = {"clients": clients, "see": "report/report.html#serving"}
    if load is None:
        return Gate("serving", "not_measured", facts | {
            "message": f"serving was not measured with {clients} clients" + (f": {found['stopped']}" * bool(found["stopped"])),
            "fix": f"add {rule.clients} to eval.serving.clients, and evaluate again" if rule.clients else
                   "raise eval.serving.limit_seconds, and evaluate again"})
    first = load["first_token_seconds"]["p95"]
    checks = [("max_first_token_seconds", first, rule.max_first_token_seconds, "s to the first token"),
              ("max_seconds", load["seconds"]["p95"], rule.max_seconds, "s for an answer"),
              ("min_tokens_per_second", load["tokens_per_second"], rule.min_tokens_per_second, "tokens/s"),
              ("max_memory_bytes", found["memory_bytes"], rule.max_memory_bytes, "bytes of memory"),
              ("max_overhead", load["overhead"], rule.max_overhead, "of the base's speed lost to the adapter"),
              ("max_failed", load["failed"], rule.max_failed, "requests failed")]
    asked = [(name, value, limit, what) for name, value, limit, what in checks if limit is not None]
    facts |= {"thresholds": {name: limit for name, _, limit, _ in asked}, "values": {name: v for name, v, _, _ in asked},
              "load": load}
    unknown = [name for name, value, _, _ in asked if value is None]
    broken = [(value, limit, what) for name, value, limit, what in asked
              if value is not None and (value < limit if name.startswith("min_") else value > limit)]
    said = "; ".join(f"{value:.3g} {what}, asked for {limit:.3g}" for value, limit, what in broken)
    if broken:
        return Gate("serving", "fail", facts | {
            "message": f"at {clients} clients: {said}",
            "fix": "serve on a faster machine, with fewer clients or a smaller base, or ask for less"})
    if unknown:
        return Gate("serving", "not_measured", facts | {"message": f"{', '.join(unknown)}: this was not measured",
                                                        "fix": "measure on a machine where it can be, or leave it out"})
    within = "; ".join(f"{value:.3g} {what}" for _, value, _, what in asked)
    return Gate("serving", "pass", facts | {"message": f"at {clients} clients: {within}"})

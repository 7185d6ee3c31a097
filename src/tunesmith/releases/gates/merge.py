"""Is the model that the adapter is merged into the same model? Facts with thresholds, measured on the written files."""

from __future__ import annotations

from typing import Any

from tunesmith.releases.gates.evidence import Evidence, Gate

FIGURES = ("max_abs_logit_diff", "mean_abs_logit_diff", "mean_kl", "max_kl", "top1_agreement", "same_texts", "max_margin",
           "ratio")


def merge(evidence: Evidence) -> Gate:
    """In every dtype that the rule names, and under QLoRA onto the closer base, the merged model answers as the adapter on its
    base, up to rounding, when it is loaded from its files."""
    from tunesmith.evals.merged import judged

    rule = evidence.recipe.gates.merge
    found = (evidence.report or {}).get("merge")
    if found is None:
        return Gate("merge", "not_measured", {"message": "nobody merged the adapter", "fix": "tunesmith eval RUN"})
    if missing := found.get("not_measured"):
        return Gate("merge", "not_measured", {"message": missing["reason"], "fix": f"leave gates.merge out: {missing['fix']}"})
    models = [m for m in found["models"] if m["chosen"]]
    facts: dict[str, Any] = {"rule": rule.model_dump(mode="json"), "onto": found["onto"], "see": "report/report.html#merge",
                             "models": {m["dtype"]: {k: m[k] for k in FIGURES} for m in models}}
    if left := [dtype for dtype in rule.dtypes if dtype not in facts["models"]]:
        return Gate("merge", "not_measured", facts | {"message": f"the merge into {', '.join(left)} was not measured",
                                                      "fix": "tunesmith eval RUN"})
    again = [m | judged(m, found["rounding"][m["dtype"]], rule) for m in models if m["dtype"] in rule.dtypes]
    broken = [f"in {m['dtype']} {', and '.join(m['broken'])}" for m in again if m["broken"]]
    if broken:
        return Gate("merge", "fail", facts | {
            "message": f"merged, it is another model: {'; '.join(broken)}",
            "fix": "serve the adapter on its base, or see `tunesmith verify merge RUN` for where they part"})
    said = "; ".join(f"{m['dtype']} {m['ratio']:.2g} times what rounding does, KL {m['mean_kl']:.1e}, "
                     f"{m['top1_agreement']:.1%} of tokens and {m['same_texts']:.0%} of texts the same" for m in again)
    onto = f" onto the {found['onto']} base" if found["onto"] else ""
    return Gate("merge", "pass", facts | {"message": f"merged{onto}, written and loaded again it is the same model: {said}"})

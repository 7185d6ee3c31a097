"""The words of the report's table of merged models: how far each is from the adapter on its base, beside what rounding does."""

from __future__ import annotations

from typing import Any

HEADER = ("merged into", "times rounding", "largest logit", "mean KL", "same token", "same text", "")


def merge_view(merge: dict[str, Any]) -> dict[str, Any]:
    """`{lede, header, rows[{name, cells[(value, aside)]}]}` of the report's `merge` (`evals.merged`)."""
    if missing := merge.get("not_measured"):
        return {"lede": f"Not measured: {missing['reason']}.", "header": [], "rows": []}
    asked, rows = merge["reference"], []
    for m in merge["models"]:
        rounding = merge["rounding"][m["dtype"]]
        name = m["dtype"] + (f", {m['onto']} base" if m["onto"] else "")
        rows.append({"name": name, "cells": [
            (f"{m['ratio']:.2g}", ""),
            (f"{m['max_abs_logit_diff']:.2g}", f"{rounding['max_abs_logit_diff']:.2g} by rounding"),
            (f"{m['mean_kl']:.1e}", f"{rounding['mean_kl']:.1e} by rounding"),
            (f"{100 * m['top1_agreement']:.1f}%", f"{100 * rounding['top1_agreement']:.1f}% by rounding"),
            (f"{100 * m['same_texts']:.0f}%", f"{100 * rounding['same_texts']:.0f}% by rounding"),
            ("another model" if m["broken"] else "the same model", "the closer base" if m["onto"] and m["chosen"] else "")]})
    lede = (f"Written to disk, loaded again and asked {asked['questions']} questions of the test set, against the adapter on "
            f"its base in {asked['dtype']} ({asked['tokens']} tokens). Small print: the adapter on its base against itself, in "
            "that dtype and with the questions in batches.")
    if merge["untied"]:
        lede += f" No longer one weight: {' and '.join(merge['untied'])}."
    elif merge["tied"]:
        lede += f" Still one weight: {', '.join(f'{a} and {b}' for a, b in merge['tied'].items())}."
    return {"lede": lede, "header": list(HEADER), "rows": rows}

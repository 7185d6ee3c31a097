"""Labelled answers against TRL 1.16, and against the formula where TRL's neighbours are not ours.

pytest tests/objectives/test_kto.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.objectives.test_dpo import PATHS, model_on
from tests.objectives.tiny import KTO_SETTINGS, base_model, labelled

from tunesmith.engine import fast, plain
from tunesmith.methods import lora
from tunesmith.objectives.families import family
from tunesmith.objectives.kto import Kto, Labelled
from tunesmith.objectives.step import evaluate, forward_backward
from tunesmith.recipe.methods import Lora

TRL = json.loads((Path(__file__).parent / "trl.json").read_text())


def conversation(row: dict, name: str):
    return row["prompt_ids"] + row[name], [False] * len(row["prompt_ids"]) + [True] * len(row[name])


def samples(path, model) -> list[Labelled]:
    """TRL's rows with TRL's mismatched answers, and the base's log p of both."""
    rows = labelled()
    families = [family(conversation(r, "completion_ids"), conversation(r, "KL_completion_ids")) for r in rows]
    with torch.inference_mode(), model.disable_adapter():
        logps = path.answer_logps(model, families).view(-1, 3)
    return [Labelled((f[0], f[1]), (f[0], f[2]), r["label"], tuple(found[1:].tolist()))
            for r, f, found in zip(rows, families, logps, strict=True)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("setting", KTO_SETTINGS)
def test_loss_rewards_kl_and_every_gradient_are_trls(setting, path):
    model, (beta, good, bad), expected = model_on(path), KTO_SETTINGS[setting], TRL[setting]
    found = samples(PATHS[path], model)
    measured = forward_backward(Kto(PATHS[path].answer_logps, beta, good, bad), model, [found[:4], found[4:]])
    assert measured.loss == pytest.approx(expected["loss"], rel=1e-5)
    assert measured.extra["kl"] == pytest.approx(expected["metrics"]["kl"], rel=1e-4) and measured.extra["kl"] > 0.1
    assert measured.extra["reward_desirable"] == pytest.approx(expected["metrics"]["rewards/chosen"], rel=1e-4)
    assert measured.extra["reward_undesirable"] == pytest.approx(expected["metrics"]["rewards/rejected"], rel=1e-3)
    gradients = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.requires_grad}
    for name, norm in expected["gradient_norms"].items():
        assert gradients[name] == pytest.approx(norm, rel=2e-4, abs=1e-6), name


def test_kl_is_never_below_zero_and_gives_no_gradient():
    model = model_on("fast")
    found = [Labelled(s.rows, s.other, s.desirable, (s.reference[0], s.reference[1] + 99)) for s in samples(fast, model)]
    measured = evaluate(Kto(fast.answer_logps, 0.1), model, [found])
    assert measured.extra["kl"] == 0.0


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5)])
def test_a_model_that_is_its_reference_has_half_of_the_mean_weight_as_its_loss(weights):
    model = lora.attach(base_model(), Lora(rank=4), "tiny")
    objective = Kto(plain.answer_logps, 0.3, *weights)
    packs = [samples(plain, model)]
    measured = evaluate(objective, model, packs)
    assert measured.loss == pytest.approx(objective.first_loss(packs), rel=1e-5)
    assert objective.first_loss(packs) == pytest.approx((4 * weights[0] + 2 * weights[1]) / 12)


def test_rows_of_one_kind_have_a_loss_and_no_reward_of_the_other_kind():
    model = model_on("fast")
    good = [s for s in samples(fast, model) if s.desirable]
    measured = forward_backward(Kto(fast.answer_logps, 0.1), model, [good[:1]])
    assert 0 < measured.loss < 1 and "reward_undesirable" not in measured.extra

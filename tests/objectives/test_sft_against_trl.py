"""Twelve steps of supervised fine-tuning against TRL's whole loop: its numbers are in trl.json (trl_numbers.py).

pytest tests/objectives/test_sft_against_trl.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.objectives.tiny import ROWS_A_STEP, SFT_SETTINGS, base_model, chats, fill

from tunesmith.engine import fast, plain
from tunesmith.engine.loss import IGNORE
from tunesmith.methods import lora
from tunesmith.objectives.sft import forward_backward, sample
from tunesmith.recipe.methods import Lora

TRL = json.loads((Path(__file__).parent / "trl.json").read_text())
CLIP = 1.0
"""Of both."""
WITHIN = {"loss": 1e-4, "grad_norm": 1e-2}
"""Relative: Adam makes of the last digit of a gradient near zero the sign of a step, and norms feel it first."""


def curve(path, rate: float, labels_at=lambda labels: labels) -> dict[str, list[float]]:
    model = lora.attach(base_model(), Lora(rank=4, alpha=8.0), "tiny")
    fill(model, "lora_")
    model.train()
    if path is fast:
        fast.accelerate(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    rows = [sample(row["input_ids"], [label != IGNORE for label in labels_at(row["labels"])]) for row in chats()]
    found: dict[str, list[float]] = {"loss": [], "grad_norm": []}
    for begin in range(0, len(rows), ROWS_A_STEP):
        measured = forward_backward(path.forward_loss, model, [rows[begin : begin + ROWS_A_STEP]])
        found["loss"].append(measured.loss)
        found["grad_norm"].append(torch.nn.utils.clip_grad_norm_(parameters, CLIP).item())
        optimizer.step()
        optimizer.zero_grad()
    return found


@pytest.mark.parametrize("path", [fast, plain], ids=["fast", "plain"])
@pytest.mark.parametrize("setting", SFT_SETTINGS)
def test_every_step_has_trls_loss_and_gradient_norm(setting, path):
    ours = curve(path, SFT_SETTINGS[setting])
    assert len(ours["loss"]) == len(TRL[setting]["loss"])
    for name, theirs in TRL[setting].items():
        assert ours[name] == pytest.approx(theirs, rel=WITHIN[name]), name
    assert max(theirs := TRL[setting]["loss"]) - min(theirs) > 0.2  # a curve, not a line


def test_another_mask_gives_another_curve():
    shifted = curve(fast, SFT_SETTINGS["sft 0.003"], labels_at=lambda labels: [IGNORE] + labels[:-1])
    assert shifted["loss"] != pytest.approx(TRL["sft 0.003"]["loss"], rel=1e-3)

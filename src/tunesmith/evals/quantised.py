"""The way of a QLoRA adapter, stage by stage: trained, saved and loaded, merged into each of its two bases.

    trained    the model in memory, on the path that trained it
    loaded     its files on the base, quantised anew, as evaluation and serving have it
    merged     the adapter in the dequantised 4-bit weights: what it was trained on
    original   the adapter in the weights as they were before quantisation

Each is asked the same test rows and compared with the one before it. A difference is the largest over the rows of
|x - y| / |x|, x and y the logits of a row's answer tokens less their mean over the vocabulary, which no probability depends on.

The first three are one model, up to rounding. The fourth is another one: it differs by the error of quantisation, and by that
alone. Two things hold it to that. Its logits differ by at most SPREAD times as much as those of the two bases without any
adapter; and since both merges add the same s B A, their weights differ by what the bases' weights differ, up to rounding:

    (W + s B A) - (W4 + s B A)  =  W - W4

so a merge into the wrong base is found whatever it says of itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data.dataset import TRAIN, Dataset
from tunesmith.data.prepare import prepare
from tunesmith.errors import TrainingError, UsageError
from tunesmith.models.base import resolve
from tunesmith.recipe.load import Loaded, load
from tunesmith.training.run import planned, prepare_engine, tokenizer_for

if TYPE_CHECKING:
    import torch

    from tunesmith.objectives.sft import Sample

Say = Callable[[str], None]
ROWS = 8
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-1}
"""Of logits that differ by rounding only: sums in another order, other kernels, and merged weights rounded once more. One
rounding is up to 4e-3 in bfloat16 and 6e-8 in float32, and some dozens of layers pass it on."""
SPREAD = 3.0
"""The adapter has learned to live with the 4-bit base, so the other may answer a little more differently than without it."""
ROUNDINGS = 4
"""Of the larger weight, in a layer's norm: two merges and two bases, each rounded once."""


def quantised(recipe: str | Path, steps: int, say: Say) -> dict:
    """As `verbs.verify_quantised`. Trains `steps` steps in a directory that is removed again."""
    import torch

    from tunesmith import methods
    from tunesmith.engine.fast import fuse
    from tunesmith.engine.precision import choose
    from tunesmith.models.load import model_of
    from tunesmith.objectives.sft import sample

    loaded = load(recipe)
    if loaded.recipe.method.type != "qlora":
        raise UsageError(f"method.type is {loaded.recipe.method.type}: there is no quantised base to verify",
                         where=str(loaded.path), fix="set method: {type: qlora} in a copy of the recipe")
    base = resolve(loaded.recipe.base, loaded.folder)
    tokenizer = tokenizer_for(base, loaded)
    dataset = prepare(loaded, tokenizer, say)
    choice = choose(loaded.recipe.train.dtype)
    say(choice.because)
    name = str(choice.dtype).removeprefix("torch.")
    tokens = dataset.tokens(dataset.tests[0])
    rows = [sample(*tokens[i]) for i in range(min(ROWS, len(tokens)))]

    def fresh():
        return model_of(base, choice.dtype, choice.device)

    with tempfile.TemporaryDirectory(prefix="tunesmith-") as scratch:
        folder = Path(scratch) / "adapter"
        folder.mkdir()
        torch.manual_seed(loaded.recipe.train.seed)
        model = methods.attach(fresh(), loaded.recipe.method, base.ref, base.digest)
        done, in_training = _train(loaded, dataset, model, steps, rows, Path(scratch), say)
        methods.save(model, folder)
        say("saved; loading it on a base that is quantised anew")
        model = methods.load(fresh(), folder)
        fuse(model)
        as_loaded = ordinary(model, rows)
        with model.disable_adapter():
            without = ordinary(model, rows)
        without_any = ordinary(fresh(), rows)
        say("merging into the dequantised base, and into the original one")
        merged = methods.merge(model)
        as_merged = ordinary(merged, rows)
        original = methods.merge(methods.load(fresh(), folder), onto="original", original=fresh())
        as_original = ordinary(original, rows)
    of_base, rounding = difference(without, without_any), TOLERANCE[name]
    same = f"one model: only rounding in {name} may differ"
    stages = [_stage("loaded", "trained", in_training, as_loaded, rounding, same),
              _stage("merged", "loaded", as_loaded, as_merged, rounding, same),
              _stage("original", "merged", as_merged, as_original, SPREAD * of_base, "another model: without an adapter the "
                     f"two bases differ by {of_base:.1e}, and {SPREAD:g} times that is allowed")]
    last, weights = stages[-1], weight_error(merged, original, fresh(), loaded.recipe.method)
    last |= {"weight_difference": weights, "ok": last["ok"] and weights <= 1.0}
    last["why"] += ("; its weights differ from the merged ones by what those of the bases differ" if weights <= 1.0 else
                    "; its weights do NOT differ from the merged ones by what those of the bases differ: not the two merges "
                    f"of one adapter ({weights:.1f} times what rounding allows)")
    failed = [s["stage"] for s in stages if not s["ok"]]
    said = (f"{', '.join(failed)}: not what it should be" if failed else "saved, loaded and merged it is one model; merged "
            f"into the original base it is another, by the error of quantisation ({last['largest_difference']:.1e})")
    return {"ok": not failed, "steps": done, "rows": len(rows), "dtype": name, "quantisation_difference": of_base,
            "stages": stages, "message": f"{done} steps of QLoRA in {name}, {len(rows)} test rows: {said}"}


def _train(loaded: Loaded, dataset: Dataset, model, steps: int, rows: list[Sample], scratch: Path,
           say: Say) -> tuple[int, list[torch.Tensor]]:
    """(steps, logits of `rows` on the path that trained)."""
    from tunesmith.engine import fast
    from tunesmith.objectives.sft import Sft, sample
    from tunesmith.training import loop

    engine, forward_loss = prepare_engine(model, loaded.recipe, say)
    kept = loaded.recipe.train.checkpoint.model_copy(update={"every_steps": steps, "keep": 1, "keep_best": False})
    config = loaded.recipe.train.model_copy(update={"max_steps": steps, "eval_every_steps": None, "early_stop": None,
                                                    "checkpoint": kept})
    tokens = dataset.tokens(TRAIN)
    outcome = loop.train(loop.Training(scratch, config, model, Sft(forward_loss), planned(config, tokens.lengths),
                                       lambda i: sample(*tokens[i]), []))
    if not outcome.finished:
        raise TrainingError("the training was interrupted", fix="give the same command again")
    model.eval()
    return outcome.steps, fast.answer_logits(model, rows) if engine == "fast" else ordinary(model, rows)


def ordinary(model, rows: list[Sample]) -> list[torch.Tensor]:
    """Logits at each labelled token, [labels, vocabulary], each row alone, by the model's own forward."""
    import torch

    from tunesmith.engine.loss import IGNORE

    device, found = next(model.parameters()).device, []
    with torch.inference_mode():
        for ids, labels in rows:
            where = [i for i, label in enumerate(labels) if label != IGNORE]
            found.append(model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, where])
    return found


def difference(x: list[torch.Tensor], y: list[torch.Tensor]) -> float:
    """The largest relative difference of a row."""
    def centred(logits):
        logits = logits.double()
        return logits - logits.mean(-1, keepdim=True)

    return max(((centred(a) - centred(b)).norm() / centred(a).norm()).item() for a, b in zip(x, y, strict=True))


def _stage(name: str, against: str, x: list[torch.Tensor], y: list[torch.Tensor], tolerance: float, why: str) -> dict:
    found = difference(x, y)
    chosen = [(a.argmax(-1), b.argmax(-1)) for a, b in zip(x, y, strict=True)]
    other, count = sum(int((a != b).sum()) for a, b in chosen), sum(len(a) for a, _ in chosen)
    return {"stage": name, "against": against, "largest_difference": found, "tolerance": tolerance, "same_tokens": other == 0,
            "other_tokens": other, "tokens": count, "ok": found <= tolerance, "why": why}


def weight_error(merged, original, base, method) -> float:
    """The largest over the layers of |(original - merged) - (W - W4)| over what rounding allows; 1 is the limit."""
    import torch

    from tunesmith.engine.nf4 import Packed
    from tunesmith.methods.targets import linear_layers

    worst = 0.0
    for name, layer in linear_layers(base).items():
        w = layer.weight.detach()
        w4 = Packed.of(w, method.block_size, method.double_quant).dequantise(w.dtype)
        a, b = (m.get_submodule(name).weight.detach().double() for m in (merged, original))
        allowed = ROUNDINGS * torch.finfo(w.dtype).eps * max(a.norm(), b.norm())
        worst = max(worst, float(((b - a) - (w.double() - w4.double())).norm() / allowed))
    return worst

"""Speed, memory and loss of preference training by Tunesmith and by TRL's DPOTrainer, on the same pairs, in one run.

    python benchmarks/dpo_vs_trl.py DIRECTORY --trl PYTHON [--steps 8]

DIRECTORY holds `dpo_en_demo.json` of llamafactory 0.9.5's source distribution (300 pairs; model-written): `pip download
--no-deps --no-binary llamafactory llamafactory==0.9.5`, then unpack it. PYTHON is that of a virtual environment with the CPU
build of torch and `trl==1.16 peft==0.21`. Pairs whose prompt, preferred and rejected answer together take 300 to 640 tokens are
taken in the file's order, so that 4 pairs make a step of about 1,880 tokens.

SmolLM2-135M, LoRA of rank 16 on all linear layers, beta 0.1, both from the same adapter. Each setting runs in a process of its
own, one after the other. A pair's tokens are counted once for everybody: its prompt and both answers, without padding and
without the second copy of the prompt. Seconds are those of the steps after the first two; a reference that is computed once,
before the training, is added as a third of its time a step, for three epochs. The loss of each step is compared with that of
the first TRL setting. Held-out loss and accuracy are those of 24 other pairs, for every adapter by the same code: plain
transformers and PEFT, float32.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from train_vs_peers import ALPHA, BASE, RANK, RATE, result_of

PAIRS, BETA, HELD_OUT = 4, 0.1, 24
SHORTEST, LONGEST = 300, 640
OURS = {"Tunesmith": None, "Tunesmith, float32": "float32"}
PEERS = {
    "TRL, as it comes (float32)": {},
    "TRL, no checkpointing": {"checkpointing": False},
    "TRL, no checkpointing, reference computed before": {"checkpointing": False, "precompute": True},
    "TRL, bfloat16 weights, no checkpointing": {"checkpointing": False, "dtype": "bfloat16"},
}
DEFAULTS = {"dtype": "float32", "checkpointing": True, "precompute": False}


def pairs_of(folder: Path) -> tuple[list[dict], list[dict], Path]:
    """(pairs to train on, held-out pairs, the base's directory): `{prompt_ids, chosen_ids, rejected_ids}`."""
    from tunesmith.models.base import resolve
    from tunesmith.models.load import tokenizer_of
    from tunesmith.template.render import render

    base = resolve(BASE)
    tokenizer = tokenizer_of(base)
    roles, found = {"system": "system", "human": "user", "gpt": "assistant"}, []
    for row in json.loads(next(folder.rglob("dpo_en_demo.json")).read_text(encoding="utf-8")):
        asked = [{"role": roles[turn["from"]], "content": turn["value"].strip()} for turn in row["conversations"]]
        shown = [turn | {"weight": 0} if turn["role"] == "assistant" else turn for turn in asked]
        sides = {}
        for side in ("chosen", "rejected"):
            made = render(tokenizer, [*shown, {"role": "assistant", "content": row[side]["value"].strip()}], None)
            begin, end = made.turns[0]
            sides |= {"prompt_ids": list(made.ids[:begin]), f"{side}_ids": list(made.ids[begin:end])}
        if SHORTEST <= sum(map(len, sides.values())) <= LONGEST and sides["chosen_ids"] != sides["rejected_ids"]:
            found.append(sides)
    return found[HELD_OUT:], found[:HELD_OUT], base.path


def families(pairs: list[dict]) -> list:
    from tunesmith.objectives.families import family

    def conversation(pair: dict, side: str):
        return pair["prompt_ids"] + pair[side], [False] * len(pair["prompt_ids"]) + [True] * len(pair[side])

    return [family(conversation(pair, "chosen_ids"), conversation(pair, "rejected_ids")) for pair in pairs]


def ours(pairs: list[dict], steps: int, dtype: str | None, first: Path, out: Path) -> dict:
    """The trainer's own pieces in its own order: reference, objective, clip, AdamW. In a process of its own."""
    import torch

    from tunesmith.engine import fast
    from tunesmith.engine.memory import keep_pages
    from tunesmith.engine.precision import choose
    from tunesmith.methods import lora
    from tunesmith.models.base import resolve
    from tunesmith.models.load import model_of
    from tunesmith.objectives.dpo import Dpo, Pair
    from tunesmith.objectives.step import forward_backward

    keep_pages()
    choice, base = choose(dtype or "auto"), resolve(BASE)
    model = lora.load(model_of(base, choice.dtype, choice.device), first, trainable=True)
    fast.accelerate(model)
    rows = families(pairs[: steps * PAIRS])
    began = time.perf_counter()
    samples = []
    model.eval()
    with torch.inference_mode(), model.disable_adapter():
        for i in range(0, len(rows), PAIRS):
            logps = fast.answer_logps(model, rows[i : i + PAIRS]).view(-1, 3)
            samples += [Pair(r, tuple(found[1:].tolist())) for r, found in zip(rows[i : i + PAIRS], logps, strict=True)]
    reference = time.perf_counter() - began
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    objective = Dpo(fast.answer_logps, BETA)
    seconds, losses = [], []
    for step in range(steps):
        began = time.perf_counter()
        measured = forward_backward(objective, model, [samples[step * PAIRS : (step + 1) * PAIRS]])
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
        losses.append(measured.loss)
    lora.save(model, out)
    return {"seconds": seconds, "losses": losses, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "reference_seconds": reference / steps, "dtype": str(choice.dtype).removeprefix("torch.")}


def first_adapter(out: Path) -> None:
    """The adapter that every setting begins with."""
    import torch

    from tunesmith.methods import lora
    from tunesmith.models.base import resolve
    from tunesmith.models.load import model_of
    from tunesmith.recipe.methods import Lora

    torch.manual_seed(0)
    base = resolve(BASE)
    lora.save(lora.attach(model_of(base, torch.float32, "cpu"), Lora(rank=RANK, alpha=ALPHA), base.ref), out)


def held_out(adapter: Path, pairs: list[dict], model_dir: Path) -> tuple[float, float]:
    """(loss, share of pairs ranked right), by plain transformers and PEFT in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tunesmith.engine import plain
    from tunesmith.objectives.dpo import Dpo, Pair
    from tunesmith.objectives.step import evaluate

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32), str(adapter)).eval()
    samples = []
    with torch.inference_mode(), model.disable_adapter():
        for rows in families(pairs):
            samples.append(Pair(rows, tuple(plain.answer_logps(model, [rows])[1:].tolist())))
    measured = evaluate(Dpo(plain.answer_logps, BETA), model, [[s] for s in samples])
    return measured.loss, measured.accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trl")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", help="Settings whose name contains this.", default="")
    for hidden in ("--one", "--first", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    pairs, others, model_dir = pairs_of(options.folder)
    if options.one:
        print("RESULT " + json.dumps(ours(pairs, options.steps, OURS[options.one], Path(options.first), Path(options.out))))
        return
    lengths = [[len(pair[k]) for k in ("prompt_ids", "chosen_ids", "rejected_ids")] for pair in pairs]
    tokens = [sum(map(sum, lengths[i * PAIRS : (i + 1) * PAIRS])) for i in range(options.steps)]
    print(f"{len(pairs)} pairs, mean prompt {statistics.mean(n for n, _, _ in lengths):.0f}, preferred "
          f"{statistics.mean(n for _, n, _ in lengths):.0f}, rejected {statistics.mean(n for _, _, n in lengths):.0f} tokens; "
          f"{PAIRS} pairs a step, {statistics.mean(tokens):.0f} tokens\n")
    print("| who | s/step | tokens/s | s/step with the reference | peak memory | held-out loss | ranked right | largest "
          "difference of a step's loss |\n|---|---|---|---|---|---|---|---|", flush=True)
    exact: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        first_adapter(folder / "first")
        for name in [n for n in (*PEERS, *OURS) if options.only in n and (options.trl or n in OURS)]:
            out = folder / "".join(c if c.isalnum() else "-" for c in name)
            if name in OURS:
                out.mkdir()
                done = result_of([sys.executable, __file__, str(options.folder), "--one", name, "--out", str(out),
                                  "--first", str(folder / "first"), "--steps", str(options.steps)])
            else:
                job = DEFAULTS | PEERS[name] | {
                    "model": str(model_dir), "adapter": str(folder / "first"), "pairs": pairs[: options.steps * PAIRS],
                    "pairs_a_step": PAIRS, "steps": options.steps, "learning_rate": RATE, "beta": BETA, "rank": RANK,
                    "alpha": ALPHA, "out": str(out)}
                (folder / "job.json").write_text(json.dumps(job))
                done = result_of([options.trl, str(Path(__file__).with_name("peer_trl_dpo.py")), str(folder / "job.json")])
            exact = exact or (done["losses"] if name in PEERS else [])
            off = max((abs(a - b) for a, b in zip(done["losses"], exact, strict=False)), default=float("nan"))
            a_step = statistics.mean(done["seconds"][2:])
            whole = a_step + done["reference_seconds"] / 3
            loss, right = held_out(out, others, model_dir)
            print(f"| {name}{' (' + done['dtype'] + ')' if name == 'Tunesmith' else ''} | {a_step:.2f} | "
                  f"{statistics.mean(tokens[2:]) / a_step:.0f} | {whole:.2f} | {done['peak'] / 1e9:.2f} GB | {loss:.4f} | "
                  f"{right:.0%} | {off:.1e} |", flush=True)


if __name__ == "__main__":
    main()

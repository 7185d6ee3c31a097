"""A real vLLM behind our API answers as our own engine does, and what goes wrong with it is seen.

make test-vllm
"""

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import pytest
from tests.conftest import build_base

from tunesmith.errors import AdapterError, NotFoundError, TemplateError, TunesmithError, UsageError
from tunesmith.models.base import resolve
from tunesmith.models.load import tokenizer_of
from tunesmith.serving.engine import Engine
from tunesmith.serving.grammar import of_json
from tunesmith.serving.sampling import Request
from tunesmith.serving.vllm import VllmEngine, VllmOptions
from tunesmith.template.fingerprint import fingerprint

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

QUICK = ("--enforce-eager",)
LONGEST_WAIT = 300
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"],
          "additionalProperties": False}


@pytest.fixture(scope="module")
def lively_base(tmp_path_factory):
    """In place of the tests' usual one: vLLM's attention on a CPU has no heads of 16. `adapters` are built on it."""
    return build_base(tmp_path_factory.mktemp("base32"), "qwen3", 32)


@pytest.fixture(scope="module")
def adapters(lively_base, tmp_path_factory) -> dict[str, Path]:
    """Random, and large enough that each changes what the base says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = {}
    for seed, name in enumerate(("red", "green", "blue"), 1):
        torch.manual_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(lively_base, dtype=torch.float32),
                               LoraConfig(r=4 * seed, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        for parameter, p in model.named_parameters():
            if "lora_B" in parameter:
                torch.nn.init.normal_(p, std=0.2)
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def base(lively_base):
    return resolve(str(lively_base))


@pytest.fixture(scope="module")
def tokenizer(base):
    return tokenizer_of(base)


@pytest.fixture(scope="module")
def theirs(base, tokenizer, adapters):
    """Two adapters in one step and three in memory: the others of a test are read again."""
    options = VllmOptions(max_loras=2, max_cpu_loras=3, max_lora_rank=9, arguments=QUICK)
    engine = VllmEngine(base, tokenizer, "float32", 0, options)
    for name in ("red", "green"):
        engine.add([name], adapters[name], tokenizer, fingerprint(tokenizer), 0)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def ours(base, tokenizer, adapters):
    engine = Engine(base, tokenizer, "float32", "cpu", 0)
    for name in ("red", "green"):
        engine.add([name], adapters[name], tokenizer, fingerprint(tokenizer), 0)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def names(base):
    return [base.ref, "red", "green"]


@pytest.fixture(scope="module")
def prompts(tokenizer):
    texts = ["4", "37 Oak Street", "12 Elm Street Cedar Rapids IA 52401", "Main " * 30, "é🙂"]
    return [tokenizer(t)["input_ids"] for t in texts]


def ids_of(tokens):
    return [t.id for t in tokens if t.id is not None]


def test_greedy_answers_and_scores_are_those_of_the_engine_in_this_process(theirs, ours, names, prompts):
    for name in names:
        requests = [Request(prompt=p, max_new_tokens=12, logprobs=3) for p in prompts]
        for a, b in zip(theirs.ask(theirs.find(name), requests), ours.ask(ours.find(name), requests), strict=True):
            assert [(t.id, t.finish) for t in a] == [(t.id, t.finish) for t in b]
            for x, y in zip([s for t in a for s in t.scores], [s for t in b for s in t.scores], strict=True):
                assert x.id == y.id and x.logprob == pytest.approx(y.logprob, abs=2e-4)
                assert dict(x.top) == pytest.approx(dict(y.top), abs=2e-4)


def test_the_adapters_differ_from_the_base_and_from_each_other(theirs, names, prompts):
    said = {n: str([ids_of(x) for x in theirs.ask(theirs.find(n), [Request(prompt=p, max_new_tokens=8) for p in prompts])])
            for n in names}
    assert len(set(said.values())) == 3


def test_a_prompt_is_scored_as_here(theirs, ours, names, prompts):
    for name in names:
        for new in (0, 3):
            requests = [Request(prompt=p, max_new_tokens=new, logprobs=2, echo=True) for p in prompts]
            for a, b in zip(theirs.ask(theirs.find(name), requests), ours.ask(ours.find(name), requests), strict=True):
                assert ids_of(a) == ids_of(b) and a[-1].finish == b[-1].finish
                x, y = ([s for t in one for s in t.scores] for one in (a, b))
                assert [s.id for s in x] == [s.id for s in y] and x[0].logprob is None
                assert [s.logprob for s in x[1:]] == pytest.approx([s.logprob for s in y[1:]], abs=2e-4)


def test_what_a_request_says_of_its_logits_counts(theirs, ours, prompts):
    """Greedy, so that it can be compared."""
    first = ids_of(ours.ask(ours.find("red"), [Request(prompt=prompts[1], max_new_tokens=1)])[0])[0]
    for asked in ({"logit_bias": {first: -100.0}}, {"logit_bias": {9: 100.0}}, {"repetition_penalty": 1.8},
                  {"frequency_penalty": 1.5, "presence_penalty": 1.0}, {"ignore_stop": True, "logit_bias": {2: 100.0}},
                  {"logit_bias": {2: 100.0}, "logprobs": 1}, {"logit_bias": {2: 100.0}, "min_tokens": 4}):
        request = Request(prompt=prompts[1], max_new_tokens=10, **asked)
        a, b = ([(t.id, t.finish, [s.id for s in t.scores]) for t in engine.ask(engine.find("red"), [request])[0]]
                for engine in (theirs, ours))
        assert a == b, asked


def test_a_seed_gives_the_same_answer_again_and_another_seed_another(theirs, prompts):
    def said(seed, **more):
        return ids_of(theirs.ask(theirs.find("red"), [Request(prompt=prompts[0], max_new_tokens=20, temperature=1.0, seed=seed,
                                                              ignore_stop=True, **more)])[0])

    assert said(1) == said(1) != said(2) and said(2**66) == said(2**66)
    greedy = ids_of(theirs.ask(theirs.find("red"), [Request(prompt=prompts[0], max_new_tokens=20, ignore_stop=True)])[0])
    assert said(3, top_k=1) == said(4, top_p=1e-6) == said(5, min_p=1.0) == greedy != said(3)


def test_an_answer_has_its_form(theirs, ours, tokenizer, prompts):
    grammar = of_json(tokenizer, SCHEMA, theirs.find("red").stop_ids)
    request = Request(prompt=prompts[1], max_new_tokens=80, grammar=grammar)
    for name in ("red", "green"):
        tokens = theirs.ask(theirs.find(name), [request])[0]
        assert 0 <= json.loads(tokenizer.decode(ids_of(tokens)))["n"] <= 99 and tokens[-1].finish == "stop"
        assert grammar.accepts(ids_of(tokens))
        assert ids_of(tokens) == ids_of(ours.ask(ours.find(name), [request])[0])


def test_what_does_not_fit_is_not_served(theirs, base, tokenizer, adapters, tmp_path):
    from tests.exports.conftest import spoil
    from transformers import AutoTokenizer

    def add(directory, name="new", by=tokenizer, print_of=tokenizer):
        theirs.add([name], directory, by, fingerprint(print_of), 0)

    other = AutoTokenizer.from_pretrained(base.path)
    other.chat_template = other.chat_template.replace("<|im_start|>assistant", "<|im_start|>Assistant")
    with pytest.raises(TemplateError, match="not the one this adapter was trained with"):
        add(adapters["blue"], by=other)
    zeroed = Path(shutil.copytree(adapters["blue"], tmp_path / "zeroed"))
    spoil(zeroed, weights=0.0)
    with pytest.raises(AdapterError, match="changes nothing"):
        add(zeroed)
    with pytest.raises(AdapterError, match="rank"):  # 12 of at most 16 is served, 20 is not
        high = Path(shutil.copytree(adapters["blue"], tmp_path / "high"))
        spoil(high, r=20)
        add(high)
    stranger = Path(shutil.copytree(adapters["blue"], tmp_path / "stranger"))
    spoil(stranger, r=5)  # not what its tensors are
    before = dict(theirs.served)
    with pytest.raises(AdapterError, match="rank 12, where its settings say 5"):
        add(stranger)
    with pytest.raises(UsageError, match="served already"):
        add(adapters["blue"], "red")
    assert theirs.served == before
    with pytest.raises(NotFoundError, match="does not exist"):
        theirs.find("new")


def test_a_name_is_replaced_and_removed(theirs, tokenizer, adapters, prompts, tmp_path):
    """The directory is the same, and the prompt is in vLLM's cache: the answers are the new adapter's all the same."""
    place = tmp_path / "adapter"

    def said(name):
        return [[s.logprob for t in x for s in t.scores] for x in
                theirs.ask(theirs.find(name), [Request(prompt=prompts[3], max_new_tokens=6, logprobs=0)])]

    expected = {n: said(n) for n in ("red", "green")}
    for version in ("red", "green", "red"):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(adapters[version], place)
        theirs.add(["latest"], place, tokenizer, fingerprint(tokenizer), 0)
        assert said("latest")[0] == pytest.approx(expected[version][0], abs=1e-5)
        served = theirs.find("latest")
        theirs.remove("latest")
        with pytest.raises(NotFoundError):
            theirs.find("latest")
    theirs.add(["blue"], adapters["blue"], tokenizer, fingerprint(tokenizer), 0)
    served = theirs.find("blue")
    theirs.remove("blue")
    with pytest.raises(NotFoundError):
        theirs.submit(served, Request(prompt=[1], max_new_tokens=1), print, print)
    with pytest.raises(UsageError, match="base cannot be removed"):
        theirs.remove(theirs.base.ref)
    assert said("red")[0] == pytest.approx(expected["red"][0], abs=1e-5)


def test_a_request_that_is_cancelled_ends_in_vllm_too(theirs, prompts):
    got, ended, tokens = threading.Event(), threading.Event(), []

    def on_token(token):
        tokens.append(token)
        got.set()
        if token.finish:
            ended.set()

    job = theirs.submit(theirs.find("red"), Request(prompt=prompts[0], max_new_tokens=480, ignore_stop=True), on_token, print)
    assert got.wait(LONGEST_WAIT)
    job.cancel()
    assert ended.wait(LONGEST_WAIT) and tokens[-1].finish == "stop" and len(tokens) < 480
    end = time.monotonic() + LONGEST_WAIT
    while not re.search(r"^vllm:num_requests_running\{.*\} 0\.0$", theirs._client.get("/metrics")["text"], re.M):
        assert time.monotonic() < end
    assert theirs.load == {"running": 0, "waiting": 0}


def test_a_child_that_is_killed_comes_back_with_its_adapters(theirs, names, prompts):
    requests = [Request(prompt=p, max_new_tokens=6) for p in prompts]
    before = {n: [ids_of(x) for x in theirs.ask(theirs.find(n), requests)] for n in names}
    serving, killed, told = children(theirs.process_group), threading.Event(), queue.Queue()
    assert serving

    def on_token(token):
        """At the first token of any: `vllm serve` itself, whose engine is another process."""
        if not killed.is_set():
            killed.set()
            os.kill(serving[0], signal.SIGKILL)
        if token.finish:
            told.put(token.finish)

    many = 24  # so many tokens that they cannot all be there before it is dead
    for at in range(many):
        request = Request(prompt=[*prompts[0], 3 + at], max_new_tokens=480, ignore_stop=True, logprobs=20)
        theirs.submit(theirs.find("red"), request, on_token, told.put)
    ends = [told.get(timeout=LONGEST_WAIT) for _ in range(many)]
    assert any(isinstance(end, TunesmithError) for end in ends)
    assert all(end == "length" or isinstance(end, TunesmithError) for end in ends), "whole, or an error"
    end = time.monotonic() + LONGEST_WAIT
    while not (theirs.alive and children(theirs.process_group) != serving):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert {n: [ids_of(x) for x in theirs.ask(theirs.find(n), requests)] for n in names} == before


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.parametrize("remote", [False, True])
def test_our_api_before_it(theirs, base, adapters, remote, tmp_path):
    """`tunesmith serve --engine vllm` to the official client; the second time before the server that is there already."""
    key = {"TUNESMITH_VLLM_KEY": theirs._child.key} if remote else {}
    config = tmp_path / "server.yaml"
    config.write_text(json.dumps({"engine": {"type": "vllm"} | (
        {} if remote else {"arguments": [*QUICK], "max_loras": 1, "max_cpu_loras": 1})}))
    more = ["--vllm-url", theirs._client.url + "/v1"] if remote else []
    server = subprocess.Popen([sys.executable, "-m", "tunesmith", "serve", "--base", str(base.path), "--engine", "vllm",
                               "--port", "0", "--config", str(config), *more],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | key)
    try:
        url = next(found[1] for line in server.stdout if (found := re.match(r"ready: (\S+)", line)))
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        asked = {"model": str(base.path), "messages": [{"role": "user", "content": "37 Oak Street"}], "max_tokens": 12,
                 "temperature": 0}
        whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2).choices[0]
        streamed = "".join(c.choices[0].delta.content or "" for c in client.chat.completions.create(**asked, stream=True))
        assert streamed == whole.message.content and len(whole.logprobs.content[0].top_logprobs) == 2
        stop = whole.message.content[3:6]
        cut = client.chat.completions.create(**asked, stop=[stop]).choices[0]
        assert cut.message.content == whole.message.content[: whole.message.content.index(stop)] and cut.finish_reason == "stop"
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.chat.completions.create(**asked | {"model": "nobody"})
        form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}
        held = client.chat.completions.create(**asked | {"max_tokens": 80}, response_format=form).choices[0]
        assert 0 <= json.loads(held.message.content)["n"] <= 99
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


def test_a_server_of_another_base_is_refused(theirs, base, tmp_path):
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(base.path)
    other.add_tokens(["klmn"])
    options = VllmOptions(url=theirs._client.url, key=theirs._child.key)
    with pytest.raises(UsageError, match="serves another base"):
        VllmEngine(base, other, "float32", 0, options)
    with pytest.raises(UsageError, match="another key"):
        VllmEngine(base, other, "float32", 0, VllmOptions(url=theirs._client.url, key="wrong"))
    with pytest.raises(TunesmithError, match="cannot be reached"):
        VllmEngine(base, other, "float32", 0, VllmOptions(url="http://127.0.0.1:9"))


def test_a_server_that_has_forgotten_an_adapter_gets_it_again(theirs, base, tokenizer, adapters, prompts):
    """As after a restart that we were not told of."""
    engine = VllmEngine(base, tokenizer, "float32", 0, VllmOptions(url=theirs._client.url, key=theirs._child.key))
    try:
        engine.add(["mine"], adapters["blue"], tokenizer, fingerprint(tokenizer), 0)
        request = Request(prompt=prompts[1], max_new_tokens=6)
        before = ids_of(engine.ask(engine.find("mine"), [request])[0])
        theirs._client.post("/v1/unload_lora_adapter", {"lora_name": engine.find("mine").adapter})
        assert ids_of(engine.ask(engine.find("mine"), [request])[0]) == before
    finally:
        engine.close()
    assert engine.served and engine.base is base and not engine.alive
    with pytest.raises(TunesmithError, match="stopping"):
        engine.submit(engine.find("mine"), request, print, print)
    left = [m["id"] for m in theirs._client.get("/v1/models")["data"]]
    assert engine.find("mine").adapter not in left and theirs.find("red").adapter in left


def test_the_engine_ends_with_its_child(base, tokenizer, theirs):
    group = theirs.process_group
    theirs.close()
    found = [state(p) for p in os.listdir("/proc") if p.isdigit()]
    assert not [s for s in found if s and s[0] != "Z" and s[2] == str(group)]
    assert not theirs._scratch.exists() and not theirs.alive


def state(pid: str) -> list[str] | None:
    """(state, parent, group, ...) of a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None

"""A request as vLLM is asked, and what its chunks are as tokens. No vLLM is needed.

pytest tests/serving/test_vllm_wire.py
"""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import AdapterError, UsageError
from tunesmith.jobs.settings import EngineSettings, Settings, with_engine
from tunesmith.models.base import resolve
from tunesmith.serving.grammar import of_json, of_lark
from tunesmith.serving.sampling import Request
from tunesmith.serving.vllm_adapters import copied, digest, linear_layers, servable
from tunesmith.serving.vllm_process import Child, VllmError
from tunesmith.serving.vllm_wire import Reader, body

STOPS = frozenset({2, 7})
VOCABULARY = 50


def requests(**fixed):
    made = {"prompt": st.lists(st.integers(0, VOCABULARY - 1), min_size=1), "max_new_tokens": st.integers(1, 9),
            "temperature": st.floats(0, 2), "top_p": st.floats(0.1, 1), "top_k": st.integers(0, 9), "min_p": st.floats(0, 1),
            "seed": st.none() | st.integers(-2**70, 2**70), "frequency_penalty": st.floats(-2, 2),
            "presence_penalty": st.floats(-2, 2), "repetition_penalty": st.floats(0.5, 2),
            "logit_bias": st.dictionaries(st.integers(0, 2 * VOCABULARY), st.floats(-100, 100)),
            "min_tokens": st.integers(0, 3), "ignore_stop": st.booleans(), "logprobs": st.none() | st.integers(0, 20),
            "echo": st.booleans()}
    return st.builds(Request, **made | fixed)


@given(requests())
def test_every_field_reaches_vllm(request_):
    r, asked = request_, body(request_, STOPS, "m", VOCABULARY)
    json.dumps(asked, allow_nan=False)
    for ours, theirs in (("prompt", "prompt"), ("temperature", "temperature"), ("top_p", "top_p"), ("top_k", "top_k"),
                         ("min_p", "min_p"), ("frequency_penalty", "frequency_penalty"), ("min_tokens", "min_tokens"),
                         ("presence_penalty", "presence_penalty"), ("repetition_penalty", "repetition_penalty"),
                         ("max_new_tokens", "max_tokens")):
        assert asked[theirs] == getattr(r, ours)
    assert asked["stop_token_ids"] == ([] if r.ignore_stop else sorted(STOPS)) and asked["ignore_eos"]
    assert ("seed" in asked) == (r.seed is not None) and 0 <= asked.get("seed", 0) < 2**63
    assert asked.get("logit_bias", {}) == {str(t): b for t, b in r.logit_bias.items() if t < VOCABULARY}
    assert asked.get("logprobs") == r.logprobs
    assert asked.get("prompt_logprobs") == (r.logprobs if r.echo and len(r.prompt) > 1 else None)
    assert asked["stream"] != ("prompt_logprobs" in asked)


def chunk(ids, finish=None, stop_reason=None, logprobs=False):
    scores = {"tokens": [f"token_id:{i}" for i in ids], "token_logprobs": [-0.5] * len(ids),
              "top_logprobs": [{f"token_id:{i}": -0.5, "token_id:49": -0.1, "token_id:48": -3.0} for i in ids]}
    return {"token_ids": ids, "finish_reason": finish, "stop_reason": stop_reason, "logprobs": scores if logprobs else None}


@given(st.lists(st.integers(8, VOCABULARY - 1), min_size=1, max_size=12), st.data())
def test_however_vllm_cuts_an_answer_it_is_the_same_tokens(ids, data):
    """A stop token ends the answer, is no part of it, and has its score."""
    stopped = data.draw(st.booleans())
    whole = [*ids, 7] if stopped else ids
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole)))) | {len(whole)})
    reader, said = Reader(Request(prompt=[1], max_new_tokens=len(ids), logprobs=2), STOPS), []
    for begin, end in zip([0, *cuts], cuts, strict=False):
        last = end == len(whole)
        finish = ("stop" if stopped else "length") if last else None
        said += reader.read(chunk(whole[begin:end], finish, 7 if last and stopped else None, logprobs=True))
    assert [t.id for t in said if t.id is not None] == ids
    assert [t.finish for t in said] == [None] * (len(said) - 1) + ["stop" if stopped else "length"] and reader.finished
    assert [s.id for t in said for s in t.scores] == whole
    assert all(s.top == ((49, -0.1), (s.id, -0.5)) for t in said for s in t.scores if s.id not in (48, 49))


def test_without_stopping_a_stop_token_is_like_any_other():
    reader = Reader(Request(prompt=[1], max_new_tokens=3, ignore_stop=True), STOPS)
    said = reader.read(chunk([7, 2, 7], "length"))
    assert [t.id for t in said] == [7, 2, 7] and said[-1].finish == "length"


def test_a_prompt_is_scored_and_nothing_generated():
    request = Request(prompt=[5, 6], max_new_tokens=0, logprobs=1, echo=True)
    said = Reader(request, STOPS).read(chunk([9], "length", logprobs=True) | {"prompt_logprobs": [
        None, {"6": {"logprob": -2.0}, "8": {"logprob": -0.2}}]})
    assert [(t.id, t.finish) for t in said] == [(None, "length")]
    assert [(s.id, s.logprob, s.top) for s in said[0].scores] == [(5, None, ()), (6, -2.0, ((8, -0.2),))]


@pytest.mark.parametrize("broken", [{"finish_reason": "abort"}, {"logprobs": None}])
def test_half_an_answer_is_an_error(broken):
    with pytest.raises(VllmError):
        Reader(Request(prompt=[1], max_new_tokens=3, logprobs=0), STOPS).read(chunk([9], "length", logprobs=True) | broken)


def test_more_scores_than_vllm_names_are_refused():
    with pytest.raises(UsageError, match="at most 20"):
        body(Request(prompt=[1], max_new_tokens=1, logprobs=21), STOPS, "m", VOCABULARY)


def test_a_form_is_sent_as_its_source_and_followed_here(tiny_tokenizer):
    stops = frozenset({2})
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    grammar = of_json(tiny_tokenizer, schema, stops)
    again = of_lark(tiny_tokenizer, grammar.lark, stops)
    request = Request(prompt=[1], max_new_tokens=30, grammar=grammar)
    assert body(request, stops, "m", VOCABULARY)["structured_outputs"] == {"grammar": grammar.lark}
    for text, fits in (('{"a": 1}', True), ('{"a": 1', False), ('{"b": 1}', False), ('{"a":"\\u0041"}', False)):
        ids = tiny_tokenizer(text)["input_ids"]
        assert grammar.accepts(ids) == again.accepts(ids) == fits
    good, bad = (tiny_tokenizer(text)["input_ids"] for text in ('{"a": 1}', '{"b": 1}'))
    said = Reader(request, stops).read(chunk(good, "length"))
    assert [t.id for t in said] == good and said[-1].finish == "stop"  # nothing may follow
    left = Reader(request, stops).read(chunk(bad, "length"))
    assert "left the form" in left[-1].error.what and left[-1].finish is None


def test_what_vllm_cannot_serve_is_refused_with_the_reason(lively_base, adapters, tmp_path):
    import shutil

    layers = linear_layers(resolve(str(lively_base)))
    assert layers == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    with pytest.raises(AdapterError, match="on `q_proj`"):
        servable(adapters["red"], 8, [n for n in layers if n != "q_proj"])
    servable(adapters["red"], 8, layers)
    for changes, why in (({"use_dora": True}, "DoRA"), ({"bias": "all"}, "biases"), ({"peft_type": "IA3"}, "IA3"),
                         ({"modules_to_save": ["lm_head"]}, "lm_head"), ({"init_lora_weights": "pissa"}, "pissa")):
        bad = tmp_path / why
        shutil.copytree(adapters["red"], bad)
        config = json.loads((bad / "adapter_config.json").read_text())
        (bad / "adapter_config.json").write_text(json.dumps(config | changes))
        with pytest.raises(AdapterError, match=why) as refused:
            servable(bad, 8, layers)
        assert "--engine tunesmith" in refused.value.fix
    config = json.loads((adapters["red"] / "adapter_config.json").read_text())
    other = shutil.copytree(adapters["red"], tmp_path / "other")
    (other / "adapter_config.json").write_text(json.dumps(config | {"r": 5}))
    with pytest.raises(AdapterError, match="rank 4, where its settings say 5"):
        servable(other, 8, layers)
    with pytest.raises(AdapterError, match="max_lora_rank: 8"):
        servable(adapters["red"], 1, layers)


def test_a_copy_is_named_by_what_is_in_it(adapters, tmp_path):
    one, two, again = (copied(adapters[n], tmp_path) for n in ("red", "green", "red"))
    assert one == again != two and one.name == digest(adapters["red"]) and len(list(tmp_path.iterdir())) == 2


def test_settings_of_engines_that_contradict_are_refused():
    assert with_engine(Settings(), "vllm", "").engine.type == "vllm"
    both = Settings(engine=EngineSettings(type="vllm", max_loras=3))
    assert with_engine(both, "vllm", "").engine.max_loras == 3
    assert with_engine(both, "tunesmith", "").engine == EngineSettings(type="tunesmith")
    for engine, url in (("", "http://127.0.0.1:1"), ("tunesmith", "http://x"), ("other", ""), ("vllm", "ftp://x")):
        with pytest.raises(UsageError, match="do not describe an engine"):
            with_engine(Settings(), engine, url)


# ---- the child, with a program in vLLM's place that does what the name of the file says --------------------------------


def program(folder: Path, text: str) -> Path:
    path = folder / "vllm"
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_without_vllm_it_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("TUNESMITH_VLLM", raising=False)
    with pytest.raises(UsageError, match="not installed") as refused:
        Child([], tmp_path / "log")
    assert "install_vllm.sh" in refused.value.fix


def test_a_server_that_dies_is_reported_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_VLLM", str(program(tmp_path, "print('loading'); raise SystemExit('ValueError: too big')")))
    with pytest.raises(VllmError, match="ValueError: too big"):
        Child([], tmp_path / "log").start()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nothing_is_left_when_we_are_killed(tmp_path):
    """The program has a process of its own, as vLLM has its engine."""
    pids = tmp_path / "pids"
    program(tmp_path, f"""
import os, subprocess, time
inner = subprocess.Popen(["sleep", "600"])
open({str(pids)!r} + ".new", "w").write(f"{{os.getpid()}} {{inner.pid}}")
os.rename({str(pids)!r} + ".new", {str(pids)!r})
time.sleep(600)
""")
    code = ("from pathlib import Path; from tunesmith.serving.vllm_process import Child; "
            f"Child([], Path({str(tmp_path / 'log')!r})).start()")
    ours = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"TUNESMITH_VLLM": str(tmp_path / "vllm")})
    end = time.monotonic() + 60
    while not pids.exists():
        assert time.monotonic() < end and ours.poll() is None
        time.sleep(0.05)
    started = list(map(int, pids.read_text().split()))
    assert all(map(alive, started))
    os.kill(ours.pid, signal.SIGKILL)
    ours.wait()
    while any(map(alive, started)):
        assert time.monotonic() < end + 60
        time.sleep(0.05)

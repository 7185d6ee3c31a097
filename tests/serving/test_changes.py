"""Adapters come and go while others are answering: nobody's answer changes, and nothing of a removed one is left.

pytest tests/serving/test_changes.py
"""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.serving.test_engine import LONGEST_WAIT, NEVER, Asked, add_to, ask, busy

from tunesmith.errors import AdapterError, NotFoundError, TunesmithError, UsageError
from tunesmith.models.base import resolve
from tunesmith.models.load import tokenizer_of
from tunesmith.serving.engine import Engine
from tunesmith.serving.sampling import Request


@pytest.fixture
def engine(lively_base):
    base = resolve(str(lively_base))
    made = Engine(base, tokenizer_of(base), "float32", "cpu", 0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def expected(lively_base, prompts, reference, greedy):
    """{(name, prompt number): ids} from PEFT and transformers alone."""
    return {(n, i): greedy(reference(None if n == str(lively_base) else n), p, 12, {NEVER})
            for n in (str(lively_base), "red", "green", "blue") for i, p in enumerate(prompts)}


def test_streams_go_on_exactly_while_others_are_added_and_removed(engine, adapters, prompts, expected):
    """Two threads ask the base and one adapter without a pause; meanwhile the other two are loaded, asked and removed."""
    add_to(engine, "red", adapters["red"])
    stop, wrong, answered = threading.Event(), [], {"red": 0, engine.base.ref: 0}

    def without_pause(name):
        while not stop.is_set():
            for i, prompt in enumerate(prompts):
                asked = ask(engine, name, prompt)
                answered[name] += 1
                if asked.error or asked.ids != expected[name, i]:
                    wrong.append((name, i, asked.error))

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(without_pause, name) for name in answered]
        try:
            for turn in range(2):
                for name in ("green", "blue"):
                    add_to(engine, name, adapters[name])
                    before = dict(answered)
                    assert ask(engine, name, prompts[turn]).ids == expected[name, turn]
                engine.remove("green")
                with pytest.raises(NotFoundError):
                    engine.find("green")
                assert ask(engine, "blue", prompts[turn]).ids == expected["blue", turn]
                engine.remove("blue")
        finally:
            stop.set()
        for future in asking:
            future.result(LONGEST_WAIT)
    assert not wrong
    assert all(answered[name] > before[name] for name in answered), "they were answered meanwhile"
    assert list(engine.served) == [engine.base.ref, "red"]


def test_a_running_answer_is_finished_by_the_adapter_that_began_it(engine, adapters, prompts, expected):
    add_to(engine, "red", adapters["red"])
    began, go = threading.Event(), threading.Event()

    def at_token(n):
        if n == 3:
            began.set()
            go.wait(LONGEST_WAIT)

    running = Asked(engine, "red", Request(prompt=prompts[2], max_new_tokens=12), at_token)
    assert began.wait(LONGEST_WAIT)
    remover = threading.Thread(target=engine.remove, args=["red"])
    remover.start()
    adder = threading.Thread(target=add_to, args=[engine, "blue", adapters["blue"]])
    adder.start()
    wait_for(lambda: len(engine._changes) == 2)
    assert "red" in engine.served and "blue" not in engine.served, "nothing changes between two tokens"
    go.set()
    assert running.wait().ids == expected["red", 2] and running.finish == "length"
    for thread in (remover, adder):
        thread.join(LONGEST_WAIT)
    assert list(engine.served) == [engine.base.ref, "blue"]
    assert ask(engine, "blue", prompts[2]).ids == expected["blue", 2]


def wait_for(condition):
    pause = threading.Event()
    for _ in range(LONGEST_WAIT * 100):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came")


def test_a_load_goes_before_everything_that_waits(engine, adapters, prompts):
    loaded = []
    with busy(engine):
        waiting = [Asked(engine, engine.base.ref, Request(prompt=prompts[1], max_new_tokens=1),
                         lambda _n: loaded.append("red" in engine.served)) for _ in range(40)]
        adder = threading.Thread(target=add_to, args=[engine, "red", adapters["red"]])
        adder.start()
        wait_for(lambda: engine._changes)
    for asked in waiting:
        asked.wait()
    adder.join(LONGEST_WAIT)
    assert loaded == [True] * 40


def test_a_request_whose_adapter_is_removed_while_it_waits_gets_an_error_and_not_the_base(engine, adapters, prompts, expected):
    for name in ("red", "green"):
        add_to(engine, name, adapters[name])
    with busy(engine):
        stranded = [Asked(engine, "red", Request(prompt=p, max_new_tokens=12)) for p in prompts]
        kept = Asked(engine, "green", Request(prompt=prompts[1], max_new_tokens=12))
        found = engine.find("red")
        remover = threading.Thread(target=engine.remove, args=["red"])
        remover.start()
        wait_for(lambda: engine._changes)
    for asked in stranded:
        assert isinstance(asked.wait().error, NotFoundError) and "`red`" in asked.error.what
        assert asked.ids == [] and asked.finish is None
    assert kept.wait().ids == expected["green", 1]
    remover.join(LONGEST_WAIT)
    with pytest.raises(NotFoundError, match="`red`"):
        engine.submit(found, Request(prompt=prompts[1], max_new_tokens=1), lambda _t: None, lambda _e: None)


def test_a_name_that_is_added_again_is_the_new_adapter(engine, adapters, prompts, expected):
    add_to(engine, "voice", adapters["red"])
    assert ask(engine, "voice", prompts[1]).ids == expected["red", 1]
    with pytest.raises(UsageError, match="served already"):
        add_to(engine, "voice", adapters["green"])
    engine.remove("voice")
    add_to(engine, "voice", adapters["green"])
    assert ask(engine, "voice", prompts[1]).ids == expected["green", 1]


def test_an_adapter_stays_as_long_as_it_has_a_name(engine, adapters, prompts, expected):
    from tunesmith.template.fingerprint import fingerprint

    tokenizer = engine.find(engine.base.ref).tokenizer
    engine.add(["one", "other"], adapters["red"], tokenizer, fingerprint(tokenizer), 0)
    engine.remove("one")
    assert ask(engine, "other", prompts[1]).ids == expected["red", 1]
    with pytest.raises(NotFoundError):
        engine.remove("one")
    with pytest.raises(UsageError, match="base"):
        engine.remove(engine.base.ref)
    assert ask(engine, engine.base.ref, prompts[1]).ids == expected[engine.base.ref, 1]


@pytest.mark.parametrize("beside", [(), ("green",)])
def test_what_is_removed_leaves_no_weights_behind(engine, adapters, prompts, beside):
    for name in (*beside, "red"):
        add_to(engine, name, adapters[name])
        ask(engine, name, prompts[1])
    factors = engine._shared.shelf.get(engine.find("red").adapter).factors.values()
    weights = [weakref.ref(f.packed or f.a_RC) for f in factors]
    assert len(weights) > 10 and all(w() is not None for w in weights)
    del factors
    engine.remove("red")
    gc.collect()
    assert [w for w in weights if w() is not None] == []
    assert len(engine._shared.shelf) == engine._shared.shelf.loaded == len(beside)


def test_a_load_that_is_refused_leaves_nothing_behind_and_the_engine_goes_on(engine, adapters, tmp_path, prompts, expected):
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    add_to(engine, "red", adapters["red"])
    shutil.copytree(adapters["green"], tmp_path / "zero")
    weights = load_file(tmp_path / "zero" / "adapter_model.safetensors")
    save_file({n: torch.zeros_like(w) if "lora_B" in n else w for n, w in weights.items()},
              tmp_path / "zero" / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="changes nothing"):
        add_to(engine, "zero", tmp_path / "zero")
    assert len(engine._shared.shelf) == 1 and engine._shared.shelf.get(engine.find("red").adapter)
    assert ask(engine, "red", prompts[1]).ids == expected["red", 1]


def test_closing_tells_those_who_wait_to_load(engine, adapters):
    failed = []

    def add():
        try:
            add_to(engine, "red", adapters["red"])
        except TunesmithError as error:
            failed.append(str(error))

    with busy(engine):
        adder = threading.Thread(target=add)
        adder.start()
        wait_for(lambda: engine._changes)
        closer = threading.Thread(target=engine.close)
        closer.start()
        wait_for(lambda: engine._closing)
    for thread in (adder, closer):
        thread.join(LONGEST_WAIT)
        assert not thread.is_alive()
    assert failed and "stopping" in failed[0]
    with pytest.raises(TunesmithError, match="stopping"):
        add_to(engine, "red", adapters["red"])

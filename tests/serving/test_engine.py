"""One base and several adapters in one engine: each answers as it would alone, and a wrong one is not served.

pytest tests/serving/test_engine.py
"""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from tunesmith.errors import AdapterError, NotFoundError, TemplateError, TunesmithError
from tunesmith.models.base import resolve
from tunesmith.models.load import tokenizer_of
from tunesmith.serving.engine import Engine
from tunesmith.serving.sampling import Request
from tunesmith.serving.shared import ROWS
from tunesmith.template.fingerprint import fingerprint

LONGEST_WAIT = 60
NEVER = 2
BAD_TOKEN = 10**6


class Asked:
    """One request to an engine, and what came of it. `at_token(n)` runs on the worker's thread."""

    def __init__(self, engine, name, request, at_token=lambda _n: None):
        self.ids, self.finish, self.error, self.ended = [], None, None, threading.Event()
        self._at_token = at_token
        self.job = engine.submit(engine.find(name), request, self._token, self._error)

    def _token(self, token):
        assert not self.ended.is_set()
        if token.id is not None:
            self.ids.append(token.id)
        self._at_token(len(self.ids))
        if token.finish:
            self.finish = token.finish
            self.ended.set()

    def _error(self, error):
        assert not self.ended.is_set()
        self.error = error
        self.ended.set()

    def wait(self):
        assert self.ended.wait(LONGEST_WAIT), "neither an end nor an error came"
        return self


@contextmanager
def busy(engine):
    """The worker is held in a request, so that what is submitted meanwhile waits together."""
    started, go = threading.Event(), threading.Event()

    def at_token(_n):
        started.set()
        go.wait(LONGEST_WAIT)

    asked = Asked(engine, engine.base.ref, Request(prompt=[1], max_new_tokens=1), at_token)
    assert started.wait(LONGEST_WAIT)
    yield
    go.set()
    asked.wait()


def ask(engine, name, prompt, n=12, **sampling):
    return Asked(engine, name, Request(prompt=prompt, max_new_tokens=n, **sampling)).wait()


@pytest.fixture(scope="module")
def engine_of(lively_base, adapters):
    """Build engines with some of the adapters; they are closed at the end."""
    base = resolve(str(lively_base))
    tokenizer = tokenizer_of(base)
    made = []

    def build(*names: str) -> Engine:
        made.append(Engine(base, tokenizer, "float32", "cpu", 0))
        for name in names:
            made[-1].add([name], adapters[name], tokenizer, fingerprint(tokenizer), 0)
        return made[-1]

    yield build
    for engine in made:
        engine.close()


@pytest.fixture(scope="module")
def engine(engine_of):
    return engine_of("red", "green", "blue")


@pytest.fixture(scope="module")
def base_name(lively_base):
    return str(lively_base)


def key(name, base_name):
    return None if name == base_name else name


@pytest.fixture(scope="module")
def names(base_name):
    return [base_name, "red", "green", "blue"]


@pytest.fixture(scope="module")
def expected(names, base_name, prompts, reference, greedy):
    """{(name, prompt number): ids} from PEFT and transformers alone."""
    return {(n, i): greedy(reference(key(n, base_name)), p, 12, {NEVER}) for n in names for i, p in enumerate(prompts)}


def test_base_and_adapters_side_by_side_answer_as_each_alone(engine, names, prompts, expected):
    for name in [*names, *reversed(names)]:
        for i, prompt in enumerate(prompts):
            assert ask(engine, name, prompt).ids == expected[name, i], (name, i)
    for i in range(len(prompts)):
        assert len({tuple(expected[n, i]) for n in names}) == len(names), "each must answer differently"


def test_logits_equal_plain_peft(engine_of, names, base_name, prompts, reference):
    engine = engine_of("red", "green", "blue")  # of its own: the worker must not touch the model meanwhile
    for name in names:
        for prompt in prompts:
            mix = engine.find(name).mix
            served = engine._shared.probe(engine._shared.shelf.get(mix[0][0]) if mix else None, prompt)
            with torch.inference_mode():
                alone = reference(key(name, base_name))(input_ids=torch.tensor([prompt])).logits[0, -1]
            torch.testing.assert_close(served, alone, rtol=1e-4, atol=1e-4)


def test_concurrent_requests_to_different_adapters_never_mix(engine, names, prompts, expected):
    asked = [(name, i) for _ in range(3) for i in range(len(prompts)) for name in names]
    with ThreadPoolExecutor(8) as pool:
        answered = list(pool.map(lambda a: ask(engine, a[0], prompts[a[1]]).ids, asked))
    assert answered == [expected[a] for a in asked]


def test_requests_for_several_adapters_share_their_steps(engine, names, base_name, prompts, expected):
    with busy(engine):
        waiting = [(name, i, Asked(engine, name, Request(prompt=prompts[i], max_new_tokens=12)))
                   for name, i in (("green", 0), (base_name, 1), ("green", 2), (base_name, 3), ("green", 4))]
    assert [(a.wait().ids, a.finish) for _, _, a in waiting] == [(expected[n, i], "length") for n, i, _ in waiting]


def test_a_step_has_at_most_so_many_rows_and_the_rest_follows(engine_of, prompts):
    engine = engine_of()
    request, loads = Request(prompt=prompts[1], max_new_tokens=2), []
    with busy(engine):
        asked = [Asked(engine, engine.base.ref, request, lambda _n: loads.append(engine.load)) for _ in range(ROWS + 3)]
    assert len({tuple(a.wait().ids) for a in asked}) == 1
    assert loads[0] == {"running": ROWS, "waiting": 3}
    assert loads[-1] == {"running": 0, "waiting": 0}


def test_an_unknown_name_is_an_error_and_never_the_base(engine):
    with pytest.raises(NotFoundError, match="`redd` does not exist") as raised:
        engine.find("redd")
    assert "red, green, blue" in raised.value.why


def test_another_chat_template_is_refused(engine_of, lively_base, adapters):
    engine = engine_of("red")
    other = tokenizer_of(resolve(str(lively_base)))
    trained_with = fingerprint(other)
    other.chat_template = other.chat_template.replace("<|im_start|>assistant\n", "<|im_start|>assistant:\n")
    with pytest.raises(TemplateError, match="not the one this adapter was trained with"):
        engine.add(["green"], adapters["green"], other, trained_with, 0)
    assert "green" not in engine.served


def add_to(engine, name, folder):
    tokenizer = engine.find(engine.base.ref).tokenizer
    engine.add([name], folder, tokenizer, fingerprint(tokenizer), 0)


@pytest.mark.parametrize("beside", [(), ("red",)])
def test_an_adapter_that_changes_nothing_is_refused(engine_of, adapters, tmp_path, beside, prompts, base_name, expected):
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapters["green"], tmp_path / "zero")
    weights = load_file(tmp_path / "zero" / "adapter_model.safetensors")
    save_file({n: torch.zeros_like(w) if "lora_B" in n else w for n, w in weights.items()},
              tmp_path / "zero" / "adapter_model.safetensors", metadata={"format": "pt"})
    engine = engine_of(*beside)
    with pytest.raises(AdapterError, match="changes nothing"):
        add_to(engine, "zero", tmp_path / "zero")
    assert "zero" not in engine.served
    for name in (base_name, *beside):
        assert ask(engine, name, prompts[1]).ids == expected[name, 1]


@pytest.mark.parametrize("beside", [(), ("red",)])
def test_an_adapter_of_another_base_is_refused(engine_of, adapters, tmp_path, beside):
    """The same architecture with another width, and the right width with a layer that this base does not have."""
    from safetensors.torch import load_file, save_file

    weights = load_file(adapters["green"] / "adapter_model.safetensors")
    wrong = {"wider": {n: w.repeat(1, 2) if "lora_A" in n else w for n, w in weights.items()},
             "deeper": weights | {n.replace("layers.1.", "layers.2."): w.clone() for n, w in weights.items()},
             "thinner": {n: w for n, w in weights.items() if "layers.1." not in n}}
    engine = engine_of(*beside)
    for name, tensors in wrong.items():
        shutil.copytree(adapters["green"], tmp_path / name)
        save_file(tensors, tmp_path / name / "adapter_model.safetensors", metadata={"format": "pt"})
        with pytest.raises(AdapterError, match="does not fit this base|do not match"):
            add_to(engine, name, tmp_path / name)
        assert name not in engine.served


def test_an_adapter_whose_config_asks_for_another_rank_is_refused(engine_of, adapters, tmp_path):
    shutil.copytree(adapters["green"], tmp_path / "rank")
    config = json.loads((tmp_path / "rank" / "adapter_config.json").read_text())
    (tmp_path / "rank" / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(AdapterError):
        add_to(engine_of(), "rank", tmp_path / "rank")


def test_an_error_in_the_worker_reaches_its_request_and_the_engine_lives_on(engine, prompts, expected):
    broken = ask(engine, "red", [1, BAD_TOKEN])
    assert isinstance(broken.error, IndexError)
    assert broken.finish is None
    assert ask(engine, "red", prompts[1]).ids == expected["red", 1]
    assert engine.load == {"running": 0, "waiting": 0}


def test_a_callback_that_fails_ends_its_own_request_only(engine, prompts, expected):
    def fail(_n):
        raise RuntimeError("the event loop is closed")

    with busy(engine):
        failing = Asked(engine, "green", Request(prompt=prompts[1], max_new_tokens=12), fail)
        companion = Asked(engine, "green", Request(prompt=prompts[2], max_new_tokens=12))
    assert companion.wait().ids == expected["green", 2]
    assert len(failing.ids) == 1, "it is cancelled at its first token"
    assert ask(engine, "blue", prompts[3]).ids == expected["blue", 3]


def test_a_callback_that_fails_on_an_error_does_not_end_the_worker(engine, prompts, expected):
    def fail(_error):
        raise RuntimeError("the event loop is closed")

    engine.submit(engine.find("red"), Request(prompt=[BAD_TOKEN], max_new_tokens=1), lambda _t: None, fail)
    assert ask(engine, "green", prompts[1]).ids == expected["green", 1]


def test_a_cancelled_request_ends(engine, prompts, expected):
    asked = Asked(engine, "red", Request(prompt=prompts[1], max_new_tokens=400), lambda n: n == 3 and asked.job.cancel())
    assert (asked.wait().ids, asked.finish) == (expected["red", 1][:3], "stop")


def test_closing_leaves_no_request_without_an_end_and_no_half_answer_that_looks_whole(engine_of, prompts):
    engine = engine_of("red")
    generating, hold = threading.Event(), threading.Event()

    def at_token(n):
        if n == 2:
            generating.set()
            hold.wait(LONGEST_WAIT)

    running = Asked(engine, "red", Request(prompt=prompts[1], max_new_tokens=50), at_token)
    assert generating.wait(LONGEST_WAIT)
    waiting = Asked(engine, engine.base.ref, Request(prompt=prompts[2], max_new_tokens=5))
    closer = threading.Thread(target=engine.close)
    closer.start()
    while not engine._closing:
        closer.join(0.01)
    hold.set()
    for asked in (running, waiting):
        assert "stopping" in str(asked.wait().error)
        assert asked.finish is None
    closer.join(LONGEST_WAIT)
    assert not closer.is_alive()
    with pytest.raises(TunesmithError, match="stopping"):
        engine.submit(engine.find("red"), Request(prompt=prompts[1], max_new_tokens=5), lambda _t: None, lambda _e: None)

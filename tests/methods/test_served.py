"""A served answer of every method is the one that transformers' own `generate` gives, in company and alone.

python -m pytest tests/methods/test_served.py
"""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from peft import PeftModel
from tests.methods import reference
from tests.methods.reference import METHODS, NOT_PEFT, moved

from tunesmith import methods
from tunesmith.errors import AdapterError
from tunesmith.models.base import resolve
from tunesmith.models.load import model_of, tokenizer_of
from tunesmith.serving.engine import Engine
from tunesmith.serving.generate import answers, generate
from tunesmith.serving.sampling import Request
from tunesmith.template.fingerprint import fingerprint

LENGTH = 12
NAMES = [n for n in METHODS if n != "ia3 named"]


@pytest.fixture(scope="module")
def base(lively_base):
    return resolve(str(lively_base))


@pytest.fixture(scope="module")
def tokenizer(base):
    return tokenizer_of(base)


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[list[int]]:
    texts = ["4", "37 Oak Street", "12 Elm Street Cedar Rapids IA 52401", "Main " * 20]
    return [tokenizer(t)["input_ids"] for t in texts]


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory) -> dict:
    """An adapter of each method on the lively base, far enough from its start to answer otherwise."""
    made = {}
    for name in NAMES:
        torch.manual_seed(1)
        model = methods.attach(model_of(base, torch.float32), METHODS[name], "tiny")
        made[name] = tmp_path_factory.mktemp(name.replace(" ", "-"))
        methods.save(moved(model, std=0.3 if "noise" not in name else 1.0), made[name])
    return made


@pytest.fixture(scope="module")
def engine(base, tokenizer, folders):
    made = Engine(base, tokenizer, "float32", "cpu", 0)
    for name, folder in folders.items():
        made.add([name], folder, tokenizer, fingerprint(tokenizer), 0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def alone(base, folders):
    """`alone(name)`: the adapter on a base of its own, by PEFT where PEFT knows it."""

    def make(name: str):
        model = model_of(base, torch.float32)
        if name in NOT_PEFT:
            return methods.load(model, folders[name]).eval()
        if name.startswith("qlora"):
            from tunesmith.methods.qlora import quantise

            quantise(model, METHODS[name].block_size, METHODS[name].double_quant)
        return PeftModel.from_pretrained(model, str(folders[name])).eval()

    return make


def greedy(model, prompt: list[int]) -> list[int]:
    """By transformers, which stops nowhere here."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=LENGTH, do_sample=False,
                             eos_token_id=None, pad_token_id=0)[0].tolist()
    return out[len(prompt) :]


def ask(engine: Engine, asked: list[tuple[str, list[int]]]) -> list[list[int]]:
    """All at once; stop tokens do not end an answer."""
    found: list[list[int]] = [[] for _ in asked]
    ended = [threading.Event() for _ in asked]
    failed: list[BaseException] = []

    def on_token(row):
        def take(token):
            if token.id is not None:
                found[row].append(token.id)
            if token.finish:
                ended[row].set()

        return take

    for row, (name, prompt) in enumerate(asked):
        served = engine.find(name)
        endless = type(served)(**{f: getattr(served, f) for f in served.__slots__} | {"stop_ids": frozenset()})
        engine.submit(endless, Request(prompt=prompt, max_new_tokens=LENGTH), on_token(row), failed.append)
    for event in ended:
        assert event.wait(60) and not failed, failed
    return found


def test_every_method_answers_as_generate_does_and_all_are_mixed(engine, alone, prompts):
    asked = [(name, prompt) for prompt in prompts for name in NAMES]
    found = ask(engine, asked)
    models = {name: alone(name) for name in NAMES}
    wrong = [(name, len(prompt)) for (name, prompt), answer in zip(asked, found, strict=True)
             if answer != greedy(models[name], prompt)]
    assert not wrong
    assert len({tuple(a) for (n, p), a in zip(asked, found, strict=True) if p == prompts[2]}) > len(NAMES) // 2


def test_the_base_stays_the_base(engine, base, prompts):
    want = [greedy(model_of(base, torch.float32), p) for p in prompts]
    assert ask(engine, [(base.ref, p) for p in prompts]) == want


@pytest.mark.parametrize("name", ["prompt", "prefix", "full", "bottleneck"])
def test_rows_of_a_batch_are_what_each_is_alone(base, folders, prompts, name):
    model = methods.load(model_of(base, torch.float32), folders[name])
    together = [[] for _ in prompts]
    for token in generate(model, [Request(prompt=p, max_new_tokens=LENGTH) for p in prompts], set()):
        together[token.row].append(token.id)
    assert together == [greedy(model, p) for p in prompts]


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_a_shared_beginning_is_read_once_behind_the_virtual_tokens(base, folders, tokenizer, name):
    model = methods.load(model_of(base, torch.float32), folders[name])
    shared = tokenizer("Main Street " * 30)["input_ids"]
    prompts = [[*shared[:280], n] for n in (5, 6, 7, 8)]  # long enough to be shared: see generate.WORTH_SHARING
    got = answers(model, tokenizer, prompts, set(), max_new_tokens=6, batch_size=4)
    one = [answers(model, tokenizer, [p], set(), max_new_tokens=6, batch_size=1)[0] for p in prompts]
    assert got == one


def test_virtual_tokens_are_taken_off_the_context(engine, base):
    whole = engine.find(base.ref).context_tokens
    assert engine.find("prompt").context_tokens == engine.find("prefix").context_tokens == whole - 5
    assert engine.find("lora").context_tokens == whole


def test_what_stands_alone_shares_the_weights_of_its_base(engine):
    alone = engine._alone
    of_base = {p.data_ptr() for p in alone.model.parameters()}
    standing = [name for name in NAMES if not engine.find(name).mix]
    assert standing and not {"lora", "rslora", "patterns", "dora", "prompt", "prefix", "bottleneck", "ia3"} & set(standing)
    trees = {name: alone.answering(engine.find(name).adapter) for name in standing}
    for name, tree in trees.items():
        own = {p.data_ptr() for p in tree.get_base_model().parameters()}
        assert of_base & own or NAMES and name.startswith("full"), name


def test_an_adapter_that_changes_nothing_is_not_served(base, tokenizer, tmp_path):
    model = methods.attach(model_of(base, torch.float32), METHODS["bottleneck"], "tiny")
    methods.save(model, tmp_path)
    engine = Engine(base, tokenizer, "float32", "cpu", 0)
    try:
        with pytest.raises(AdapterError, match="changes nothing"):
            engine.add(["still"], tmp_path, tokenizer, fingerprint(tokenizer), 0)
        assert "still" not in engine.served
    finally:
        engine.close()


@pytest.mark.slow
def test_every_method_can_be_removed_and_leaves_nothing_to_the_others(base, tokenizer, folders, alone, prompts):
    engine = Engine(base, tokenizer, "float32", "cpu", 0)
    try:
        for name, folder in folders.items():
            engine.add([name], folder, tokenizer, fingerprint(tokenizer), 0)
        for at, name in enumerate(NAMES[:-1]):
            engine.remove(name)
            following = NAMES[at + 1]
            assert ask(engine, [(following, prompts[1])]) == [greedy(alone(following), prompts[1])]
        engine.remove(NAMES[-1])
        assert not engine._alone._trees and not engine._alone._carriers and not len(engine._shared.shelf)
        assert ask(engine, [(base.ref, prompts[1])]) == [greedy(model_of(base, torch.float32), prompts[1])]
    finally:
        engine.close()


@pytest.mark.parametrize("name", ["prompt", "prefix", "bottleneck", "full"])
def test_nothing_goes_beside_what_stands_alone(decoder, saved, attached, name):
    model = methods.load(decoder(), saved(name))
    before = reference.logits(model)
    other = saved("lora", attached("lora"))
    for folder in (other, saved("ia3")):
        with pytest.raises(AdapterError):
            methods.load(model, folder)
    assert torch.equal(reference.logits(model), before)


def test_virtual_tokens_do_not_go_on_a_base_with_lora(decoder, saved):
    model = methods.load(decoder(), saved("lora"))
    before = copy.deepcopy(list(model.state_dict()))
    for name in ("prompt", "prefix", "bottleneck", "full", "ia3"):
        with pytest.raises(AdapterError, match="does not go beside another"):
            methods.load(model, saved(name))
    with pytest.raises(AdapterError, match="trained on a quantised base"):
        methods.load(model, saved("qlora"))
    assert list(model.state_dict()) == before

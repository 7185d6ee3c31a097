"""Requests that share the base's passes: whatever the company, the pages, and adapters that come and go, each is answered as
alone.

pytest tests/serving/test_shared.py
"""

import shutil
import threading

import pytest
import torch
from tests.serving.test_engine import NEVER, Asked, add_to, ask, busy

from tunesmith.engine.native import decode
from tunesmith.errors import AdapterError, BusyError, UsageError
from tunesmith.models.base import resolve
from tunesmith.models.load import tokenizer_of
from tunesmith.serving import shared
from tunesmith.serving.blocks import BLOCK
from tunesmith.serving.engine import Engine
from tunesmith.serving.sampling import Request
from tunesmith.serving.schedule import TOKENS_A_STEP

COLOURS = ("red", "green", "blue")


@pytest.fixture
def engine_of(lively_base, adapters):
    """Build engines with adapters; they are closed at the end."""
    base = resolve(str(lively_base))
    made = []

    def build(*names, **options) -> Engine:
        made.append(Engine(base, tokenizer_of(base), options.pop("dtype", "float32"), "cpu", 0, **options))
        for name in names:
            add_to(made[-1], name, adapters[name])
        return made[-1]

    yield build
    for engine in made:
        engine.close()


@pytest.fixture(scope="module")
def long_prompts(prompts) -> list[list[int]]:
    """Prompts of several blocks, and of more tokens than a step has."""
    pool = [t for p in prompts for t in p]
    return [[pool[(7 * i + j * j) % len(pool)] for j in range(n)] for i, n in enumerate((33, 64, 100, 300, 31, 32, 190))]


def all_at_once(engine, asked):
    """The answers to requests that are queued together."""
    with busy(engine):
        waiting = [Asked(engine, name, request) for name, request in asked]
    return [a.wait() for a in waiting]


def test_a_block_of_the_scheduler_is_a_page_of_the_kernels():
    assert BLOCK == decode.BLOCK


def test_long_prompts_are_read_in_pieces_between_the_answers_of_others(engine_of, long_prompts, reference, greedy):
    engine = engine_of(*COLOURS)
    names = [None, *COLOURS]
    asked = [(names[i % 4], p) for i, p in enumerate(long_prompts)]
    answered = all_at_once(engine, [(n or engine.base.ref, Request(prompt=p, max_new_tokens=12)) for n, p in asked])
    assert [a.ids for a in answered] == [greedy(reference(n), p, 12, {NEVER}) for n, p in asked]


def test_a_prompt_that_takes_whole_steps_is_answered_alone_too(engine_of, long_prompts, reference, greedy):
    engine = engine_of("red")
    prompt = max(long_prompts, key=len)
    assert len(prompt) > TOKENS_A_STEP, "its first step has nothing to answer"
    for name in (None, "red"):
        assert ask(engine, name or engine.base.ref, prompt).ids == greedy(reference(name), prompt, 12, {NEVER})


def test_with_too_few_pages_rows_wait_and_are_read_again(engine_of, long_prompts, reference, greedy):
    """Pages for little more than one context: rows are preempted, and nobody's answer changes."""
    engine = engine_of(*COLOURS, cache_bytes=1)
    scheduler = engine._shared._scheduler
    assert scheduler.blocks.count == 512 // BLOCK
    asked = [(name, p) for p in long_prompts if len(p) < 200 for name in COLOURS]
    answered = all_at_once(engine, [(n, Request(prompt=p, max_new_tokens=120)) for n, p in asked])
    assert [a.ids for a in answered] == [greedy(reference(n), p, 120, {NEVER}) for n, p in asked]
    assert scheduler.preemptions, "it was tight"
    assert scheduler.blocks.available == scheduler.blocks.count, "and everything was given back"


def test_what_was_read_is_not_read_again_and_never_for_another_adapter(engine_of, long_prompts, reference, greedy):
    engine = engine_of("red", "green")
    prompt, rows = long_prompts[2], []
    add = engine._shared._scheduler.add
    engine._shared._scheduler.add = lambda row: (rows.append(row), add(row))
    for name in ("red", "red", "green", None, "green", None):
        said = ask(engine, name or engine.base.ref, prompt).ids
        assert said == greedy(reference(name), prompt, 12, {NEVER})
    whole = (len(prompt) - 1) // BLOCK * BLOCK
    assert [row.cached for row in rows] == [0, whole, 0, 0, whole, whole]


def test_adapters_beyond_the_budget_leave_and_come_back(engine_of, prompts, reference, greedy):
    engine = engine_of(*COLOURS, adapter_bytes=1)
    assert engine._shared.shelf.loaded == 1 and len(engine._shared.shelf) == 3
    asked = [(name, p) for p in prompts for name in COLOURS]
    answered = all_at_once(engine, [(n, Request(prompt=p, max_new_tokens=8)) for n, p in asked])
    assert [a.ids for a in answered] == [greedy(reference(n), p, 8, {NEVER}) for n, p in asked]
    assert engine._shared.shelf.loaded == 1 and engine._shared.shelf.reads >= 3


def test_an_adapter_that_comes_back_as_another_one_is_refused(engine_of, adapters, tmp_path, prompts):
    shutil.copytree(adapters["red"], tmp_path / "voice")
    engine = engine_of("blue", adapter_bytes=1)
    add_to(engine, "voice", tmp_path / "voice")
    add_to(engine, "green", adapters["green"])
    shutil.rmtree(tmp_path / "voice")
    shutil.copytree(adapters["blue"], tmp_path / "voice")
    refused = ask(engine, "voice", prompts[1])
    assert isinstance(refused.error, AdapterError) and "another one now" in refused.error.what and refused.ids == []
    shutil.rmtree(tmp_path / "voice")
    assert isinstance(ask(engine, "voice", prompts[1]).error, AdapterError)
    assert ask(engine, "blue", prompts[1]).ids, "the others are answered"


def test_a_mix_is_the_sum_of_its_adapters_with_their_weights(engine_of, adapters, lively_base, prompts, greedy):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    engine = engine_of(*COLOURS)
    weights = {"red": 0.5, "blue": -0.25}
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(lively_base, dtype=torch.float32), adapters["red"],
                                      adapter_name="red")
    model.load_adapter(adapters["blue"], "blue")
    model.base_model.set_adapter(list(weights))
    for module in model.modules():
        for name, weight in weights.items():
            if isinstance(getattr(module, "scaling", None), dict) and name in module.scaling:
                module.scaling[name] *= weight
    served = engine.mixed([(engine.find(name), weight) for name, weight in weights.items()])
    for prompt in prompts:
        (tokens,) = engine.ask(served, [Request(prompt=prompt, max_new_tokens=12)])
        assert [t.id for t in tokens] == greedy(model, prompt, 12, {NEVER})
    alone = engine.mixed([(engine.find("red"), 1.0)])
    assert [t.id for t in engine.ask(alone, [Request(prompt=prompts[1], max_new_tokens=12)])[0]] == ask(
        engine, "red", prompts[1]).ids


def test_what_cannot_be_mixed_says_so(engine_of):
    engine = engine_of("red")
    for part, word in (((engine.find(engine.base.ref), 1.0), "cannot be mixed"), ((engine.find("red"), float("nan")), "nan")):
        with pytest.raises(UsageError, match=word):
            engine.mixed([(engine.find("red"), 1.0), part])


def test_scores_of_a_prompt_are_the_models_own(engine_of, long_prompts, reference):
    """Also of one whose beginning is in the pages already, and that is read in pieces."""
    engine = engine_of("red")
    prompt = long_prompts[3]
    ask(engine, "red", prompt)
    (tokens,) = engine.ask(engine.find("red"), [Request(prompt=prompt, max_new_tokens=2, logprobs=1, echo=True)])
    with torch.inference_mode():
        logp = reference("red")(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
    said = tokens[0].scores[: len(prompt)]
    assert [s.id for s in said] == prompt and said[0].logprob is None
    want = logp[:-1].gather(1, torch.tensor(prompt[1:])[:, None]).squeeze(1)
    torch.testing.assert_close(torch.tensor([s.logprob for s in said[1:]]), want, rtol=1e-4, atol=1e-4)


def test_the_same_bits_in_any_company(engine_of, prompts, long_prompts):
    """Log-probabilities of an answer, alone and among others, in bfloat16: the kernels sum in one order."""
    engine = engine_of(*COLOURS, dtype="bfloat16")
    if engine._shared._runner.library is None:
        pytest.skip("there is no compiler: torch's products depend on their shapes")
    request = Request(prompt=long_prompts[1], max_new_tokens=16, logprobs=2)
    alone = engine.ask(engine.find("green"), [request])[0]
    with busy(engine):
        others = [Asked(engine, name, Request(prompt=p, max_new_tokens=20))
                  for name in COLOURS for p in (prompts[3], long_prompts[0])]
        done = threading.Event()
        told = []
        engine.submit(engine.find("green"), request, lambda t: (told.append(t), t.finish and done.set()), lambda _e: done.set())
    assert done.wait(60) and [(t.id, t.scores) for t in told] == [(t.id, t.scores) for t in alone]
    for other in others:
        other.wait()


def test_who_comes_when_too_many_wait_is_told_to_come_back(engine_of, prompts):
    engine = engine_of(waiting_most=2)
    request = Request(prompt=prompts[1], max_new_tokens=1)
    with busy(engine):
        kept = [Asked(engine, engine.base.ref, request) for _ in range(2)]
        with pytest.raises(BusyError, match="waiting already"):
            engine.refuse_if_full()
        kept += [Asked(engine, engine.base.ref, request) for _ in range(3)]
    for asked in kept:
        assert asked.wait().finish
    engine.refuse_if_full()
    assert ask(engine, engine.base.ref, prompts[1], 1).finish


def test_a_request_that_could_never_be_held_is_refused(engine_of, prompts):
    engine = engine_of(cache_bytes=1)
    refused = ask(engine, engine.base.ref, prompts[1] * 40, 600)
    assert isinstance(refused.error, UsageError) and ask(engine, engine.base.ref, prompts[1]).finish


def test_without_kernels_the_answers_are_the_same(engine_of, prompts, long_prompts, reference, greedy, monkeypatch):
    from tunesmith.engine.native import build

    monkeypatch.setattr(build, "start", lambda: "no compiler")
    monkeypatch.setattr(build, "library_for", lambda _x: None)
    engine = engine_of(*COLOURS)
    assert engine._shared._runner.library is None
    asked = [(name, p) for p in (*prompts, *long_prompts[:3]) for name in (None, *COLOURS)]
    answered = all_at_once(engine, [(n or engine.base.ref, Request(prompt=p, max_new_tokens=8)) for n, p in asked])
    assert [a.ids for a in answered] == [greedy(reference(n), p, 8, {NEVER}) for n, p in asked]


def test_an_architecture_that_steps_are_not_exact_for_is_answered_batch_by_batch(tmp_path, prompts):
    """GPT-2 has positions of its own and fused weights that are no linear layer."""
    from tests.conftest import build_tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = build_tokenizer(tmp_path)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128, vocab_size=len(tokenizer),
                               bos_token_id=1, eos_token_id=2)).save_pretrained(tmp_path)
    base = resolve(str(tmp_path))
    engine = Engine(base, tokenizer_of(base), "float32", "cpu", 0)
    try:
        assert "gpt2" in engine.why_alone and engine._shared is None
        model = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
        for prompt in prompts[:3]:
            ids = torch.tensor([prompt])
            want = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False,
                                  pad_token_id=0, eos_token_id=2)[0, len(prompt):].tolist()
            assert ask(engine, engine.base.ref, prompt, 6).ids == [t for t in want if t != 2]
    finally:
        engine.close()


def test_the_number_of_rows_at_once_is_not_exceeded(engine_of, prompts):
    engine = engine_of("red")
    seen, request = [], Request(prompt=prompts[1], max_new_tokens=3)
    with busy(engine):
        asked = [Asked(engine, name, request, lambda _n: seen.append(engine.load["running"]))
                 for name in (engine.base.ref, "red") for _ in range(shared.ROWS)]
    for one in asked:
        one.wait()
    assert max(seen) <= shared.ROWS

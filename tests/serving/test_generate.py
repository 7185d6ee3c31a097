"""One generation loop for evaluation and serving: each row of a batch is what it would be alone.

pytest tests/serving/test_generate.py
"""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tunesmith.serving import generate as module
from tunesmith.serving.generate import answers, generate
from tunesmith.serving.sampling import Request, Sampler

NEVER = 2  # <|im_end|>: these random models do not say it greedily
LENGTHS = (1, 5, 9, 20, 13, 2)


def collect(model, requests, stops, cancelled=lambda _row: False):
    """[(ids, finish)] of each row, and the order in which tokens came."""
    ids, finish, order = [[] for _ in requests], [None] * len(requests), []
    for t in generate(model, requests, stops, cancelled):
        assert finish[t.row] is None, "a row spoke after it had finished"
        order.append(t.row)
        if t.id is not None:
            ids[t.row].append(t.id)
        finish[t.row] = t.finish
    return list(zip(ids, finish, strict=True)), order


def test_greedy_rows_of_a_ragged_batch_equal_transformers_on_each_prompt_alone(plain_model, prompts, greedy):
    rows, _ = collect(plain_model, [Request(prompt=p, max_new_tokens=20) for p in prompts], {NEVER})
    expected = [greedy(plain_model, p, 20, {NEVER}) for p in prompts]
    assert [ids for ids, _ in rows] == expected
    assert len({tuple(ids) for ids in expected}) == len(prompts), "the prompts must be told apart for this to mean anything"


def test_a_shared_prefix_is_read_once_and_changes_no_answer(plain_model, prompts, greedy, monkeypatch):
    """Also when one prompt is the prefix of all others, and when the rest of the prompts differ in length."""
    shared = prompts[3] * 4
    family = [shared, *(shared + p for p in prompts)]
    expected = [greedy(plain_model, p, 12, {NEVER}) for p in family]
    monkeypatch.setattr(module, "WORTH_SHARING", 10**9)
    apart, read_apart = counted(plain_model, family)
    monkeypatch.setattr(module, "WORTH_SHARING", 1)
    together, read_once = counted(plain_model, family)
    assert apart == together == expected
    assert read_once < read_apart / 2
    assert counted(plain_model, prompts)[0] == [greedy(plain_model, p, 12, {NEVER}) for p in prompts], "nothing to share"


def counted(model, prompts):
    """Greedy answers, and how many tokens went through the model to read the prompts (pads too)."""
    widths = []
    handle = model.register_forward_pre_hook(lambda _m, _args, kwargs: widths.append(kwargs["input_ids"].numel()),
                                             with_kwargs=True)
    rows, _ = collect(model, [Request(prompt=p, max_new_tokens=12) for p in prompts], {NEVER})
    handle.remove()
    return [ids for ids, _ in rows], sum(w for w in widths if w > len(prompts))


def test_rows_leave_the_batch_without_changing_the_others(plain_model, prompts, greedy):
    requests = [Request(prompt=p, max_new_tokens=n) for p, n in zip(prompts, LENGTHS, strict=True)]
    rows, order = collect(plain_model, requests, {NEVER})
    assert rows == [(greedy(plain_model, p, n, {NEVER}), "length") for p, n in zip(prompts, LENGTHS, strict=True)]
    assert Counter(order) == dict(enumerate(LENGTHS))
    assert order[:6] == [0, 1, 2, 3, 4, 5], "all rows move together"


def test_a_stop_token_ends_its_row_and_is_not_part_of_the_answer(plain_model, prompts, greedy):
    free = [greedy(plain_model, p, 20, {NEVER}) for p in prompts]
    stop = free[2][4]
    stops = {NEVER, stop}
    rows, _ = collect(plain_model, [Request(prompt=p, max_new_tokens=20) for p in prompts], stops)
    for (ids, finish), unstopped in zip(rows, free, strict=True):
        ends = stop in unstopped
        assert ids == (unstopped[: unstopped.index(stop)] if ends else unstopped)
        assert finish == ("stop" if ends else "length")
    assert rows[2][1] == "stop"


def test_a_stop_token_at_the_length_limit_is_a_stop(plain_model, prompts, greedy):
    first_four = greedy(plain_model, prompts[2], 4, {NEVER})
    at = first_four.index(first_four[3])
    rows, _ = collect(plain_model, [Request(prompt=prompts[2], max_new_tokens=at + 1)], {first_four[3]})
    assert rows == [(first_four[:at], "stop")]


def test_a_cancelled_row_ends_and_the_others_go_on(plain_model, prompts, greedy):
    seen = Counter()

    def cancelled(row):
        seen[row] += 1
        return row == 1 and seen[row] > 3

    rows, _ = collect(plain_model, [Request(prompt=p, max_new_tokens=12) for p in prompts], {NEVER}, cancelled)
    for i, (p, (ids, finish)) in enumerate(zip(prompts, rows, strict=True)):
        assert ids == greedy(plain_model, p, 12, {NEVER})[: 3 if i == 1 else 12]
        assert finish == ("stop" if i == 1 else "length")


def test_a_seed_gives_the_same_sample_alone_and_in_any_company(plain_model, prompts):
    mine = Request(prompt=prompts[1], max_new_tokens=16, temperature=1.0, seed=7)
    others = [Request(prompt=p, max_new_tokens=n, temperature=1.3, top_p=0.9) for p, n in zip(prompts, LENGTHS, strict=True)]
    (alone,), _ = collect(plain_model, [mine], {NEVER})
    first, _ = collect(plain_model, [mine, *others], {NEVER})
    last, _ = collect(plain_model, [*others, mine], {NEVER})
    (other_seed,), _ = collect(plain_model, [Request(prompt=prompts[1], max_new_tokens=16, temperature=1.0, seed=8)], {NEVER})
    assert alone == first[0] == last[-1]
    assert alone != other_seed


def test_samples_without_a_seed_differ(plain_model, prompts):
    requests = [Request(prompt=prompts[1], max_new_tokens=16, temperature=1.0) for _ in range(4)]
    rows, _ = collect(plain_model, requests, {NEVER})
    assert len({tuple(ids) for ids, _ in rows}) == 4


LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.floats(0.05, 0.99), st.floats(0.1, 2.0), st.integers(0, 2**31))
def test_top_p_draws_only_from_the_smallest_set_that_has_the_mass(logits, top_p, temperature, seed):
    sampler = Sampler(Request(prompt=[0], max_new_tokens=1, temperature=temperature, top_p=top_p, seed=seed), "cpu")
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    p = [w / sum(weights) for w in weights]
    drawn = {sampler(torch.tensor(logits)) for _ in range(30)}
    for token in drawn:
        more_likely = sum(q for q in p if q > p[token] * (1 + 1e-5))
        assert more_likely < top_p + 1e-5, f"token {token} lies outside the nucleus: {p}"


def test_without_top_p_tokens_are_drawn_with_the_probabilities_of_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    sampler = Sampler(Request(prompt=[0], max_new_tokens=1, temperature=1.5, seed=3), "cpu")
    counts = Counter(sampler(logits) for _ in range(4000))
    expected = 4000 * (logits.double() / 1.5).softmax(-1)
    assert chisquare([counts[i] for i in range(4)], expected.numpy()).pvalue > 0.01


@pytest.mark.parametrize("temperature", [1e-4, 1e-20, 1e-45, 1e-300])
def test_the_coldest_temperatures_are_greedy_and_do_not_overflow(temperature):
    sampler = Sampler(Request(prompt=[0], max_new_tokens=1, temperature=temperature, top_p=0.5, seed=0), "cpu")
    assert sampler(torch.tensor([-300.0, 250.0, 250.5, 1.0])) == 2


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_answers_come_in_the_order_of_the_prompts_whatever_the_batches(plain_model, lively_base, prompts, greedy, batch_size):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(lively_base)
    stop = greedy(plain_model, prompts[2], 20, {NEVER})[4]
    made = answers(plain_model, tokenizer, prompts, {NEVER, stop}, max_new_tokens=10, batch_size=batch_size)
    alone = [greedy(plain_model, p, 10, {NEVER}) for p in prompts]
    cut = [ids[: ids.index(stop)] if stop in ids else ids for ids in alone]
    assert made == [(tokenizer.decode(ids, skip_special_tokens=True), stop in whole)
                    for ids, whole in zip(cut, alone, strict=True)]

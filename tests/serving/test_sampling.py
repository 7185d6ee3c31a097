"""Penalties, biases and the tokens that may be drawn, against a slow reference in float64 that is written here.

pytest tests/serving/test_sampling.py
"""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tunesmith.serving.generate import generate
from tunesmith.serving.sampling import Request, Sampler

NEVER = 2
N = 14
ASKED = [{"frequency_penalty": 0.7}, {"frequency_penalty": -0.4, "presence_penalty": 1.1}, {"presence_penalty": -2.0},
         {"repetition_penalty": 1.4}, {"repetition_penalty": 0.8, "frequency_penalty": 2.0},
         {"logit_bias": {5: 3.5, 9: -100, 40: -7}}]


def said(model, requests, stops=frozenset({NEVER})):
    rows = [([], []) for _ in requests]
    for token in generate(model, requests, set(stops)):
        if token.id is not None:
            rows[token.row][0].append(token.id)
        if token.finish:
            rows[token.row][1].append(token.finish)
    return [(ids, *finish) for ids, finish in rows]


def changed(logits: list[float], prompt: list[int], made: list[int], *, frequency_penalty=0.0, presence_penalty=0.0,
            repetition_penalty=1.0, logit_bias=None) -> list[float]:
    """One token at a time, as the formulas of OpenAI's and Hugging Face's documentation say it."""
    counts, out = Counter(made), []
    for token, x in enumerate(logits):
        if token in prompt or token in made:
            x = x / repetition_penalty if x > 0 else x * repetition_penalty
        x = x - counts[token] * frequency_penalty - (1.0 if counts[token] > 0 else 0.0) * presence_penalty
        bias = (logit_bias or {}).get(token, 0.0)
        out.append(-math.inf if bias == -100 else x + bias)
    return out


def by_hand(model, prompt: list[int], n: int, **asked) -> list[int]:
    """Greedy, the whole text read anew for each token, in float64."""
    made: list[int] = []
    for _ in range(n):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + made])).logits[0, -1].double().tolist()
        logits = changed(logits, prompt, made, **asked)
        made.append(max(range(len(logits)), key=logits.__getitem__))
    return made


def test_greedy_answers_under_penalties_and_biases_are_those_of_the_formulas(plain_model, prompts):
    """All in one batch, beside rows that ask for nothing."""
    asked = [a for one in ASKED for a in (one, {})]
    rows = said(plain_model, [Request(prompt=p, max_new_tokens=N, **a) for a in asked for p in prompts[1:4]], {10**6})
    expected = [by_hand(plain_model, p, N, **a) for a in asked for p in prompts[1:4]]
    assert [ids for ids, _ in rows] == expected
    plain = expected[3:6]
    for i, a in enumerate(ASKED):
        assert expected[6 * i : 6 * i + 3] != plain, f"{a} must change something for this to mean anything"


LOGITS = st.lists(st.floats(-9, 9, width=32), min_size=3, max_size=10)


@settings(max_examples=100, deadline=None)
@given(st.data(), LOGITS)
def test_the_distribution_is_the_softmax_of_the_changed_logits(data, logits):
    tokens = st.integers(0, len(logits) - 1)
    prompt, made = data.draw(st.lists(tokens, min_size=1, max_size=5)), data.draw(st.lists(tokens, max_size=6))
    asked = {"frequency_penalty": data.draw(st.floats(-2, 2)), "presence_penalty": data.draw(st.floats(-2, 2)),
             "repetition_penalty": data.draw(st.floats(0.5, 2)),
             "logit_bias": data.draw(st.dictionaries(tokens, st.floats(-99, 100) | st.just(-100.0), max_size=len(logits) - 1))}
    temperature = data.draw(st.floats(0.2, 2))
    sampler = Sampler(Request(prompt=prompt, max_new_tokens=9, temperature=temperature, seed=0, **asked), "cpu")
    given_V = torch.tensor(logits)
    sampler.adjusted(given_V)
    for token in made:
        sampler._take(token)
    got = sampler.distribution(sampler.adjusted(given_V)).tolist()
    want = torch.tensor(changed(logits, prompt, made, **asked), dtype=torch.float64).div(temperature).softmax(0).tolist()
    assert got == pytest.approx(want, abs=2e-4)
    assert given_V.tolist() == torch.tensor(logits).tolist(), "what is scored afterwards is not touched"
    for token, bias in asked["logit_bias"].items():
        if bias == -100:
            assert got[token] == 0.0


def test_what_is_drawn_under_a_bias_has_the_probabilities_that_follow_from_the_reported_scores(plain_model, prompts):
    """Scores are the model's own, before the bias: so they tell what the bias must make of them."""
    bias = {11: 4.0, 12: -100, 13: 6.5}
    draws = [Request(prompt=prompts[2], max_new_tokens=1, temperature=1.0, seed=seed, logit_bias=bias, logprobs=0)
             for seed in range(3000)]
    counts, drawn_at = Counter(), {}
    for begin in range(0, len(draws), 500):
        for token in generate(plain_model, draws[begin : begin + 500], {10**6}):
            counts[token.id] += 1
            drawn_at[token.id] = token.scores[0].logprob
    own = torch.tensor([drawn_at[t] for t in drawn_at], dtype=torch.float64)
    with torch.inference_mode():
        logp_V = plain_model(input_ids=torch.tensor([prompts[2]])).logits[0, -1].double().log_softmax(0)
    assert own.tolist() == pytest.approx([logp_V[t].item() for t in drawn_at], abs=1e-4)
    p_V = logp_V.clone()
    for token, b in bias.items():
        p_V[token] += b if b != -100 else -math.inf
    p_V = p_V.softmax(0)
    often = [t for t in range(len(p_V)) if p_V[t] * 3000 >= 5]
    observed = [counts[t] for t in often] + [3000 - sum(counts[t] for t in often)]
    assert chisquare(observed, [3000 * p_V[t].item() for t in often] + [3000 * (1 - p_V[often].sum().item())]).pvalue > 0.001
    assert counts[12] == 0 and counts[13] > 10 * (3000 * logp_V[13].exp().item() + 1)


def test_minus_a_hundred_bans_and_a_hundred_forces(plain_model, prompts, greedy):
    free = greedy(plain_model, prompts[1], N, {10**6})
    banned, forced = (said(plain_model, [Request(prompt=prompts[1], max_new_tokens=N, temperature=2.0, seed=1, logit_bias=b)],
                           {10**6}) for b in (dict.fromkeys(range(500), -100), {77: 100}))
    assert set(free) & set(range(500)) and all(t >= 500 for t in banned[0][0])
    assert forced[0][0] == [77] * N


def test_a_ban_of_everything_draws_as_if_nothing_was_banned(plain_model, prompts, greedy):
    every = dict.fromkeys(range(plain_model.config.vocab_size), -100)
    (ids, finish), = said(plain_model, [Request(prompt=prompts[1], max_new_tokens=3, logit_bias=every)], {10**6})
    assert len(ids) == 3 and finish == "length"


@settings(max_examples=100, deadline=None)
@given(LOGITS, st.integers(1, 12), st.floats(0.0, 1.0), st.floats(0.2, 2.0))
def test_top_k_and_min_p_leave_what_they_say(logits, top_k, min_p, temperature):
    given_V = torch.tensor(logits)
    p = (given_V.double() / temperature).softmax(0)
    sampler = Sampler(Request(prompt=[0], max_new_tokens=1, temperature=temperature, top_k=top_k, seed=0), "cpu")
    left = sampler.distribution(given_V)
    assert int((left > 0).sum()) == min(top_k, len(logits))
    if (left == 0).any():
        assert p[left > 0].min() >= p[left == 0].max() - 1e-6
    shares = Sampler(Request(prompt=[0], max_new_tokens=1, temperature=temperature, min_p=min_p, seed=0), "cpu")
    by_share = shares.distribution(given_V)
    for token, share in enumerate((p / p.max()).tolist()):
        if abs(share - min_p) > 1e-5:
            assert (by_share[token] > 0) == (share > min_p)


def test_top_p_counts_the_mass_of_what_top_k_left():
    given_V = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    sampler = Sampler(Request(prompt=[0], max_new_tokens=1, temperature=1.0, top_k=2, top_p=0.5, seed=0), "cpu")
    assert (sampler.distribution(given_V) > 0).tolist() == [True, False, False, False]  # 0.4 of 0.7 is more than half
    whole = Sampler(Request(prompt=[0], max_new_tokens=1, temperature=1.0, top_p=0.5, seed=0), "cpu")
    assert (whole.distribution(given_V) > 0).tolist() == [True, True, False, False]


def test_who_asks_for_nothing_gets_the_very_same_logits():
    logits_V = torch.randn(50)
    assert Sampler(Request(prompt=[1], max_new_tokens=1), "cpu", {2}).adjusted(logits_V) is logits_V


def test_a_stop_token_waits_for_min_tokens_and_is_a_token_like_any_other_if_asked(plain_model, prompts, greedy):
    free = greedy(plain_model, prompts[2], 20, {10**6})
    stop = free[1]
    request = {"prompt": prompts[2], "max_new_tokens": 12}
    (plain, _), (late, why), (all_, end) = said(plain_model, [
        Request(**request), Request(**request, min_tokens=7), Request(**request, ignore_stop=True)], {stop})
    assert plain == free[: free.index(stop)]
    assert all_ == free[:12] and end == "length"
    assert len(late) >= 7 and stop not in late
    if why == "stop":
        assert by_ban(plain_model, prompts[2], len(late), stop, 7) == late


def by_ban(model, prompt, n, stop, until):
    made = []
    while len(made) < n:
        made += by_hand(model, prompt + made, 1, logit_bias={stop: -100} if len(made) < until else {})
    return made

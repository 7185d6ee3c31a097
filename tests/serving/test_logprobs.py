"""Scores of prompts and answers are the log-probabilities that transformers gives for each text alone.

pytest tests/serving/test_logprobs.py
"""

import pytest
import torch

from tunesmith.serving import logprobs
from tunesmith.serving.generate import generate
from tunesmith.serving.logprobs import Scored
from tunesmith.serving.sampling import Request


@pytest.fixture(scope="module")
def expected(plain_model):
    """`expected(ids)`: log-probabilities of every next token, [len(ids), V], of one forward pass over one text."""
    def of(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return plain_model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)

    return of


def said(model, requests, stops=frozenset()) -> list[tuple[list[int], list[Scored], str]]:
    """(answer, scores, finish) of each request."""
    found = [([], [], []) for _ in requests]
    for token in generate(model, requests, set(stops)):
        ids, scores, finish = found[token.row]
        ids += [] if token.id is None else [token.id]
        scores += token.scores
        finish += [token.finish] if token.finish else []
    return [(ids, scores, *finish) for ids, scores, finish in found]


def check(scores: list[Scored], ids: list[int], logp_TV: torch.Tensor, top: int) -> None:
    """`scores` are those of `ids`, the first of which nothing predicts."""
    assert [s.id for s in scores] == ids and scores[0] == Scored(ids[0], None)
    for at, scored in enumerate(scores[1:]):
        assert scored.logprob == pytest.approx(logp_TV[at, ids[at + 1]].item(), abs=1e-4)
        best = logp_TV[at].topk(top) if top else None
        assert [p for _, p in scored.top] == (pytest.approx(best.values.tolist(), abs=1e-4) if top else [])


@pytest.mark.parametrize("chunk", [logprobs.CHUNK_LOGITS, 1, 7 * 6 * 512])
def test_an_echoed_prompt_has_its_own_scores_whatever_its_company(plain_model, prompts, expected, monkeypatch, chunk):
    """Also when it is read token by token, or in pieces of which some are padding alone for a short prompt."""
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", chunk)
    requests = [Request(prompt=p, max_new_tokens=0, logprobs=2, echo=True) for p in prompts]
    assert min(map(len, prompts)) == 1 and max(map(len, prompts)) > 20
    for prompt, (ids, scores, finish) in zip(prompts, said(plain_model, requests), strict=True):
        assert (ids, finish) == ([], "length")
        check(scores, prompt, expected(prompt), 2)


def test_the_answer_is_scored_behind_its_prompt_and_stays_the_same_answer(plain_model, prompts, expected, greedy):
    scored = [Request(prompt=p, max_new_tokens=6, logprobs=i % 3, echo=True) for i, p in enumerate(prompts)]
    for i, (prompt, (ids, scores, finish)) in enumerate(zip(prompts, said(plain_model, scored), strict=True)):
        assert ids == greedy(plain_model, prompt, 6, {10**6}) and finish == "length"
        check(scores, prompt + ids, expected(prompt + ids), i % 3)


def test_without_echo_the_answer_alone_is_scored_and_who_does_not_ask_has_none(plain_model, prompts, expected):
    requests = [Request(prompt=p, max_new_tokens=4, logprobs=None if i % 2 else 1) for i, p in enumerate(prompts)]
    for i, (prompt, (ids, scores, _)) in enumerate(zip(prompts, said(plain_model, requests), strict=True)):
        logp_TV = expected(prompt + ids)
        assert [s.id for s in scores] == ([] if i % 2 else ids)
        for at, scored in enumerate(scores, len(prompt) - 1):
            assert scored.logprob == pytest.approx(logp_TV[at, scored.id].item(), abs=1e-4)
            assert scored.top[0] == (scored.id, scored.logprob), "greedy: it is the likeliest one"


def test_an_echo_beside_requests_that_ask_for_nothing(plain_model, prompts, expected, greedy):
    requests = [Request(prompt=p, max_new_tokens=0 if i == 2 else 5, logprobs=0 if i == 2 else None, echo=i == 2)
                for i, p in enumerate(prompts)]
    for i, (prompt, (ids, scores, _)) in enumerate(zip(prompts, said(plain_model, requests), strict=True)):
        if i == 2:
            check(scores, prompt, expected(prompt), 0)
        else:
            assert ids == greedy(plain_model, prompt, 5, {10**6}) and scores == []


def test_a_stop_token_is_scored_and_not_said(plain_model, prompts, expected, greedy):
    """A client that cuts the last score off must not lose a token of its own."""
    stop = greedy(plain_model, prompts[1], 1, {10**6})[0]
    (ids, scores, finish), = said(plain_model, [Request(prompt=prompts[1], max_new_tokens=1, logprobs=1, echo=True)], {stop})
    assert (ids, finish) == ([], "stop")
    check(scores, [*prompts[1], stop], expected([*prompts[1], stop]), 1)


def test_temperature_draws_and_does_not_change_what_is_reported(plain_model, prompts, expected):
    (ids, scores, _), = said(plain_model, [Request(prompt=prompts[1], max_new_tokens=8, temperature=1.7, top_p=0.9, seed=4,
                                                   logprobs=0)])
    logp_TV = expected(prompts[1] + ids)
    for at, scored in enumerate(scores, len(prompts[1]) - 1):
        assert scored.logprob == pytest.approx(logp_TV[at, scored.id].item(), abs=1e-4)

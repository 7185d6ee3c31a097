"""What passes and what is refused: rounding, and nothing else.

pytest tests/exports/test_verdict.py
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.exports.job import Job
from tunesmith.exports.probe import Difference, Question, Said
from tunesmith.exports.verdict import TIMES, Found, allowed, judge
from tunesmith.models.base import Base

VOCABULARY, STOP, END = 13, 2, 0
"""`STOP` ends the template's turns, `END` is another token that a runtime may know."""


def job_of(tokenizer, logit_diff: float = 1e-4, kl: float = 1e-9) -> Job:
    """A job whose reference was found to be so far from itself."""
    here = Path(__file__).parent
    return Job(name="tiny", base=Base("tiny", "sha256:0", here), adapter=here, tokenizer=tokenizer, trained_dtype="float32",
               dtype="float32", rounding=Difference(2, 6, logit_diff, logit_diff / 2, kl, kl, 1.0, 1.0, []))


@pytest.fixture(scope="session")
def job(tiny_tokenizer) -> Job:
    return job_of(tiny_tokenizer)


ASKED = [Question(f"q{i}", [], None, [7, 8, i]) for i in range(2)]


def said(seed: int) -> Said:
    """An answer of four tokens that ended, each token clearly the likeliest."""
    answer = [4 + seed, 5 + seed, 6, 7]
    logits = torch.zeros(5, VOCABULARY)
    for at, token in enumerate([*answer, STOP]):
        logits[at, token] = 9.0
    return Said("", answer, True, logits)


REFERENCE = [said(0), said(1)]


def found(answers: list[Said] = REFERENCE, prompts=None, ends=(STOP,)) -> Found:
    return Found("a runtime 1.0", prompts or [q.prompt for q in ASKED], answers, None if ends is None else list(ends))


def judged(job: Job, **changes) -> dict:
    return judge(job, ASKED, REFERENCE, found(**changes))


def test_the_same_passes_with_and_without_logits(job):
    with_logits = judged(job)
    assert with_logits["verdict"] == "pass" and with_logits["failed"] == [] and with_logits["mean_kl"] == 0
    without = judged(job, answers=[replace(s, logits=None) for s in REFERENCE])
    assert without["verdict"] == "pass" and "mean_kl" not in without and without["same_texts"] == 1


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(0.0, 0.9), seed=st.integers(0, 99))
def test_what_is_within_rounding_passes(job, scale, seed):
    limit = allowed(job, REFERENCE)
    noise = torch.rand(2, 5, VOCABULARY, generator=torch.Generator().manual_seed(seed)) - 0.5
    size = scale * min(limit.max_abs_logit_diff, limit.mean_kl**0.5)
    assert judged(job, answers=[replace(s, logits=s.logits + size * n) for s, n in zip(REFERENCE, noise, strict=True)])[
        "verdict"] == "pass"


@settings(max_examples=40, deadline=None)
@given(times=st.floats(1.5, 1e4), seed=st.integers(0, 99))
def test_logits_that_differ_by_more_are_refused(job, times, seed):
    noise = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    noise -= noise.mean(-1, keepdim=True)
    noise *= times * allowed(job, REFERENCE).max_abs_logit_diff / noise.abs().max()
    result = judged(job, answers=[replace(REFERENCE[0], logits=REFERENCE[0].logits + noise), REFERENCE[1]])
    assert result["verdict"] == "fail" and "logits" in result["failed"]


def test_a_shift_of_all_logits_is_no_difference(job):
    assert judged(job, answers=[replace(s, logits=s.logits + 50) for s in REFERENCE])["verdict"] == "pass"


def test_another_prompt_is_refused_and_shown_where(job):
    result = judged(job, prompts=[[7, 8, 0], [7, 9, 1]])
    assert result["verdict"] == "fail" and result["failed"] == ["template"] and result["same_prompts"] == 1
    assert "q1" in result["message"] and "token 1: " in result["message"]
    assert "chat template" in result["fix"]


def test_a_prompt_that_is_longer_or_shorter_is_refused(job):
    assert judged(job, prompts=[[7, 8, 0], [7, 8]])["failed"] == ["template"]
    assert judged(job, prompts=[[7, 8, 0, 1], [7, 8, 1]])["failed"] == ["template"]


def test_a_stop_token_that_the_runtime_does_not_know_is_refused(job):
    result = judged(job, ends=[END])
    assert result["failed"] == ["stops"] and "does not stop at '<|im_end|>'" in result["message"]
    assert judged(job, ends=None)["verdict"] == "pass"  # a runtime that does not say: its answers show it
    assert judged(job, ends=[STOP, END, 9])["verdict"] == "pass"


def test_an_answer_that_goes_on_after_its_end_is_refused_though_the_texts_part_at_no_clear_choice(job):
    on = replace(REFERENCE[0], answer=[*REFERENCE[0].answer, STOP, 9, 9], stopped=False)
    result = judged(job, answers=[on, REFERENCE[1]], ends=None)
    assert result["failed"] == ["stops"] and result["stops"]["ran_on"] == 1


def test_a_text_that_parts_at_a_tie_passes_and_one_that_parts_at_a_choice_does_not(job):
    tied = said(0)
    tied.logits[1, 10] = tied.logits[1, 5] - 1e-6
    other = replace(tied, answer=[4, 10, 6, 7], logits=None)
    second = replace(REFERENCE[1], logits=None)
    at_tie = judge(job, ASKED, [tied, REFERENCE[1]], found([other, second]))
    assert at_tie["verdict"] == "pass" and at_tie["same_texts"] == 0.5 and "1 that part at a tie" in at_tie["message"]
    at_choice = judge(job, ASKED, REFERENCE, found([replace(other, answer=[4, 11, 6, 7]), second]))
    assert at_choice["failed"] == ["texts"] and "by up to 9 nats" in at_choice["message"]


@pytest.mark.parametrize("measured", [0.0, 1e-4, 3e-2])
def test_what_is_allowed_grows_with_the_rounding_that_was_measured_and_is_never_nothing(measured, tiny_tokenizer):
    limit = allowed(job_of(tiny_tokenizer, measured, measured**2), REFERENCE)
    assert limit.max_abs_logit_diff >= TIMES * measured and limit.mean_kl >= TIMES**2 * measured**2
    assert 0 < limit.max_abs_logit_diff < limit.margin

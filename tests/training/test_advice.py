"""Each rule speaks where it should, with its control where it is silent, and never in more than three lines.

pytest tests/training/test_advice.py
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.recipe.methods import METHODS, Bottleneck, Full, Ia3, Lora, Prefix, Prompt, Qlora
from tunesmith.training.advice import MOST, Facts, advise, alternatives
from tunesmith.training.check import check

GB = 10**9
PARAMETERS = {"lora": 5_000_000, "qlora": 5_000_000, "full": 135_000_000}


def facts(method, free=10.0, lora=2.0, qlora=1.0, full=5.0, tokens=1_000_000, varied=0.1) -> Facts:
    return Facts(method=method, peaks={"lora": int(lora * GB), "qlora": int(qlora * GB), "full": int(full * GB)},
                 parameters=PARAMETERS, free_bytes=None if free is None else int(free * GB), trained_tokens=tokens,
                 varied=varied)


SPEAKS = {
    "lora fits, qlora is for nothing": (facts(Qlora()), "method.type: lora fits (2.0 GB of 10.0 GB free, qlora 1.0 GB)"),
    "lora does not fit, qlora does": (facts(Lora(), free=1.5), "method.type: qlora takes about 1.0 GB"),
    "full does not fit, lora does": (facts(Full(), free=3.0, tokens=10**8), "method.type: lora takes about 2.0 GB"),
    "neither full nor lora, qlora does": (facts(Full(), free=1.5, tokens=10**8), "method.type: qlora takes about 1.0 GB"),
    "prompt on a wide task": (facts(Prompt(), varied=0.6), "method.type: lora: the rows are no narrow task (Vendi Score 60%"),
    "prefix on a wide task, no memory for lora": (facts(Prefix(), varied=0.6, free=1.5), "method.type: qlora: the rows"),
    "more tokens than the rank holds": (facts(Lora(rank=16), tokens=25_000_000), "method.rank: 64"),
    "more than any rank holds, and memory": (facts(Lora(rank=16), tokens=10**9), "method.type: full fits into memory"),
    "few tokens for every weight": (facts(Full(), tokens=50_000), "method.type: lora: 50,000 trained tokens are few"),
    "a large rank for few tokens": (facts(Lora(rank=64), tokens=50_000), "--set method.rank=4,16,64"),
}
SILENT = {
    "lora that fits": facts(Lora()),
    "qlora where lora does not fit": facts(Qlora(), free=1.5),
    "qlora where lora would only just fit": facts(Qlora(), free=2.1),
    "qlora where free memory is not known": facts(Qlora(), free=None),
    "nothing fits": facts(Lora(), free=0.5),
    "full that fits, for many tokens": facts(Full(), tokens=10**8),
    "full for few tokens where lora does not fit": facts(Full(), free=5.0, lora=4.5, tokens=50_000),
    "prompt on a narrow task": facts(Prompt(), varied=0.1),
    "prompt where variety is not known": facts(Prompt(), varied=None),
    "a rank that just holds them": facts(Lora(rank=16), tokens=10_000_000),
    "more than any rank holds, and no memory": facts(Lora(rank=16), tokens=10**9, full=50.0),
    "a large rank for many tokens": facts(Lora(rank=64), tokens=1_000_000),
    "a usual rank for few tokens": facts(Lora(rank=16), tokens=50_000),
    "methods without a rule": facts(Ia3(), varied=0.6),
    "and the other": facts(Bottleneck(), varied=0.6),
}


@pytest.mark.parametrize("case", SPEAKS)
def test_a_rule_speaks_where_it_should(case):
    given, begin = SPEAKS[case]
    (line,) = advise(given)
    assert begin in line and len(line) < 200 and "\n" not in line


@pytest.mark.parametrize("case", SILENT)
def test_control_it_is_silent_elsewhere(case):
    assert advise(SILENT[case]) == []


@pytest.mark.parametrize(("case", "followed"), [
    ("lora fits, qlora is for nothing", Lora()), ("lora does not fit, qlora does", Qlora()),
    ("prompt on a wide task", Lora()), ("more tokens than the rank holds", Lora(rank=64)),
    ("few tokens for every weight", Lora()), ("more than any rank holds, and memory", Full())])
def test_a_recipe_that_follows_the_advice_hears_no_more(case, followed):
    given, _ = SPEAKS[case]
    grown = getattr(followed, "rank", 16) / 16
    parameters = PARAMETERS | {k: int(PARAMETERS[k] * grown) for k in ("lora", "qlora")}
    after = Facts(method=followed, peaks=given.peaks, parameters=parameters, free_bytes=given.free_bytes,
                  trained_tokens=given.trained_tokens, varied=given.varied)
    assert advise(after) == []


@settings(deadline=None)
@given(st.sampled_from(METHODS), st.floats(0.01, 100), st.tuples(*[st.floats(0.01, 100)] * 3), st.integers(1, 10**10),
       st.none() | st.floats(0, 1))
def test_never_more_than_three_lines(method, free, peaks, tokens, varied):
    assert len(advise(facts(method(), free, *peaks, tokens=tokens, varied=varied))) <= MOST


def test_alternatives_keep_what_they_have_in_common():
    found = alternatives(Qlora(rank=7, targets=["q_proj"], block_size=128))
    assert (found["lora"].rank, found["lora"].targets) == (7, ["q_proj"])
    assert found["qlora"].block_size == 128
    assert alternatives(Lora(dora=True))["lora"].dora is True


def test_check_has_advice_and_prints_it(make_recipe, home, command):
    silent = check(make_recipe())
    assert silent["ok"] and silent["advice"] == []
    spoken = check(make_recipe(method={"type": "qlora", "rank": 4}))
    assert any(line.startswith("method.type: lora fits") for line in spoken["advice"])
    code, out, _ = command("check", make_recipe(method={"type": "qlora", "rank": 4}))
    assert code == 0 and "advice: method.type: lora fits" in out

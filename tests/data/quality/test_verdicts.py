"""The verdict on each row is what the finding counted: planted rows and no others.

    python -m pytest tests/data/quality/test_verdicts.py
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data import quality

FAULTS = {
    "mojibake": " It don\u00e2\u20ac\u2122t matter.", "replacement_character": " The caf\ufffd.", "control_character": " \x00",
    "invisible_character": " zero\u200bwidth", "html_residue": " <br/> more", "markdown_residue": " **bold**",
    "personal_data:e-mail_address": " Write to jane.doe@acme-mills.org.", "secret:github_token": " ghp_" + "a1B2" * 9,
    "escalations": " Please contact our support team.",
}


def test_clean_rows_have_no_verdict(clean):
    verdicts = quality.survey(iter(clean)).verdicts
    assert (verdicts.codes(), verdicts.seen) == ([], len(clean))


@pytest.mark.parametrize("code", FAULTS)
def test_planted_rows_are_named_and_no_others(clean, plant, code):
    found = quality.survey(plant(clean, dict.fromkeys((4, 17, 80), FAULTS[code])))
    family = code.split(":")[0]
    codes = [c for c in found.verdicts.codes() if c.split(":")[0] == family]
    assert len(codes) == 1 and found.verdicts.rows(codes[0]) == [3, 16, 79]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(st.dictionaries(st.integers(1, 80), st.sampled_from(list(FAULTS.values())), max_size=12))
def test_every_finding_about_rows_counts_its_verdicts(clean, plant, faults):
    rows = clean
    for number, text in faults.items():
        rows = plant(rows, {number: text})
    found = quality.survey(rows)
    about_rows = [f for f in found.findings if f.code in found.verdicts.codes()]
    assert [f.count for f in about_rows] == [len(found.verdicts.rows(f.code)) for f in about_rows]
    assert set().union(*map(found.verdicts.rows, found.verdicts.codes())) == {n - 1 for n in faults}

"""Personal data and secrets are found by kind, never printed in full, and look-alikes are left alone.

    python -m pytest tests/data/quality/test_privacy.py
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data import quality
from tunesmith.data.quality import credentials, personal
from tunesmith.data.quality.evidence import KEPT
from tunesmith.data.rows import Row

PLACES = (4, 17, 33, 60, 79)
PERSONAL = [
    ("email_address", "jane.roe@gmail.com"), ("email_address", "j_roe+news@mail.uni-koeln.de"),
    ("telephone_number", "(212) 736-5000"), ("telephone_number", "+49 30 901820"), ("telephone_number", "+44 20 7930 4832"),
    ("credit_card_number", "4539 1488 0343 6467"), ("credit_card_number", "371449635398431"),
    ("iban", "DE89 3704 0044 0532 0130 00"), ("iban", "GB82WEST12345698765432"),
    ("us_social_security_number", "536-90-4399"), ("spanish_dni", "54362315K"), ("italian_tax_code", "RCCMNL83S18D969H"),
    ("finnish_personal_id", "131052-308T"), ("brazilian_cpf", "390.533.447-05"), ("french_nir", "2 95 10 99 126 111 93"),
    ("polish_pesel", "PESEL: 44051401359"), ("dutch_bsn", "BSN 111222333"),
    ("ip_address", "84.112.9.201"), ("ip_address", "2a02:908:4b60:1e00:8d3:1f2a:9b1:77c2"),
]
"""Published examples of the standards, and numbers of public offices."""
TOKEN = "x7Kq2mPz9Lw4Vn8Rt5Yb1Cd6Fg3Hj0SaQeUi"
SECRETS = [
    ("aws_access_key", "AKIAIOSFODNN7EXAMPLQ"), ("github_token", f"ghp_{TOKEN}"),
    ("stripe_access_key", f"sk_live_{TOKEN[:24]}"),
    ("slack_token", "xoxb-2345678901-2345678901-x7kq2mpz9lw4vn8rt5yb"),
    ("openai_token", f"sk-proj-{TOKEN}{TOKEN}"),
    ("openai_token", f"sk-{TOKEN[:20]}T3BlbkFJ{TOKEN[:20]}"), ("anthropic_key", f"sk-ant-api03-{TOKEN}"),
    ("hugging_face_token", f"hf_{TOKEN[:34]}"), ("google_api_key", f"AIza{TOKEN[:35]}"),
    ("gitlab_token", f"glpat-{TOKEN[:20]}"),
    ("json_web_token", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJqYW5lIn0.dBjftJeZ4CVPmB92K27uhbUJU1p1rwW1gFWFOEjXk"),
    ("basic_auth_credentials", "postgres://jane:s3cretWord9@db.internal/shop"),
    ("private_key", f"-----BEGIN RSA PRIVATE KEY-----\n{TOKEN}\n{TOKEN}\n-----END RSA PRIVATE KEY-----"),
]


def text_of(finding) -> str:
    return " ".join([finding.message, finding.fix, *finding.examples])


def reveals(shown: str, piece: str) -> bool:
    """Six characters in a row of what must be masked."""
    hidden = piece[KEPT:]
    return any(hidden[i:i + 6] in shown for i in range(len(hidden) - 5))


@pytest.mark.parametrize("kind, piece", PERSONAL, ids=[p for _, p in PERSONAL])
def test_personal_data_is_counted_and_masked(clean, plant, found, kind, piece):
    findings = found(plant(clean, dict.fromkeys(PLACES, f" It is {piece} now."), "user"))
    assert list(findings) == [f"personal_data:{kind}"]
    finding = findings[f"personal_data:{kind}"]
    assert (finding.severity, finding.count, len(finding.examples)) == ("warning", 5, 3)
    assert finding.examples[1].startswith("train.jsonl:17: messages[0] at ") and "***" in finding.examples[1]
    assert not reveals(text_of(finding), piece.split(": ")[-1].removeprefix("BSN "))


@pytest.mark.parametrize("kind, piece", SECRETS, ids=[f"{k} {p[:8]}" for k, p in SECRETS])
def test_secrets_are_counted_and_masked(clean, plant, found, kind, piece):
    findings = found(plant(clean, dict.fromkeys(PLACES, f" It is {piece} now."), "user"))
    assert f"secret:{kind}" in findings and all(code.startswith("secret:") for code in findings)
    finding = findings[f"secret:{kind}"]
    assert (finding.severity, finding.count, len(finding.examples)) == ("warning", 5, 3)
    assert not reveals(text_of(finding), piece)


@pytest.mark.parametrize("text", [
    "Order 4539148803436468 left on 2024-05-17 at 10:30:45.", "ISBN 978-3-16-148410-0 costs 1,234,567.89.",
    "Version 84.112.9.201 of 1.2.3, build v84.112.9.201.", "Hosts 192.168.1.10, 127.0.0.1, ::1 and 10.0.0.8 are local.",
    "Write to jane@example.com or info@yourcompany.com.", "Call 555-0123 or (212) 555-0147 in the film.",
    "Account 2127365000 and 0000000000000000.", "Use @decorators and a@b.", "std::vector<int> a; 12:34:56:78",
    "Pi is 3.14159265358979323846 and e is 2.718281828459045.", "The 1990-2020 period, pages 100-200, 1 000 000 people.",
    "The secret of a good password is its length; a token is a word.", "sk-learn and task-oriented work, ghp_short, AKIA.",
    "https://host:8080/path@2x.png", "Key AKIAIOSFODNN7EXAMPLE, http://user:password@host/ and http://${USER}:$PASS@host/.",
    "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "Social security number 000-12-3456 is none.", "44051401359 things",
    "UUID 123e4567-e89b-12d3-a456-426614174000",
])
def test_look_alikes_are_left_alone(text):
    assert personal.find(text) == [] and credentials.find(text) == []


def test_a_number_without_country_code_is_read_in_the_region_of_the_data(clean, plant, found):
    rows = plant(clean, {5: " Ruf an: 030 901820."}, "user")
    assert found(rows) == {}
    finding = found(rows, region="DE")["personal_data:telephone_number"]
    assert finding.count == 1 and not reveals(finding.examples[0], "030 901820")


def test_evidence_of_another_fault_masks_what_stands_beside_it(clean, plant, found):
    rows = plant(clean, {5: " Mail<br>jane.roe@gmail.com<br>", 6: "\x00 030 9018 20111", 7: " <b>AKIAIOSFODNN7EXAMPLQ"}, "user")
    rows = plant(rows, {8: "\n-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\x00kqhkiG9w0BAQEF\n-----END PRIVATE KEY-----"},
                 "user")
    findings = found(rows)
    shown = " ".join(text_of(f) for f in findings.values())
    assert {"html_residue", "control_character", "personal_data:email_address", "secret:aws_access_key"} <= set(findings)
    assert not any(reveals(shown, p) for p in ("jane.roe@gmail.com", "030 9018 20111", "AKIAIOSFODNN7EXAMPLQ",
                                                "MIIEvQIBADANBg", "kqhkiG9w0BAQEF"))


def test_labels_and_licences_are_masked_in_messages():
    rows = [Row([{"role": "user", "content": f"Who takes case {n}?"},
                 {"role": "assistant", "content": ("jane.roe@gmail.com", "john.doe@gmail.com")[n % 2]}], f"a:{n}",
                meta={"license": "ask jane.roe@gmail.com"}) for n in range(40)]
    findings = quality.inspect(rows)
    assert {"labels", "license_unknown"} <= {f.code for f in findings}
    assert not reveals(" ".join(map(text_of, findings)), "jane.roe@gmail.com")


@given(st.text(max_size=30), st.sampled_from([p for _, p in PERSONAL[:4] + SECRETS[:4]]), st.text(max_size=30))
def test_a_piece_is_masked_wherever_it_stands(before, piece, after):
    text = f"{before} {piece} {after}"
    for found in (*personal.find(text), *credentials.find(text)):
        assert 0 <= found.start < found.end <= len(text) and found.end - found.start > KEPT
    shown = " ".join(text_of(f) for f in quality.inspect([Row([{"role": "user", "content": text}, {"role": "assistant",
                                                              "content": "Thank you, that will do."}], "a:1")]))
    assert not reveals(shown, piece)


@given(st.text(alphabet=st.sampled_from("0123456789 .-+:/@aA_=*[](<&;"), max_size=400))
def test_nothing_that_looks_like_numbers_or_addresses_breaks_the_search(text):
    for piece in (*personal.find(text), *credentials.find(text)):
        assert text[piece.start:piece.end].strip()

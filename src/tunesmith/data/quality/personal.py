"""Personal data in a text: each kind by its form first, then by the check that its issuer publishes.

A form alone is not enough: order numbers look like card numbers, and versions like addresses. What has no check
digit (telephone numbers) is checked against the numbering plans of phonenumbers; what has a weak one counts only
when its name stands near.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import NamedTuple

REGION = "US"
"""Whose numbering plan is tried for telephone numbers without a country code."""
EMAIL = re.compile(r"(?<![\w.+/-])\w[\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,4}(?!(?:png|jpe?g|gif|svg|webp)\b)[A-Za-z]{2,24}"
                   r"(?![\w-])")
"""`logo@2x.png` is a picture."""
PLACEHOLDER_DOMAIN = re.compile(r"@(?:.*\.)?(?:example\.\w+|example|test|invalid|localhost|(?:your|my)?(?:company|domain|email|"
                                r"organization|website)\.\w+)$", re.IGNORECASE)
"""Domains that nobody owns (RFC 2606) or that only stand for one: not a person's address."""
DIGITS = re.compile(r"\d")
RUN = re.compile(r"\d(?:[ .+-]?[\dA-Z]){6}")
"""Cheap test before the numbers that are long: each of them has such a piece."""
PHONE_HINT = re.compile(r"\+?\(?\d[\d ().\u2010-\u2013/-]{5,40}\d")
FICTION = re.compile(r"55501\d\d$")
"""555-0100 to 555-0199 are set aside for fiction."""
CARD = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d-]|[.,]\d)")
ISSUER = re.compile(r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|"
                    r"6(?:011|5\d\d|4[4-9]\d)\d{12}|35\d{14}")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
IPV4 = re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)")
IPV6 = re.compile(r"(?<![\w:])[0-9a-f]{1,4}(?::{1,2}[0-9a-f]{1,4}){3,7}(?![\w:])", re.IGNORECASE)
VERSION = re.compile(r"(?:version|release|firmware|\bv|build|chapter|section)\W{0,3}$", re.IGNORECASE)
NEAR = 40
"""Characters before a number within which its name must stand."""
IDS: dict[str, tuple[str, str, str | None]] = {
    "us.ssn": (r"\b\d{3}-\d{2}-\d{4}\b", "US social security number", None),
    "es.dni": (r"\b\d{8}-?[A-Z]\b", "Spanish DNI", None),
    "es.nie": (r"\b[XYZ]-?\d{7}-?[A-Z]\b", "Spanish NIE", None),
    "it.codicefiscale": (r"\b[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z]\b", "Italian tax code", None),
    "fi.hetu": (r"\b\d{6}[-+A]\d{3}[0-9A-Y]\b", "Finnish personal id", None),
    "br.cpf": (r"\b\d{3}\.\d{3}\.\d{3}-\d{2}\b", "Brazilian CPF", None),
    "fr.nir": (r"\b[12] ?\d{2} ?(?:0[1-9]|1[0-2]) ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}\b", "French NIR", None),
    "de.idnr": (r"\b\d{2} ?\d{3} ?\d{3} ?\d{3}\b", "German tax id", r"steuer|idnr|tax id"),
    "pl.pesel": (r"\b\d{11}\b", "Polish PESEL", r"pesel"),
    "nl.bsn": (r"\b\d{9}\b", "Dutch BSN", r"bsn|burgerservice|sofi"),
    "ca.sin": (r"\b\d{3}[ -]\d{3}[ -]\d{3}\b", "Canadian SIN", r"\bsin\b|social insurance"),
    "gb.nhs": (r"\b\d{3} ?\d{3} ?\d{4}\b", "NHS number", r"nhs"),
    "in_.aadhaar": (r"\b\d{4} \d{4} \d{4}\b", "Aadhaar number", r"aadhaar"),
}
"""Module of python-stdnum: its form, its name, and the words one of which must stand before it (None: form suffices)."""


class Piece(NamedTuple):
    kind: str
    start: int
    end: int


def find(text: str, region: str = REGION) -> list[Piece]:
    """Personal data of `text` in its order, each place once: the first kind in the order of the finders wins."""
    found: list[Piece] = []
    finders: list[Callable[[str], Iterator[Piece]]] = [_emails] if "@" in text else []
    if RUN.search(text):
        finders += [_ibans, _cards, _ids]
    if DIGITS.search(text):
        finders += [_addresses, lambda t: _phones(t, region)]
    for finder in finders:
        for piece in finder(text):
            at = bisect(found, piece.start, key=lambda p: p.start)
            if (at == 0 or found[at - 1].end <= piece.start) and (at == len(found) or piece.end <= found[at].start):
                found.insert(at, piece)
    return found


def long_numbers(text: str) -> Iterator[tuple[int, int]]:
    """Spans of everything with seven digits or more, whatever it is."""
    for match in PHONE_HINT.finditer(text):
        if len(DIGITS.findall(match[0])) >= 7:
            yield match.span()


def _emails(text: str) -> Iterator[Piece]:
    for match in EMAIL.finditer(text):
        if not PLACEHOLDER_DOMAIN.search(match[0]):
            yield Piece("email address", *match.span())


def _ibans(text: str) -> Iterator[Piece]:
    for match in IBAN.finditer(text):
        # A capital word after the number belongs to the form, not to the number: try shorter ones.
        for end in sorted({match.end(), *(match.start() + m.start() for m in re.finditer(" ", match[0]))}, reverse=True):
            if _stdnum("iban").is_valid(text[match.start():end]):
                yield Piece("IBAN", match.start(), end)
                break


def _cards(text: str) -> Iterator[Piece]:
    for match in CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if ISSUER.fullmatch(digits) and len(set(digits)) > 2 and _stdnum("luhn").is_valid(digits):
            yield Piece("credit card number", *match.span())


def _ids(text: str) -> Iterator[Piece]:
    for module, (form, name, words) in _id_forms().items():
        for match in form.finditer(text):
            near = text[max(0, match.start() - NEAR):match.start()]
            if (words is None or re.search(words, near, re.IGNORECASE)) and _stdnum(module).is_valid(match[0]):
                yield Piece(name, *match.span())


def _addresses(text: str) -> Iterator[Piece]:
    for match in (*IPV4.finditer(text), *IPV6.finditer(text)):
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            continue
        before = text[max(0, match.start() - 12):match.start()]
        if address.is_global and not address.is_multicast and not VERSION.search(before):
            yield Piece("IP address", *match.span())


def _phones(text: str, region: str) -> Iterator[Piece]:
    if not any(long_numbers(text)):
        return
    import phonenumbers

    strict = phonenumbers.Leniency.STRICT_GROUPING
    for match in phonenumbers.PhoneNumberMatcher(text, region, leniency=strict):
        # Ten bare digits are more often an order or an account than a telephone.
        if not match.raw_string.isdigit() and not FICTION.search(str(match.number.national_number)):
            yield Piece("telephone number", match.start, match.end)


@cache
def _id_forms() -> dict[str, tuple[re.Pattern, str, str | None]]:
    return {module: (re.compile(form), name, words) for module, (form, name, words) in IDS.items()}


@cache
def _stdnum(module: str):
    return import_module(f"stdnum.{module}")

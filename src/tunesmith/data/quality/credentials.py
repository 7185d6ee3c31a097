"""Keys and passwords of machines in a text, found by the detectors of detect-secrets.

Left out on purpose: its entropy detectors (every hash and every base64 picture is an alarm) and its keyword detector
(every `password = get_password()` in a lesson is one). What stays has a fixed form that prose does not have.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from typing import NamedTuple

PLUGINS = ("aws.AWSKeyDetector", "azure_storage_key.AzureStorageKeyDetector", "basic_auth.BasicAuthDetector",
           "discord.DiscordBotTokenDetector", "github_token.GitHubTokenDetector", "gitlab_token.GitLabTokenDetector",
           "jwt.JwtTokenDetector", "mailchimp.MailchimpDetector", "npm.NpmDetector", "openai.OpenAIDetector",
           "private_key.PrivateKeyDetector", "pypi_token.PypiTokenDetector", "sendgrid.SendGridDetector",
           "slack.SlackDetector", "square_oauth.SquareOAuthDetector", "stripe.StripeDetector",
           "telegram_token.TelegramBotTokenDetector", "twilio.TwilioKeyDetector")
NEWER = {
    "Anthropic Key": re.compile(r"\bsk-ant-[A-Za-z0-9_-]{24,}"),
    "Google API Key": re.compile(r"\bAIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    "Hugging Face Token": re.compile(r"\bhf_[A-Za-z0-9]{34}\b"),
    "OpenAI Token": re.compile(r"\bsk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{40,}"),
}
"""Forms that detect-secrets 1.5 does not know."""
STAND_IN = re.compile(r"EXAMPLE|x{6}|\*{3}|\.{3}|:(?:pass(?:word|wd)?|pwd|secret|<[^>]*>|\$\{?\w+\}?|%\w*%?)@", re.IGNORECASE)
"""What a manual writes in place of a secret."""
END_OF_KEY = re.compile(r"END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-*|Private-MAC: *\w+")
RUN = re.compile(r"[A-Za-z0-9_=-]+")
OPENAI_MARK = re.compile(r"(?<=[A-Za-z0-9]{20})T3BlbkFJ(?=[A-Za-z0-9]{20})")
NPM_MARK = re.compile(r"/:_authToken=(?=\s*+(?:npm_.|[A-Fa-f0-9-]{36}))")
NPM_VALUE = re.compile(r"/:_authToken=\s*+(?:npm_.+|[A-Fa-f0-9-]{36}).*")
HINT = re.compile(r"AKIA|ASIA|A3T|ABIA|ACCA|AccountKey|://[^\s/]{1,200}:[^\s/]{1,200}@|gh[pousr]_|gl[a-z]{2,8}-|GR1348|eyJ|-us\d|npm|_auth|"
                  r"sk-|PRIVATE KEY|pypi-|SG\.|xox[a-z]-|hooks\.slack|sq0|[rs]k_live|\d{8,10}:[\w-]{35}|\bAC[a-z0-9]{32}|"
                  r"\bSK[a-z0-9]{32}|AIza|hf_|[MNO][\w-]{23,25}\.|(?i:aws)")
"""Cheap test before the detectors: none of them finds anything in a text without one of these."""


class Piece(NamedTuple):
    kind: str
    start: int
    end: int


def find(text: str) -> list[Piece]:
    """Secrets of `text` in order, each place once."""
    if not HINT.search(text):
        return []
    lasts = [match.end() for match in END_OF_KEY.finditer(text)]
    found = []
    for kind, places, check in _forms():
        for start, end in places(text):
            piece = text[start:end]
            if (check is None or check(piece)) and not STAND_IN.search(piece):
                found.append(Piece(kind, start, _last_line(lasts, end, len(text)) if kind == "Private Key" else end))
    return _without_overlap(found)


def _last_line(lasts: list[int], start: int, end: int) -> int:
    """Of a private key its form is only the first line: the key itself goes on to its last, or to the end."""
    at = bisect_right(lasts, start)
    return lasts[at] if at < len(lasts) else end


# ---- forms that begin again inside of themselves: a plain search would read on from each beginning to the end


def _json_web_tokens(text: str, form: re.Pattern) -> Iterator[tuple[int, int]]:
    """Only a run with a dot behind it can be the head of one, and the first `eyJ` of a run finds what any of it does."""
    done = 0
    for run in RUN.finditer(text):
        start = text.find("eyJ", max(done, run.start()), run.end())
        if start >= 0 and text.startswith(".", run.end()) and (match := form.match(text, start)):
            done = match.end()
            yield match.span()


def _openai_keys(text: str, form: re.Pattern) -> Iterator[tuple[int, int]]:
    """From the first `sk-` of a run to the twenty characters after the last mark in it."""
    if "T3BlbkFJ" not in text:
        return
    for run in re.finditer(r"[A-Za-z0-9_-]+", text):
        start = text.find("sk-", run.start(), run.end())
        marks = [mark for mark in OPENAI_MARK.finditer(text, run.start(), run.end()) if mark.start() >= start + 23]
        if start >= 0 and marks:
            yield start, marks[-1].end() + 20


def _npm_tokens(text: str, form: re.Pattern) -> Iterator[tuple[int, int]]:
    """From the first `//` of the line that ends in a token."""
    line, slashes, seen, done = 0, text.find("//"), 0, 0
    for mark in NPM_MARK.finditer(text):
        newline = text.rfind("\n", seen, mark.start())
        if newline >= 0:
            line = newline + 1
        if 0 <= slashes < line:
            slashes = text.find("//", line)
        seen = mark.start()
        if 0 <= slashes <= mark.start() - 3 and mark.start() >= done:
            done = NPM_VALUE.match(text, mark.start()).end()
            yield slashes, done


_REPEATING = {"jwt": _json_web_tokens, "openai": _openai_keys, "npm": _npm_tokens}
"""Of these modules of detect-secrets."""


def _plain(text: str, form: re.Pattern) -> Iterator[tuple[int, int]]:
    return (match.span() for match in form.finditer(text))


def _without_overlap(found: list[Piece]) -> list[Piece]:
    kept: list[Piece] = []
    for piece in sorted(found, key=lambda p: (p.start, -p.end)):
        if not kept or piece.start >= kept[-1].end:
            kept.append(piece)
    return kept


@cache
def _forms() -> list[tuple[str, Callable[[str], Iterator[tuple[int, int]]], Callable[[str], bool] | None]]:
    """Kind, where it stands in a text, and further check of each detector. Their own search gives no places."""
    forms: list = [(kind, partial(_plain, form=form), None) for kind, form in NEWER.items()]
    for name in PLUGINS:
        module, _, detector = name.partition(".")
        plugin = getattr(import_module(f"detect_secrets.plugins.{module}"), detector)()
        check = plugin.is_formally_valid if module == "jwt" else None
        search = _REPEATING.get(module, _plain)
        forms += [(plugin.secret_type, partial(search, form=form), check) for form in plugin.denylist]
    return forms

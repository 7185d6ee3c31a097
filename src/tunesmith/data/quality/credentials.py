"""Keys and passwords of machines in a text, found by the detectors of detect-secrets.

Left out on purpose: its entropy detectors (every hash and every base64 picture is an alarm) and its keyword detector
(every `password = get_password()` in a lesson is one). What stays has a fixed form that prose does not have.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
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
END_OF_KEY = re.compile(r"END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-*|Private-MAC: *\w+")
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
    found = [Piece(kind, match.start(), _end(kind, text, match)) for kind, form, check in _forms()
             for match in form.finditer(text)
             if (check is None or check(match[0])) and not STAND_IN.search(match[0])]
    return _without_overlap(found)


def _end(kind: str, text: str, match: re.Match) -> int:
    """Of a private key its form is only the first line: the key itself goes on to its last, or to the end."""
    if kind != "Private Key":
        return match.end()
    last = END_OF_KEY.search(text, match.end())
    return last.end() if last else len(text)


def _without_overlap(found: list[Piece]) -> list[Piece]:
    kept: list[Piece] = []
    for piece in sorted(found, key=lambda p: (p.start, -p.end)):
        if not kept or piece.start >= kept[-1].end:
            kept.append(piece)
    return kept


@cache
def _forms() -> list[tuple[str, re.Pattern, Callable[[str], bool] | None]]:
    """Kind, form and further check of each detector. Their own search gives back groups without a place."""
    forms = [(kind, form, None) for kind, form in NEWER.items()]
    for name in PLUGINS:
        module, _, detector = name.partition(".")
        plugin = getattr(import_module(f"detect_secrets.plugins.{module}"), detector)()
        check = plugin.is_formally_valid if module == "jwt" else None
        forms += [(plugin.secret_type, form, check) for form in plugin.denylist]
    return forms

"""How many requests and tokens a minute a key has: a bucket of each, which fills again as time passes.

A request is let in while there is something in both buckets. What an answer takes is known when it has ended, so the bucket of
tokens can go below empty; then it takes longer until the next one. Each server counts for itself.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from tunesmith.api.errors import BadParameter
from tunesmith.jobs.settings import Limits

ONE = 1 - 1e-6
"""Sums of many small pieces are a little off: whoever waited as long as he was told must be let in."""


class Bucket:
    def __init__(self, per_minute: int, now: float):
        self.size, self.level, self._at = per_minute, float(per_minute), now

    def fill(self, now: float) -> None:
        self.level = min(self.size, self.level + (now - self._at) * self.size / 60)
        self._at = now

    def seconds_until(self, level: float) -> float:
        return max(0.0, (level - self.level) * 60 / self.size)


class RateLimits:
    """Of one server. Callers are told apart by any name that is theirs alone."""

    def __init__(self, limits: Limits, now: Callable[[], float] = time.monotonic):
        self._sizes = {name: size for name, size in (("requests", limits.requests_per_minute),
                                                     ("tokens", limits.tokens_per_minute)) if size}
        self._now, self._lock = now, threading.Lock()
        self._buckets: dict[str, dict[str, Bucket]] = {}

    def take(self, caller: str, wants_tokens: bool) -> dict[str, str]:
        """Count a request. The headers that tell the caller what is left.

        Raises:
            BadParameter: 429, with when to ask again.
        """
        if not self._sizes:
            return {}
        with self._lock:
            buckets = self._filled(caller)
            for name, bucket in buckets.items():
                if bucket.level < ONE and (name == "requests" or wants_tokens):
                    seconds = bucket.seconds_until(1)
                    raise BadParameter(f"Rate limit reached on {name} per min: Limit {bucket.size}. Please try again in "
                                       f"{_shown(seconds)}.", None, "rate_limit_exceeded", 429, kind=name,
                                       headers=_headers(buckets) | {"retry-after": str(math.ceil(seconds)),
                                                                    "retry-after-ms": str(math.ceil(seconds * 1000))})
            if "requests" in buckets:
                buckets["requests"].level -= 1
            return _headers(buckets)

    def spend(self, caller: str, tokens: int) -> None:
        """What a request took."""
        if "tokens" in self._sizes:
            with self._lock:
                self._filled(caller)["tokens"].level -= tokens

    def _filled(self, caller: str) -> dict[str, Bucket]:
        now = self._now()
        buckets = self._buckets.setdefault(caller, {name: Bucket(size, now) for name, size in self._sizes.items()})
        for bucket in buckets.values():
            bucket.fill(now)
        return buckets


def _headers(buckets: dict[str, Bucket]) -> dict[str, str]:
    headers = {}
    for name, bucket in buckets.items():
        headers |= {f"x-ratelimit-limit-{name}": str(bucket.size),
                    f"x-ratelimit-remaining-{name}": str(max(0, math.floor(bucket.level))),
                    f"x-ratelimit-reset-{name}": _shown(bucket.seconds_until(bucket.size))}
    return headers


def _shown(seconds: float) -> str:
    """As OpenAI writes it: `20ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if (tenths := math.ceil(seconds * 10)) < 600:
        return f"{tenths / 10:g}s"
    return "{}m{}s".format(*divmod(math.ceil(seconds), 60))

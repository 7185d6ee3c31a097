"""Requests made from our own OpenAPI document, sensible and not: the server answers each and never stumbles.

make test-slow, or: pytest -m slow tests/api/test_fuzz.py
"""

from __future__ import annotations

from contextlib import suppress

import pytest
from fastapi import APIRouter

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from tests.api.evals_app import app_over  # noqa: E402

EXAMPLES = 25
"""Of each operation, and as many that break its schema."""


@pytest.fixture(scope="module")
def fuzzed(tiny_base, tmp_path_factory):
    home = tmp_path_factory.mktemp("fuzzed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(home))
        patch.delenv("TUNESMITH_SERVICE", raising=False)
        with app_over(home, tiny_base) as app:
            yield app


def stumbles(fastapi) -> list[str]:
    """What its operations answered with 500 or more, and to which request."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", fastapi)
    return [one for result in schema.get_all_operations() for mode in GenerationMode for one in _ask(result.ok(), mode)]


def _ask(operation, mode: GenerationMode) -> list[str]:
    found: list[str] = []

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case):
        answer = case.call(headers={"Host": "127.0.0.1"}, timeout=120)
        if answer.status_code >= 500:
            found.append(f"{answer.status_code} {case.as_curl_command()} -> {answer.text[:300]}")

    with suppress(Unsatisfiable):  # nothing of this operation could be wrong
        ask()
    return found


@pytest.mark.slow
def test_no_request_makes_the_server_stumble(fuzzed):
    assert stumbles(fuzzed.fastapi) == []


@pytest.mark.slow
def test_a_route_that_stumbles_is_found():
    """The control: the same search finds a route that fails for some numbers."""
    from fastapi import FastAPI

    app, router = FastAPI(), APIRouter()

    @router.get("/v1/{number}")
    def divide(number: int) -> float:
        return 1 / (number // 3)

    app.include_router(router)
    with pytest.raises(ZeroDivisionError):
        stumbles(app)

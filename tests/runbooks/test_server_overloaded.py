"""A server that is asked too much says so, and its metrics say why.

pytest tests/runbooks/test_server_overloaded.py
"""

import re

import openai
import pytest
from tests.api.test_many import served
from tests.runbooks.conftest import PAGES
from tests.serving.test_engine import Asked, ask, busy

from tunesmith.serving.sampling import Request


def test_who_comes_too_late_reads_what_the_page_quotes_and_a_longer_queue_takes_him(lively_base, tmp_path, page):
    question = {"model": str(lively_base), "messages": [{"role": "user", "content": "37 Oak Street"}], "max_tokens": 2}
    with served(lively_base, {}, tmp_path, waiting_most=1) as (engine, client):
        with busy(engine):
            waiting = Asked(engine, engine.base.ref, Request(prompt=[5], max_new_tokens=2))
            with pytest.raises(openai.InternalServerError) as refused:
                client.chat.completions.create(**question)
        assert page("server-overloaded").missing("busy", str(refused.value)) == []
        waiting.wait()
        assert client.chat.completions.create(**question).choices, "later there is room"


def test_every_metric_of_the_page_is_there(lively_base, tmp_path):
    named = set(re.findall(r"tunesmith_\w+", (PAGES / "server-overloaded.md").read_text(encoding="utf-8")))
    with served(lively_base, {}, tmp_path) as (_, client):
        text = client.get("http://127.0.0.1/metrics", cast_to=str)
    assert len(named) >= 5 and {n for n in named if f"# TYPE {n} " not in text} == set()


def test_requests_are_read_again_when_the_cache_is_small_and_not_when_it_is_large(lively_base, tmp_path):
    def read_again(cache_bytes):
        with served(lively_base, {}, tmp_path, cache_bytes=cache_bytes) as (engine, _):
            with busy(engine):
                asked = [Asked(engine, engine.base.ref, Request(prompt=[5 + i] * 60, max_new_tokens=100, ignore_stop=True))
                         for i in range(8)]
            for one in asked:
                assert one.wait().finish == "length"
            ask(engine, engine.base.ref, [5], 1)
            return engine.facts["rows_read_again"]

    assert read_again(1) > 0 == read_again(1 << 28)

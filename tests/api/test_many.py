"""Adapters that answer together, and a server that is asked too much, over the wire.

pytest tests/api/test_many.py
"""

from contextlib import contextmanager

import openai
import pytest
import torch
from starlette.testclient import TestClient
from tests.serving.test_engine import Asked, add_to, busy

from tunesmith import methods
from tunesmith.api.app import create_app
from tunesmith.api.engines import Engines
from tunesmith.api.service import Service
from tunesmith.jobs.database import opened
from tunesmith.jobs.projects import ensure_default
from tunesmith.jobs.settings import Settings
from tunesmith.models.base import resolve
from tunesmith.models.load import model_of, tokenizer_of
from tunesmith.recipe.methods import Ia3, Lora
from tunesmith.serving.engine import Engine
from tunesmith.serving.sampling import Request

QUESTION = [{"role": "user", "content": "37 Oak Street"}]


@pytest.fixture(scope="module")
def adapters(lively_base, tmp_path_factory):
    made = {}
    for seed, (name, method) in enumerate({"red": Lora(rank=4), "blue": Lora(rank=8), "scaled": Ia3()}.items()):
        torch.manual_seed(seed)
        model = methods.attach(model_of(resolve(str(lively_base)), torch.float32), method, "tiny")
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        made[name] = tmp_path_factory.mktemp(name)
        methods.save(model, made[name])
    return made


@contextmanager
def served(lively_base, adapters, folder, **options):
    base = resolve(str(lively_base))
    engine = Engine(base, tokenizer_of(base), "float32", "cpu", 0, **options)
    for name, adapter in adapters.items():
        add_to(engine, name, adapter)
    with opened(f"sqlite:///{folder}/service.db") as database:
        ensure_default(database)
        app = create_app(Service(Engines(Settings(), database, engine), database, Settings()))
        http = TestClient(app, base_url="http://127.0.0.1")
        yield engine, openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", max_retries=0, http_client=http)
    engine.close()


@pytest.fixture(scope="module")
def asking(lively_base, adapters, tmp_path_factory):
    with served(lively_base, adapters, tmp_path_factory.mktemp("service")) as (engine, client):
        def ask(model=engine.base.ref, **body):
            made = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=12, temperature=0, extra_body=body)
            return made.choices[0].message.content

        yield ask


def test_a_mix_of_one_with_weight_1_is_that_adapter_and_of_nothing_the_base(asking):
    assert asking(adapters={"red": 1}) == asking("red") != asking()
    assert asking(adapters={"red": 0, "blue": 0}) == asking() == asking(adapters=None)


def test_weights_count(asking):
    both, less = asking(adapters={"red": 1, "blue": 1}), asking(adapters={"red": -1})
    assert len({asking("red"), asking("blue"), both, less, asking()}) == 5


@pytest.mark.parametrize("model, mix, status, word", [
    (None, {"red": 1, "green": 1}, 404, "`green` does not exist"), ("red", {"blue": 1}, 400, "adapter itself"),
    (None, {"scaled": 0.5}, 400, "scaled"), (None, {"red": 9}, 400, "adapters"), (None, {"red": "much"}, 400, "adapters")])
def test_what_cannot_be_mixed_is_said(asking, model, mix, status, word):
    with pytest.raises(openai.APIStatusError) as refused:
        asking(*([model] if model else []), adapters=mix)
    assert refused.value.status_code == status and word in str(refused.value)


@pytest.mark.parametrize("stream", [False, True])
def test_who_comes_when_too_many_wait_is_told_when_to_come_back(lively_base, tmp_path, stream):
    with served(lively_base, {}, tmp_path, waiting_most=1) as (engine, client):
        with busy(engine):
            kept = Asked(engine, engine.base.ref, Request(prompt=[5], max_new_tokens=2))
            with pytest.raises(openai.InternalServerError) as refused:
                client.chat.completions.create(model=engine.base.ref, messages=QUESTION, max_tokens=2, stream=stream)
        assert refused.value.status_code == 503 and refused.value.response.headers["Retry-After"] == "1"
        assert refused.value.body["code"] == "overloaded"
        assert kept.wait().finish


@pytest.mark.parametrize("stream", [False, True])
def test_usage_tells_how_much_of_a_prompt_was_known(lively_base, adapters, tmp_path, stream):
    with served(lively_base, adapters, tmp_path) as (engine, client):
        def known(model, words, **options):
            options |= {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
            messages = [{"role": "user", "content": "Oak " * words}]
            made = client.chat.completions.create(model=model, messages=messages, max_tokens=2, **options)
            usage = list(made)[-1].usage if stream else made.usage
            return usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens

        first, size = known("red", 60)
        assert first == 0 and known("red", 60) == ((size - 1) // 32 * 32, size), "whole blocks, but not the last token"
        assert known("blue", 60)[0] == known(engine.base.ref, 60)[0] == 0, "another's are not mine"
        assert known("red", 60, n=2)[0] == (size - 1) // 32 * 32, "the prompt of two choices is counted once"


def test_what_an_operator_sees_of_it(lively_base, adapters, tmp_path):
    with served(lively_base, adapters, tmp_path, adapter_bytes=1) as (engine, client):
        for name in ("red", "blue", "red", "red"):
            client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Oak " * 60}], max_tokens=2)
        text = client.get("http://127.0.0.1/metrics", cast_to=str)
        seen = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line and line[0] != "#"}
        assert seen["tunesmith_adapters_registered"] == 3 and seen["tunesmith_adapters_loaded"] == 1
        assert seen["tunesmith_adapters_read_again"] == 3, "red, blue and red: the last time it is still there"
        assert seen["tunesmith_prompt_tokens_known"] >= 2 * 32 and seen["tunesmith_cache_tokens_held"] == 0
        assert seen["tunesmith_adapter_bytes"] > 0 and seen["tunesmith_cache_tokens"] == engine.facts["cache_tokens"] > 512

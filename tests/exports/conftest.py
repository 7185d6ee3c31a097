"""The finished project as a job of an export, with what its adapter said; and adapters and directories that were spoilt."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.methods.conftest import decoder, one_thread  # noqa: F401 - fixtures

from tunesmith.exports.job import Job
from tunesmith.exports.probe import Question, Said, ask
from tunesmith.exports.verdict import rounding
from tunesmith.releases.export import askable, source_of


@dataclass(frozen=True)
class Asked:
    """A job, and the reference of its probe."""

    job: Job
    questions: list[Question]
    reference: list[Said]


@pytest.fixture(scope="session")
def asked(finished) -> Asked:
    return asked_of(finished)


def asked_of(finished) -> Asked:
    from dataclasses import replace

    source = source_of(str(finished.release_dir))
    job = Job(name="tiny", base=source.base, adapter=source.adapter, tokenizer=source.tokenizer, trained_dtype=source.dtype,
              dtype=source.dtype)
    questions, left_out = askable(job, source.questions)
    assert left_out == 0 and len(questions) == 8
    model = job.adapted()
    reference = ask(model, job.tokenizer, questions)
    return Asked(replace(job, rounding=rounding(job, model, questions, reference)), questions, reference)


def spoil(adapter: Path, **changes) -> None:
    """Change settings of an adapter on disk: `lora_alpha`; or `weights`, by which its B is multiplied."""
    from safetensors.torch import load_file, save_file

    if (factor := changes.pop("weights", None)) is not None:
        path = adapter / "adapter_model.safetensors"
        tensors = {n: t * factor if "lora_B" in n else t for n, t in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def copied(tmp_path):
    """A copy of a directory that a test may spoil: `copied(path, "name")`."""
    def copy(path: Path, name: str) -> Path:
        return Path(shutil.copytree(path, tmp_path / "copies" / name))

    return copy


@pytest.fixture(scope="session")
def quantised(asked, tmp_path_factory) -> Asked:
    """The same for an adapter of QLoRA, with random weights: its reference is on the base in 4 bits."""
    from dataclasses import replace

    import torch

    from tunesmith import methods
    from tunesmith.models.load import model_of
    from tunesmith.recipe.methods import Qlora

    folder = tmp_path_factory.mktemp("qlora")
    torch.manual_seed(1)
    model = methods.attach(model_of(asked.job.base, torch.float32), Qlora(type="qlora", rank=4, alpha=8), "tiny")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    methods.save(model, folder)
    job = replace(asked.job, adapter=folder)
    model = job.adapted()
    reference = ask(model, job.tokenizer, asked.questions)
    return Asked(replace(job, rounding=rounding(job, model, asked.questions, reference)), asked.questions, reference)

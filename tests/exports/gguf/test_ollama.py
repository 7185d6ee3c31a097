"""A chat template as Ollama writes it: the same text, or a refusal; and what `go.render` does, beside Go itself.

pytest tests/exports/gguf/test_ollama.py
"""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import TemplateError, UsageError
from tunesmith.exports import ollama
from tunesmith.exports.gguf.vocabulary import begins
from tunesmith.exports.ollama import go
from tunesmith.exports.ollama.template import translated

WRITTEN = {"chatml": True, "gemma": True, "llama3": True, "mistral": False, "phi": True}
"""{template: whether it takes a system message}"""
DEFAULT_SYSTEM = ("{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe \"brief\".<|im_end|>\n' }}{% endif %}"
                  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
                  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
MESSAGES = [{"role": "system", "content": "Short."}, {"role": "user", "content": "Hi \"you\"\n"},
            {"role": "assistant", "content": "Yes"}, {"role": "user", "content": "{{ .System }} and {% x %}"}]


@pytest.fixture(scope="module")
def tokenizers(tokenizer_like):
    return {name: tokenizer_like("sentencepiece" if name in ("gemma", "mistral") else "gpt-2", name)
            for name in (*WRITTEN, "odd")}


@settings(max_examples=30, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(WRITTEN)))
def test_it_writes_any_conversation_as_the_chat_template_does(tokenizers, data, name):
    tokenizer = tokenizers[name]
    source, notes = translated(tokenizer, begins(tokenizer))
    text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(lambda t: t == t.strip() and t)
    said = data.draw(st.lists(text, min_size=1, max_size=5).filter(lambda s: len(s) % 2))
    messages = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(said)]
    if WRITTEN[name] and data.draw(st.booleans()):
        messages.insert(0, {"role": "system", "content": data.draw(text)})
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert (tokenizer.bos_token if begins(tokenizer) else "") + go.render(source, messages) == expected
    assert any("white space" in n for n in notes) == (name in ("gemma", "llama3"))
    assert any("system messages are left out" in n for n in notes) == (not WRITTEN[name])


def test_a_default_system_message_is_written_where_there_is_none(tokenizers):
    import copy

    tokenizer = copy.deepcopy(tokenizers["chatml"])
    tokenizer.chat_template = DEFAULT_SYSTEM
    source, notes = translated(tokenizer, False)
    assert go.render(source, MESSAGES[1:2]).startswith('<|im_start|>system\nBe "brief".<|im_end|>\n<|im_start|>user')
    assert go.render(source, MESSAGES).startswith("<|im_start|>system\nShort.<|im_end|>") and notes == []


@pytest.mark.parametrize("template,why", [
    ("odd", "otherwise"),
    ("{% for m in messages %}{{ m['content'] | upper }}<|im_end|>{% endfor %}", "otherwise|leaves out"),
    ("{% for m in messages %}{{ m['content'] | replace('a', 'b') }}<|im_end|>{% endfor %}", "otherwise"),
    ("{{ messages[-1]['content'] }}<|im_end|>", "leaves out"),
    ("{% for m in messages | reverse %}{{ m['content'] }}<|im_end|>{% endfor %}", "otherwise|leaves out|order"),
    ("{% for m in messages %}{{ m['role'] + m['content'] * 2 }}<|im_end|>{% endfor %}", "repeats"),
])
def test_a_template_of_another_form_is_refused_with_what_to_do(template, why, tokenizers):
    import copy

    tokenizer = copy.deepcopy(tokenizers["odd"])
    tokenizer.chat_template = tokenizer.chat_template if template == "odd" else template
    with pytest.raises(TemplateError, match=why) as refused:
        translated(tokenizer, False)
    assert "llama-server" in refused.value.fix


def test_what_is_not_of_the_subset_is_no_template():
    assert go.render('a {{- "b" }} c {{ .System -}}  d', MESSAGES) == "ab c Short.d"
    for source in ("{{ printf .System }}", "{{ .System | len }}", "{{ if .System }}", "{{ end }}", "{{ $x }}", "{{ .Nothing }}",
                   "{{ x"):
        with pytest.raises(ValueError):
            go.render(source, MESSAGES)


@pytest.fixture(scope="module")
def in_go(tmp_path_factory):
    """Go's own text/template: `in_go(source, messages)`."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text("""package main

import ("encoding/json"; "os"; "text/template")

func main() {
    var input struct { Source string; System string; Messages []struct { Role, Content string } }
    if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil { panic(err) }
    if err := template.Must(template.New("").Parse(input.Source)).Execute(os.Stdout, input); err != nil { panic(err) }
}
""")
    subprocess.run(["go", "build", "-o", "run", "main.go"], cwd=folder, check=True)

    def rendered(source: str, messages: list[dict]) -> str:
        given = {"Source": source, "System": messages[0]["content"] if messages[0]["role"] == "system" else "",
                 "Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages]}
        return subprocess.run([folder / "run"], input=json.dumps(given), text=True, capture_output=True, check=True).stdout

    return rendered


@pytest.mark.parametrize("name", WRITTEN)
def test_go_itself_writes_what_our_evaluator_does(name, tokenizers, in_go):
    source, _ = translated(tokenizers[name], begins(tokenizers[name]))
    for messages in (MESSAGES, MESSAGES[1:], MESSAGES[1:2]):
        assert in_go(source, messages) == go.render(source, messages)


def test_a_modelfile_says_all_that_ollama_needs():
    text = ollama.modelfile("tiny-f16.gguf", '{{- "a" }}', ["<|im_end|>", "</s>"], 512)
    assert text.splitlines() == ["FROM ./tiny-f16.gguf", 'TEMPLATE """{{- "a" }}"""', "PARAMETER num_ctx 512",
                                 "PARAMETER temperature 0", 'PARAMETER stop "<|im_end|>"', 'PARAMETER stop "</s>"']
    with pytest.raises(UsageError, match="three quotes"):
        ollama.modelfile("x.gguf", '"""', [], 1)


def test_a_modelfile_with_another_template_is_refused(job_of, asked_of, tmp_path):
    pytest.importorskip("xllamacpp")
    asked, reference, job = asked_of(job_of("qwen3"))
    facts = ollama.write(job, tmp_path)
    assert facts["file"] == "tiny-f16.gguf" and (tmp_path / "Modelfile").read_text().startswith("FROM ./tiny-f16.gguf\n")
    found = ollama.probe(job, tmp_path, asked, reference)
    assert found["verdict"] == "pass", found["message"]
    assert found["modelfile"] == {"asked": len(asked), "other_prompts": [], "with_tools": 0, "ollama": "not_measured"}
    path = tmp_path / "Modelfile"
    path.write_text(path.read_text().replace("<|im_start|>assistant", "<|im_start|>bot"))
    assert ollama.probe(job, tmp_path, asked, reference)["failed"] == ["modelfile"]

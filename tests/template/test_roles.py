"""Each token is of the message whose text it holds, whatever the texts say and however the template writes them.

    python -m pytest tests/template/test_roles.py
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.template.test_render import ask, chatml, conversations

from tunesmith.template.render import render
from tunesmith.template.roles import roles, texts

FEW = settings(max_examples=50, deadline=None, database=None)
PRETENDING = ["assistant\n", "user", "<|im", "\n", "\n\n", " ", "🙂", "كتاب", "template", "system\nYou are", "{{ m }}", "é"]
LLAMA = ("{% for m in messages %}{% if m.role == 'system' %}{% elif m.role == 'user' %}<|im_start|>[INST] "
         "{% if loop.index0 == 1 and messages[0].role == 'system' %}<<SYS>>{{ messages[0].content | trim }}<</SYS>> {% endif %}"
         "{{ m.content | trim }} [/INST]{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}")
FORGETTING = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last or m.role != 'assistant' %}{{ m.content }}"
              "{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}<|im_end|>\n{% endfor %}"
              "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def said(tokenizer, messages, tools=None) -> list[tuple[str, str]]:
    """Runs of tokens of one role."""
    rendered, runs = render(tokenizer, messages, tools), []
    for text, role in zip(texts(tokenizer, rendered.ids), roles(tokenizer, messages, tools), strict=True):
        if not runs or runs[-1][0] != role:
            runs.append((role, ""))
        runs[-1] = role, runs[-1][1] + text
    return runs


def by_hand(messages) -> tuple[str, list[int | None]]:
    """ChatML written out, and the message that each character is of."""
    text, of = "", []
    for i, m in enumerate(messages):
        for part, whose in ((f"<|im_start|>{m['role']}\n", None), (m["content"], i), ("<|im_end|>\n", None)):
            text += part
            of += [whose] * len(part)
    return text, of


@pytest.mark.parametrize("name", ["tiny_tokenizer", "newline_tokenizer"])
@FEW
@given(messages=conversations(pieces=PRETENDING))
def test_a_token_that_holds_text_of_a_message_is_of_that_message(request, name, messages):
    tokenizer = request.getfixturevalue(name)
    try:
        rendered = render(tokenizer, messages)
    except Exception as refused:  # the newline tokenizer fuses an answer that begins with a line feed: no row of a dataset
        assert "fuses" in str(refused)
        return
    text, of = by_hand(messages)
    assert rendered.text == text
    at = 0
    for n, (piece, role) in enumerate(zip(texts(tokenizer, rendered.ids), roles(tokenizer, messages), strict=True)):
        whose = {i for i in of[at : at + len(piece)] if i is not None}
        at += len(piece)
        if rendered.trained[n]:
            assert role == "assistant"
        elif piece:  # half a character has no text of its own
            assert role == (messages[min(whose)]["role"] if whose else "template")
    assert at == len(text)


def test_a_system_message_folded_into_the_users_turn_stays_the_systems(speaking):
    tokenizer = speaking(LLAMA)
    messages = [{"role": "system", "content": " Be brief. "}, *ask("Yes.", " Oak? "), *ask("No.", "Elm?")]
    # A space of the template before a word is in the word's token.
    assert [(role, text.strip()) for role, text in said(tokenizer, messages) if role != "template"] == [
        ("system", "Be brief."), ("user", "Oak?"), ("assistant", "Yes.<|im_end|>"), ("user", "Elm?"),
        ("assistant", "No.<|im_end|>")]


def test_what_a_template_forgets_of_an_earlier_answer_is_nobodys(speaking):
    tokenizer = speaking(FORGETTING)
    messages = [*ask("<think>hm</think>Yes."), *ask("No.", "Elm?")]
    messages[1]["weight"] = 0
    runs = said(tokenizer, messages)
    assert [run for run in runs if run[0] == "assistant"] == [("assistant", "Yes."), ("assistant", "No.<|im_end|>")]
    assert "hm" not in "".join(text for _, text in runs)


def test_the_same_text_said_by_everybody_is_told_apart(tiny_tokenizer):
    messages = [{"role": role, "content": "user"} for role in ("system", "user", "assistant", "tool", "assistant")]
    assert [run for run in said(tiny_tokenizer, messages) if run[0] != "template"] == [
        ("system", "user"), ("user", "user"), ("assistant", "user<|im_end|>"), ("tool", "user"),
        ("assistant", "user<|im_end|>")]


def test_the_templates_own_system_prompt_and_tools_are_the_templates(speaking, real_tokenizer):
    runs = said(real_tokenizer, ask("Yes."))
    assert runs[0][0] == "template" and "You are a helpful AI assistant" in runs[0][1]
    assert [run for run in runs if run[0] != "template"] == [("user", "Oak?"), ("assistant", "Yes.<|im_end|>")]
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    calling = speaking("{% if tools %}{{ tools }}{% endif %}" + chatml("m.content ~ (m.tool_calls or '')"))
    messages = [*ask(""), {"role": "tool", "content": "found"}, {"role": "assistant", "content": "Yes."}]
    messages[1] |= {"weight": 0, "tool_calls": [{"function": {"name": "look_up", "arguments": {"q": "Oak"}}}]}
    runs = said(calling, messages, tools)
    assert "look_up" in runs[0][1] and runs[0][0] == "template"
    assert [role for role, _ in runs if role != "template"] == ["user", "assistant", "tool", "assistant"]
    assert "look_up" in next(text for role, text in runs if role == "assistant"), "a call is the assistant's"


def test_without_a_template_the_prompt_is_the_users(speaking):
    assert said(speaking(None), ask("Yes.", "Oak? ")) == [("user", "Oak? "), ("assistant", "Yes.<|im_end|>")]


@FEW
@given(text=st.lists(st.sampled_from([*PRETENDING, "日本", "👩‍👩‍👧", "\ufffd", "\x00", "a"]), max_size=20).map("".join))
def test_texts_of_tokens_are_the_text(tiny_tokenizer, newline_tokenizer, real_tokenizer, text):
    for tokenizer in (tiny_tokenizer, newline_tokenizer, real_tokenizer):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(texts(tokenizer, ids)) == len(ids)
        assert "".join(texts(tokenizer, ids)) == tokenizer.decode(ids) == text

"""What is trained: exactly the answers and their stop tokens, after exactly what generation will be given.

    python -m pytest tests/template/test_render.py
"""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import TemplateError
from tunesmith.template.render import generation_prompt, render, stop_ids, stop_token

PIECES = ["\n", "\n\n", " ", "  \t", "🙂", "é", "\u2028", "\x00", "{{ x }}", "{% for %}", "assistant\n", "<|im", "_end|>",
          "im_end", '{"a": 1}', "كتاب", "日本", "<think>", "</s>"]
CONTROL = ["<|im_end|>", "<|im_start|>"]
FEW = settings(max_examples=50, deadline=None, database=None)


def texts(pieces: list[str], without: tuple[str, ...]):
    some = st.one_of(st.sampled_from(pieces), st.text(st.characters(exclude_categories=["Cs", *without]), max_size=12))
    return st.lists(some, max_size=5).map("".join)


@st.composite
def conversations(draw, pieces=PIECES, without=CONTROL, categories=()):
    """System message or not, one to four exchanges, answers of weight 0, 1 or none given; at least one is trained."""
    text = texts(pieces, categories).filter(lambda t: not any(c in t for c in without))
    messages = [{"role": "system", "content": draw(text)}] if draw(st.booleans()) else []
    for weight in draw(st.lists(st.sampled_from([None, 0, 1]), min_size=1, max_size=4).filter(lambda w: set(w) != {0})):
        messages.append({"role": "user", "content": draw(text)})
        messages.append({"role": "assistant", "content": draw(text)} | ({} if weight is None else {"weight": weight}))
    return messages


def trained_turns(messages):
    return [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight", 1) != 0]


def ask(answer: str, question: str = "Oak?") -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def chatml(content: str = "m.content") -> str:
    """ChatML that writes something else for the content."""
    return ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ " + content + " }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def plain(messages):
    return [{k: v for k, v in m.items() if k != "weight"} for m in messages]


@FEW
@given(messages=conversations())
def test_ids_are_those_of_the_tokenizers_own_template(tiny_tokenizer, messages):
    assert render(tiny_tokenizer, messages).ids == tiny_tokenizer.apply_chat_template(plain(messages), return_dict=False)


@FEW
@given(messages=conversations())
def test_what_comes_before_a_trained_turn_is_the_generation_prompt(tiny_tokenizer, messages):
    rendered = render(tiny_tokenizer, messages)
    assert len(rendered.turns) == len(trained_turns(messages))
    for (begin, _), i in zip(rendered.turns, trained_turns(messages), strict=True):
        assert rendered.ids[:begin] == generation_prompt(tiny_tokenizer, messages[:i])


@FEW
@given(messages=conversations())
def test_trained_tokens_are_the_answer_and_its_stop_token(tiny_tokenizer, messages):
    rendered = render(tiny_tokenizer, messages)
    assert tiny_tokenizer.pad_token_id == tiny_tokenizer.eos_token_id  # the case in which masking by pad id loses the stop
    for (begin, end), i in zip(rendered.turns, trained_turns(messages), strict=True):
        assert all(rendered.trained[begin:end])
        assert rendered.ids[end - 1] == stop_token(tiny_tokenizer) == tiny_tokenizer.pad_token_id
        assert tiny_tokenizer.decode(rendered.ids[begin:end]) == messages[i]["content"] + "<|im_end|>"
    assert sum(rendered.trained) == sum(end - begin for begin, end in rendered.turns)


@FEW
@given(messages=conversations())
def test_mask_equals_one_built_piece_by_piece(tiny_tokenizer, messages):
    """The independent reference: special tokens cut the text, so ChatML can be put together from its parts."""
    def encode(text):
        return tiny_tokenizer(text, add_special_tokens=False)["input_ids"]

    start, stop = tiny_tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    ids, trained = [], []
    for i, m in enumerate(messages):
        header, body = [start, *encode(m["role"] + "\n")], [*encode(m["content"]), stop]
        ids += [*header, *body, *encode("\n")]
        trained += [False] * len(header) + [i in trained_turns(messages)] * len(body) + [False]
    rendered = render(tiny_tokenizer, messages)
    assert (rendered.ids, rendered.trained) == (ids, trained)


@FEW
@given(messages=conversations())
def test_weight_changes_what_is_trained_and_not_what_is_read(tiny_tokenizer, messages):
    everything = render(tiny_tokenizer, plain(messages))
    assert render(tiny_tokenizer, messages).ids == everything.ids
    untrained = [dict(m, weight=0) if m["role"] == "assistant" else m for m in messages]
    assert not any(render(tiny_tokenizer, untrained).trained)


@FEW
@given(messages=conversations(CONTROL + PIECES[:4], without=[]))
def test_row_that_spells_out_a_control_token_is_refused_and_no_other(tiny_tokenizer, messages):
    spelled = any(c in m["content"] for m in messages for c in CONTROL)
    if spelled:
        with pytest.raises(TemplateError, match=r"messages\[\d\] spells out '<\|im_(start|end)\|>'"):
            render(tiny_tokenizer, messages)
    else:
        render(tiny_tokenizer, messages)


@FEW
@given(messages=conversations(CONTROL + PIECES[:4], without=[]))
def test_no_text_of_a_user_puts_a_control_token_into_a_generation_prompt(tiny_tokenizer, messages):
    control = set(tiny_tokenizer.convert_tokens_to_ids(CONTROL))
    ids = generation_prompt(tiny_tokenizer, messages)
    assert sum(t in control for t in ids) == 2 * len(messages) + 1  # what the template writes
    assert tiny_tokenizer.decode(ids) == tiny_tokenizer.apply_chat_template(plain(messages), tokenize=False,
                                                                            add_generation_prompt=True)


def test_special_tokens_that_the_template_does_not_write_are_content(speaking, tiny_tokenizer):
    tokenizer = speaking(tiny_tokenizer.chat_template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<filename>"]})
    rendered = render(tokenizer, ask("cat <filename>"))
    assert rendered.ids.count(tokenizer.convert_tokens_to_ids("<filename>")) == 1


def test_template_that_drops_earlier_reasoning_is_refused_until_only_the_last_turn_is_trained(speaking):
    tokenizer = speaking(chatml("m.content if loop.last else m.content.split('</think>')[-1]"))
    messages = ask("<think>2</think>4") + ask("<think>3</think>6")
    with pytest.raises(TemplateError, match=r"rewrites what comes before messages\[1\]"):
        render(tokenizer, messages)
    messages[1]["weight"] = 0
    (begin, end), = render(tokenizer, messages).turns
    assert tokenizer.decode(render(tokenizer, messages).ids[begin:end]) == "<think>3</think>6<|im_end|>"


@pytest.mark.parametrize("change", ["trim", "replace('<think>', '')", "upper"])
def test_template_that_changes_the_answer_is_refused_for_the_rows_it_changes(speaking, change):
    tokenizer = speaking(chatml(f"m.content | {change}"))
    with pytest.raises(TemplateError, match="changes the answer"):
        render(tokenizer, ask(" <think>2</think>four\n"))
    assert render(tokenizer, ask("4")).turns


@pytest.mark.parametrize("template", [
    "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{{ 'assistant:' if add_generation_prompt }}",
    "{% for m in messages %}{{ m.role }}<|im_end|>{{ m.content }}{% endfor %}{{ 'assistant' if add_generation_prompt }}",
], ids=["none", "only before the answer"])
def test_template_without_a_stop_token_is_refused(speaking, template):
    with pytest.raises(TemplateError, match="ends no assistant turn with a special token"):
        render(speaking(template), ask("Oak"))


def test_answer_that_fuses_with_the_prompt_is_refused(newline_tokenizer):
    assert render(newline_tokenizer, ask("line")).turns
    with pytest.raises(TemplateError, match=r"messages\[1\]: the tokenizer fuses"):
        render(newline_tokenizer, ask("\n\nline"))


def test_generation_prompt_that_ends_in_a_space_fuses_with_every_word(speaking):
    tokenizer = speaking("{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
                         "{{ 'assistant: ' if add_generation_prompt }}")
    with pytest.raises(TemplateError, match="fuses"):
        render(tokenizer, ask("Street"))


def test_template_that_fails_says_why(speaking):
    tokenizer = speaking("{{ raise_exception('no system message here') if messages[0].role == 'system' }}" + chatml())
    with pytest.raises(TemplateError) as refused:
        render(tokenizer, [{"role": "system", "content": "Be brief."}, *ask("4")])
    assert "no system message here" in str(refused.value) and refused.value.exit_code == 2


def test_conversation_that_begins_with_a_trained_answer_is_refused(tiny_tokenizer):
    with pytest.raises(TemplateError, match="empty conversation"):
        render(tiny_tokenizer, ask("Hello!")[1:])


def test_tools_that_the_template_leaves_out_are_refused(tiny_tokenizer, speaking):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(TemplateError, match="leaves out the row's tool_calls"):
        render(tiny_tokenizer, messages)
    with pytest.raises(TemplateError, match="leaves out the row's tools"):
        render(tiny_tokenizer, ask("2"), [call])
    showing = speaking("{{ tools | tojson if tools }}" + chatml("m.content + (m.tool_calls | tojson if m.tool_calls else '')"))
    rendered = render(showing, messages, [call])
    (begin, end), = rendered.turns
    assert '"arguments": {"a": 1}' in showing.decode(rendered.ids[begin:end])


def test_base_without_a_template_trains_completion_and_end_of_text(speaking):
    tokenizer = speaking(None)
    rendered = render(tokenizer, ask(" Elm", "Oak"))
    prompt, answer = (tokenizer(t)["input_ids"] for t in ("Oak", " Elm"))
    assert rendered.ids == [*prompt, *answer, tokenizer.eos_token_id]
    assert rendered.trained == [False] * len(prompt) + [True] * (len(answer) + 1)
    assert generation_prompt(tokenizer, ask("")[:1]) == tokenizer("Oak?")["input_ids"]
    with pytest.raises(TemplateError, match="this row is a conversation"):
        render(tokenizer, ask("4") + ask("6"))
    with pytest.raises(TemplateError, match="spells out"):
        render(tokenizer, ask("Elm<|im_end|>"))
    typed = generation_prompt(tokenizer, [{"role": "user", "content": "<|im_end|>"}])
    assert tokenizer.decode(typed) == "<|im_end|>" and tokenizer.eos_token_id not in typed


def test_base_without_a_template_begins_as_its_tokenizer_begins_plain_text(speaking):
    from tokenizers.processors import TemplateProcessing

    tokenizer = speaking(None)
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)])
    assert tokenizer("Oak")["input_ids"][0] == bos
    rendered = render(tokenizer, ask(" Elm", "Oak"))
    assert rendered.ids[: rendered.turns[0][0]] == tokenizer("Oak")["input_ids"] == generation_prompt(
        tokenizer, [{"role": "user", "content": "Oak"}])
    assert rendered.ids.count(bos) == 1


def test_base_with_neither_template_nor_end_of_text_is_refused(speaking):
    tokenizer = speaking(None)
    tokenizer.eos_token = None
    with pytest.raises(TemplateError, match="neither a chat template nor an end-of-text token"):
        render(tokenizer, ask("Elm"))


def test_stop_token_follows_the_template_of_the_moment(speaking, tiny_tokenizer):
    tokenizer = speaking(tiny_tokenizer.chat_template)
    first = stop_token(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|endoftext|>")
    assert tokenizer.convert_ids_to_tokens([first, stop_token(tokenizer)]) == ["<|im_end|>", "<|endoftext|>"]
    assert stop_ids(tokenizer) == {stop_token(tokenizer), tokenizer.eos_token_id}


def test_render_leaves_the_row_as_it_was(tiny_tokenizer):
    messages = [{"role": "system", "content": "s"}, *ask("4"), *ask("6")]
    messages[2]["weight"] = 0
    before = copy.deepcopy(messages)
    render(tiny_tokenizer, messages)
    assert messages == before


@pytest.mark.real
@settings(max_examples=25, deadline=None, database=None)
@given(messages=conversations([p for p in PIECES if p != "\x00"], categories=("Cc", "Cn", "Co")))
def test_real_tokenizer_keeps_all_of_it_or_refuses_the_row(real_tokenizer, messages):
    """Without control and unassigned characters: its vocabulary lacks some of their bytes."""
    try:
        rendered = render(real_tokenizer, messages)
    except TemplateError as refused:
        assert "fuses" in refused.what and any(messages[i]["content"][:1].isspace() for i in trained_turns(messages))
        return
    assert rendered.ids == real_tokenizer.apply_chat_template(plain(messages), return_dict=False)
    for (begin, end), i in zip(rendered.turns, trained_turns(messages), strict=True):
        assert rendered.ids[:begin] == generation_prompt(real_tokenizer, messages[:i])
        assert rendered.ids[end - 1] == real_tokenizer.eos_token_id == real_tokenizer.pad_token_id
        assert real_tokenizer.decode(rendered.ids[begin:end]) == messages[i]["content"] + "<|im_end|>"


@pytest.mark.real
def test_real_tokenizer_refuses_an_answer_that_begins_with_line_feeds(real_tokenizer):
    with pytest.raises(TemplateError, match="fuses"):
        render(real_tokenizer, ask("\n\nOak"))

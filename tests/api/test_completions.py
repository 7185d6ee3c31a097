"""`/v1/completions` with the official openai client: text and token ids, one and many.

pytest tests/api/test_completions.py
"""

import pytest

PROMPTS = ["37 Oak Street", "Cedar Rapids IA 52401 12 Elm"]


@pytest.fixture(scope="session")
def expected(alone, tokenizer):
    def answer(name, prompt, n):
        ids, finish = alone(name, tokenizer(prompt)["input_ids"], n)
        return tokenizer.decode(ids, skip_special_tokens=True), finish, len(ids)

    return answer


def test_text_goes_on_as_transformers_alone_would_go_on(client, base, tuned, tokenizer, expected):
    for name in (base, tuned):
        made = client.completions.create(model=name, prompt=PROMPTS[0], temperature=0, max_tokens=20)
        (choice,) = made.choices
        text, finish, tokens = expected(name, PROMPTS[0], 20)
        assert (choice.text, choice.finish_reason, choice.index, choice.logprobs) == (text, finish, 0, None)
        assert made.usage.prompt_tokens == len(tokenizer(PROMPTS[0])["input_ids"])
        assert made.usage.completion_tokens == tokens
        assert (made.object, made.id[:5]) == ("text_completion", "cmpl-")


def test_sixteen_tokens_are_the_default_as_at_openai(client, base):
    assert client.completions.create(model=base, prompt=PROMPTS[0], temperature=0).usage.completion_tokens == 16


def test_several_prompts_give_their_choices_in_order(client, base, tokenizer, expected):
    made = client.completions.create(model=base, prompt=PROMPTS, temperature=0, max_tokens=10)
    assert [(c.index, c.text, c.finish_reason) for c in made.choices] == [
        (i, *expected(base, p, 10)[:2]) for i, p in enumerate(PROMPTS)]
    assert made.usage.prompt_tokens == sum(len(tokenizer(p)["input_ids"]) for p in PROMPTS)


def test_token_ids_mean_what_the_text_means(client, base, tokenizer, expected):
    ids = [tokenizer(p)["input_ids"] for p in PROMPTS]
    one = client.completions.create(model=base, prompt=ids[0], temperature=0, max_tokens=10)
    many = client.completions.create(model=base, prompt=ids, temperature=0, max_tokens=10)
    assert [c.text for c in one.choices] == [expected(base, PROMPTS[0], 10)[0]]
    assert [c.text for c in many.choices] == [expected(base, p, 10)[0] for p in PROMPTS]


def test_n_choices_of_each_prompt(client, base):
    made = client.completions.create(model=base, prompt=PROMPTS, n=2, seed=3, temperature=1, max_tokens=10)
    alone = client.completions.create(model=base, prompt=PROMPTS[1], n=2, seed=3, temperature=1, max_tokens=10)
    assert [c.index for c in made.choices] == [0, 1, 2, 3]
    assert [c.text for c in made.choices[2:]] == [c.text for c in alone.choices]
    assert made.choices[2].text != made.choices[3].text


def test_a_stream_says_the_same(client, base):
    asked = {"model": base, "prompt": PROMPTS[1], "temperature": 0, "max_tokens": 12}
    whole = client.completions.create(**asked)
    *spoken, usage = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert "".join(c.choices[0].text for c in spoken) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in spoken] == [None] * (len(spoken) - 1) + ["length"]
    assert {c.object for c in spoken} == {"text_completion"} and len({c.id for c in spoken}) == 1
    assert (usage.choices, usage.usage) == ([], whole.usage)


def test_stop_sequences(client, base, expected):
    whole = expected(base, PROMPTS[0], 20)[0]
    stop = next(whole[i : i + 2] for i in range(3, len(whole)) if whole[i : i + 2].isascii())
    made = client.completions.create(model=base, prompt=PROMPTS[0], temperature=0, max_tokens=20, stop=[stop])
    assert (made.choices[0].text, made.choices[0].finish_reason) == (whole[: whole.index(stop)], "stop")

"""`/v1/models` and `/v1/chat/completions` with the official openai client, unchanged.

pytest tests/api/test_chat.py
"""

import asyncio
import json

import pytest

QUESTION = [{"role": "user", "content": "5003 Oak Street"}]
LONG = [{"role": "system", "content": "Answer in JSON."}, {"role": "user", "content": "12 Elm Street"},
        {"role": "assistant", "content": "{}"}, {"role": "user", "content": "5003 Cottage Grove Street"}]


@pytest.fixture(scope="session")
def prompt_ids(tokenizer):
    def ids(messages):
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return ids


@pytest.fixture(scope="session")
def text_of(tokenizer):
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True)


# ---- models ----------------------------------------------------------------------------------------------------------


def test_models_are_listed_under_every_name_they_answer_to(client, base, tuned):
    listed = client.models.list()
    assert [m.id for m in listed] == [base, tuned, "production", "tiny"]
    assert {m.object for m in listed.data} == {"model"}
    assert all(m.owned_by and m.created > 1_700_000_000 for m in listed.data)


def test_a_model_is_retrieved_by_its_name_slashes_included(client, base, tuned):
    for name in (base, tuned, "production"):
        assert client.models.retrieve(name).id == name


# ---- whole answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [QUESTION, LONG])
@pytest.mark.parametrize("n", [3, 40])
def test_answer_finish_and_usage_are_those_of_transformers_alone(client, base, tuned, alone, prompt_ids, text_of, messages, n):
    finishes = []
    for name in (base, tuned):
        made = client.chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=n)
        prompt = prompt_ids(messages)
        ids, finish = alone(name, prompt, n)
        (choice,) = made.choices
        assert (choice.index, choice.message.role, choice.finish_reason) == (0, "assistant", finish)
        assert choice.message.content == text_of(ids)
        assert choice.message.tool_calls is None and choice.message.refusal is None
        assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (len(prompt), len(ids))
        assert made.usage.total_tokens == len(prompt) + len(ids)
        assert (made.object, made.model) == ("chat.completion", name)
        assert made.id.startswith("chatcmpl-")
        finishes.append(finish)
    assert finishes == (["length", "length"] if n == 3 else ["length", "stop"])


def test_names_of_one_release_give_one_answer_and_the_base_another(client, base, tuned):
    answers = {name: client.chat.completions.create(model=name, messages=QUESTION, temperature=0, max_tokens=24)
               .choices[0].message.content for name in (base, tuned, "production", "tiny")}
    assert answers[tuned] == answers["production"] == answers["tiny"] != answers[base]
    assert json.loads(answers[tuned]).keys() == {"street"}


def test_what_was_evaluated_is_what_is_served(client, finished, base, tuned):
    """The report's answers and the release's goldens, asked again one by one."""
    goldens = json.loads((finished.release_dir / "golden.json").read_text(encoding="utf-8"))
    items = finished.report["sets"]["test"]["items"]
    assert len(goldens) == 8
    assert [g["answer"] for g in goldens] == [i["answers"]["tuned"] for i in items[:8]]
    assert len({g["answer"] for g in goldens}) > 2
    for golden, item in zip(goldens, items, strict=False):
        for name, system in ((tuned, "tuned"), (base, "zero_shot")):
            made = client.chat.completions.create(model=name, messages=golden["messages"], temperature=0,
                                                  max_tokens=golden["max_new_tokens"])
            assert made.choices[0].message.content == item["answers"][system]
            assert (made.choices[0].finish_reason == "stop") == item["stopped"][system]


def test_content_parts_and_the_developer_role_are_text_and_system(client, base):
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "12 Oak Street"}]
    parts = [{"role": "developer", "content": "Be brief."},
             {"role": "user", "content": [{"type": "text", "text": "12 Oak"}, {"type": "text", "text": " Street"}]}]
    one, other = (client.chat.completions.create(model=base, messages=m, temperature=0, max_tokens=12) for m in (plain, parts))
    assert one.choices[0].message.content == other.choices[0].message.content
    assert (one.usage.prompt_tokens, one.usage.completion_tokens) == (other.usage.prompt_tokens, other.usage.completion_tokens)


def test_max_completion_tokens_is_the_limit_too(client, base):
    made = client.chat.completions.create(model=base, messages=QUESTION, temperature=0, max_completion_tokens=5)
    assert (made.usage.completion_tokens, made.choices[0].finish_reason) == (5, "length")


def test_without_a_limit_the_context_is_the_limit(client, base, prompt_ids, alone):
    made = client.chat.completions.create(model=base, messages=QUESTION, temperature=0)
    assert alone(base, prompt_ids(QUESTION), 512)[1] == "length", "it must not end by itself for this to mean anything"
    assert (made.choices[0].finish_reason, made.usage.total_tokens) == ("length", 512)


# ---- sampling --------------------------------------------------------------------------------------------------------


def test_a_seed_reproduces_an_answer_and_another_seed_does_not(client, base):
    def ask(seed):
        made = client.chat.completions.create(model=base, messages=QUESTION, seed=seed, max_tokens=24)
        return made.choices[0].message.content

    assert ask(5) == ask(5) != ask(6)
    assert ask(-(2**63)) == ask(-(2**63))


def test_two_choices_are_two_samples_and_their_prompt_is_counted_once(client, base, prompt_ids):
    def ask():
        return client.chat.completions.create(model=base, messages=QUESTION, n=2, seed=11, max_tokens=16, temperature=1,
                                              extra_body={"ignore_eos": True})

    made = ask()
    assert [c.index for c in made.choices] == [0, 1]
    first, second = (c.message.content for c in made.choices)
    assert first != second
    assert [c.message.content for c in ask().choices] == [first, second]
    assert made.usage.prompt_tokens == len(prompt_ids(QUESTION))
    assert made.usage.completion_tokens == 32


def test_temperature_zero_gives_equal_choices(client, base):
    made = client.chat.completions.create(model=base, messages=QUESTION, n=3, max_tokens=10, temperature=0)
    assert len({c.message.content for c in made.choices}) == 1


def test_a_tiny_top_p_is_greedy(client, base):
    greedy = client.chat.completions.create(model=base, messages=QUESTION, max_tokens=16, temperature=0)
    narrow = client.chat.completions.create(model=base, messages=QUESTION, max_tokens=16, temperature=2, top_p=1e-6)
    assert narrow.choices[0].message.content == greedy.choices[0].message.content


# ---- stop sequences --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("many", [False, True])
def test_a_stop_sequence_cuts_the_answer_before_it(client, tuned, stream, many):
    asked = {"model": tuned, "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    stop = whole[4:7]
    made = client.chat.completions.create(**asked, stream=stream, stop=["never said", stop, "\n"] if many else stop)
    if stream:
        chunks = list(made)
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        finish = chunks[-1].choices[0].finish_reason
    else:
        text, finish = made.choices[0].message.content, made.choices[0].finish_reason
    assert (text, finish) == (whole[: whole.index(stop)], "stop")


# ---- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 40])
def test_a_stream_says_the_same_as_the_whole_answer_in_openais_order(client, base, tuned, n):
    for name in (base, tuned):
        whole = client.chat.completions.create(model=name, messages=QUESTION, temperature=0, max_tokens=n)
        chunks = list(client.chat.completions.create(model=name, messages=QUESTION, temperature=0, max_tokens=n, stream=True,
                                                     stream_options={"include_usage": True}))
        *spoken, usage = chunks
        first, *middle, last = [c.choices[0] for c in spoken]
        assert (first.delta.role, first.delta.content, first.finish_reason) == ("assistant", "", None)
        assert all(c.delta.content and c.delta.role is None and c.finish_reason is None for c in middle)
        assert (last.delta.content, last.finish_reason) == (None, whole.choices[0].finish_reason)
        assert "".join(c.delta.content for c in middle) == whole.choices[0].message.content
        assert usage.choices == [] and usage.usage == whole.usage
        assert all(c.usage is None for c in spoken)
        assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1
        assert chunks[0].object == "chat.completion.chunk" and chunks[0].model == name
    assert len(middle) > 1, "it comes in pieces"


def test_without_include_usage_no_chunk_carries_it(client, base):
    chunks = list(client.chat.completions.create(model=base, messages=QUESTION, temperature=0, max_tokens=4, stream=True))
    assert all(c.choices and c.usage is None for c in chunks)


def test_the_choices_of_a_stream_are_told_apart_by_their_index(client, base):
    options = {"model": base, "messages": QUESTION, "n": 2, "seed": 4, "max_tokens": 12}
    whole = client.chat.completions.create(**options)
    texts, finished, roles = ["", ""], [], []
    for chunk in client.chat.completions.create(**options, stream=True):
        (choice,) = chunk.choices
        assert choice.index not in finished
        texts[choice.index] += choice.delta.content or ""
        roles += [choice.index] if choice.delta.role else []
        finished += [choice.index] if choice.finish_reason else []
    assert texts == [c.message.content for c in whole.choices]
    assert (roles, sorted(finished)) == ([0, 1], [0, 1])


def test_the_async_client_works_and_requests_side_by_side_keep_apart(server, client, base, tuned):
    from openai import AsyncOpenAI

    streets = ["Oak", "Elm", "Main", "Bever"]
    asked = [(name, [{"role": "user", "content": f"77 {s} Street"}]) for s in streets for name in (base, tuned)]
    one_by_one = [client.chat.completions.create(model=m, messages=q, temperature=0, max_tokens=16).choices[0].message.content
                  for m, q in asked]

    async def all_at_once():
        async with AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as open_ai:
            async def ask(model, messages, stream):
                made = await open_ai.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=16,
                                                             stream=stream)
                return "".join([c.choices[0].delta.content or "" async for c in made]) if stream \
                    else made.choices[0].message.content

            return await asyncio.gather(*(ask(m, q, i % 3 == 0) for i, (m, q) in enumerate(asked)))

    assert asyncio.run(all_at_once()) == one_by_one
    assert len(set(one_by_one)) > 4


def test_ignored_fields_change_nothing(client, base):
    plain = client.chat.completions.create(model=base, messages=QUESTION, temperature=0, max_tokens=8)
    decorated = client.chat.completions.create(
        model=base, messages=QUESTION, temperature=0, max_tokens=8, store=True, user="u-1", service_tier="auto",
        metadata={"team": "a"}, safety_identifier="s", prompt_cache_key="k", parallel_tool_calls=True, tools=[],
        tool_choice="none", reasoning_effort="low", verbosity="low", modalities=["text"], logprobs=False,
        frequency_penalty=0, presence_penalty=0.0, logit_bias={}, response_format={"type": "text"})
    assert decorated.choices[0].message.content == plain.choices[0].message.content

"""Fields that change what is drawn, over the wire, with the official client.

pytest tests/api/test_chat_sampling.py
"""

import json

import pytest

QUESTION = [{"role": "user", "content": "5003 Oak Street"}]
EXTRAS = ("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos")


@pytest.fixture
def ask(client, base):
    def call(**options):
        extra = {k: options.pop(k) for k in EXTRAS if k in options}
        asked = {"model": base, "messages": QUESTION, "max_tokens": 12} | options
        return client.chat.completions.create(**asked, extra_body=extra)

    return call


def content(made) -> str:
    return made.choices[0].message.content


def test_a_bias_bans_and_forces(ask, tokenizer):
    oak, elm = (str(tokenizer(word)["input_ids"][0]) for word in ("Oak", "Elm"))
    biases = ({oak: 100, elm: 50}, {oak: -100, elm: 50}, {oak: 50, elm: 100})
    said = [content(ask(temperature=0.5, logit_bias=bias)) for bias in biases]
    assert said == [tokenizer.decode([int(word)]) * 12 for word in (oak, elm, elm)]


@pytest.mark.parametrize("options", [{"frequency_penalty": 2}, {"presence_penalty": 2}])
def test_penalties_say_less_of_the_same(ask, tokenizer, options):
    oak = {str(tokenizer("Oak")["input_ids"][0]): 9, str(tokenizer("Elm")["input_ids"][0]): 8.5}
    plain, penalised = (content(ask(temperature=0, logit_bias=oak, **o)) for o in ({}, options))
    word = tokenizer.decode([int(next(iter(oak)))])
    assert plain == word * 12 and 1 <= penalised.count(word) < 12


def test_a_repetition_penalty_below_one_has_the_prompt_repeated(client, base, tokenizer):
    asked = tokenizer("37 Oak Street Cedar Rapids")["input_ids"]
    known, share = {tokenizer.decode([i]) for i in asked}, []
    for extra in ({}, {"repetition_penalty": 0.01}):
        made = client.completions.create(model=base, prompt=asked, temperature=0, max_tokens=12, logprobs=0, extra_body=extra)
        share.append(sum(token in known for token in made.choices[0].logprobs.tokens) / 12)
    assert share[0] < share[1] == 1


def test_top_k_of_one_is_greedy(ask):
    assert content(ask(temperature=2, top_k=1)) == content(ask(temperature=0)) == content(ask(temperature=2, min_p=1))


def test_a_learned_end_waits_or_is_passed_by(ask, tuned):
    plain = ask(model=tuned, temperature=0, max_tokens=40)
    assert plain.choices[0].finish_reason == "stop"
    longer = ask(model=tuned, temperature=0, max_tokens=40, min_tokens=plain.usage.completion_tokens + 3)
    assert longer.usage.completion_tokens >= plain.usage.completion_tokens + 3
    passed = ask(model=tuned, temperature=0, max_tokens=40, ignore_eos=True)
    assert (passed.usage.completion_tokens, passed.choices[0].finish_reason) == (40, "length")


def test_a_tuned_model_held_to_json_says_what_it_would_have_said(ask, tuned):
    """It has learned to write JSON: the mask has nothing to forbid."""
    form = {"response_format": {"type": "json_object"}}
    free, held = (ask(model=tuned, temperature=0, max_tokens=40, **o) for o in ({}, form))
    assert json.loads(content(free)) == json.loads(content(held))
    assert content(free) == content(held) and held.usage == free.usage


def test_a_hundred_choices_come_in_order(ask):
    few, many = (ask(n=n, seed=9, max_tokens=3).choices for n in (3, 100))
    assert [c.index for c in many] == list(range(100))
    assert [c.message.content for c in many[:3]] == [c.message.content for c in few]
    assert len({c.message.content for c in many}) > 50


def test_the_best_of_several_is_the_likeliest_by_its_own_scores(client, base):
    options = {"model": base, "prompt": "37 Oak Street", "seed": 2, "max_tokens": 6, "temperature": 1.0}
    every = client.completions.create(**options, n=7, logprobs=0)
    means = sorted((sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs), c.text) for c in every.choices)
    for more in ({}, {"logprobs": 1}, {"echo": True}):
        best = client.completions.create(**options, n=2, best_of=7, **more)
        before = "37 Oak Street" if "echo" in more else ""
        assert [c.text for c in best.choices] == [before + text for _, text in reversed(means[-2:])]
        assert [c.index for c in best.choices] == [0, 1]
        assert best.usage == every.usage, "what was made is counted, not what is shown"
        assert (best.choices[0].logprobs is None) == ("logprobs" not in more)


def test_the_fingerprint_is_that_of_base_and_adapter(ask, base, tuned):
    prints = [ask(model=m, max_tokens=1).system_fingerprint for m in (base, tuned, "production", base)]
    assert prints[0] == prints[3] != prints[1] == prints[2] and prints[0].startswith("fp_")
    assert {c.system_fingerprint for c in ask(stream=True, max_tokens=2)} == {prints[0]}


def test_usage_has_its_details(ask):
    usage = ask(max_tokens=2).usage
    assert usage.prompt_tokens_details.cached_tokens == usage.completion_tokens_details.reasoning_tokens == 0


def test_text_may_be_ended_by_one_of_several_names_of_a_speaker(ask):
    """`name` and keys that answers carry are taken back."""
    made = ask(messages=[{"role": "user", "name": "anna", "content": "12 Elm"},
                         {"role": "assistant", "content": "x", "refusal": None, "annotations": []}, *QUESTION], max_tokens=2)
    assert made.usage.completion_tokens == 2

"""Log-probabilities over the wire, with the official openai client: completions with echo, and chat.

pytest tests/api/test_logprobs.py
"""

import pytest
import torch

PROMPTS = ["37 Oak Street", "Cedar Rapids IA 52401 12 Elm", "é"]
QUESTION = [{"role": "user", "content": "5003 Oak Street"}]


@pytest.fixture(scope="module")
def scores(finished, lively_base, base, tuned):
    """`scores(name, ids)`: log-probabilities of transformers and PEFT for every next token, [len(ids), V]."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def load():
        return AutoModelForCausalLM.from_pretrained(lively_base, dtype=torch.float32).eval()

    models = {base: load(), tuned: PeftModel.from_pretrained(load(), finished.release_dir / "adapter").eval()}

    def of(name, ids):
        with torch.inference_mode():
            return models[name](input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)

    return of


def of_ids(logp_TV, ids: list[int], first: int = 0) -> list[float]:
    """Log-probabilities of `ids[first + 1:]`."""
    return [logp_TV[at, token].item() for at, token in enumerate(ids[1:]) if at >= first]


@pytest.mark.parametrize("as_ids", [False, True])
def test_echo_scores_the_prompts_of_base_and_adapter(client, base, tuned, tokenizer, scores, as_ids):
    ids = [tokenizer(p)["input_ids"] for p in PROMPTS]
    for name in (base, tuned):
        made = client.completions.create(model=name, prompt=ids if as_ids else PROMPTS, echo=True, logprobs=1, max_tokens=0,
                                         temperature=0)
        assert made.usage.completion_tokens == 0 and [c.index for c in made.choices] == [0, 1, 2]
        for choice, prompt, text in zip(made.choices, ids, PROMPTS, strict=True):
            assert (choice.text, choice.finish_reason) == (text, "length")
            told, logp_TV = choice.logprobs, scores(name, prompt)
            assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
            assert told.token_logprobs[1:] == pytest.approx(of_ids(logp_TV, prompt), abs=1e-4)
            assert [max(t.values()) for t in told.top_logprobs[1:]] == pytest.approx(logp_TV[:-1].amax(1).tolist(), abs=1e-4)
            assert told.tokens == [tokenizer.decode([i]) for i in prompt]
            if "�" not in "".join(told.tokens):
                assert told.text_offset == [text.index(t, o) for t, o in zip(told.tokens, told.text_offset, strict=True)]


def test_one_more_token_after_an_echo_always_has_its_score(client, tuned, tokenizer, scores):
    """Harnesses ask for one token and cut its score off. When it is the stop token, that must not cut the prompt."""
    whole = tokenizer.apply_chat_template([*QUESTION, {"role": "assistant", "content": '{"street": "Oak"}'}], tokenize=False)
    before, stop, _ = whole.rpartition("<|im_end|>")
    prompt = tokenizer(before)["input_ids"]
    made = client.completions.create(model=tuned, prompt=[prompt], echo=True, logprobs=1, max_tokens=1, temperature=0)
    choice, = made.choices
    assert (choice.finish_reason, choice.text) == ("stop", before), "it has learned to stop here"
    assert choice.logprobs.tokens[-1] == stop and len(choice.logprobs.tokens) == len(prompt) + 1
    assert choice.logprobs.token_logprobs[1:-1] == pytest.approx(of_ids(scores(tuned, prompt), prompt), abs=1e-4)


def test_what_is_generated_is_scored_and_a_stream_says_the_same(client, base, tokenizer, scores):
    asked = {"model": base, "prompt": PROMPTS[1], "temperature": 0, "max_tokens": 7, "logprobs": 3, "echo": True}
    whole, = client.completions.create(**asked).choices
    ids = tokenizer(PROMPTS[1])["input_ids"]
    assert len(whole.logprobs.tokens) == len(ids) + 7
    assert whole.text.startswith(PROMPTS[1]) and "".join(whole.logprobs.tokens[: len(ids)]) == PROMPTS[1]
    pieces = [e.choices[0] for e in client.completions.create(**asked, stream=True)]
    assert "".join(p.text for p in pieces) == whole.text
    for key in ("tokens", "token_logprobs", "text_offset"):
        assert [x for p in pieces for x in getattr(p.logprobs, key)] == getattr(whole.logprobs, key)
    alone, = client.completions.create(**asked | {"echo": False}).choices
    assert alone.logprobs.token_logprobs == pytest.approx(whole.logprobs.token_logprobs[len(ids):], abs=1e-4)
    assert all(len(top) in (3, 4) for top in alone.logprobs.top_logprobs)


def test_nobody_asked_nobody_told(client, base):
    assert client.completions.create(model=base, prompt="x", max_tokens=2).choices[0].logprobs is None
    assert client.chat.completions.create(model=base, messages=QUESTION, max_tokens=2).choices[0].logprobs is None


def test_chat_tells_the_tokens_of_its_message(client, tuned, tokenizer, scores):
    asked = {"model": tuned, "messages": QUESTION, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    choice, = client.chat.completions.create(**asked).choices
    told = choice.logprobs.content
    assert "".join(t.token for t in told) == choice.message.content and choice.finish_reason == "stop"
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    ids = prompt + tokenizer(choice.message.content)["input_ids"]
    assert [t.logprob for t in told] == pytest.approx(of_ids(scores(tuned, ids), ids, len(prompt) - 1), abs=1e-4)
    assert all(bytes(t.bytes).decode() == t.token and len(t.top_logprobs) == 2 for t in told)
    streamed = [e.choices[0] for e in client.chat.completions.create(**asked, stream=True) if e.choices]
    assert [t.logprob for c in streamed if c.logprobs for t in c.logprobs.content] == [t.logprob for t in told]

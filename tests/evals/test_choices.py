"""Multiple choice: asking all choices of a question at once gives the numbers of asking each alone.

pytest tests/evals/test_choices.py
"""

import pytest
import torch

from tunesmith.evals.items import Item, Outcome, Suite
from tunesmith.evals.likelihood import BATCH_CHOICES, choice_losses, row_losses
from tunesmith.evals.metrics import METRICS
from tunesmith.evals.systems import System, ask
from tunesmith.objectives.families import family
from tunesmith.objectives.sft import sample
from tunesmith.template.render import render

STREETS = ("Oak", "Elm", "Cottage Grove Avenue", "4th", "Main Street NE")


def item(n: int, choices: tuple[str, ...] = STREETS, question: str = "Where does the 4th house of this street stand?") -> Item:
    system = [{"role": "system", "content": "You know the streets of Cedar Rapids."}] if n % 3 == 0 else []
    return Item(f"f:{n}", [*system, {"role": "user", "content": f"{n} " + question[: 5 + 9 * n % 47]}], choices=choices,
                correct=n % len(choices))


ITEMS = [item(n, STREETS[: 2 + n % 4]) for n in range(13)]


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "mistral"])
def model(request, tmp_path_factory, tiny_tokenizer):
    """Also one with sliding windows shorter than the questions."""
    from tests.conftest import tiny_config
    from transformers import AutoModelForCausalLM

    config = tiny_config(request.param, len(tiny_tokenizer))
    if request.param != "llama":
        config.sliding_window = 16
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def naive(model, tokenizer, items) -> list[list[float]]:
    """Every choice as a whole conversation of its own."""
    found = []
    for one in items:
        rendered = [render(tokenizer, [*one.messages, {"role": "assistant", "content": c}]) for c in one.choices]
        found.append(row_losses(model, [sample(r.ids, r.trained) for r in rendered])[0])
    return found


def test_choices_that_share_a_question_have_the_likelihoods_of_whole_conversations(model, tiny_tokenizer):
    assert sum(len(i.choices) for i in ITEMS) > BATCH_CHOICES, "more than one batch"
    suite = Suite("s", "suite", ITEMS, ("choice",), "", 8)
    said = ask(model, tiny_tokenizer, suite, [System("zero_shot", adapter=True)], batch_size=4, known={})["zero_shot"]
    for outcome, expected in zip(said, naive(model, tiny_tokenizer, ITEMS), strict=True):
        assert list(outcome.choices) == pytest.approx([-x for x in expected], rel=1e-5, abs=1e-4)
        assert outcome.text is None, "nothing is generated"


def test_the_stop_token_is_part_of_a_choice(model, tiny_tokenizer):
    """Against transformers by hand: the sum of log p over the choice's tokens and the stop token, given the question."""
    one = item(4, ("Oak", "Oak Street"))
    said = ask(model, tiny_tokenizer, Suite("s", "suite", [one], ("choice",), "", 8), [System("zero_shot", adapter=True)],
               batch_size=4, known={})["zero_shot"][0]
    for choice, logp in zip(one.choices, said.choices, strict=True):
        prompt = tiny_tokenizer.apply_chat_template(one.messages, add_generation_prompt=True, return_dict=False)
        answer = [*tiny_tokenizer(choice)["input_ids"], tiny_tokenizer.eos_token_id]
        with torch.inference_mode():
            logp_TV = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        by_hand = sum(logp_TV[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))
        assert logp == pytest.approx(by_hand, rel=1e-5)


def test_a_question_of_one_token_and_one_with_a_hundred_choices(model):
    short = [family(([5, 7, 2], [False, True, True]), ([5, 9, 9, 2], [False, True, True, True]))]
    many = [family(*(([*range(3, 20), t, 2], [False] * 17 + [True] * 2) for t in range(100, 200)))]
    for families in (short, many, short + many + short):
        expected = [row_losses(model, [(f[0][0] + ids, [-100] * len(f[0][0]) + labels) for ids, labels in f[1:]])[0]
                    for f in families]
        for ours, theirs in zip(choice_losses(model, families), expected, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-4)


# ---- the metrics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logp, correct, sum_, per_byte", [
    ((-3.0, -4.0), 0, 1, 0),  # -3 / 2 = -1.5 per byte against -4 / 8 = -0.5
    ((-3.0, -4.0), 1, 0, 1), ((-9.0, -4.0), 1, 1, 1), ((-1.0, -1.0), 0, 1, 0), ((-1.0, -1.0), 1, 0, 1)])
def test_the_likeliest_choice_and_the_likeliest_per_byte(logp, correct, sum_, per_byte):
    one, said = Item("f:1", [], choices=("ab", "abcdefé"), correct=correct), Outcome(choices=logp)
    assert METRICS["choice"].parts(said, one) == (sum_, 1.0)
    assert METRICS["choice_norm"].parts(said, one) == (per_byte, 1.0), "é has two bytes"


@pytest.mark.parametrize("choices, correct, words", [
    ((), 0, "no two choices"), (("a",), 0, "no two choices"), (("a", "a"), 0, "twice"), (("a", "b"), None, "correct"),
    (("a", "b"), 2, "correct"), (("a", "b"), -1, "correct")])
def test_an_item_that_is_no_multiple_choice_is_refused(choices, correct, words):
    for name in ("choice", "choice_norm"):
        with pytest.raises(ValueError, match=words):
            METRICS[name].check(Item("f:1", [], choices=choices, correct=correct))

"""Streamed text is the decoded text, cut at the first stop sequence, whatever the tokens' borders.

pytest tests/serving/test_text.py
"""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunesmith.serving.text import UNFINISHED, TextStream

FAMILY = "👩‍👩‍👧‍👦"
SAYINGS = ["hi 😂 there", "naïve café — “quoted”", f"a {FAMILY} b", "日本語 text", "plain ascii only", "🙂🙂🙂", "\n\n# x\n"]


@pytest.fixture(scope="session")
def emoji_tokenizer():
    """Byte-level BPE trained on emoji: like GPT-2's and SmolLM2's, it has tokens of a space and half a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(["a 😂 b 🙂 c 🚀 hello world STOP"] * 20, trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")
    return tokenizer


@pytest.fixture(scope="session")
def space_and_half(emoji_tokenizer) -> int:
    """A token of a space and the first bytes of an emoji."""
    token = emoji_tokenizer(" 🎈")["input_ids"][0]
    assert emoji_tokenizer.decode([token]) == " " + UNFINISHED
    return token


def cut(text: str, stops) -> str:
    """`text` up to the stop sequence that is complete first (the longest of those that end together)."""
    for end in range(1, len(text) + 1):
        met = [s for s in stops if text[:end].endswith(s)]
        if met:
            return text[: end - len(max(met, key=len))]
    return text


def pieces_of(tokenizer, ids, stops=()) -> list[str]:
    stream = TextStream(tokenizer, tuple(stops))
    return [*(stream.push(i) for i in ids), stream.finish()]


STOPS = st.lists(st.text(alphabet="ab hello STO\n😂é", min_size=1, max_size=4), max_size=4)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), stops=STOPS)
def test_pieces_join_to_the_decoded_text_cut_at_the_first_stop(emoji_tokenizer, data, stops):
    ids = data.draw(st.lists(st.integers(0, len(emoji_tokenizer) - 1), max_size=40))
    whole = emoji_tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(pieces_of(emoji_tokenizer, ids, stops)) == cut(whole, stops)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=30), stops=st.lists(st.text(min_size=1, max_size=3), max_size=3))
@example(text="hi 😂", stops=[])
@example(text=f"{FAMILY} STOP {FAMILY}", stops=["STOP", "OP"])
def test_any_text_comes_through_character_for_character(emoji_tokenizer, tiny_tokenizer, text, stops):
    for tokenizer in (emoji_tokenizer, tiny_tokenizer):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join(pieces_of(tokenizer, ids, stops)) == cut(tokenizer.decode(ids, skip_special_tokens=True), stops)


@pytest.mark.parametrize("text", SAYINGS)
def test_a_character_is_shown_when_its_last_byte_has_come_and_not_half_before(emoji_tokenizer, text):
    ids = emoji_tokenizer(text)["input_ids"]
    stream, shown = TextStream(emoji_tokenizer), ""
    for n, token in enumerate(ids, 1):
        shown += stream.push(token)
        sure = emoji_tokenizer.decode(ids[:n])
        assert UNFINISHED not in shown
        assert shown == sure or sure.endswith(UNFINISHED)
    assert shown + stream.finish() == text


def test_a_stop_sequence_is_held_back_from_its_first_character(emoji_tokenizer):
    ids = [emoji_tokenizer(c)["input_ids"][0] for c in "abSTOx STOP b"]
    assert pieces_of(emoji_tokenizer, ids, ["STOP"]) == ["a", "b", "", "", "", "STOx", " ", "", "", "", "", "", "", ""]


def test_the_end_releases_what_looked_like_a_stop_sequence_and_half_a_character(emoji_tokenizer):
    stop = TextStream(emoji_tokenizer, ("STOP",))
    shown = "".join(stop.push(i) for c in "aSTO" for i in emoji_tokenizer(c)["input_ids"])
    assert (shown, stop.finish(), stop.stopped) == ("a", "STO", False)
    half = TextStream(emoji_tokenizer)
    assert half.push(emoji_tokenizer("😂")["input_ids"][0]) == ""
    assert half.finish() == UNFINISHED


def test_a_space_in_one_token_with_half_a_character_is_not_lost(emoji_tokenizer, space_and_half):
    ids = emoji_tokenizer("hi 🎈")["input_ids"]
    assert space_and_half in ids
    assert "".join(pieces_of(emoji_tokenizer, ids)) == "hi 🎈"


def test_a_stop_sequence_before_half_a_character_in_one_token_is_met_at_the_end(emoji_tokenizer, space_and_half):
    ids = [*emoji_tokenizer("a")["input_ids"], space_and_half]
    assert emoji_tokenizer.decode(ids) == "a " + UNFINISHED
    stream = TextStream(emoji_tokenizer, (" ",))
    assert "".join(stream.push(i) for i in ids) + stream.finish() == "a"
    assert stream.stopped


def test_special_tokens_are_no_text(emoji_tokenizer):
    a, end = emoji_tokenizer("a")["input_ids"][0], emoji_tokenizer.eos_token_id
    assert pieces_of(emoji_tokenizer, [end, a, end, a]) == ["", "a", "", "a", ""]


def test_spaces_are_not_cleaned_up(emoji_tokenizer, monkeypatch):
    """`{"a" : 1 , "b"}` is an answer, not English that wants tidying, whatever the tokenizer's own setting."""
    monkeypatch.setattr(emoji_tokenizer, "clean_up_tokenization_spaces", True)
    monkeypatch.setattr(emoji_tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", True)
    assert emoji_tokenizer.decode(emoji_tokenizer("a , b")["input_ids"]) == "a, b"
    text = "a , b . don 't ?"
    assert "".join(pieces_of(emoji_tokenizer, emoji_tokenizer(text)["input_ids"])) == text

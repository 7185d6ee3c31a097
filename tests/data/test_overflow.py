"""What a cut would lose, counted on rows whose loss is known.

    python -m pytest tests/data/test_overflow.py
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from tunesmith.data.overflow import Overflow
from tunesmith.errors import DataError
from tunesmith.template.render import render


def test_cost_of_a_cut_is_counted_in_answer_and_stop_tokens(chat, tiny_tokenizer):
    row = replace(chat("q", "one two three four five", "a.jsonl:1"), meta={"task": "count"})
    rendered = render(tiny_tokenizer, row.messages)
    begin, end = rendered.turns[0]
    for limit, answer, stops in ((end, 0, 0), (end - 1, 1, 1), (begin + 1, end - begin - 1, 1), (begin - 1, end - begin, 1)):
        overflow = Overflow(limit)
        overflow.add(row, rendered)
        assert (overflow.rows, overflow.answer_tokens, overflow.stop_tokens) == (1, answer, stops)
    assert "by task: count 1; by source: a.jsonl 1" in overflow.cost


@pytest.mark.parametrize("on_overflow", ["drop", "error"])
def test_preparation_tells_the_cost_by_file(dataset_of, make_recipe, tmp_path, on_overflow):
    recipe = make_recipe(**{"data.max_tokens": 60, "data.on_overflow": on_overflow})
    lines = [json.dumps({"prompt": f"{n} Oak Street", "completion": f'{{"number": "{n}"}}'}) for n in range(100, 130)]
    long = [json.dumps({"prompt": "Say it", "completion": "12 Main Street " * 20 + str(n)}) for n in range(2)]
    (tmp_path / "train.jsonl").write_text("\n".join([*lines, *long]))
    if on_overflow == "drop":
        told = next(f for f in dataset_of(recipe).manifest["findings"] if f["code"] == "overlong")["message"]
    else:
        with pytest.raises(DataError) as error:
            dataset_of(recipe)
        told = error.value.why
    lost = re.search(r"cut at 60 tokens they would lose ([\d,]+) answer tokens and (\d+) stop tokens "
                     r"\(by source: train.jsonl 2\)", told)
    assert int(lost[1].replace(",", "")) > 60 and lost[2] == "2"

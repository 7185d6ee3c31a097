"""The lines of a training: on stderr, one a step, with numbers that can be checked.

pytest tests/track/test_progress.py
"""

from __future__ import annotations

import re

from tunesmith.track.progress import StepLines, say

RECORD = {"step": 7, "loss": 1.73149, "grad_norm": 0.8449, "learning_rate": 0.00016, "trained_tokens_per_second": 412.4,
          "tokens": 200, "trained_tokens": 124}


def test_lines_go_to_stderr_and_leave_stdout_to_results(capsys):
    say("hello")
    with StepLines(total=120) as lines:
        lines.note("a note")
    assert capsys.readouterr() == ("", "hello\na note\n")


def test_step_line_shows_the_record_rounded(capsys):
    with StepLines(total=120) as lines:
        lines.step(RECORD)
    line = capsys.readouterr().err
    assert line.startswith("step   7/120 | loss 1.7315 | gnorm 0.84 | lr 1.6e-04 | 412 trained tok/s | 38% masked | ")
    assert re.search(r"\| \d\d:\d\d left\n$", line)


def test_time_left_counts_only_the_steps_of_this_process(capsys):
    """Resumed after 5: two steps in two minutes leave three, at a minute each."""
    with StepLines(total=10, start=5) as lines:
        lines.began -= 120
        lines.step(RECORD)
    assert capsys.readouterr().err.endswith("03:00 left\n")


def test_nothing_is_left_after_the_last_step(capsys):
    with StepLines(total=7) as lines:
        lines.step(RECORD)
    assert capsys.readouterr().err.endswith("00:00 left\n")

"""`tunesmith watch`: what it says of runs that train, ended, failed and were killed, and how it leaves the terminal.

pytest tests/training/test_look.py
"""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.training.look import Look, Tail
from tunesmith.training.run import Run, all_runs, train

LOOK_KEYS = {"run_id", "name", "status", "ended", "error", "run_dir", "recipe_path", "created", "base", "engine", "dtype",
             "step", "total_steps", "epoch", "epochs", "train_loss", "eval_loss", "adapter_step", "best", "learning_rate",
             "grad_norm", "tokens_per_second", "peak_memory_bytes", "seconds", "seconds_left", "warnings", "events", "curves"}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=3), max_size=12),
       st.lists(st.integers(1, 40), max_size=20))
def test_a_file_that_grows_in_any_pieces_gives_every_record_once(tmp_path_factory, records, cuts):
    path = tmp_path_factory.mktemp("tail") / "metrics.jsonl"
    data = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
    tail, at = Tail(path), 0
    assert tail.read() == []
    for cut in [*cuts, len(data)]:
        with open(path, "ab") as f:
            f.write(data[at : at + cut])
        at += cut
        tail.read()
    assert tail.read() == records


def test_a_file_that_was_replaced_is_read_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    tail = Tail(path)
    tail.read()
    (tmp_path / "new").write_text('{"step": 1}\n')
    (tmp_path / "new").replace(path)
    assert tail.read() == [{"step": 1}]


def test_a_finished_run(make_recipe, command, home):
    state = train(make_recipe(**{"train.eval_every_steps": 4}))
    code, out, err = command("watch", state["run_id"], "--json")
    look = json.loads(out)
    assert (code, look.keys()) == (0, LOOK_KEYS), err
    assert (look["status"], look["ended"], look["step"], look["total_steps"]) == ("finished", True, 14, 14)
    assert (look["epoch"], look["epochs"], look["seconds_left"]) == (2, 2, None)
    lines = [json.loads(line) for line in (Path(state["run_dir"]) / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in lines if "loss" in r]
    assert look["curves"]["loss"] == [[r["step"], r["loss"]] for r in steps]
    assert look["curves"]["eval_loss"] == [[r["step"], r["eval_loss"]] for r in lines if "eval_loss" in r]
    assert look["seconds"] == pytest.approx(state["train_seconds"])
    assert look["tokens_per_second"] == pytest.approx(state["tokens_per_second"])
    assert look["best"] == {"step": 14, "eval_loss": state["eval_loss"]}
    assert look["peak_memory_bytes"] <= state["peak_memory_bytes"]

    code, out, _ = command("watch", state["run_id"], "--once")
    assert code == 0
    assert out == command("watch", state["run_id"])[1]  # the output is no terminal
    shown = out.splitlines()
    assert len(shown) == 24 and max(map(len, shown)) <= 80
    assert any(0x2800 < ord(c) <= 0x28FF for c in out) and out.count("●") >= 4
    for words in (state["run_id"], "finished", "14/14 steps", "epoch 2/2", f"{state['eval_loss']:.4f}", "learning rate"):
        assert words in out, words


def test_a_failed_run_shows_what_why_and_what_to_do(make_recipe, command, home):
    with pytest.raises(RuntimeError):
        train(make_recipe(**{"train.learning_rate": 1.0e-12}))
    (state,) = all_runs()
    code, out, _ = command("watch", state["run_id"], "--once")
    assert code == 0
    plain = " ".join(out.replace("│", " ").split())
    for words in ("failed", "cannot change the model", "why together", "float32 rounds away", "raise train.learning_rate",
                  "waiting for"):
        assert words in plain, words


def test_a_run_in_another_process_while_it_trains_and_after_it_was_killed(make_recipe, start, command):
    process = start(make_recipe(**{"train.epochs": 25}))
    run_dir = process.wait_for_step(3)
    look = Look(Run.find(run_dir.name))
    first = look.now()
    assert (first["status"], first["ended"], first["total_steps"]) == ("running", False, 175)
    assert first["seconds_left"] > 0 and first["tokens_per_second"] > 0
    process.wait_for_step(first["step"] + 2)
    assert look.now()["step"] >= first["step"] + 2
    process.send(signal.SIGKILL)
    assert json.loads((run_dir / "run.json").read_text())["status"] == "running"
    assert (look.now()["status"], look.now()["ended"]) == ("lost", True)
    out = command("watch", run_dir.name, "--once")[1]
    assert "its process is gone" in out and "● lost" in out


def test_an_unknown_run_is_exit_code_2(command):
    code, _, err = command("watch", "nobody")
    assert code == 2 and "no run 'nobody'" in err


class Terminal:
    """A `tunesmith watch` in a terminal of 80 x 24."""

    def __init__(self, run: str):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen([sys.executable, "-m", "tunesmith", "watch", run, "--every", "0.2"], stdin=slave,
                                        stdout=slave, stderr=slave, start_new_session=True,
                                        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"})
        os.close(slave)
        self.text = ""

    def read_until(self, words: str | None, seconds: float = 60) -> str:
        """Everything shown until `words` appear, or until the process ends."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and (words is None or words not in self.text):
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.master, 65536).decode(errors="replace")
                except OSError:  # Linux's way of saying that the other end is closed
                    break
            elif self.process.poll() is not None:
                break
        return self.text


def left_clean(text: str) -> bool:
    """The second screen was left after it was entered, and the cursor shows again."""
    return 0 <= text.find("\x1b[?1049h") < text.rfind("\x1b[?1049l") and text.rfind("\x1b[?25l") < text.rfind("\x1b[?25h")


def test_watching_ends_with_the_run_and_leaves_its_last_picture(make_recipe):
    state = train(make_recipe(**{"train.max_steps": 3}))
    terminal = Terminal(state["run_id"])
    text = terminal.read_until(None)
    assert terminal.process.wait(30) == 0
    assert left_clean(text)
    assert "3/3 steps" in text[text.rfind("\x1b[?1049l") :]


def test_ctrl_c_ends_the_watching_cleanly_and_not_the_run(make_recipe):
    """A run of which this machine knows only that it has not ended."""
    state = train(make_recipe(**{"train.max_steps": 3}))
    Run.find(state["run_id"]).update(status="running", process={"pid": 1, "host": "elsewhere"})
    terminal = Terminal(state["run_id"])
    terminal.read_until("3/3 steps")
    terminal.process.send_signal(signal.SIGINT)
    text = terminal.read_until(None)
    assert terminal.process.wait(30) == 0
    assert left_clean(text) and "Traceback" not in text
    assert Run.find(state["run_id"]).state["status"] == "running"


SIGNALS = """
import faulthandler, queue, random, signal
from tunesmith.cli.watch import _comes

faulthandler.dump_traceback_later(60, exit=True)
messages = queue.SimpleQueue()
signal.signal(signal.SIGALRM, lambda number, _frame: messages.put(number))
for _ in range(5_000):
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 4e-4))
    while not _comes(messages, 5e-5):
        pass
print("every one was heard")
"""


def test_a_signal_at_any_moment_of_the_waiting_is_heard():
    """threading.Event hangs here: set by a handler inside of its `wait`, it waits for a lock that it holds itself."""
    ran = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, timeout=120)
    assert ran.stdout == "every one was heard\n", ran.stderr


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


def test_tensorboard_reads_back_every_number(make_recipe, command, tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator",
                                      reason="tensorboard is not installed")
    state = train(make_recipe(**{"train.eval_every_steps": 4}))
    look = json.loads(command("watch", state["run_id"], "--json", "--tensorboard", tmp_path / "tb")[1])
    events = accumulator.EventAccumulator(str(tmp_path / "tb" / state["run_id"]), {"scalars": 0})
    events.Reload()
    tags = {"loss": "loss/train", "eval_loss": "loss/held_out", "learning_rate": "learning_rate", "grad_norm": "gradient_norm"}
    assert set(events.Tags()["scalars"]) == set(tags.values())
    for name, tag in tags.items():
        read = [[e.step, e.value] for e in events.Scalars(tag)]
        assert [s for s, _ in read] == [s for s, _ in look["curves"][name]]
        assert [v for _, v in read] == pytest.approx([v for _, v in look["curves"][name]], rel=1e-6)  # they are float32
    code, _, err = command("watch", state["run_id"], "--once", "--tensorboard", tmp_path / "tb")
    assert code == 2 and "there are event files of this run already" in err


def test_without_a_writer_it_says_what_to_install(make_recipe, command, tmp_path, monkeypatch):
    state = train(make_recipe(**{"train.max_steps": 1}))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # as Python sees a package that is not there
    code, _, err = command("watch", state["run_id"], "--once", "--tensorboard", tmp_path)
    assert code == 2 and "pip install 'tunesmith[tensorboard]'" in err

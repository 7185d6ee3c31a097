"""How the command line treats those who use it wrongly, and how light it is.

pytest tests/cli/test_command_line.py
"""

import json
import os
import subprocess
import sys

import pytest

VERBS = {"init", "import", "check", "train", "eval", "release", "run", "promote", "rollback", "serve", "runs", "show", "data",
         "verify", "watch", "compare", "sweep", "vote", "merge", "export", "key", "sign", "push", "pull", "gc", "compose",
         "access", "doctor"}
KEYS = {"error", "what", "where", "why", "fix", "problems", "exit_code"}
HEAVY = {"torch", "transformers", "peft", "pydantic", "fastapi", "mlflow", "uvicorn", "numpy", "yaml"}


def test_help_names_every_verb(command):
    shown = command("--help", check=0).stdout
    named = {line.split()[0] for line in shown.split("Commands:")[1].splitlines() if line.strip()}
    assert named == VERBS


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help(command, verb):
    assert f"tunesmith {verb} " in command(verb, "--help", check=0).stdout.splitlines()[0]


@pytest.mark.parametrize("arguments, words", [
    (["tune"], "No such command 'tune'"),
    (["train"], "Missing argument 'RECIPE'"),
    (["train", "a.yaml", "b.yaml"], "unexpected extra argument"),
    (["train", "a.yaml", "--fast"], "No such option"),
    (["data", "look", "a.yaml"], "No such command 'look'"),
    (["data", "show", "a.yaml", "--first", "-1"], "--first"),
    (["promote", "rel-x"], "Missing option '--to'"),
    (["serve", "--port", "99999"], "--port"),
    (["verify", "resume", "a.yaml", "--steps", "1"], "--steps"),
])
def test_wrong_usage_is_exit_code_2_for_people_and_for_machines(command, home, arguments, words):
    people = command(*arguments, check=2)
    assert words in people.stderr and people.stdout == ""
    machines = command(*arguments, "--json", check=2)
    if arguments[0] == "serve":  # it has no document to print
        return
    assert machines.json.keys() == KEYS
    assert (machines.json["error"], machines.json["exit_code"]) == ("UsageError", 2)
    assert words in machines.json["what"]


@pytest.mark.parametrize("arguments", [[], ["data"], ["verify"], ["key"], ["access"]])
def test_without_a_verb_there_is_help_and_exit_code_2(command, arguments):
    done = command(*arguments, check=2)
    assert "Commands:" in done.stdout + done.stderr


@pytest.mark.parametrize("verb", [["check"], ["train"], ["run"], ["data", "show"], ["verify", "packing"]])
def test_a_recipe_that_is_not_there(command, home, tmp_path, verb):
    done = command(*verb, tmp_path / "none.yaml", "--json", check=2)
    found = done.json["problems"][0] if verb == ["check"] else done.json
    found = found["problems"][0] if verb == ["run"] else found
    assert "no such recipe" in (found.get("what") or found["message"])
    assert str(tmp_path / "none.yaml") in (found["where"] or "")


def test_a_home_that_cannot_be_written_is_exit_code_1_with_what_why_and_do(command, make_recipe, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "file"))
    error = command("train", make_recipe(), "--json", check=1).json
    assert error.keys() == KEYS
    assert (error["error"], error["exit_code"]) == ("StoreError", 1)
    assert error["what"].startswith("could not write ") and error["why"] and error["fix"]


def test_errors_are_for_people_on_stderr_and_for_machines_on_stdout(command, home):
    people = command("show", "nobody", check=2)
    assert people.stdout == "" and people.stderr.startswith("error: ")
    machines = command("show", "nobody", "--json", check=2)
    assert machines.stderr == people.stderr
    assert machines.json["what"] in people.stderr


def test_a_reader_that_went_away_is_no_traceback():
    """`tunesmith --help | head -0`"""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "tunesmith", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True,
                          check=False)
    os.close(writer)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_help_loads_nothing_heavy():
    code = ("import sys; sys.argv = ['tunesmith', '--help']\n"
            "from tunesmith.cli.app import main\n"
            "try: main()\n"
            "except SystemExit as end: assert not end.code\n"
            "import json; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Fine-tuning with proof" in done.stdout
    loaded = set(json.loads(done.stderr))
    assert "tunesmith" in loaded and "typer" in loaded
    assert not loaded & HEAVY

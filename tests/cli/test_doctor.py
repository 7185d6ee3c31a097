"""`tunesmith doctor`: what it finds is so, and each of its failures can be brought about.

pytest tests/cli/test_doctor.py
"""

import json
import os
import sys

import pytest

from tunesmith.jobs.doctor import examine


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def check(name: str) -> dict:
    (found,) = [c for c in examine()["checks"] if c["name"] == name]
    return found


def test_a_machine_that_runs_these_tests_is_well(command, home):
    found = json.loads(command("doctor", "--json", check=0).stdout)
    assert found["ok"], found
    assert {c["name"] for c in found["checks"]} >= {"python", "torch", "kernels", "memory", "home", "database", "extras"}
    assert all(c["fix"] for c in found["checks"] if c["status"] != "ok")
    assert list(home.iterdir()) == [], "it left something behind"
    lines = command("doctor").stdout.splitlines()
    assert len([line for line in lines if line[0] in "✓!✗"]) == len(found["checks"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written_to(tmp_path, monkeypatch, command):
    (tmp_path / "closed").mkdir(mode=0o500)
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "closed" / "home"))
    assert check("home")["status"] == "fail"
    assert command("doctor").code == 1


def test_a_home_that_is_a_file(tmp_path, monkeypatch, command):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "file" / "home"))
    found = check("home")
    assert found["status"] == "fail" and found["fix"]
    assert not json.loads(command("doctor", "--json", check=1).stdout)["ok"]


def test_no_compiler(monkeypatch):
    from tunesmith.engine.native import build

    build.stop()
    build._load_all.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    try:
        found = check("kernels")
    finally:
        build._load_all.cache_clear()
    assert (found["status"], found["fix"]) == ("warning", "install gcc or clang")


def test_a_database_that_is_not_there(monkeypatch):
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    monkeypatch.setenv("TUNESMITH_DATABASE", "postgresql+psycopg://me:hush@127.0.0.1:1/none")
    found = check("database")
    assert found["status"] == "fail" and "hush" not in json.dumps(found)


def test_more_threads_than_processors():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)) + 3)
    try:
        found = check("processors")
    finally:
        torch.set_num_threads(before)
    assert found["status"] == "warning" and "OMP_NUM_THREADS" in found["fix"]


def test_an_extra_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else real(name))
    assert "ray (data stages over Ray)" in check("extras")["message"]

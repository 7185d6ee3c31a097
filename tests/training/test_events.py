"""events.jsonl tells what happened to a run, in order."""

from __future__ import annotations

import json

import tunesmith


def test_events_tell_the_story_of_a_run(make_recipe, home):
    done = tunesmith.run(make_recipe())
    lines = (home / "runs" / done["run_id"] / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    assert [e["event"] for e in events] == ["created", "finished", "evaluated", "released"]
    assert events[1]["steps"] == done["steps"]
    assert events[-1]["release"] == done["release_id"]
    assert [e["at"] for e in events] == sorted(e["at"] for e in events)


def test_a_refusal_names_its_gates(make_recipe, home):
    done = tunesmith.run(make_recipe(**{"gates.target.min_gain": 50.0}))
    last = (home / "runs" / done["run_id"] / "events.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(last)["event"] == "refused"
    assert json.loads(last)["gates"] == ["target"]

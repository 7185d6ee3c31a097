"""The queue against a model of it: any order of claims, deaths, pauses and ends, on SQLite and on PostgreSQL.

pytest tests/jobs/test_queue.py
"""

import threading
from collections import Counter

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.jobs import queue
from tunesmith.jobs.database import Database
from tunesmith.jobs.places import DEFAULT_PROJECT
from tunesmith.jobs.projects import ensure_default
from tunesmith.jobs.queue import ENDED, Lost
from tunesmith.jobs.tables import work

KINDS = ("fine_tuning",)


def put(database: Database, *ids: str) -> None:
    for id in ids:
        with database.write() as connection:
            queue.put(connection, id, "fine_tuning", DEFAULT_PROJECT)


def status(database: Database, id: str) -> str:
    with database.read() as connection:
        return connection.execute(sa.select(work.c.status).where(work.c.id == id)).scalar_one()


def writing(database: Database, what, *arguments):
    with database.write() as connection:
        return what(connection, *arguments)


def test_the_oldest_first_and_each_once(database):
    put(database, "b", "c", "a")  # within a second
    claimed = [queue.claim(database, "me", KINDS) for _ in range(4)]
    assert [c and c.id for c in claimed] == ["b", "c", "a", None]


def test_a_kind_that_is_not_asked_for_stays(database):
    put(database, "a")
    assert queue.claim(database, "me", ("eval_run",)) is None


def test_many_servers_never_claim_one_job_twice(database):
    put(database, *(f"job{i:02}" for i in range(20)))
    seen: list[str] = []
    go = threading.Barrier(4)

    def work_off():
        go.wait()
        while (mine := queue.claim(database, "server", KINDS)) is not None:
            seen.append(mine.id)

    threads = [threading.Thread(target=work_off) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(seen) == Counter({f"job{i:02}": 1 for i in range(20)})


def test_a_lease_that_ran_out_is_claimed_again_and_the_old_worker_writes_nothing(database):
    put(database, "a")
    dead = queue.claim(database, "one", KINDS, lease_seconds=-1)
    living = queue.claim(database, "two", KINDS)
    assert (living.id, living.attempt, living.fruitless) == ("a", dead.attempt + 1, 1)
    for write in (queue.progressed, queue.give_back, lambda c, m: queue.end(c, m, "succeeded")):
        with pytest.raises(Lost):
            writing(database, write, dead)
    with pytest.raises(Lost):
        queue.renew(database, dead)
    queue.abandon(database, dead)  # nor can its server take the job from the living one
    assert queue.claim(database, "three", KINDS) is None
    assert queue.renew(database, living) == "run"


def test_a_lease_that_is_renewed_is_nobody_elses(database):
    put(database, "a")
    mine = queue.claim(database, "one", KINDS, lease_seconds=-1)
    queue.renew(database, mine)
    assert queue.claim(database, "two", KINDS) is None


def test_a_step_forward_forgives_the_attempts_before_it(database):
    put(database, "a")
    for died in range(3):
        assert queue.claim(database, "one", KINDS, lease_seconds=-1).fruitless == died
    mine = queue.claim(database, "one", KINDS, lease_seconds=-1)
    writing(database, queue.progressed, mine)
    assert queue.claim(database, "one", KINDS).fruitless == 1


MOVES = st.lists(st.sampled_from(["claim", "die", "renew", "progressed", "succeeded", "failed", "give_back", "obey", "pause",
                                  "cancel", "run"]), max_size=25)


class Model:
    """One job as ADR 18 tells it: what each move leads to."""

    def __init__(self):
        self.status, self.wanted = "queued", "run"

    def ask(self, wanted: str) -> None:
        if self.status in ENDED:
            return
        if wanted == "run":
            if self.wanted == "pause":
                self.wanted = "run"
                if self.status == "paused":
                    self.status = "queued"
        elif self.wanted != "cancel":
            self.wanted = wanted
            if self.status != "running":
                self.status = {"pause": "paused", "cancel": "cancelled"}[wanted]

    def leave(self, status: str) -> None:
        self.status = status
        if status in (*ENDED, "paused"):
            self.wanted = "pause" if status == "paused" else "run"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MOVES)
def test_any_order_of_moves(tmp_path_factory, moves):
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('moves') / 'service.db'}")
    ensure_default(database)
    put(database, "a")
    model, mine = Model(), None
    for move in moves:
        if move == "claim":
            got = queue.claim(database, "me", KINDS)
            assert (got is not None) == (model.status == "queued")
            if got:
                mine, model.status = got, "running"
        elif move in ("pause", "cancel", "run"):
            model.ask(move)
            assert writing(database, queue.ask, "a", move) == model.status
        elif mine is None or model.status != "running":
            continue
        elif move == "die":
            queue.abandon(database, mine)
            taken = queue.claim(database, "other", KINDS)
            assert taken.attempt == mine.attempt + 1
            mine = taken
        elif move == "renew":
            assert queue.renew(database, mine) == model.wanted
        elif move == "progressed":
            writing(database, queue.progressed, mine)
        elif move == "give_back":
            model.leave({"run": "queued", "pause": "paused", "cancel": "cancelled"}[model.wanted])
            assert writing(database, queue.give_back, mine) == model.status
        elif move == "obey":
            ends = {"run": None, "pause": "paused", "cancel": "cancelled"}[model.wanted]
            if ends:
                writing(database, queue.end, mine, ends)
                model.leave(ends)
        else:
            writing(database, queue.end, mine, move)
            model.leave(move)
        assert status(database, "a") == model.status
    database.close()


def test_a_job_that_was_given_back_while_it_should_pause_does_not_run(database):
    """The server stopped at the moment at which somebody asked for a pause."""
    put(database, "a")
    mine = queue.claim(database, "me", KINDS)
    writing(database, queue.ask, "a", "pause")
    writing(database, queue.give_back, mine)
    assert status(database, "a") == "paused"
    assert queue.claim(database, "me", KINDS) is None


def test_a_job_that_should_be_cancelled_and_whose_worker_died_is_cancelled_by_the_next(database):
    put(database, "a")
    queue.claim(database, "me", KINDS, lease_seconds=-1)
    writing(database, queue.ask, "a", "cancel")
    mine = queue.claim(database, "me", KINDS)
    assert queue.renew(database, mine) == "cancel"

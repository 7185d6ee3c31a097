"""Every row reads what it would read alone, in any company, and ends; no block is lost.

The pages are simulated: each place remembers the key and the exact tokens that what is written there depends on, so a row that
reads a wrong, unwritten or overwritten place is caught at once, and its answer is a function of what it read.

pytest tests/serving/test_schedule.py
"""

import random

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from tunesmith.errors import UsageError
from tunesmith.serving import blocks as blocks_module
from tunesmith.serving.blocks import BLOCK, Blocks, blocks_of
from tunesmith.serving.schedule import Row, Scheduler

KEYS = ("", "a", "b")
SHARED = [random.Random(0).randrange(9) for _ in range(5 * BLOCK)]
"""Beginnings of prompts are cut from this, so that they have blocks in common."""


class Beginnings:
    """A number for each (key, tokens from the first), the same for the same: exact, without hashing tokens."""

    def __init__(self):
        self._numbers: dict[tuple, int] = {}

    def follow(self, before, token) -> int:
        return self._numbers.setdefault((before, token), len(self._numbers))

    def all(self, key: str, tokens: list[int]) -> list[int]:
        found, at = [], key
        for token in tokens:
            found.append(at := self.follow(at, token))
        return found


def next_token(read: list[int]) -> int:
    """What is answered after reading these places. Rarely the same for different ones, and then only by chance."""
    return hash(tuple(read)) % 5


class Pages:
    """Runs plans as a runner would, and looks at everything that it reads and writes."""

    def __init__(self, scheduler: Scheduler):
        self.scheduler, self.beginnings = scheduler, Beginnings()
        self.places: dict[tuple[int, int], int] = {}
        self.computed: dict[Row, int] = {}

    def place(self, row: Row, at: int) -> tuple[int, int]:
        return row.table[at // BLOCK], at % BLOCK

    def run(self, plan) -> dict[Row, int]:
        """The next token of every row that answers."""
        answers = {}
        for piece in plan:
            row = piece.row
            numbers = self.beginnings.all(row.key, row.tokens)
            for at in range(piece.begin, piece.end):
                block, _ = place = self.place(row, at)
                assert self.scheduler.blocks.holders(block) == 1, "a block that others read is written"
                assert block not in self.scheduler.blocks._digests, "a block that is known is written"
                self.places[place] = numbers[at]
            if not piece.given:
                self.computed[row] = self.computed.get(row, 0) + piece.end - piece.begin
                read = [self.places.get(self.place(row, at)) for at in range(piece.end)]
                assert read == numbers[: piece.end], "a row reads what is not its own"
                if piece.answers:
                    answers[row] = next_token(read)
        return answers


def check_plan(scheduler: Scheduler, plan, oldest: list[Row], answering: list[Row]) -> None:
    assert sum(p.end - p.begin for p in plan if not p.given) <= scheduler.tokens_a_step
    assert scheduler.running <= scheduler.rows_at_most
    assert all(p.begin < p.end <= len(p.row.tokens) and p.row.state == "running" for p in plan)
    assert all(p.given == (p.end <= p.row.given) for p in plan)
    assert all(p.answers == (p.end == len(p.row.tokens)) for p in plan)
    for given in (True, False):
        part = [p for p in plan if p.given == given]
        assert len({p.row for p in part}) == len(part), "a row has two pieces"
        keys = [p.row.key for p in part]
        assert keys == sorted(keys)
    computed = {p.row for p in plan if not p.given}
    if oldest:
        assert oldest[0] in computed, "the oldest row does not move"
    for row in answering:
        assert row in computed or row.state == "waiting" or not scheduler.blocks.available


class Machine(RuleBasedStateMachine):
    """Rows come, go on, and are cancelled at any moment, also in the middle of a step or when one fails."""

    blocks_kind, scheduler_kind = Blocks, Scheduler

    @initialize(count=st.integers(5, 9), rows=st.integers(1, 5), tokens=st.sampled_from([5, 32, 70, 256]))
    def begin(self, count, rows, tokens):
        self.blocks = self.blocks_kind(count)
        self.scheduler = self.scheduler_kind(self.blocks, rows, tokens)
        self.pages = Pages(self.scheduler)
        self.plan = None
        self.prompts: dict[Row, list[int]] = {}

    @rule(key=st.sampled_from(KEYS), shared=st.integers(0, 5 * BLOCK), own=st.lists(st.integers(0, 3), max_size=3),
          answer=st.integers(0, 90), given=st.integers(0, 40), fresh=st.integers(0, 4), copies=st.integers(1, 3))
    def add(self, key, shared, own, answer, given, fresh, copies):
        prompt = SHARED[:shared] + own or [1]
        virtual = [-1 - n for n in range(given)] if key == "b" else []  # one adapter is a prefix
        for _ in range(copies):
            row = Row(None, key, virtual + prompt, answer, len(virtual), fresh == 0)
            if row.longest > self.blocks.count * BLOCK:
                with pytest.raises(UsageError, match="do not fit into the memory"):
                    self.scheduler.add(row)
            else:
                self.scheduler.add(row)
                self.prompts[row] = list(row.tokens)

    @precondition(lambda self: self.plan is None)
    @rule()
    def step(self):
        oldest, answering = self.scheduler.rows[:1], [r for r in self.scheduler.rows[: self.scheduler.running] if r.left == 1]
        self.plan = self.scheduler.plan()
        check_plan(self.scheduler, self.plan, oldest, answering)
        self.answers = self.pages.run(self.plan)

    @precondition(lambda self: self.plan is not None)
    @rule()
    def finish(self):
        self.scheduler.done(self.plan)
        for row, token in self.answers.items():
            if row.state != "running":
                continue
            made = len(row.tokens) - len(self.prompts[row])
            if row.answer:
                row.tokens.append(token)
                row.fresh = row.fresh and made == 0
            if made + 1 >= row.answer:
                self.ends(row)
        self.plan = None

    @precondition(lambda self: self.plan is not None)
    @rule()
    def fail(self):
        """The step raised: nothing of it counts, and it is planned again."""
        for piece in self.plan:
            if not piece.given:
                self.pages.computed[piece.row] -= piece.end - piece.begin
        self.plan = None

    @precondition(lambda self: bool(self.prompts))
    @rule(pick=st.randoms(use_true_random=False))
    def cancel(self, pick):
        row = pick.choice(list(self.prompts))
        del self.prompts[row]
        self.scheduler.cancel(row)
        self.scheduler.cancel(row)
        assert row.table == []

    def ends(self, row: Row) -> None:
        """It has the answer that it would have alone, and was computed once."""
        assert row.tokens == self.alone(row)
        if not row.preemptions:
            last = bool(row.answer)  # is not read again
            assert self.pages.computed[row] == len(row.tokens) - last - max(row.given, row.cached)
        self.scheduler.end(row)
        del self.prompts[row]

    def alone(self, row: Row) -> list[int]:
        tokens = list(self.prompts[row])
        for _ in range(row.answer):
            tokens.append(next_token(self.pages.beginnings.all(row.key, tokens)))
        return tokens

    @invariant()
    def every_block_is_accounted_for(self):
        rows = self.scheduler.rows
        tables = [block for row in rows for block in row.table]
        assert [self.blocks.holders(b) for b in range(self.blocks.count)] == [tables.count(b) for b in range(self.blocks.count)]
        assert self.blocks.available == self.blocks.count - len(set(tables))
        assert all(row.table == [] for row in rows[self.scheduler.running :])
        assert all(len(set(row.table)) == len(row.table) and blocks_of(row.computed) <= len(row.table) for row in rows)
        assert list(self.prompts) == rows, "the order in which they came"

    def teardown(self):
        """Whatever was begun ends in as many steps as all rows would take one after the other."""
        left = sum(row.longest for row in self.scheduler.rows) + 1
        while self.scheduler.rows:
            if self.plan is None:
                self.step()
            self.finish()
            self.every_block_is_accounted_for()
            left -= 1
            assert left >= 0, "it goes on for ever"
        assert self.blocks.available == self.blocks.count


LONG = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase
TestMachine.settings = LONG


# ---- what each part is for, by hand


def steps(scheduler: Scheduler, rows: list[Row]) -> list[list[tuple[int, int, int]]]:
    """Run until all is answered; of each step (number of the row, begin, end)."""
    pages, found = Pages(scheduler), []
    for row in rows:
        scheduler.add(row)
    while scheduler.rows:
        plan = scheduler.plan()
        answers = pages.run(plan)
        scheduler.done(plan)
        found.append([(rows.index(p.row), p.begin, p.end) for p in sorted(plan, key=lambda p: rows.index(p.row))])
        for row, token in answers.items():
            row.tokens.append(token)
            row.answer -= 1
            if row.answer <= 0:
                scheduler.end(row)
    assert scheduler.blocks.available == scheduler.blocks.count
    return found


def test_a_long_prompt_is_read_in_pieces_between_the_answers_of_others():
    rows = [Row(None, "", [1] * 4, 4), Row(None, "", [2] * 50, 1), Row(None, "", [3] * 5, 1)]
    assert steps(Scheduler(Blocks(9), 3, 20), rows) == [
        [(0, 0, 4), (1, 0, 16)], [(0, 4, 5), (1, 16, 35)], [(0, 5, 6), (1, 35, 50), (2, 0, 4)], [(0, 6, 7), (2, 4, 5)]]


def test_who_begins_like_another_reads_only_the_rest_and_never_less_than_its_last_token():
    """Behind 64 equal tokens: all 64 are found if there is one more, 32 if there is not; with another key none."""
    scheduler = Scheduler(Blocks(20), 1)
    rows = [Row(None, "", SHARED[:65], 1), Row(None, "", SHARED[:65], 1), Row(None, "", SHARED[:64], 1),
            Row(None, "", [*SHARED[:40], 8, 8], 1), Row(None, "a", SHARED[:65], 1), Row(None, "", SHARED[:65], 1, fresh=True)]
    assert [step[0][1:] for step in steps(scheduler, rows)] == [(0, 65), (64, 65), (32, 64), (32, 42), (0, 65), (0, 65)]
    assert [row.cached for row in rows] == [0, 64, 32, 32, 0, 0]


def test_of_rows_that_come_together_one_reads_what_they_share_and_nobody_else_is_held_up():
    rows = [Row(None, "", [*SHARED[:100], 1], 1), Row(None, "", [*SHARED[:100], 2], 1), Row(None, "", [7, 7, 7], 1)]
    assert steps(Scheduler(Blocks(20), 3, 50), rows) == [
        [(0, 0, 50)], [(0, 50, 100)], [(0, 100, 101), (1, 96, 101), (2, 0, 3)]]
    rows = [Row(None, "", [*SHARED[:100], 1], 1), Row(None, "", [*SHARED[:100], 2], 1), Row(None, "", [7, 7, 7], 1)]
    assert steps(Scheduler(Blocks(20), 3, 256), rows) == [[(0, 0, 101), (2, 0, 3)], [(1, 96, 101)]]


def test_when_its_maker_is_cancelled_who_waited_for_a_block_makes_it():
    scheduler = Scheduler(Blocks(9), 2)
    first, second = Row(None, "", SHARED[:40], 1), Row(None, "", SHARED[:40], 1)
    scheduler.add(first)
    scheduler.add(second)
    plan = scheduler.plan()
    assert [p.row for p in plan] == [first]
    scheduler.cancel(first)
    scheduler.done(plan)
    assert [(p.row, p.begin, p.end) for p in scheduler.plan()] == [(second, 0, 40)]


def test_without_a_block_left_the_youngest_waits_and_is_read_again_with_its_answer():
    """Two rows of 30 tokens and 39 more each in four blocks: the second gives way when the first needs its third one."""
    rows = [Row(None, "", [1] * 30, 40), Row(None, "", [2] * 30, 40)]
    scheduler = Scheduler(Blocks(4), 2)
    found = steps(scheduler, rows)
    assert [row.preemptions for row in rows] == [0, 1] and scheduler.preemptions == 1
    assert all(step[0][0] == 0 for step in found[:40]), "the oldest is never held up"
    again = next(begin for step in found[40:] for row, begin, _ in step if row == 1)
    assert again == 32, "its first block was kept"
    assert [len(row.tokens) for row in rows] == [70, 70]


def test_given_tokens_are_written_and_cost_nothing_of_a_step():
    """40 of a prefix: written once, and shared with who comes later as far as blocks are full."""
    scheduler = Scheduler(Blocks(9), 2, 8)
    virtual = [-1 - n for n in range(40)]
    rows = [Row(None, "p", [*virtual, *range(10)], 1, given=40) for _ in range(2)]
    scheduler.add(rows[0])
    scheduler.add(rows[1])
    plan = scheduler.plan()
    assert [(p.row, p.begin, p.end, p.given) for p in plan] == [(rows[0], 0, 40, True), (rows[0], 40, 48, False)]
    scheduler.done(plan)
    plan = scheduler.plan()
    assert [(p.row, p.begin, p.end, p.given) for p in plan] == [
        (rows[1], 32, 40, True), (rows[0], 48, 50, False), (rows[1], 40, 46, False)]
    with pytest.raises(ValueError, match="none is left to compute"):
        Row(None, "p", virtual, 1, given=40)


def test_what_can_never_fit_is_refused_with_what_to_do():
    scheduler = Scheduler(Blocks(2), 2)
    scheduler.add(Row(None, "", [1] * 60, 5))  # the last of 65 is not read again
    with pytest.raises(UsageError, match="65 tokens do not fit") as refused:
        scheduler.add(Row(None, "", [1] * 60, 6))
    assert "64 tokens" in refused.value.why and "max_tokens" in refused.value.fix
    with pytest.raises(UsageError, match="300 rows at once"):
        Scheduler(Blocks(2), 300)
    assert scheduler.waiting == 1 and scheduler.running == 0


def test_an_old_plan_is_not_taken_for_the_new_one():
    scheduler = Scheduler(Blocks(4), 1)
    scheduler.add(Row(None, "", [1] * 5, 2))
    plan = scheduler.plan()
    scheduler.done(plan)
    with pytest.raises(ValueError, match="not the last plan"):
        scheduler.done(plan)


# ---- controls: each of these mistakes is caught by the machine


class FreesWhatOthersHold(Blocks):
    def release(self, table):
        for block in table:
            self._holders[block] = 1
        super().release(table)


class TakesWhatIsHeld(Blocks):
    def hold(self, block):
        self._holders[block] += 1  # and stays among the idle ones


class KeepsWhatItLends(Blocks):
    def take(self):
        block = super().take()
        self._holders[block] += 1
        return block


class PublishesTooEarly(Scheduler):
    def plan(self):
        plan = super().plan()
        for piece in plan:
            for at in range(piece.begin // BLOCK, piece.end // BLOCK):
                self.blocks.publish(piece.row.table[at], piece.row.digest(at))
        return plan


class FindsTheLastToken(Scheduler):
    def _known(self, row):
        found = super()._known(row)
        at = len(row.table) + len(found)
        more = not row.fresh and (at + 1) * BLOCK == len(row.tokens) and self.blocks.find(row.digest(at))
        return found + [more] if more and row.computed == len(row.table) * BLOCK else found


class LetsTheYoungestGoFirst(Scheduler):
    def add(self, row):
        super().add(row)
        self._queue.rotate(1)


class ForgetsWhoWaits(Scheduler):
    def _preempt(self):
        super()._preempt()
        self._queue.popleft()


@pytest.mark.parametrize(("blocks", "scheduler"), [
    (FreesWhatOthersHold, Scheduler), (TakesWhatIsHeld, Scheduler), (KeepsWhatItLends, Scheduler), (Blocks, PublishesTooEarly),
    (Blocks, FindsTheLastToken), (Blocks, LetsTheYoungestGoFirst), (Blocks, ForgetsWhoWaits)])
def test_the_machine_catches_a_mistake(blocks, scheduler):
    broken = type("Broken", (Machine,), {"blocks_kind": blocks, "scheduler_kind": scheduler})
    with pytest.raises((AssertionError, IndexError, ValueError, KeyError)):
        run_state_machine_as_test(broken, settings=settings(
            LONG, max_examples=400, derandomize=True, database=None, phases=[Phase.generate], report_multiple_bugs=False))


@pytest.mark.parametrize("cut", ["key", "before"])
def test_the_machine_catches_a_digest_that_leaves_something_out(cut, monkeypatch):
    from tunesmith.serving import schedule

    if cut == "key":
        monkeypatch.setattr(schedule, "root", lambda key: blocks_module.root(""))
    else:
        monkeypatch.setattr(schedule, "link", lambda before, tokens: blocks_module.link(b"", tokens))
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Machine, settings=settings(
            LONG, max_examples=400, derandomize=True, database=None, phases=[Phase.generate], report_multiple_bugs=False))

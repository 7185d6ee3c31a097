"""Evals and their runs on both databases: what is written, taken over, listed and deleted.

pytest tests/jobs/test_evaluate.py
"""

import pytest
import sqlalchemy as sa
from tests.api.evals_app import app_over

from tunesmith.jobs import queue
from tunesmith.jobs.tables import eval_runs, output_items

SAME = {"type": "string_check", "name": "same", "operation": "eq", "input": "{{sample.output_text}}", "reference": "{{item.a}}"}
CUSTOM = {"type": "custom", "item_schema": {"type": "object"}}
MANY = [{"item": {"a": "é🙂 \x00" if n % 3 else "x", "nested": {"n": [n, None, 1.5]}}, "sample": {"output_text": "x"}}
        for n in range(40)]


@pytest.fixture
def app(home, lively_base, url):
    with app_over(home, lively_base, url) as made:
        yield made


def test_a_run_from_end_to_end(app, database):
    api = app.client.evals
    made = api.create(name="ñ", data_source_config=CUSTOM, testing_criteria=[SAME])
    run = api.runs.create(made.id, data_source={"type": "jsonl", "source": {"type": "file_content", "content": MANY}})
    assert app.work() == "succeeded"
    run, = api.runs.list(made.id, status="completed")
    assert run.result_counts.model_dump() == {"total": 40, "passed": 14, "failed": 26, "errored": 0}
    items = list(api.runs.output_items.list(run.id, eval_id=made.id, limit=7, status="fail"))
    assert [i.datasource_item_id for i in items] == [n for n in range(40) if n % 3]
    assert items[0].datasource_item == MANY[1]["item"]
    assert [e.id for e in api.list(order="desc", order_by="updated_at")] == [made.id]
    api.delete(made.id)
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(output_items)).scalar_one() == 0


def test_a_row_of_a_run_is_written_once(app, database):
    """The database itself refuses a position twice: two workers that both think the run theirs could not double a row."""
    made = app.client.evals.create(data_source_config=CUSTOM, testing_criteria=[SAME])
    run = app.client.evals.runs.create(made.id, data_source={"type": "jsonl", "source": {
        "type": "file_content", "content": MANY[:1]}})
    assert app.work() == "succeeded"
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        connection.execute(output_items.insert().values(id="outputitem_other", created_at=0, run_id=run.id, position=0,
                                                        status="pass", item={}, results=[]))


def test_a_worker_whose_run_went_to_another_writes_nothing(app, database, monkeypatch):
    from tunesmith.jobs import evaluate

    made = app.client.evals.create(data_source_config=CUSTOM, testing_criteria=[SAME])
    run = app.client.evals.runs.create(made.id, data_source={"type": "jsonl", "source": {
        "type": "file_content", "content": MANY}})
    keep = evaluate._write

    def loses(task, *batch):
        with database.write() as connection:
            connection.execute(queue.work.update().where(queue.work.c.id == run.id).values(attempt=task.claim.attempt + 1))
        keep(task, *batch)

    monkeypatch.setattr(evaluate, "_write", loses)
    with pytest.raises(queue.Lost):
        app.work()
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(output_items)).scalar_one() == 0
        assert connection.execute(sa.select(eval_runs.c.usage)).scalar_one()["counts"]["total"] == 0

"""What code written against OpenAI's API does, by the official client that is installed here, whatever its version.

    python tests/api/contract.py URL [KEY]

Run by each generation of the client in a virtual environment of its own (`make test-clients`). It imports nothing of ours: it
is an application. One line for each thing that works, exit code 1 at the first that does not. What a version has no call for is
left out, and said.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import time
from collections.abc import Callable

import openai
from openai import OpenAI

URL, KEY = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "none"
MODEL = "gpt-4o-mini-2024-07-18"
TEAM = f"those of {openai.__version__}"
STREETS = ("Oak", "Elm", "Main", "Bever", "Stone Hedge", "4th", "Cottage Grove", "Washington")
client = OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=300)
checks: list[Callable[[], None]] = []


def check(function: Callable[[], None]) -> Callable[[], None]:
    checks.append(function)
    return function


def has(what: str) -> bool:
    """Whether this client has a call, `fine_tuning.jobs.pause`."""
    place = client
    for name in what.split("."):
        if not hasattr(place, name):
            print(f"  - openai {openai.__version__} has no {what}")
            return False
        place = getattr(place, name)
    return True


def row(n: int) -> dict:
    number, street = n * 37 + 11, STREETS[n % 8]
    return {"messages": [{"role": "user", "content": f"{number} {street} Street"},
                         {"role": "assistant", "content": json.dumps({"number": str(number), "street": street})}]}


def training(count: int, first: int = 0):
    lines = "".join(json.dumps(row(first + n)) + "\n" for n in range(count))
    return client.files.create(file=("training.jsonl", lines.encode()), purpose="fine-tune")


def wait(job, statuses=("succeeded", "failed", "cancelled")):
    until = time.monotonic() + 280
    while (job := client.fine_tuning.jobs.retrieve(job.id)).status not in statuses:
        assert job.status not in ("succeeded", "failed", "cancelled") and time.monotonic() < until, job
        time.sleep(0.2)
    return job


def refused(kind: type[openai.APIStatusError], call: Callable, *arguments, **named) -> openai.APIStatusError:
    try:
        call(*arguments, **named)
    except kind as error:
        assert error.body and error.body["message"] and "type" in error.body, error.body
        return error
    raise AssertionError(f"{call} was answered")


@check
def models_are_listed_and_retrieved():
    names = [m.id for m in client.models.list()]
    assert MODEL in names, names
    assert client.models.retrieve(MODEL).object == "model"
    assert refused(openai.NotFoundError, client.models.retrieve, "gpt-17").code == "model_not_found"


@check
def files_come_and_go():
    file = training(12)
    assert (file.object, file.purpose, file.filename, file.status) == ("file", "fine-tune", "training.jsonl", "processed")
    content = client.files.content(file.id)
    assert len(content.read()) == file.bytes and json.loads(content.text.splitlines()[3]) == row(3)
    assert client.files.retrieve(file.id).id == file.id
    assert client.files.wait_for_processing(file.id).id == file.id
    listed = client.files.list(purpose="fine-tune")
    assert file.id in [f.id for f in listed]
    assert client.files.delete(file.id).deleted
    refused(openai.NotFoundError, client.files.retrieve, file.id)
    error = refused(openai.BadRequestError, client.files.create, file=("x.jsonl", b"no json\n"), purpose="fine-tune")
    assert "JSONL" in error.message and "Line 1" in error.message


@check
def pages_are_turned():
    made = {training(10, n).id for n in range(5)}
    seen = [f.id for f in client.files.list(limit=2, order="asc")]
    assert len(seen) == len(set(seen)) and made <= set(seen)
    for id in made:
        client.files.delete(id)


@check
def large_files_come_in_parts():
    data = "".join(json.dumps(row(n)) + "\n" for n in range(60)).encode()
    upload = client.uploads.create(bytes=len(data), filename="parts.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    third = len(data) // 3 + 1
    parts = [client.uploads.parts.create(upload.id, data=io.BytesIO(data[at : at + third])).id
             for at in range(0, len(data), third)]
    done = client.uploads.complete(upload.id, part_ids=parts, md5=hashlib.md5(data).hexdigest())
    assert done.status == "completed" and client.files.content(done.file.id).read() == data
    if has("uploads.upload_file_chunked"):
        whole = client.uploads.upload_file_chunked(file=data, filename="chunks.jsonl", bytes=len(data), mime_type="text/jsonl",
                                                   purpose="fine-tune", part_size=third)
        assert client.files.content(whole.file.id).read() == data
    other = client.uploads.create(bytes=5, filename="x.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    assert client.uploads.cancel(other.id).status == "cancelled"


@check
def a_job_from_a_file_to_an_answer():
    global tuned, first_job
    file = training(24)
    job = client.fine_tuning.jobs.create(training_file=file.id, model=MODEL, hyperparameters={"n_epochs": 2, "batch_size": 8},
                                         suffix="contract", seed=7, extra_body={"metadata": {"team": TEAM}})
    assert job.object == "fine_tuning.job" and job.id.startswith("ftjob-") and job.fine_tuned_model is None
    assert job.status in ("validating_files", "queued", "running")
    first_job = job = wait(job)
    assert job.status == "succeeded", job
    assert job.hyperparameters.n_epochs == 2 and job.trained_tokens > 0 and job.seed == 7
    tuned = job.fine_tuned_model
    assert tuned.startswith(f"ft:{MODEL}:") and tuned.split(":")[3] == "contract"
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    assert len({e.id for e in events}) == len(events) and events[0].message == "The job has successfully completed"
    steps = [e for e in events if e.type == "metrics"]
    assert len(steps) == 6 and {"step", "train_loss"} <= set(dict(steps[0].data)), steps[:1]
    points = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert points and points[0].fine_tuning_job_id == job.id and points[0].metrics.train_loss > 0
    table = client.files.content(job.result_files[0]).read().decode().splitlines()
    assert table[0].startswith("step,train_loss") and len(table) == 7
    assert job.id in [j.id for j in client.fine_tuning.jobs.list(limit=1)]


@check
def the_tuned_model_answers():
    question = [{"role": "user", "content": "233 Oak Street"}]
    whole = client.chat.completions.create(model=tuned, messages=question, temperature=0, max_tokens=24)
    assert whole.model == tuned and whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    pieces = list(client.chat.completions.create(model=tuned, messages=question, temperature=0, max_tokens=24, stream=True,
                                                 stream_options={"include_usage": True}))
    said = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert said == whole.choices[0].message.content and pieces[-1].usage == whole.usage
    base = client.chat.completions.create(model=MODEL, messages=question, temperature=0, max_tokens=24)
    assert base.choices[0].message.content != said
    assert [tuned] == [m.id for m in client.models.list() if m.id == tuned]
    point = next(iter(client.fine_tuning.jobs.checkpoints.list(first_job.id)))
    name = point.fine_tuned_model_checkpoint
    assert client.chat.completions.create(model=name, messages=question, max_tokens=3).choices


@check
def what_an_answer_is_shaped_by():
    question = [{"role": "user", "content": "233 Oak Street"}]
    several = client.chat.completions.create(model=tuned, messages=question, n=3, seed=5, max_tokens=8, stop=["}"],
                                             presence_penalty=0.5, frequency_penalty=0.5, logit_bias={"5": -100})
    assert [c.index for c in several.choices] == [0, 1, 2]
    scored = client.chat.completions.create(model=tuned, messages=question, logprobs=True, top_logprobs=2, max_tokens=4)
    content = scored.choices[0].logprobs.content
    assert content and all(len(c.top_logprobs) == 2 and c.logprob <= 0 for c in content)
    form = {"type": "object", "properties": {"number": {"type": "string", "maxLength": 4}}, "required": ["number"],
            "additionalProperties": False}
    formed = client.chat.completions.create(
        model=tuned, messages=question, max_tokens=200, temperature=0, seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "address", "schema": form, "strict": True}})
    if formed.choices[0].finish_reason == "stop":
        assert set(json.loads(formed.choices[0].message.content)) == {"number"}
    text = client.completions.create(model=MODEL, prompt="233 Oak", max_tokens=2, echo=True, logprobs=1)
    assert text.choices[0].text.startswith("233 Oak") and text.choices[0].logprobs.token_logprobs[0] is None


@check
def jobs_are_cancelled_paused_and_resumed():
    file = training(24)
    job = client.fine_tuning.jobs.create(training_file=file.id, model=MODEL, hyperparameters={"n_epochs": 50})
    assert client.fine_tuning.jobs.cancel(job.id).id == job.id
    assert wait(job).status == "cancelled"
    refused(openai.BadRequestError, client.fine_tuning.jobs.cancel, job.id)
    if has("fine_tuning.jobs.pause"):
        job = client.fine_tuning.jobs.create(training_file=file.id, model=MODEL,
                                             hyperparameters={"n_epochs": 3, "batch_size": 8})
        client.fine_tuning.jobs.pause(job.id)
        assert wait(job, ("paused", "succeeded")).status == "paused"
        client.fine_tuning.jobs.resume(job.id)
        assert wait(job).status == "succeeded"


@check
def what_is_wrong_is_said():
    few = training(3)
    job = wait(client.fine_tuning.jobs.create(training_file=few.id, model=MODEL))
    assert job.status == "failed" and job.error.code == "invalid_n_examples" and job.error.param == "training_file", job.error
    refused(openai.NotFoundError, client.fine_tuning.jobs.retrieve, "ftjob-nobody")
    refused(openai.BadRequestError, client.fine_tuning.jobs.create, training_file="file-nobody", model=MODEL)
    error = refused(openai.BadRequestError, client.fine_tuning.jobs.create, training_file=few.id, model=MODEL,
                    extra_body={"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}})
    assert "reinforcement" in error.message
    error = refused(openai.BadRequestError, client.chat.completions.create, model=MODEL, messages=[])
    assert error.param == "messages" and error.request_id
    refused(openai.NotFoundError, client.chat.completions.create, model="gpt-17", messages=[{"role": "user", "content": "x"}])


@check
def metadata_finds_jobs():
    found = client.fine_tuning.jobs.list(extra_query={"metadata[team]": TEAM})
    assert [j.id for j in found] == [first_job.id]


@check
def answers_are_evaluated():
    if not has("evals.runs.output_items"):
        return
    made = client.evals.create(
        name="streets", data_source_config={"type": "custom", "include_sample_schema": True, "item_schema": {
            "type": "object", "properties": {"line": {"type": "string"}, "want": {"type": "string"}}, "required": ["line"]}},
        testing_criteria=[{"type": "string_check", "name": "same", "operation": "eq", "input": "{{item.line}}",
                           "reference": "{{item.want}}"}])
    run = client.evals.runs.create(made.id, name="first", data_source={"type": "jsonl", "source": {
        "type": "file_content", "content": [{"item": {"line": "a", "want": "a"}}, {"item": {"line": "b", "want": "c"}}]}})
    until = time.monotonic() + 200
    while run.status in ("queued", "in_progress") and time.monotonic() < until:
        time.sleep(0.2)
        run = client.evals.runs.retrieve(run.id, eval_id=made.id)
    assert run.status == "completed" and (run.result_counts.passed, run.result_counts.failed) == (1, 1), run
    items = list(client.evals.runs.output_items.list(run.id, eval_id=made.id))
    assert sorted(i.status for i in items) == ["fail", "pass"], items
    assert client.evals.delete(made.id).deleted


@check
def graders_grade():
    if not has("fine_tuning.alpha.graders"):
        return
    grader = {"type": "string_check", "name": "same", "operation": "eq", "input": "{{sample.output_text}}",
              "reference": "{{item.want}}"}
    run = client.fine_tuning.alpha.graders.run
    assert run(grader=grader, model_sample="Oak", item={"want": "Oak"}).reward == 1
    assert run(grader=grader, model_sample="Elm", item={"want": "Oak"}).reward == 0


@check
def a_model_is_deleted():
    assert client.models.delete(tuned).deleted
    refused(openai.NotFoundError, client.chat.completions.create, model=tuned, messages=[{"role": "user", "content": "x"}])


if __name__ == "__main__":
    for one in checks:
        began = time.monotonic()
        one()
        print(f"ok  {one.__name__.replace('_', ' ')}  ({time.monotonic() - began:.1f} s)", flush=True)
    print(f"openai {openai.__version__}: {len(checks)} checks")

"""Tracking against a real MLflow with a real sqlite store. Every test also proves silence and an unchanged environment.

pytest tests/track/test_mlflow.py
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tunesmith.errors import TrackingError
from tunesmith.track import mlflow as track

SOURCES = Path(track.__file__).parents[2]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


@pytest.fixture(autouse=True)
def silent_and_clean(capfd):
    before = environment()
    yield
    assert environment() == before
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def home(tmp_path, migrated) -> Path:
    home = tmp_path / "my home #1 ü"
    home.mkdir()
    shutil.copy(migrated, home)
    return home


@pytest.fixture
def adapter_dir(tmp_path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 16}')
    (folder / "adapter_model.safetensors").write_bytes(os.urandom(100_000))
    return folder


def begin(home: Path, **changes) -> track.Tracker:
    arguments = {"experiment": "addresses", "run_name": "run-1", "params": {}, "tags": {}} | changes
    return track.start("sqlite", home, **arguments)


def client_of(tracker: track.Tracker):
    from mlflow import MlflowClient

    return MlflowClient(tracker.uri, registry_uri=tracker.uri)


def sql(home: Path, statement: str) -> list[tuple]:
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        return database.execute(statement).fetchall()


def run_python(code: str, *arguments: object, cwd: Path) -> subprocess.Popen:
    """A process with the bare environment of a user, and AGENT, which makes MLflow print hints."""
    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCES), "HOME": str(cwd), "AGENT": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, env=bare, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# ---- start, off, environment


def test_sqlite_is_a_file_in_home_and_other_settings_are_uris(tmp_path):
    assert track.tracking_uri("sqlite", tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert track.tracking_uri("sqlite", Path("here")) == f"sqlite:///{Path.cwd()}/here/mlflow.db"
    assert track.tracking_uri("https://example.org", tmp_path) == "https://example.org"


@pytest.mark.parametrize("name", ["100%", "what?"])
def test_home_that_a_database_url_cannot_name_is_refused(tmp_path, name):
    with pytest.raises(TrackingError, match="% or [?]"):
        begin(tmp_path / name)


def test_off_takes_every_call_and_never_imports_mlflow(tmp_path):
    code = """if True:
        import sys
        from pathlib import Path
        from tunesmith.track import mlflow as track
        for setting in (None, "off"):
            off = track.start(setting, Path("."), experiment="e", run_name="r", params={}, tags={}, mlflow_run_id="x")
            off.metrics(1, {"loss": 1.0}); off.flush(); off.artifact(Path("x"))
            off.dataset("d", "0", {}, {}, "training")
            assert off.adapter("a", Path("x"), params={}, tags={}, metrics={}) is None
            off.finish("FAILED")
            assert off.run_id is None and off.uri is None
        assert not {"mlflow", "sqlalchemy", "alembic"} & set(sys.modules)
    """
    process = run_python(code, cwd=tmp_path)
    assert process.communicate() == ("", "")
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_off_has_every_public_method_of_tracker():
    public = {name for name in vars(track.Tracker) if not name.startswith("_")}
    assert public <= set(dir(track.Off))


@pytest.mark.slow
def test_two_first_runs_at_once_share_a_new_store_without_a_word(tmp_path, adapter_dir):
    """MLflow alone lets both migrate the same file, which breaks it, prints, and reports usage to its makers."""
    code = """if True:
        import os, sys
        from pathlib import Path
        from tunesmith.track import mlflow as track
        before = dict(os.environ)
        tracker = track.start("sqlite", Path(sys.argv[1]), experiment="e", run_name="r", params={"a": 1}, tags={})
        tracker.metrics(1, {"loss": 1.0})
        tracker.adapter("a", Path(sys.argv[2]), params={}, tags={})
        tracker.finish()
        assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
        import mlflow.telemetry
        assert mlflow.telemetry.get_telemetry_client() is None
    """
    home, cwd = tmp_path / "new home", tmp_path / "cwd"
    home.mkdir(), cwd.mkdir()
    (home / "mlflow.db.new").write_text("left behind by a first run that was killed")
    processes = [run_python(code, home, adapter_dir, cwd=cwd) for _ in range(2)]
    assert [process.communicate() for process in processes] == [("", "")] * 2
    assert [process.returncode for process in processes] == [0, 0]
    assert list(cwd.iterdir()) == []
    assert {path.name for path in home.iterdir()} == {"mlflow.db", "mlflow.db.lock", "mlartifacts"}
    assert sql(home, "select status from runs") == [("FINISHED",), ("FINISHED",)]
    assert sql(home, "select version from model_versions order by version") == [(1,), (2,)]


def test_a_setting_of_the_user_is_kept_and_logging_works_again_afterwards(home, monkeypatch):
    from mlflow.utils.logging_utils import MLFLOW_LOGGING_STREAM

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    with track._mlflow("sqlite://", "look"):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
        assert not MLFLOW_LOGGING_STREAM.enabled
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ
    assert MLFLOW_LOGGING_STREAM.enabled


# ---- what is logged


def test_parameters_are_flat_json_and_a_long_one_says_that_it_was_cut(home):
    params = {"train": {"epochs": 3, "max_steps": None, "checkpoint": {"keep": True}}, "targets": ["q", "v"],
              "data": {"a b*c": "ü.jsonl"}, "empty": {}, "exact": "x" * 6000, "long": "y" * 6001}
    tracker = begin(home, params=params, tags={"seed": 7, "note": "z" * 9000})
    run = client_of(tracker).get_run(tracker.run_id)
    long = run.data.params.pop("long")
    assert run.data.params == {"train.epochs": "3", "train.max_steps": "null", "train.checkpoint.keep": "true",
                               "targets": '["q", "v"]', "data.a b_c": "ü.jsonl", "empty": "{}", "exact": "x" * 6000}
    assert long.endswith("y [... cut by tunesmith, 6001 characters in all]") and len(long) == 6000
    assert run.data.tags["seed"] == "7" and len(run.data.tags["note"]) == 8000
    assert run.info.run_name == "run-1" and run.info.status == "RUNNING"


def test_metrics_carry_step_and_time_of_the_call_not_of_the_flush(home):
    tracker, windows = begin(home), []
    client = client_of(tracker)
    for step in (10, 20, 30):
        earliest = time.time_ns() // 1_000_000
        tracker.metrics(step, {"loss": 1 / step, "pass@5": step})
        windows.append((earliest, time.time_ns() // 1_000_000))
        time.sleep(0.02)
    assert client.get_metric_history(tracker.run_id, "loss") == []
    tracker.flush()
    history = sorted(client.get_metric_history(tracker.run_id, "loss"), key=lambda metric: metric.timestamp)
    assert [(metric.step, metric.value) for metric in history] == [(10, 1 / 10), (20, 1 / 20), (30, 1 / 30)]
    assert all(first <= metric.timestamp <= last for metric, (first, last) in zip(history, windows, strict=True))
    assert client.get_run(tracker.run_id).data.metrics == {"loss": 1 / 30, "pass_5": 30.0}


def test_metrics_are_sent_at_200_points_and_at_finish(home):
    tracker = begin(home)
    client = client_of(tracker)
    for step in range(199):
        tracker.metrics(step, {"loss": step})
    assert client.get_metric_history(tracker.run_id, "loss") == []
    tracker.metrics(199, {"loss": 199})
    assert len(client.get_metric_history(tracker.run_id, "loss")) == 200
    tracker.metrics(200, {"loss": float("nan")})
    tracker.finish("KILLED")
    history = client.get_metric_history(tracker.run_id, "loss")
    assert len(history) == 201 and math.isnan(history[-1].value)
    assert client.get_run(tracker.run_id).info.status == "KILLED"


def test_points_survive_a_store_that_fails_and_are_sent_once(home):
    tracker = begin(home)
    tracker.metrics(1, {"loss": 0.5})
    noted = list(tracker._points)
    sql(home, "alter table metrics rename to gone")
    with pytest.raises(TrackingError, match="no such table: metrics"):
        tracker.flush()
    tracker.metrics(2, {"loss": 0.4})  # one more does not ask again: it waits for another 200
    sql(home, "alter table gone rename to metrics")
    tracker.finish()
    history = client_of(tracker).get_metric_history(tracker.run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(1, 0.5), (2, 0.4)]
    assert noted[0][2] in {m.timestamp for m in history}


def test_dataset_inputs_need_no_pandas_and_keep_context_source_and_profile(home):
    digest = "sha256:" + "0123456789abcdef" * 4
    tracker = begin(home)
    tracker.dataset("addresses/train", digest, {"digest": digest, "path": Path("a.jsonl")}, {"rows": 120}, "training")
    tracker.dataset("addresses/test", digest, {"digest": digest}, {"rows": 30}, "testing")
    inputs = {i.dataset.name: i for i in client_of(tracker).get_run(tracker.run_id).inputs.dataset_inputs}
    contexts = {name: i.tags[0].value for name, i in inputs.items()}
    assert contexts == {"addresses/train": "training", "addresses/test": "testing"}
    train = inputs["addresses/train"].dataset
    assert train.digest == digest.removeprefix("sha256:")[:36]
    assert json.loads(train.source) == {"digest": digest, "path": "a.jsonl"}
    assert json.loads(train.profile) == {"rows": 120}


def test_same_dataset_for_training_and_testing_is_refused(home):
    tracker = begin(home)
    tracker.dataset("addresses", "1", {}, {}, "training")
    with pytest.raises(TrackingError, match="drop its use for testing"):
        tracker.dataset("addresses", "1", {}, {}, "testing")


def test_artifact_lands_below_home_whatever_the_current_directory(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.html").write_text("<p>0.91")
    tracker = begin(home)
    tracker.artifact(tmp_path / "report.html")
    assert (home / "mlartifacts" / tracker.run_id / "artifacts" / "report.html").read_text() == "<p>0.91"
    with pytest.raises(TrackingError, match="missing.html"):
        tracker.artifact(tmp_path / "missing.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == [home.name, "report.html"]


# ---- adapters


def test_registered_version_holds_the_same_bytes_and_the_next_is_version_2(home, adapter_dir, tmp_path, monkeypatch):
    import mlflow

    tracker = begin(home)
    tracker.metrics(40, {"loss": 0.3})
    first = tracker.adapter("Qwen/Qwen3-0.6B:v1", adapter_dir, params={"rank": 16}, tags={"dataset": "d1"},
                            metrics={"eval/exact_match": 0.91})
    tracker.finish()
    (adapter_dir / "adapter_model.safetensors").write_bytes(b"second")
    second = begin(home, run_name="run-2").adapter("Qwen/Qwen3-0.6B:v1", adapter_dir, params={}, tags={})
    name = "Qwen-Qwen3-0-6B-v1"
    assert (first["name"], first["version"], first["uri"]) == (name, 1, f"models:/{name}/1")
    assert (second["version"], second["uri"]) == (2, f"models:/{name}/2")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    got = Path(mlflow.artifacts.download_artifacts(second["uri"], dst_path=str(tmp_path / "got")))
    assert {p.name: p.read_bytes() for p in got.iterdir()} == {p.name: p.read_bytes() for p in adapter_dir.iterdir()}

    client = client_of(tracker)
    model, version = client.get_logged_model(first["model_id"]), client.get_model_version(name, "1")
    assert model.status.name == "READY" and model.model_type == "adapter" and model.source_run_id == tracker.run_id
    assert model.params == {"rank": "16"} and model.tags["dataset"] == "d1"
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": name, "version": 1}]
    (score,) = model.metrics
    assert (score.key, score.value, score.step, score.run_id) == ("eval/exact_match", 0.91, 40, tracker.run_id)
    assert version.run_id == tracker.run_id and version.tags == {"dataset": "d1", "model_id": first["model_id"]}
    outputs = client.get_run(tracker.run_id).outputs.model_outputs
    assert [(o.model_id, o.step) for o in outputs] == [(first["model_id"], 40)]


def test_adapter_that_could_not_be_copied_is_failed_and_not_registered(home, adapter_dir):
    tracker = begin(home)
    (home / "mlartifacts").write_text("a file where the folder should be")
    with pytest.raises(TrackingError, match="log adapter a"):
        tracker.adapter("a", adapter_dir, params={}, tags={})
    client = client_of(tracker)
    assert [m.status.name for m in client.search_logged_models([tracker.experiment_id])] == ["FAILED"]
    assert client.search_registered_models() == []


def test_directory_without_an_adapter_is_refused_before_anything_is_created(home, tmp_path):
    tracker = begin(home)
    with pytest.raises(TrackingError, match="adapter_config.json is missing"):
        tracker.adapter("a", tmp_path, params={}, tags={})
    assert client_of(tracker).search_logged_models([tracker.experiment_id]) == []


@pytest.mark.parametrize(("name", "slug"), [("Qwen/Qwen3-0.6B", "Qwen-Qwen3-0-6B"), ("ft:base:org", "ft-base-org"),
                                            ("größe 漢", "größe-漢"), ("it's", "it-s"), ("x" * 300, "x" * 200)])
def test_model_name_is_one_that_both_kinds_of_model_accept(name, slug):
    from mlflow.utils.validation import _validate_logged_model_name, _validate_model_name

    assert track.model_name(name) == slug
    _validate_logged_model_name(slug)
    _validate_model_name(slug)


def test_model_name_without_a_letter_is_refused():
    with pytest.raises(TrackingError):
        track.model_name("../..")


# ---- resume


def test_resume_goes_on_with_the_run_and_a_step_trained_twice_is_there_twice(home):
    first = begin(home, params={"rank": 16})
    for step in (1, 2, 3):
        first.metrics(step, {"loss": 1.0 - step / 10})
    first.finish("FAILED")
    time.sleep(0.002)

    again = begin(home, params={"rank": 16, "resumed": True}, mlflow_run_id=first.run_id)
    client = client_of(again)
    assert (again.run_id, again.experiment_id) == (first.run_id, first.experiment_id)
    assert client.get_run(again.run_id).info.status == "RUNNING"
    again.metrics(3, {"loss": 0.69})
    again.finish()
    run = client.get_run(again.run_id)
    assert run.info.status == "FINISHED" and run.data.params == {"rank": "16", "resumed": "true"}
    assert [m.step for m in client.get_metric_history(again.run_id, "loss")] == [1, 2, 3, 3]
    assert run.data.metrics["loss"] == 0.69
    assert len(client.search_runs([again.experiment_id])) == 1


def test_resume_refuses_a_changed_parameter_and_an_unknown_run(home):
    first = begin(home, params={"rank": 16})
    first.finish()
    with pytest.raises(TrackingError, match="Changing param values is not allowed") as refused:
        begin(home, params={"rank": 8}, mlflow_run_id=first.run_id)
    assert "refuses this" in refused.value.fix
    assert client_of(first).get_run(first.run_id).info.status == "FINISHED"
    with pytest.raises(TrackingError, match="not found"):
        begin(home, mlflow_run_id="0" * 32)


# ---- stores that fail


def test_closed_port_is_an_error_within_seconds_and_shows_no_password(tmp_path, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(TrackingError, match="Connection refused") as error:
        track.start(f"http://me:secret@127.0.0.1:{port}", tmp_path, experiment="e", run_name="r", params={}, tags={})
    assert time.monotonic() - began < 8
    assert "secret" not in str(error.value) and error.value.where == f"http://***@127.0.0.1:{port}"
    assert error.value.fix
    assert not [record for record in caplog.records if record.name.startswith("urllib3")]


@pytest.mark.parametrize("broken", ["home is a file", "database is a folder", "database is something else"])
def test_store_that_cannot_be_opened_is_an_error_at_once(tmp_path, broken):
    home = tmp_path / "home"
    if broken == "home is a file":
        home.write_text("")
    elif broken == "database is a folder":
        (home / "mlflow.db").mkdir(parents=True)
    else:
        home.mkdir()
        (home / "mlflow.db").write_text("this is not a database " * 100)
    began = time.monotonic()
    with pytest.raises(TrackingError, match="could not start a run") as error:
        begin(home)
    assert time.monotonic() - began < 3
    assert "can be written" in error.value.fix


@pytest.fixture
def server():
    """The five answers of an MLflow server that a run needs: the real one takes 850 MB of packages to start."""
    run = {"info": {"run_id": "a" * 32, "experiment_id": "1", "run_name": "r", "status": "RUNNING"}, "data": {}}
    answers = {"get-by-name": {"experiment": {"experiment_id": "1", "name": "e"}}, "create": {"run": run},
               "get": {"run": run}, "update": {"run_info": run["info"]}, "log-batch": {}}

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            call = self.path.partition("?")[0].rpartition("/")[2]
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(503 if self.server.is_down else 200 if call in answers else 404)
            text = json.dumps(answers.get(call, {})).encode()
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            if not self.server.is_down:
                self.server.calls.append((call, json.loads(body or "{}")))

        do_GET = do_POST = do_PATCH = answer

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.is_down, server.calls = False, []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_server_that_goes_away_costs_seconds_and_no_points_and_its_links_stay_off_stdout(server, tmp_path):
    uri = f"http://127.0.0.1:{server.server_port}"
    tracker = track.start(uri, tmp_path, experiment="e", run_name="r", params={"a": 1}, tags={})
    tracker.metrics(1, {"loss": 0.5})
    server.is_down, began = True, time.monotonic()
    with pytest.raises(TrackingError, match="503"):
        tracker.flush()
    assert time.monotonic() - began < 8
    server.is_down = False
    tracker.finish()
    sent = [body["metrics"] for call, body in server.calls if call == "log-batch" and body.get("metrics")]
    assert [[(m["key"], m["value"], m["step"]) for m in metrics] for metrics in sent] == [[("loss", 0.5, 1)]]
    assert list(tmp_path.iterdir()) == []

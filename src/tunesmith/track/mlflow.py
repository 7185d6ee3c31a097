"""Experiment tracking with MLflow: parameters, metrics, datasets, reports and adapters of a run.

    tracker = start("sqlite", home, experiment="addresses", run_name=run_id, params=recipe, tags={})
    tracker.metrics(step, {"loss": 1.73})                 # buffered, sent 200 points at a time
    tracker.adapter("addresses", run_dir / "adapter", params={}, tags={}, metrics={"eval/exact_match": 0.91})
    tracker.finish()

The setting is `sqlite` (a file in home, nothing to install or start), the URI of a server or database, or `off`.
MLflow is a guest: imported on first use, asked through MlflowClient only (its fluent functions write os.environ),
kept from printing, from reporting usage to its makers, and from waiting minutes for a server that is down.
The run directory's metrics.jsonl stays the record: whoever catches TrackingError may go on training.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.errors import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

FLUSH_POINTS = 200
PARAM_CHARACTERS, TAG_CHARACTERS, DIGEST_CHARACTERS, NAME_CHARACTERS = 6000, 8000, 36, 200
"""MLflow's limits (the last is ours). It cuts parameters and tags by itself, but leaves no trace in the value."""

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
REFUSALS = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own are 7 and 120 s: minutes of a training that stands still
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
UPLOAD_SETTINGS = SETTINGS | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "120"}


def tracking_uri(setting: str, home: Path) -> str:
    """`sqlite` is the file mlflow.db in home; anything else is a URI already."""
    if setting != "sqlite":
        return setting
    path = (home / "mlflow.db").absolute().as_posix()
    if "%" in path or "?" in path:
        raise TrackingError("MLflow cannot keep its file in a folder with % or ? in its name", where=path,
                            fix="set TUNESMITH_HOME to another folder, or `track: {mlflow: off}`")
    return f"sqlite:///{path}"


def start(setting: str | None, home: Path, *, experiment: str, run_name: str, params: dict[str, Any],
          tags: dict[str, Any], mlflow_run_id: str | None = None) -> Tracker | Off:
    """Begin a run, or go on with the run `mlflow_run_id`.

    The first use of a sqlite file runs every migration MLflow ever had: 1.6 s on two idle cores, 6 s on busy ones;
    after that a start takes 20 ms, and the import of MLflow 0.8 s once. Artifacts of a database store go to
    `home/mlartifacts` by absolute path: a home that moves keeps its numbers but loses the links to its files.

    Going on after a crash: MLflow adds and never replaces. A step logged before and trained again is twice in the
    metric's history; the value shown is the one of the highest step, then of the latest time. Equal parameters are
    accepted, a changed one is refused. The old end time stays until `finish`.

    Raises:
        TrackingError: the store cannot be reached or written, or refuses what is sent.
    """
    if not setting or setting == "off":
        return Off()
    uri = tracking_uri(setting, home)
    with _mlflow(uri, "start a run"):
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunTag

        if uri.startswith(DATABASES):
            _open_database(uri)
        client = MlflowClient(uri, registry_uri=uri)
        if mlflow_run_id:
            info = client.get_run(mlflow_run_id).info
        else:
            info = client.create_run(_experiment_id(client, experiment, uri, home), run_name=run_name).info
        logged_params = [Param(*item) for item in flatten(params).items()]
        logged_tags = [RunTag(*item) for item in _tags(tags).items()]
        client.log_batch(info.run_id, params=logged_params, tags=logged_tags, synchronous=True)
        if mlflow_run_id:
            client.update_run(info.run_id, status="RUNNING")
    return Tracker(uri, info.run_id, info.experiment_id, client)


@dataclass
class Tracker:
    """One MLflow run being written. Without `finish` MLflow shows it as RUNNING for ever."""

    uri: str
    run_id: str
    experiment_id: str
    _client: MlflowClient
    _points: list[tuple[str, float, int, int]] = field(default_factory=list)
    _flush_at: int = FLUSH_POINTS
    _step: int = 0
    _contexts: dict[tuple[str, str], str] = field(default_factory=dict)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Note the values of one step, with the time of this call. NaN stays NaN; a database turns inf into 1.8e308."""
        now_ms = time.time_ns() // 1_000_000
        self._step = int(step)
        self._points += [(_key(name), float(value), now_ms, self._step) for name, value in values.items()]
        if len(self._points) >= self._flush_at:
            self.flush()

    def flush(self) -> None:
        """Send what is noted. After a TrackingError it is still noted, and sent 200 points later or by `finish`."""
        self._flush_at = len(self._points) + FLUSH_POINTS
        with _mlflow(self.uri, "log metrics"):
            from mlflow.entities import Metric

            self._client.log_batch(self.run_id, metrics=[Metric(*point) for point in self._points], synchronous=True)
        self._points, self._flush_at = [], FLUSH_POINTS

    def dataset(self, name: str, digest: str, source: dict[str, Any], profile: dict[str, Any],
                context: Literal["training", "testing"]) -> None:
        """Record which data the run saw. MLflow keeps 36 characters of the digest: put the whole one into `source`.

        To MLflow a dataset is its name and digest. It drops a second context without a word, which is an error here,
        and keeps the source and profile that the experiment's first run gave.
        """
        digest = digest.removeprefix("sha256:")[:DIGEST_CHARACTERS]
        before = self._contexts.setdefault((name, digest), context)
        if before != context:
            raise TrackingError(f"dataset {name} is logged for {before} already", where=_redacted(self.uri),
                                why=f"MLflow would drop its use for {context}", fix="give each part its own name")
        with _mlflow(self.uri, f"log dataset {name}"):
            from mlflow.entities import Dataset, DatasetInput, InputTag

            texts = [json.dumps(value, ensure_ascii=False, default=str) for value in (source, profile)]
            data = Dataset(name, digest, "tunesmith", texts[0], profile=texts[1])
            self._client.log_inputs(self.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def artifact(self, path: Path) -> None:
        """Copy a file or folder, such as the recipe or a report, to the run."""
        with _mlflow(self.uri, f"log {path}", UPLOAD_SETTINGS):
            self._client.log_artifact(self.run_id, str(path))

    def adapter(self, name: str, adapter_dir: Path, *, params: dict[str, Any], tags: dict[str, Any],
                metrics: dict[str, float] | None = None) -> dict[str, Any]:
        """Store the PEFT directory byte for byte as a logged model, and register it as the next version of `name`.

        Returns `{model_id, version, name, uri}`, uri being `models:/NAME/VERSION`. MLflow looks such a URI up in the
        store that MLFLOW_TRACKING_URI names, even in functions that take a `tracking_uri`: set the variable first.
        """
        if not (adapter_dir / "adapter_config.json").is_file():
            raise TrackingError("no adapter to log", where=str(adapter_dir), why="adapter_config.json is missing",
                                fix="give the PEFT directory that training wrote")
        name, now_ms, client = model_name(name), time.time_ns() // 1_000_000, self._client
        with _mlflow(self.uri, f"log adapter {name}", UPLOAD_SETTINGS):
            from mlflow.entities import LoggedModelOutput, Metric

            model = client.create_logged_model(
                self.experiment_id, name, self.run_id, _tags(tags), flatten(params), model_type="adapter")
            status = "FAILED"
            try:
                client.log_model_artifacts(model.model_id, str(adapter_dir))
                status = "READY"
            finally:
                client.finalize_logged_model(model.model_id, status)
            client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, self._step)])
            points = [Metric(_key(k), float(v), now_ms, self._step, model.model_id) for k, v in (metrics or {}).items()]
            client.log_batch(self.run_id, metrics=points, synchronous=True)
            _unless_there(client.create_registered_model, name)
            # With a models:/ source or no run id, a database store would ask MLflow's global store about the model.
            made = client.create_model_version(name, model.artifact_location, self.run_id, model_id=model.model_id,
                                               tags=_tags(tags) | {"model_id": model.model_id})
            version = int(made.version)
            # The link between the two in MLflow's pages; a server sets it, a database store does not.
            link = json.dumps([{"name": name, "version": version}])
            client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})
        return {"model_id": model.model_id, "version": version, "name": name, "uri": f"models:/{name}/{version}"}

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        try:
            self.flush()
        finally:
            with _mlflow(self.uri, "finish the run"):
                self._client.set_terminated(self.run_id, status)


class Off:
    """Tracking turned off: the calls of Tracker without their effects. MLflow is never imported."""

    uri = run_id = experiment_id = None

    def _nothing(self, *args: object, **kwargs: object) -> None:
        pass

    metrics = flush = dataset = artifact = adapter = finish = _nothing


def flatten(params: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"train": {"epochs": 3}}` -> `{"train.epochs": "3"}`. Lists, numbers and null read as in JSON."""
    flat = {}
    for key, value in params.items():
        name = prefix + _key(str(key))
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            flat[name] = _cut(text, PARAM_CHARACTERS)
    return flat


def model_name(name: str) -> str:
    """A name for logged models (no / : . % or quotes) and registered ones: `Qwen/Qwen3-0.6B` -> `Qwen-Qwen3-0-6B`."""
    slug = re.sub(r"[^\w-]+", "-", name).strip("-")[:NAME_CHARACTERS]
    if not slug:
        raise TrackingError(f"no model can be registered as {name!r}", fix="use a name with letters or digits")
    return slug


def _key(name: str) -> str:
    """Name of a metric, parameter or tag: what MLflow refuses becomes `_`, so `pass@5` is `pass_5`."""
    return re.sub(r"[^\w./ -]", "_", name)


def _tags(tags: dict[str, Any]) -> dict[str, str]:
    return {_key(str(key)): _cut(str(value), TAG_CHARACTERS) for key, value in tags.items()}


def _cut(text: str, limit: int) -> str:
    mark = f" [... cut by tunesmith, {len(text)} characters in all]"
    return text if len(text) <= limit else text[: limit - len(mark)] + mark


def _experiment_id(client: MlflowClient, name: str, uri: str, home: Path) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        # By itself a database store puts artifacts into ./mlruns of whatever the current directory is.
        location = (home / "mlartifacts").absolute().as_uri() if uri.startswith(DATABASES) else None
        _unless_there(client.create_experiment, name, artifact_location=location)
        found = client.get_experiment_by_name(name)
    return found.experiment_id


def _unless_there(create: Any, *args: Any, **kwargs: Any) -> None:
    """Create, though another process may have been first."""
    from mlflow.exceptions import MlflowException

    try:
        create(*args, **kwargs)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _open_database(uri: str) -> None:
    """Make a sqlite file that is there and whole or not there, and fail at once where nothing can be opened.

    MLflow migrates a new file in place without a lock: two first runs at a time, or Ctrl-C, leave one that it can
    never open again. And it tries a database ten times over 101 s, whatever is wrong with it.
    """
    import sqlalchemy
    from filelock import FileLock
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    url = sqlalchemy.make_url(uri)
    if url.drivername.startswith("sqlite") and url.database:
        path = Path(url.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                new = Path(f"{path}.new")
                new.unlink(missing_ok=True)
                SqlAlchemyStore(f"sqlite:///{new}", str(path.parent / "mlartifacts")).engine.dispose()
                os.replace(new, path)
    engine = sqlalchemy.create_engine(url)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _redacted(text: str) -> str:
    return re.sub(r"(?<=://)[^/\s]*@", "***@", text)


@contextmanager
def _mlflow(uri: str, doing: str, settings: dict[str, str] = SETTINGS) -> Iterator[None]:
    """Call MLflow in silence, and turn what it raises into a TrackingError.

    Its settings have no door but os.environ, which is put back at the end. A variable that the user set wins.
    """
    ours = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(ours)
    retries_log = logging.getLogger("urllib3.connectionpool")  # says "Retrying (Retry(total=1, ..." on stderr
    retries_level = retries_log.level
    retries_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mlflow.utils.logging_utils import MLFLOW_LOGGING_STREAM as stream  # sqlalchemy and alembic use it too

            stream_enabled, stream.enabled = stream.enabled, False
            try:
                yield
            finally:
                stream.enabled = stream_enabled
    except Exception as error:  # what sqlalchemy, requests, boto3 and others raise comes through: no common root
        if isinstance(error, ModuleNotFoundError):
            fix = "pip install mlflow-skinny sqlalchemy alembic (and the driver of a database that is not sqlite)"
        elif getattr(error, "error_code", None) in REFUSALS:
            fix = "MLflow is there but refuses this: change what `why` names, or set `track: {mlflow: off}`"
        elif uri.startswith(DATABASES):
            fix = "check that the database is there and can be written, or set `track: {mlflow: off}`"
        else:
            fix = "check the address, the server and your MLFLOW_TRACKING_TOKEN, or set `track: {mlflow: sqlite}`"
        root = error
        while root.__cause__:  # sqlite's "no such table" is below what sqlalchemy and MLflow make of it
            root = root.__cause__
        why = (str(root).splitlines() or [type(root).__name__])[0]
        raise TrackingError(f"MLflow could not {doing}", where=_redacted(uri), why=_redacted(why), fix=fix) from error
    finally:
        retries_log.setLevel(retries_level)
        for name in ours:
            os.environ.pop(name, None)

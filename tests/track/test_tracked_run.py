"""A whole run leaves its story in MLflow: parameters, metrics by step, data, the adapter as a model, the evaluation."""

from __future__ import annotations

import tunesmith


def test_a_run_is_tracked_from_its_parameters_to_its_evaluation(make_recipe, home):
    done = tunesmith.run(make_recipe(**{"track.mlflow": "sqlite"}))
    from mlflow import MlflowClient

    uri = f"sqlite:///{home / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    run = client.get_run(done["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["method.rank"] == "4"
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [m.step for m in sorted(losses, key=lambda m: m.step)] == list(range(1, done["steps"] + 1))
    assert losses[-1].value == done["train_loss"]
    assert {i.tags[0].value for i in run.inputs.dataset_inputs} == {"training", "testing"}
    assert run.data.metrics["test/loss/tuned"] == done["metrics"]["loss"]["tuned"]
    assert any(f.path == "report.html" for f in client.list_artifacts(run.info.run_id))
    version = client.get_model_version(done["mlflow_model"]["name"], str(done["mlflow_model"]["version"]))
    assert version.tags["tunesmith.run_id"] == done["run_id"]
    assert done["verdict"] == "pass", done["gates"]
    assert version.tags["tunesmith.release_id"] == done["release_id"] and done["mlflow"]["version"] == int(version.version)
    assert client.get_model_version_by_alias("tiny", "challenger").version == version.version
    assert tunesmith.promote(done["release_id"], "production")["mlflow"]["aliases"]["champion"] == done["release_id"]
    assert client.get_model_version_by_alias("tiny", "champion").version == version.version

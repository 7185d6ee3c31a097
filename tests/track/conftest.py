"""A store that MLflow has migrated already: that takes seconds, and one is enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.track import mlflow as track


@pytest.fixture(scope="session")
def migrated(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("migrated")
    track.start("sqlite", home, experiment="first", run_name="first", params={}, tags={}).finish()
    return home / "mlflow.db"

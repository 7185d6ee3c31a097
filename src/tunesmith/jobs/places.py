"""Where the service keeps what is not in the database.

    TUNESMITH_HOME/service/
        service.db                        unless it is another database
        files/PROJECT/FILE_ID             uploaded, or made by a job
        uploads/UPLOAD_ID/PART_ID
        jobs/JOB_ID/                      recipe.yaml and what its worker said
        homes/PROJECT/                    a TUNESMITH_HOME for each project: no run, dataset or release is another one's

The default project, which is all there is without keys, has TUNESMITH_HOME itself: `tunesmith runs` shows its jobs' runs.
Servers that share a database share this directory too. In a worker TUNESMITH_HOME is its project's, and TUNESMITH_SERVICE says
where the service is.
"""

from __future__ import annotations

import os
from pathlib import Path

from tunesmith.store.home import MODELS, home

DEFAULT_PROJECT = "proj_default"


def service() -> Path:
    return Path(os.environ.get("TUNESMITH_SERVICE") or home() / "service")


def default_database() -> str:
    return f"sqlite:///{service() / 'service.db'}"


def file_path(project_id: str, file_id: str) -> Path:
    return service() / "files" / project_id / file_id


def upload_dir(upload_id: str) -> Path:
    return service() / "uploads" / upload_id


def job_dir(job_id: str) -> Path:
    return service() / "jobs" / job_id


def project_home(project_id: str) -> Path:
    return service().parent if project_id == DEFAULT_PROJECT else service() / "homes" / project_id


def pin(project_id: str, job_id: str) -> Path:
    """The file that keeps a job's release from being collected (`releases.gc`), as long as its model is there."""
    return project_home(project_id) / MODELS / f"{job_id}.json"

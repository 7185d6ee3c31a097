"""MLflow's model registry: which version of a registered model is which release, and what its aliases point at.

    with registry("sqlite", home()) as models:
        models.version("addresses", {"tunesmith.release_id": "rel-..."})      # 3, or None
        models.tag("addresses", 3, {"tunesmith.verdict": "pass"})
        models.point("addresses", "champion", 3)                               # None takes the alias away

The same rules as in `mlflow.py`: imported on first use, asked through MlflowClient only, silent, and a TrackingError for
whatever goes wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.track.mlflow import DATABASES, _mlflow, _open_database, _tags, model_name, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Registry:
    """A registry that is open."""

    uri: str
    client: MlflowClient

    def version(self, name: str, tags: dict[str, str]) -> int | None:
        """The newest version of a model that has all these tags."""
        told = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = self.client.search_model_versions(f"name = '{model_name(name)}' and {told}")
        return max((int(v.version) for v in found), default=None)

    def tag(self, name: str, version: int, tags: dict[str, Any]) -> None:
        for key, value in _tags(tags).items():
            self.client.set_model_version_tag(model_name(name), str(version), key, value)

    def tags(self, name: str, version: int) -> dict[str, str]:
        return dict(self.client.get_model_version(model_name(name), str(version)).tags)

    def point(self, name: str, alias: str, version: int | None) -> None:
        """Set an alias, or take it away. A model that nobody registered has none."""
        from mlflow.exceptions import MlflowException

        if version is not None:
            self.client.set_registered_model_alias(model_name(name), alias, str(version))
            return
        try:
            self.client.delete_registered_model_alias(model_name(name), alias)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


@contextmanager
def registry(setting: str, home: Path) -> Iterator[Registry]:
    """The registry of a tracking setting (`sqlite` or a URI). Raises TrackingError."""
    uri = tracking_uri(setting, home)
    with _mlflow(uri, "keep its registry like the releases"):
        from mlflow import MlflowClient

        if uri.startswith(DATABASES):
            _open_database(uri)
        yield Registry(uri, MlflowClient(uri, registry_uri=uri))

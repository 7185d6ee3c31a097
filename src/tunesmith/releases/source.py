"""A release as a parent to compose with (`training.compose`): what it takes stands in the bundle, its run may be long gone."""

from __future__ import annotations

from pathlib import Path

from tunesmith.recipe.load import Loaded
from tunesmith.recipe.schema import Recipe
from tunesmith.releases.bundle import Release
from tunesmith.store.files import read_json
from tunesmith.training.compose import Source


def source_of(release: Release, weight: float) -> Source:
    manifest = release.manifest
    recipe = Recipe.model_validate(read_json(release.path / "recipe.resolved.json"))
    return Source(release.id, release.adapter, weight, Loaded(recipe, Path(manifest["recipe_folder"]) / "recipe.yaml"),
                  manifest["base"], manifest["dataset_id"], manifest["template_fingerprint"], manifest["dtype"])

"""MLflow's registry as a mirror of releases and channels: for those who look there, and never what anything here reads.

    release            ->  the version of the registered model whose artifact is its adapter, with tags tunesmith.release_id,
                           .manifest and .adapter (digests), .verdict, .gate.NAME, .overrides
    channel            ->  the alias that `track.aliases` of the recipe gives it (production: champion)
    challenger         ->  the newest release after the champion's that was never promoted to its channel

It is made from what is on disk each time, not from what has just happened, so what a registry that was down has missed is
there after the next move. A registry that fails undoes nothing: it is said, and stands in the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tunesmith.errors import NotFoundError, StoreError, TrackingError
from tunesmith.releases.bundle import MANIFEST, Release, all_releases
from tunesmith.releases.channel import current
from tunesmith.store.files import read_json, sha256_file
from tunesmith.store.home import home
from tunesmith.training.run import Run

if TYPE_CHECKING:
    from tunesmith.track.registry import Registry

ALIASES = {"production": "champion"}
CHALLENGER = "challenger"
Say = Callable[[str], None]


def mirrored(done: dict, say: Say = lambda _line: None) -> dict:
    """What `release`, `promote` or `rollback` returned, with `mlflow` where the release's recipe tracks and a registry is here.

    `mlflow` is `{name, version, aliases{alias: release id or null}}`, or `{error}` with what, why and fix.
    """
    if not done["release_id"]:
        return done
    release = Release.find(done["release_id"])
    result = mirror(release, say)
    previous = done.get("previous")
    if previous and previous != release.id:
        try:
            before = Release.find(previous)
        except (NotFoundError, StoreError) as error:
            say(f"the registry still shows {previous}: {error.what}")
        else:
            if before.manifest["name"] != release.manifest["name"]:
                mirror(before, say)
    return done if result is None else done | {"mlflow": result}


def mirror(release: Release, say: Say) -> dict | None:
    """Make the registry say of this release's model what is so. None where there is no registry."""
    track = read_json(release.path / "recipe.resolved.json").get("track") or {}
    setting = track.get("mlflow")
    if not setting or setting == "off" or (setting == "sqlite" and not (home() / "mlflow.db").is_file()):
        return None
    from tunesmith.track.registry import registry

    name = release.manifest["name"]
    pointed = aliases(name, track.get("aliases") or ALIASES)
    try:
        with registry(setting, home()) as models:
            version = models.version(name, {"tunesmith.release_id": release.id}) or _trained(release, models)
        if version is None:
            version = _registered(release, setting, track)
        with registry(setting, home()) as models:
            models.tag(name, version, tags(release))
            for alias, release_id in pointed.items():
                wanted = release_id and models.version(name, {"tunesmith.release_id": release_id})
                models.point(name, alias, wanted)
                pointed[alias] = release_id if wanted else None
    except TrackingError as error:
        say(f"tracking: {error.what} ({error.why}); the release and its channels are as they should be all the same")
        return {"error": error.as_dict()}
    return {"name": name, "version": version, "aliases": pointed}


def tags(release: Release) -> dict[str, str]:
    manifest = release.manifest
    overrides = "; ".join(f"{o['gate']} by {o['by']}: {o['reason']}" for o in manifest.get("overrides", []))
    return {"tunesmith.release_id": release.id, "tunesmith.manifest": sha256_file(release.path / MANIFEST),
            "tunesmith.adapter": manifest["adapter"]["digest"], "tunesmith.verdict": manifest["verdict"],
            **{f"tunesmith.gate.{g['name']}": g["verdict"] for g in manifest["gates"]},
            **({"tunesmith.overrides": overrides} if overrides else {})}


def aliases(name: str, wanted: dict[str, str]) -> dict[str, str | None]:
    """`{alias: release id}` of the releases of this name; None where an alias has nothing to point at."""
    ours = [m for m in all_releases() if m["name"] == name]
    created = {m["release_id"]: m["created"] for m in ours}
    pointed: dict[str, str | None] = {}
    promoted: set[str] = set()
    newest_champion = ""
    for channel, alias in wanted.items():
        try:
            state = current(channel)
        except NotFoundError:
            state = {"release_id": None, "history": []}
        pointed[alias] = state["release_id"] if state["release_id"] in created else None
        promoted |= {move["release_id"] for move in state["history"]}
        newest_champion = max(newest_champion, created.get(state["release_id"], ""))
    waiting = [m["release_id"] for m in ours if m["release_id"] not in promoted and m["created"] > newest_champion]
    return {CHALLENGER: waiting[0] if waiting else None} | pointed


def _trained(release: Release, models: Registry) -> int | None:
    """The version that training registered, unless the adapter is another by now or it is another release already."""
    try:
        run = Run.find(release.manifest["run_id"]).state
    except NotFoundError:
        return None
    model = run.get("mlflow_model")
    if not model or run.get("adapter_digest") != release.manifest["adapter"]["digest"]:
        return None
    return None if "tunesmith.release_id" in models.tags(model["name"], model["version"]) else int(model["version"])


def _registered(release: Release, setting: str, track: dict) -> int:
    """A new version, of a release that came from elsewhere."""
    from tunesmith.track import mlflow

    tracker = mlflow.start(setting, home(), experiment=track.get("experiment") or release.manifest["name"],
                           run_name=release.id, params={}, tags=tags(release))
    model = tracker.adapter(release.manifest["name"], release.adapter, params={}, tags=tags(release))
    tracker.finish()
    return int(model["version"])

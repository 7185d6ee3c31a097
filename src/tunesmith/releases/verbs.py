"""Verbs about releases as functions; `tunesmith.verbs` offers them beside the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

Say = Callable[[str], None]


def _silent(_line: str) -> None:
    return None


def release(run: str, *, overrides: Sequence[tuple[str, str, str]] = (), key: str | Path | None = None,
            say: Say = _silent) -> dict:
    """`{release_id, verdict: pass|refused, gates[{name, verdict, evidence}], overrides[{gate, by, reason, verdict, message}],
    path, signed_by, mlflow?}`. `overrides`: (gate, who answers for it, why) of gates that may refuse. `key`: a private key
    to sign with; default TUNESMITH_SIGNING_KEY.

    Raises:
        UsageError: an override of a gate that was not judged or passed, or without a name or a reason; no such key.
    """
    from tunesmith.releases.bundle import release as release_run
    from tunesmith.releases.gates import Override
    from tunesmith.releases.mirror import mirrored
    from tunesmith.releases.sign import signing_key
    from tunesmith.training.run import Run

    return mirrored(release_run(Run.find(run), say, [Override(*one) for one in overrides], signing_key(key)), say)


def promote(release: str, channel: str, *, why: str = "", by: str | None = None, expect: str | None = None,
            say: Say = _silent) -> dict:
    """`{channel, release_id, previous, mlflow?}`. `by`: who answers for it; `expect`: move only from this release.

    Raises:
        UsageError: the channel points elsewhere. GateRefused: no trusted key signed the release (exit code 3).
    """
    from tunesmith.releases.bundle import Release
    from tunesmith.releases.channel import promote as move
    from tunesmith.releases.mirror import mirrored

    return mirrored(move(Release.find(release), channel, why, by=by, expect=expect), say)


def rollback(channel: str, *, why: str = "", by: str | None = None, expect: str | None = None, drill: bool = False,
             say: Say = _silent) -> dict:
    """As `promote`. With `drill` nothing moves, and `{identical, checked[], environment, seconds,
    message}` beside them say whether `previous`, restored in a fresh process, gives its golden answers.

    Raises:
        NotFoundError: no such channel, or nothing to go back to.
        StoreError, BaseModelError, AdapterError, TemplateError: what it would go back to cannot be restored.
    """
    if drill:
        from tunesmith.releases.drill import drill as rehearse

        return rehearse(channel, why, say)
    from tunesmith.releases.channel import rollback as move
    from tunesmith.releases.mirror import mirrored

    return mirrored(move(channel, why, by=by, expect=expect), say)


def export(release: str, format: str, output: str | Path, *, dtype: str | None = None, quant: str | None = None,
           base_path: str | None = None, unreleased: bool = False, say: Say = _silent) -> dict:
    """A release as files for another program, asked there: `{path, format, dtype, max_abs_logit_diff, mean_kl, top1_agreement,
    verdict: pass|fail|not_measured, probe{}, facts{}, files{name: digest}}`. With `fail`, path is None and nothing is left;
    the three numbers are None where the runtime gives no logits.

    Raises:
        UsageError: no such format or dtype, `output` is there already, a method that the format cannot hold, or a run that was
            not released, without `unreleased`.
    """
    from tunesmith.releases.export import export as export_release

    return export_release(release, format, Path(output), dtype=dtype, quant=quant, base_path=base_path, unreleased=unreleased,
                          say=say)


def merge(name: str, directory: str | Path, *, dtype: str | None = None, onto: str | None = None, say: Say = _silent) -> dict:
    """A run's or release's adapter and base as one model in a new directory, which is left only if it answers as the adapter:
    `{path, verdict: pass|fail, message, dtype, onto, max_abs_logit_diff, mean_kl, top1_agreement, same_texts, ratio, tied,
    untied, probe{...}, ...}`; path is None at fail.

    Raises:
        UsageError: the directory is there. AdapterError: the adapter's method has no merged form.
    """
    from tunesmith.releases.merge import merge as merge_made

    release, run = named(name)
    return merge_made(run or release, Path(directory), dtype=dtype, onto=onto, say=say)


def verify_release(release: str, *, key: str | Path | None = None) -> dict:
    """`{identical, release_id, signatures[{key_id, trusted}], trusted, here{same, differs[{what, released, here}], message},
    message}`. `trusted`: whether one of the keys that count signed it, null where no key was named; `key` is a public key that
    counts, in place of TUNESMITH_TRUSTED_KEYS. `here` (null without a lock) is information: this machine against the lock.

    Raises:
        StoreError: naming the first file that differs, or the signature that is wrong.
    """
    from tunesmith.releases.bundle import Release
    from tunesmith.releases.lock import here
    from tunesmith.releases.sign import key_id, public_key, trusted_keys

    counting = {key_id(public_key(Path(key))): str(key)} if key else trusted_keys()
    found = Release.find(release)
    signed, lock = found.verify(), found.lock()
    trusted = None if counting is None else bool(counting.keys() & set(signed))
    said = {None: f"{len(signed)} signatures, and no key is said to count", True: "signed by a trusted key",
            False: "not signed by a trusted key"}[trusted]
    return {"identical": True, "release_id": found.id, "trusted": trusted, "here": here(lock) if lock else None,
            "signatures": [{"key_id": k, "trusted": None if counting is None else k in counting} for k in signed],
            "message": f"{len(found.manifest['files'])} files of {found.id} are as they were released; {said}"}


def new_key(path: str | Path) -> dict:
    """`{key, public_key, key_id}`: a new ed25519 key to sign releases with. Raises UsageError when the file is there."""
    from tunesmith.releases.sign import new_key as make

    return make(Path(path))


def sign_release(release: str, *, key: str | Path | None = None) -> dict:
    """`{release_id, signed_by}`: a signature beside a release; its id stays. `key`: a private key, default
    TUNESMITH_SIGNING_KEY. Raises UsageError without one, or StoreError when the release is not as it was released."""
    from tunesmith.errors import UsageError
    from tunesmith.releases.bundle import Release
    from tunesmith.releases.sign import SIGNING_KEY, signing_key
    from tunesmith.releases.sign import sign as write

    private = signing_key(key)
    if private is None:
        raise UsageError("no key to sign with", fix=f"--key FILE, or set {SIGNING_KEY}; `tunesmith key new FILE` makes one")
    found = Release.find(release)
    return {"release_id": found.id, "signed_by": write(found, private)}


def push(release: str, url: str, *, say: Say = _silent) -> dict:
    """`{release_id, url, files, uploaded, bytes}`: a release copied to a directory, an object store or an OCI registry.

    Raises:
        UsageError: an address that cannot be opened, or has credentials in it. StoreError: the store refuses.
    """
    from tunesmith.releases.bundle import Release
    from tunesmith.releases.stores import push as copy

    return copy(Release.find(release), url, say)


def pull(release: str, url: str, *, say: Say = _silent) -> dict:
    """`{release_id, path, url, files, downloaded, bytes}`: a release fetched by its id and checked. Raises as `push`, and
    NotFoundError; what is not as it was released is not kept."""
    from tunesmith.releases.stores import pull as fetch

    return fetch(release, url, say)


def gc(*, keep: int = 5, dry_run: bool = False, say: Say = _silent) -> dict:
    """`{removed[{kind, id, bytes}], bytes, kept{releases, runs, datasets}, dry_run}`: what no channel's history, run, sweep or
    release needs, but the `keep` newest of each kind. Raises StoreError before anything is removed."""
    from tunesmith.releases.gc import collect

    return collect(keep, dry_run, say)


def verify_merge(name: str, *, say: Say = _silent) -> dict:
    """`{ok, message, onto, rounding, models[{dtype, onto, chosen, ratio, mean_kl, ..., broken[]}]}` of a run or a release,
    merged in a scratch directory, loaded again, and compared with the adapter on its base (`evals.merged.measure`)."""
    from tunesmith.releases.merge import verify

    release, run = named(name)
    return verify(run or release, say)


def verify_replay(name: str, *, say: Say = _silent) -> dict:
    """`{release_id, identical, checked[{question, identical, expected, said}], environment, seconds, message}` of a release or
    of the one that a channel points at: its goldens, asked again in a fresh process. Raises as `rollback` with `drill`."""
    from tunesmith.releases.drill import replayed

    return replayed(name, say=say)


def named(name: str):
    """(release, None) or (None, run), whichever goes by this id, unique prefix or path."""
    from tunesmith.errors import NotFoundError
    from tunesmith.releases.bundle import Release
    from tunesmith.training.run import Run

    try:
        return None, Run.find(name)
    except NotFoundError as no_run:
        try:
            return Release.find(name), None
        except NotFoundError as no_release:
            raise (no_release if name.startswith("rel-") else no_run) from None

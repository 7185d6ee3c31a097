"""What is done with a release that is there: sign it, send it, fetch it, collect what nothing needs."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, say

Release = Annotated[str, typer.Argument(metavar="RELEASE")]
Url = Annotated[str, typer.Argument(metavar="URL", help="A directory, s3://, gs://, az://, oci:// or registry://HOST/REPO[:TAG].")]
key = typer.Typer(help="Keys to sign releases with.", no_args_is_help=True, rich_markup_mode=None)


@key.callback()
def _keys() -> None:
    """Keys to sign releases with."""


@key.command()
def new(file: Annotated[str, typer.Argument(metavar="FILE")], as_json: Json = False) -> None:
    """Make an ed25519 key: FILE is private, FILE.pub is for those who shall trust it."""
    from tunesmith import verbs

    made = verbs.new_key(file)
    emit(made, as_json, [f"private  {made['key']}", f"public   {made['public_key']}", f"key id   {made['key_id']}"])


def sign(release: Release, key: Annotated[str | None, typer.Option(metavar="FILE", help="A private key; default "
                                                                    "TUNESMITH_SIGNING_KEY.")] = None,
         as_json: Json = False) -> None:
    """Put a signature beside a release. Its id stays the same."""
    from tunesmith import verbs

    done = verbs.sign_release(release, key=key)
    emit(done, as_json, [f"{done['release_id']} signed by {done['signed_by']}"])


def push(release: Release, url: Url, as_json: Json = False) -> None:
    """Copy a release to a store. What is there already is not sent again."""
    from tunesmith import verbs

    done = verbs.push(release, url, say=say)
    emit(done, as_json, [f"{done['url']}  {done['uploaded']} of {done['files']} files sent, {done['bytes']:,} bytes"])


def pull(release: Release, url: Url, as_json: Json = False) -> None:
    """Fetch a release from a store by its id, and check every file."""
    from tunesmith import verbs

    done = verbs.pull(release, url, say=say)
    emit(done, as_json, [f"{done['release_id']}  {done['path']}  {done['bytes']:,} bytes"])


def gc(
    keep: Annotated[int, typer.Option(metavar="N", min=0, help="So many of the newest releases, runs and datasets stay "
                                                               "though nothing needs them.")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Remove releases, runs and datasets that no channel's history, run, sweep or release needs."""
    from tunesmith import verbs

    done = verbs.gc(keep=keep, dry_run=dry_run, say=say)
    kept = ", ".join(f"{n} {kind}" for kind, n in done["kept"].items())
    emit(done, as_json, [*(f"{r['kind'].removesuffix('s'):>8}  {r['id']}  {r['bytes']:,} bytes" for r in done["removed"]),
                         f"{'would free' if dry_run else 'freed'} {done['bytes']:,} bytes; kept {kept}"])

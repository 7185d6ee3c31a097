"""The `tunesmith` command: its verbs, and how errors leave it.

`tunesmith VERB --json` prints exactly one JSON document on stdout; everything for people goes to stderr.
Exit codes: 0 done, 1 failed, 2 wrong usage or invalid input, 3 a gate refused, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from tunesmith.cli import (
    access,
    channel,
    check,
    compose,
    data,
    doctor,
    evaluate,
    export,
    import_,
    init,
    look,
    merge,
    release,
    run,
    serve,
    ship,
    sweep,
    train,
    verify,
    vote,
    watch,
)

app = typer.Typer(name="tunesmith", help="Fine-tuning with proof.", no_args_is_help=True, rich_markup_mode=None,
                  add_completion=False, pretty_exceptions_enable=False)
for verb in (init.init, check.check, train.train, sweep.sweep, evaluate.eval_, vote.vote, compose.compose, release.release,
             run.run, merge.merge, export.export, channel.promote, channel.rollback, ship.sign, ship.push, ship.pull, ship.gc,
             serve.serve, look.runs, look.show, look.compare, watch.watch, import_.import_, doctor.doctor):
    app.command(name=verb.__name__.rstrip("_"))(verb)
app.add_typer(data.app, name="data")
app.add_typer(verify.app, name="verify")
app.add_typer(ship.key, name="key")
app.add_typer(access.app, name="access")

WrongCommandLine = typer.BadParameter.__base__
"""What is raised for unknown verbs, options and missing arguments; typer does not export it."""


@app.callback()
def _root() -> None:
    """Fine-tuning with proof: recipe in, audited, evaluated, gated release out."""


def main() -> None:
    """Entry point. Known errors become a message and their exit code; a bug keeps its traceback."""
    from tunesmith.cli.output import emit, fail
    from tunesmith.errors import TunesmithError, UsageError, out_of_memory

    as_json = "--json" in sys.argv
    try:
        sys.exit(app(standalone_mode=False))
    except TunesmithError as error:
        sys.exit(fail(error, as_json))
    except WrongCommandLine as error:
        error.show()
        if as_json:
            emit(UsageError(error.format_message(), fix="see `tunesmith VERB --help`").as_dict(), True, [])
        sys.exit(UsageError.exit_code)
    except typer.Abort:  # Ctrl-C, in some versions of click
        sys.exit(130)
    except (MemoryError, RuntimeError, OSError) as error:
        if (known := out_of_memory(error)) is None:
            raise
        sys.exit(fail(known, as_json))

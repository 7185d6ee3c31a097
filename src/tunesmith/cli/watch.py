from __future__ import annotations

import sys
from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit

SMALLEST_WIDTH = 60


def watch(
    run: Annotated[str, typer.Argument(metavar="RUN")],
    once: Annotated[bool, typer.Option("--once", help="One picture, also when the output is no terminal.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two pictures.")] = 1.0,
    tensorboard: Annotated[str, typer.Option(metavar="DIR", help="Write TensorBoard event files as well.")] = "",
    as_json: Json = False,
) -> None:
    """Curves, speed, time left and warnings of a run, live until it ends. Ctrl-C ends the watching, not the run."""
    from tunesmith import verbs

    look = verbs.watcher(run)
    export = verbs.tensorboard_writer(tensorboard, run) if tensorboard else None
    if as_json or once or not sys.stdout.isatty():
        state = look.now()
        if export:
            export.add(state)
            export.close()
        emit(state, True, []) if as_json else _print(state)
        return
    _live(look, export, every)


def _print(state: dict) -> None:
    from rich.console import Console

    from tunesmith.track.frame import frame

    console = Console()
    width, height = max(console.width, SMALLEST_WIDTH), min(max(console.height - 1, 24), 40) if console.is_terminal else 24
    console.print(frame(state, width, height), height=height, width=width)


def _live(look, export, every: float) -> None:
    """In the terminal's second screen, which is left as it was found; the last picture stays in the first.

    Ctrl-C is a message here: an exception may come where nobody can catch it, in a destructor, and be lost. A SimpleQueue may
    be put to by a handler of signals at any moment; an Event whose own lock is held at that moment waits for itself.
    """
    import queue
    import signal

    from rich.console import Console
    from rich.live import Live

    from tunesmith.track.frame import frame

    enough: queue.SimpleQueue[int] = queue.SimpleQueue()
    before = signal.signal(signal.SIGINT, lambda number, _frame: enough.put(number))
    try:
        console, state = Console(), look.now()
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                state = look.now()
                if export:
                    export.add(state)
                live.update(frame(state, console.width, console.height), refresh=True)
                if state["ended"] or _comes(enough, every):
                    break
    finally:
        signal.signal(signal.SIGINT, before)
    if export:
        export.close()
    _print(state)


def _comes(messages, seconds: float) -> bool:
    """Whether a message comes within so many seconds."""
    import queue

    try:
        messages.get(timeout=seconds)
    except queue.Empty:
        return False
    return True

"""Start the server: find what is to be served, load it, listen."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Sequence

import uvicorn

from tunesmith.api.app import create_app
from tunesmith.api.caller import is_loopback
from tunesmith.api.engines import Engines
from tunesmith.api.factory import make_engine
from tunesmith.api.service import Service
from tunesmith.errors import UsageError
from tunesmith.jobs import places
from tunesmith.jobs.database import Database, opened
from tunesmith.jobs.dispatcher import Dispatcher
from tunesmith.jobs.keys import any_made
from tunesmith.jobs.projects import ensure_default
from tunesmith.jobs.settings import Settings, database_url
from tunesmith.jobs.sweeper import Sweeper
from tunesmith.releases.bundle import Release
from tunesmith.releases.channel import current
from tunesmith.serving.interface import BaseEngine
from tunesmith.training.run import Run, tokenizer_for


def serve(*, channels: list[str], releases: list[str], base: str | None, host: str, port: int,
          say: Callable[[str], None], runs: Sequence[str] = (), settings: Settings = Settings()) -> None:
    """Serve until SIGINT or SIGTERM, and return: a stop that was asked for is no failure. Adapters of one base share it.

    Raises:
        UsageError: nothing to serve, releases on different bases, or the port is taken.
        NotFoundError, StoreError, AdapterError: a release that is not there, not whole, or does not fit.
    """
    listener = listen(host, port)
    with listener, opened(database_url(settings)) as database:
        keyless = _keyless(listener, database, say)
        asked = channels or releases or base or runs
        if not asked and not settings.bases and not settings.aliases:
            raise _nothing()
        given = load_engine(channels, releases, base, runs, settings) if asked else None
        if given and settings.base_of(given.base.ref) is None:
            settings = settings.model_copy(update={"bases": [*settings.bases, given.base.ref]})
        engines = Engines(settings, database, given)
        dispatcher = Dispatcher(database, settings, say)
        service = Service(engines, database, settings, dispatcher, keyless=keyless)
        ensure_default(database)
        dispatcher.start()
        sweeper = Sweeper(database, say)
        sweeper.start()
        try:
            say(f"serving {', '.join(m['id'] for m in engines.named(places.DEFAULT_PROJECT))}")
            address = f"[{host}]" if ":" in host else host
            _Server(create_app(service), lambda: say(f"ready: http://{address}:{listener.getsockname()[1]}/v1")).run([listener])
        finally:
            sweeper.stop()
            dispatcher.stop()
            engines.close()


class _Server(uvicorn.Server):
    """uvicorn's, which says when it is ready (signals are handled from there on) and does not raise them again at the end."""

    def __init__(self, app, ready: Callable[[], None]):
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5,
                                        server_header=False))
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig, frame) -> None:
        self.force_exit = self.should_exit  # asked twice
        self.should_exit = True


def _keyless(listener: socket.socket, database: Database, say: Callable[[str], None]) -> bool:
    """Whether requests need no key as long as none was made: nobody but this machine can reach the server.

    Raises:
        UsageError: others can, and there is no key.
    """
    address = listener.getsockname()[0]
    local = is_loopback(address)
    with database.read() as connection:
        made = any_made(connection)
    if not made and not local:
        raise UsageError(f"no API key was made, and {address} can be reached from other machines", fix="make one: `tunesmith "
                         "access key add --project default --scope admin`; or listen on --host 127.0.0.1")
    if not made:
        say("no API key was made: everybody on this machine may do everything (`tunesmith access key add` ends that)")
    return local


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, before minutes are spent on loading. Raises UsageError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        raise UsageError(f"port {port} on {host} {'is in use' if taken else 'cannot be used'}", why=error.strerror,
                         fix="stop what listens there, or give another --port (0 takes a free one)") from error
    return listener


def load_engine(channels: list[str], releases: list[str], base: str | None, runs: Sequence[str] = (),
                settings: Settings = Settings()) -> BaseEngine:
    """An engine with everything that was asked for. A release answers to its id, the channels that point at it, and its
    recipe's name unless another one has it already. A run that was not released, for a trial, answers to its id."""
    from tunesmith.engine.precision import choose
    from tunesmith.models.base import resolve

    pointed = {c: Release.find(current(c)["release_id"]) for c in channels}
    bundles = {r.id: r for r in [*pointed.values(), *(Release.find(r) for r in releases)]}
    tried = [Run.find(name) for name in runs]
    if not bundles and not base and not tried:
        raise _nothing()
    bases = {b.manifest["base"]["digest"] for b in bundles.values()} | {t.state["base"]["digest"] for t in tried}
    if len(bases) > 1:
        raise UsageError("these releases stand on different bases", why=", ".join(sorted(bases)),
                         fix="start one server a base")
    first = next(iter(bundles.values()), None)
    found = first.base() if first else tried[0].base() if tried else resolve(base)
    if base and resolve(base).digest != found.digest:
        raise UsageError(f"--base {base} is not the base of the releases", fix="leave --base out")
    choice = choose(first.manifest["dtype"] if first else tried[0].state["dtype"] if tried else "auto")
    engine = make_engine(found, choice, settings.engine)
    try:
        _add_all(engine, bundles, pointed, tried)
    except BaseException:
        engine.close()
        raise
    return engine


def _add_all(engine: BaseEngine, bundles: dict[str, Release], pointed: dict[str, Release], tried: list[Run]) -> None:
    names = {r.id: r.id for r in bundles.values()} | {c: r.id for c, r in pointed.items()}
    for release in bundles.values():
        names.setdefault(release.manifest["name"], release.id)
    for release in bundles.values():
        own = [n for n, points_at in names.items() if points_at == release.id and n not in engine.served]
        engine.add(own, release.adapter, release.tokenizer(), release.manifest["template_fingerprint"], int(time.time()))
    for run in tried:
        state = run.state
        engine.add([state["run_id"]], run.adapter, tokenizer_for(engine.base, run.recipe()), state["template_fingerprint"],
                   int(time.time()))


def _nothing() -> UsageError:
    return UsageError("nothing to serve", fix="give --channel, --release, --run or --base, or a --config with aliases or bases")

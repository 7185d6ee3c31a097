"""Start the server: find what is to be served, load it, listen."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

from tunesmith.errors import UsageError
from tunesmith.releases.bundle import Release
from tunesmith.releases.channel import current
from tunesmith.serving.engine import Engine


def serve(*, channels: list[str], releases: list[str], base: str | None, host: str, port: int,
          say: Callable[[str], None]) -> None:
    """Serve until interrupted. Every adapter shares one base.

    Raises:
        UsageError: nothing to serve, releases on different bases, or the port is taken.
        NotFoundError, StoreError, AdapterError: a release that is not there, not whole, or does not fit.
    """
    import uvicorn

    from tunesmith.api.app import create_app

    listener = listen(host, port)
    with listener:
        engine = load_engine(channels, releases, base)
        try:
            address = f"http://{host}:{listener.getsockname()[1]}"
            say(f"serving {', '.join(engine.served)}")
            say(f"ready: {address}/v1")
            config = uvicorn.Config(create_app(engine), log_level="warning", timeout_graceful_shutdown=5)
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            engine.close()


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


def load_engine(channels: list[str], releases: list[str], base: str | None) -> Engine:
    """An engine with everything that was asked for. A release answers to its id, its recipe's name (the first one
    wins) and the channels that point at it."""
    from tunesmith.engine.precision import choose
    from tunesmith.models.base import resolve
    from tunesmith.models.load import tokenizer_of

    named: dict[str, list[str]] = {}
    for given, name in [(current(c)["release_id"], c) for c in channels] + [(r, None) for r in releases]:
        release = Release.find(given)
        named.setdefault(str(release.path), [release.id, release.manifest["name"]])
        if name:
            named[str(release.path)].append(name)
    bundles = [Release.find(path) for path in named]
    if not bundles and not base:
        raise UsageError("nothing to serve", fix="give --channel, --release or --base")
    bases = {b.manifest["base"]["digest"] for b in bundles}
    if len(bases) > 1:
        raise UsageError("these releases stand on different bases", why=", ".join(sorted(bases)),
                         fix="start one server a base")
    found = bundles[0].base() if bundles else resolve(base)
    if base and resolve(base).digest != found.digest:
        raise UsageError(f"--base {base} is not the base of the releases", fix="leave --base out")
    choice = choose(bundles[0].manifest["dtype"] if bundles else "auto")
    dtype = str(choice.dtype).removeprefix("torch.")
    engine = Engine(found, tokenizer_of(found), dtype, choice.device, int(time.time()))
    for bundle in bundles:
        names = [n for n in named[str(bundle.path)] if n not in engine.served]
        engine.add(names, bundle.adapter, bundle.tokenizer(), bundle.manifest["template_fingerprint"], int(time.time()))
    return engine

"""vLLM's own server as a child of this process: found, started on loopback, watched, and ended with us however we end.

    we ── pipe ── guard ── vllm serve ── vLLM's engine, a process of its own
                    └── all of them one process group

The guard ends the group when `vllm serve` has ended, whose engine would be left over, and when the pipe closes, which it does
when we are killed, too.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from tunesmith.errors import TunesmithError, UsageError

VLLM = "TUNESMITH_VLLM"
INSTALL = f"scripts/install_vllm.sh DIR installs it; then set {VLLM}=DIR/bin/vllm"
START_SECONDS = 900
STOP_SECONDS = 20
LAST_LINES = 12
"""Of its log, in the error when it does not start."""
KV_GIB = "2"
"""Gibibytes for keys and values on a CPU, unless VLLM_CPU_KVCACHE_SPACE says otherwise; vLLM would take nearly all there is."""

GUARD = f"""
import os, signal, subprocess, sys, threading, time
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def watch():
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGTERM)
    time.sleep({STOP_SECONDS / 2})
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
print("vllm serve ended:", child.wait(), flush=True)
os.killpg(0, signal.SIGKILL)
"""


class VllmError(TunesmithError):
    """vLLM did not start, went away, or refused; the text is its own."""


def executable() -> Path | None:
    """vLLM's command, or None where there is none. Raises UsageError: TUNESMITH_VLLM names nothing that is there."""
    if given := os.environ.get(VLLM):
        path = Path(given).expanduser().absolute()  # not resolved: a venv's python is a link out of it
        path = path if path.name == "vllm" else path.with_name("vllm")
        if not path.is_file():
            raise UsageError(f"{VLLM} names no vLLM", where=str(path), fix=INSTALL)
        return path
    found = shutil.which("vllm")
    return Path(found) if found else None


class Child:
    """`vllm serve` with a key of its own. `start()` again after it died."""

    def __init__(self, arguments: list[str], log: Path):
        """Raises UsageError: vLLM is not installed."""
        command = executable()
        if command is None:
            raise UsageError("vLLM is not installed here", fix=INSTALL)
        self.key = secrets.token_urlsafe(32)
        self.log = log
        self._command = [str(command), "serve", *arguments]
        self._process: subprocess.Popen | None = None
        self._ended = False

    def start(self) -> str:
        """Its URL, when it answers. Raises VllmError with the last lines of its log."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = {"VLLM_CPU_KVCACHE_SPACE": KV_GIB} | os.environ | {
            "VLLM_API_KEY": self.key, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1"}
        env.pop("PYTHONPATH", None)  # ours: vLLM has an environment of its own
        with open(self.log, "ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", GUARD, *self._command, "--host", "127.0.0.1", "--port", str(port)],
                stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.PIPE, env=env, start_new_session=True)
        if self._ended:  # meanwhile
            self.stop()
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise VllmError("vLLM did not start", where=str(self.log), why=self.last_lines())
            with suppress(OSError), _direct.open(url + "/health", timeout=5):
                return url
            time.sleep(0.2)
        self._kill()
        raise VllmError(f"vLLM did not answer within {START_SECONDS} s", where=str(self.log), why=self.last_lines())

    @property
    def group(self) -> int | None:
        """Id of its process group, which is its guard's; None before it was started."""
        return self._process.pid if self._process else None

    def wait(self) -> None:
        """Until it has ended, for whatever reason."""
        if self._process:
            self._process.wait()
            self._kill()  # what a guard that was killed itself has left

    def stop(self) -> None:
        """End it for good, and do not return before."""
        self._ended = True
        self.halt()

    def halt(self) -> None:
        """End it, if it runs; `start()` begins another."""
        process = self._process
        if process is None:
            return
        with suppress(OSError):
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def last_lines(self) -> str:
        """Of the log: its last error, and what came before."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return "\n       ".join([last_error(text), *lines[-LAST_LINES:]])


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def last_error(log: str) -> str:
    """The last line that names an error, without vLLM's prefix; else the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line and "See root cause" not in line and "Engine core init" not in line
              and "EngineDeadError" not in line]
    return (errors or lines or ["it said nothing"])[-1].rpartition("] ")[2]

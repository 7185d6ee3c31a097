"""Three generations of the official client, each in its own virtual environment, against one live server.

make test-clients
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.api.jobs_live import MODEL, settings_file

CONTRACT = Path(__file__).parent / "contract.py"
CLIENTS = Path(os.environ.get("TUNESMITH_CLIENTS", ".venv-clients"))
"""Where `scripts/install_clients.sh` put them: a folder for each generation."""


@pytest.fixture(scope="module")
def url(start_server, lively_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clients")
    config = settings_file(folder, lively_base, aliases={MODEL: str(lively_base)})
    return start_server(folder / "home", "--config", str(config)).url


@pytest.mark.clients
@pytest.mark.timeout(900)
@pytest.mark.parametrize("generation", ["1", "2", "3"])
def test_the_official_client_works_unchanged(url, generation):
    python = CLIENTS / generation / "bin" / "python"
    assert python.is_file(), "make test-clients installs them"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}
    ran = subprocess.run([str(python), str(CONTRACT), url], capture_output=True, text=True, env=environment, timeout=840)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"openai {generation}." in ran.stdout.splitlines()[-1]


@pytest.mark.clients
def test_a_server_that_lacks_something_fails(start_server, lively_base, tmp_path_factory):
    """The control: a server that works on no jobs."""
    home = tmp_path_factory.mktemp("control") / "home"
    server = start_server(home, "--base", str(lively_base))
    ran = subprocess.run([str(CLIENTS / "3" / "bin" / "python"), str(CONTRACT), server.url], capture_output=True, text=True,
                         timeout=240)
    assert ran.returncode == 1 and "AssertionError" in ran.stderr

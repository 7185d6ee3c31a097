#!/usr/bin/env bash
# Three generations of the official openai client, each in a virtual environment of its own.
#   scripts/install_clients.sh FOLDER
set -euo pipefail
folder=${1:?give a folder}
python=${PYTHON:-$(command -v python3.11 || command -v python3.12 || command -v python3)}
for version in 1.109.1 2.54.0 3.54.0; do
  place="$folder/${version%%.*}"
  test -x "$place/bin/python" || "$python" -m venv "$place"
  "$place/bin/python" -c "import openai; assert openai.__version__ == '$version'" 2>/dev/null \
    || "$place/bin/python" -m pip install --quiet "openai==$version"
done

#!/usr/bin/env bash
# The OCI registry that tests push to: Debian's docker-registry (CNCF distribution 2.8), unpacked into a folder, not installed.
#   scripts/install_registry.sh .venv/registry
# Nothing to do where `docker-registry` is on the PATH, or there already.
set -euo pipefail
folder=${1:?give a folder}
if command -v docker-registry >/dev/null || [ -x "$folder/usr/bin/docker-registry" ]; then exit 0; fi
if ! command -v apt-get >/dev/null; then
  echo "no apt-get here: put docker-registry (https://distribution.github.io/distribution) on the PATH" >&2
  exit 1
fi
mkdir -p "$folder"
cd "$folder"
apt-get download -qq docker-registry 2>/dev/null || { apt-get update -qq && apt-get download -qq docker-registry; }
dpkg-deb -x docker-registry_*.deb .
rm docker-registry_*.deb
test -x usr/bin/docker-registry

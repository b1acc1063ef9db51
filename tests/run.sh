#!/usr/bin/env bash
# Make .venv, install narrow-study with the extra `dev`, run the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
EXTRAS=dev
source deploy/environment.sh
export PATH="$PWD/.venv/bin:$PATH"  # linters that tests call
exec .venv/bin/python -m pytest "$@"

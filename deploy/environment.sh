# Sourced by deploy/quickstart.sh and tests/run.sh, at the root of the checkout: make .venv and install into it.
# Asks for `python3` unless PYTHON names another; extras come in EXTRAS, for instance EXTRAS=dev.

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "narrow-study needs Python 3.11 or newer, but $python is $("$python" --version 2>&1); set PYTHON to a newer one" >&2
    exit 2
fi
if [ ! -x .venv/bin/pip ]; then
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
stamp=.venv/installed-${EXTRAS:-core}
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    echo "Installing narrow-study${EXTRAS:+ with $EXTRAS} into .venv (about 2 minutes)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${EXTRAS:+[$EXTRAS]}"
    touch "$stamp"
fi

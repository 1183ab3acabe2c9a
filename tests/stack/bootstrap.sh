#!/bin/sh
# Prepare a checkout: Debian packages, uv, and .venv with the locked dependencies.
# Needs a Python >= 3.10 (PYTHON names another than python3). Safe to repeat; quick when done.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "setup: $python is absent or older than 3.10; name a newer one with PYTHON=..." >&2
    exit 1
}
./tests/stack/packages.sh "$python"

if command -v uv >/dev/null 2>&1; then
    uv=uv
else
    tools=$("$python" tests/stack/state_folder.py)/tools
    uv=$tools/bin/uv
    if [ ! -x "$uv" ]; then
        "$python" -m venv "$tools"
        "$tools/bin/python" -m pip install --quiet --disable-pip-version-check uv
    fi
fi
# The interpreter of an environment that is there stays; a new one gets the one named above.
[ -x .venv/bin/python ] || "$uv" venv --quiet --python "$python" .venv
exec "$uv" sync --quiet --frozen --compile-bytecode

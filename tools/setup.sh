#!/bin/sh
# Make the virtual environment; say in one sentence what is missing where that cannot be done.
set -u
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
need_mb=8000
stop() { echo "noisymem: $1" >&2; exit 1; }

command -v "$PYTHON" >/dev/null 2>&1 || stop "no '$PYTHON' on the PATH; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || stop "Python 3.11 or newer is needed, '$PYTHON' is $("$PYTHON" -c 'import platform; print(platform.python_version())'); name another: make PYTHON=python3.12"
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || stop "this Python cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv"

if [ ! -x "$VENV/bin/python" ]; then
    free_mb=$(df -Pm . | awk 'NR==2 {print $4}')
    [ "$free_mb" -ge "$need_mb" ] || stop "$need_mb MB of free disk are needed for PyTorch and its CUDA libraries, $free_mb MB are free here"
    "$PYTHON" -m venv "$VENV" || stop "the virtual environment '$VENV' could not be made; is this folder writable?"
fi
echo "installing into $VENV (PyTorch is large: a few minutes the first time)"
"$VENV/bin/python" -m pip install --quiet -c constraints.txt -e '.[dev,cluster,statistics]' 2>"$VENV/install.log" || { tail -n 5 "$VENV/install.log" >&2; stop "the installation failed (is there a network?); the whole log is in $VENV/install.log"; }
touch "$VENV/.ready"

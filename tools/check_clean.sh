#!/bin/sh
# Exporting and cleaning the notebooks must give what lies here; done in a copy, so the answer is the same the second time.
set -eu
bin=$(cd "$1" && pwd)
here=$PWD
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
for part in nbs tools settings.ini setup.py pyproject.toml README.md; do [ ! -e "$part" ] || cp -r "$part" "$tmp"; done
(
    cd "$tmp"
    export HOME="$tmp/home"
    "$bin/nbdev_export"
    "$bin/nbdev_clean"
    "$bin/python" tools/make_readme.py
)
for part in nbs noisymem README.md; do
    diff -r -q -x __pycache__ -x .last_checked -x explorer.html -x .ipynb_checkpoints "$tmp/$part" "$here/$part" || { echo "noisymem: $part is not what exporting its notebooks gives; commit the result of nbdev_export, nbdev_clean and tools/make_readme.py" >&2; exit 1; }
done

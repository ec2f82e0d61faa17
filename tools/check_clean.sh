#!/bin/sh
# Exporting and cleaning the notebooks must change nothing that is committed.
set -eu
bin=$1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cp -r nbs noisymem settings.ini pyproject.toml README.md "$tmp"
HOME="$tmp/home" "$bin/nbdev_export"
HOME="$tmp/home" "$bin/nbdev_clean"
"$bin/python" tools/make_readme.py
for part in nbs noisymem README.md; do
    diff -r -q -x __pycache__ -x .last_checked -x .ipynb_checkpoints "$tmp/$part" "$part" || { echo "noisymem: $part is not what exporting its notebooks gives; commit the result of nbdev_export, nbdev_clean and tools/make_readme.py" >&2; exit 1; }
done

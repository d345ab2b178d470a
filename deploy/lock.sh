#!/bin/sh
# Writes deploy/*.lock: every package that the images install, with version and hashes, for Linux, on each Python that
# pyproject.toml allows. Run it with `make lock` after a change of pyproject.toml, and now and then for newer versions.
set -eu
cd "$(dirname "$0")/.."
uv="${UV:-uv}"
lock() {
  "$uv" pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
    --custom-compile-command "make lock" --output-file "$@"
}
lock deploy/service.lock --extra service --extra s3 pyproject.toml
lock deploy/worker.lock --extra worker --extra s3 --constraint deploy/service.lock pyproject.toml
python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' |
  lock deploy/build.lock -

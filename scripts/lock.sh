#!/bin/sh
# Write the .txt files of requirements/ anew, with uv (pip install uv), after a change of
# pyproject.toml, constraints.txt or requirements/*.in.
#
# Every version has the hashes of all its files, so the same lock serves every platform and Python.
# torch is left out: a machine's own build, the CPU build and PyPI's are different files of one
# version, which constraints.txt pins.
set -eu
cd "$(dirname "$0")/.."

compile() {
    uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate --config-file requirements/uv.toml "$@"
}

compile pyproject.toml --constraints constraints.txt --no-emit-package torch \
    --extra megatron --extra transformers --extra report --extra docs --extra test --extra dev \
    --output-file requirements/locked.txt
compile pyproject.toml --constraints requirements/locked.txt --no-emit-package torch \
    --output-file requirements/base.txt
compile requirements/audit.in --output-file requirements/audit.txt
compile requirements/torchtitan.in --no-deps --output-file requirements/torchtitan.txt

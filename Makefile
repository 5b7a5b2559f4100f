# `make demo` and `make test` set up .venv and need nothing but Python 3.11+, git and make.
.PHONY: demo test lint tests docs setup rpc clean

DEMO_FLAGS ?=

demo: setup
	@.venv/bin/foremoe demo $(DEMO_FLAGS)

test: lint tests

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

tests: setup  # two files at a time: many tests wait for processes more than they compute
	@.venv/bin/pytest -n 2 --dist loadfile

docs: setup  # into build/docs; every link must lead somewhere
	@.venv/bin/python -m sphinx -W --keep-going -q docs build/docs

rpc: setup
	@.venv/bin/python scripts/generate_rpc.py

setup:
	@scripts/setup.sh

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

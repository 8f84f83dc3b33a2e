# The two commands of the README, and what they are made of. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
TESTS ?=  # none named are all; for a part of them: make test TESTS=tests/ops
WORKERS ?= 2

.PHONY: quickstart test test-oldest lint types check benchmark clean help

quickstart: $(VENV)/.installed  ## train a small ViT with LocAt and without, compare them on one page
	$(BIN)/locatvit quickstart

test: $(VENV)/.installed-dev  ## all tests, the slow ones too, in two processes (WORKERS=8: in eight)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(TESTS)

test-oldest: $(OLDEST)/versions.txt  ## the same with the lowest versions that pyproject.toml promises
	PIP_CONSTRAINT=$< PYTEST_ADDOPTS='-W default::DeprecationWarning' $(MAKE) test VENV=$(OLDEST)

lint: $(VENV)/.installed-dev  ## style of the code
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

types: $(VENV)/.installed-dev  ## types
	$(BIN)/mypy

check: lint types test  ## what must pass before a change lands

benchmark: $(VENV)/.installed-dev  ## speed and memory of LocAt over the plain model, on this machine
	$(BIN)/python -m benchmarks.attention

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "locatvit needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(OLDEST)/versions.txt: pyproject.toml
	@mkdir -p $(@D)
	grep -oE '"[A-Za-z0-9_-]+(\[[a-z,]+\])?>=[0-9.]+' $< | sed -E 's/"|\[.*\]//g; s/>=/==/' | sort -u > $@

clean:  ## remove the environment and what tools leave behind
	rm -rf $(VENV) $(OLDEST) build dist .pytest_cache .mypy_cache .ruff_cache

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

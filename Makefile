# The two commands of the README, and what they are made of. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint types check benchmark clean help

quickstart: $(VENV)/.installed  ## train a small ViT with LocAt and without, compare them on one page
	$(BIN)/locatvit quickstart

test: $(VENV)/.installed-dev  ## all tests, the slow ones too
	$(BIN)/python -m pytest

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

clean:  ## remove the environment and what tools leave behind
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

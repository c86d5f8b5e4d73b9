# Every target sets up what it needs on a fresh machine: a virtual environment in .venv, then the packages.
# PYTHON chooses the interpreter (3.11 or newer).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint bench soak scale clean

demo: $(VENV)/.installed
	$(BIN)/phrasebox demo --out out/demo

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	$(BIN)/python -m pipeline.bench

# One run over 2,000 images that is killed 24 times in 8 ways; about half an hour on 2 cores.
soak: $(VENV)/.installed-dev
	rm -rf out/soak
	$(BIN)/python -m tests.soak.soak --out out/soak

# Memory over the length of a run, start-up and resume with large inputs; about an hour on 2 cores.
scale: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak.scale

clean:
	rm -rf $(VENV) out build dist

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "phrasebox needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "installing python3-venv"; apt-get update -qq && apt-get install -y -qq python3-venv; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@ $(VENV)/.installed

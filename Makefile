# Everything a fresh machine needs is done here: python3 (3.11 or newer) and make are enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
SPEC   := pyproject.toml constraints.txt

.PHONY: demo test test-slow faults fuzz coverage bench check format notebook api clean help
.DEFAULT_GOAL := help

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "glulens needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt pip setuptools

# What running needs.
$(VENV)/.run: $(SPEC) | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

# What developing needs; it includes the former.
$(VENV)/.dev: $(SPEC) | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e '.[lens,nnsight,eval,ray,dev]'
	@mkdir -p $(VENV)/links && ln -sfn ../.. $(VENV)/links/glulens
	@touch $@ $(VENV)/.run

demo: $(VENV)/.run ## the main job on a real model with the built-in sample
	$(BIN)/glulens demo

test: $(VENV)/.dev ## every test but the slow ones
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

test-slow: $(VENV)/.dev ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.dev ## everything beside its peers: benchmarks/results.md, at most half an hour
	$(BIN)/python benchmarks/bench.py

coverage: $(VENV)/.dev ## which branches of prune, probes and interp the tests take
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --cov --cov-report json:.coverage-branches.json
	$(BIN)/python benchmarks/branches.py .coverage-branches.json

faults: $(VENV)/.dev ## kills, full disks, lost permissions: what was lost, corrupted or hung
	PYTHONPATH=tests $(BIN)/python -m faults.suite

fuzz: $(VENV)/.dev ## a million hostile inputs to every parser
	PYTHONPATH=tests $(BIN)/python -m faults.fuzz

check: $(VENV)/.dev ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.dev ## let ruff lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebook: $(VENV)/.dev ## run docs/notebook.ipynb anew
	$(BIN)/python docs/make_notebook.py

api: $(VENV)/.dev ## write docs/api from docstrings
	$(BIN)/python docs/make_api.py

clean: ## remove the environment and what tools left
	rm -rf $(VENV) .bench build *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage*

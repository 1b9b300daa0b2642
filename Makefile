# Each target is one command with nothing before it: `make help` lists them.

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help repro test test-slow check lint preset

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

repro: $(BIN)/.installed ## install, run the whole pipeline, which begins by checking params.yaml
	$(BIN)/dvc repro

test: $(BIN)/.installed-dev ## install, run the tests
	$(BIN)/python -m pytest -n 2

test-slow: $(BIN)/.installed-dev ## the slow tests: kills, two processes, whole pipelines
	$(BIN)/python -m pytest -m slow -n 2 --dist loadscope --no-loadscope-reorder

check: $(BIN)/.installed ## check params.yaml
	$(BIN)/python -m tessera check

lint: $(BIN)/.installed-dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

preset: $(BIN)/.installed ## patch params.yaml: make preset NAME=cifar10 [SET="data.source=FOLDER ..."]
	$(BIN)/python -m tessera preset $(NAME) $(foreach change,$(SET),-S $(change))

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed, $(PYTHON) is older or missing; set PYTHON=python3.12 or the like"; exit 1; }
	$(PYTHON) -m venv .venv

$(BIN)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e .
	@touch $@

$(BIN)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@touch $@ $(BIN)/.installed

# One stamp guards the set-up, so each target prepares a bare machine and does nothing twice.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(shell find src -type f -not -name '*.pyc')

.PHONY: report test clean

report: $(STAMP)  ## Survey the embedded demo models.
	$(BIN)/secant report --out reports/demo

test: $(STAMP)  ## Lint, types and tests, on the installed package.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.dependencies: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet -c constraints.txt '.[hf,dev]'
	touch $@

$(STAMP): $(VENV)/.dependencies $(SOURCES) README.md LICENSE
	$(BIN)/pip install --quiet --no-deps --force-reinstall .
	touch $@

clean:
	rm -rf $(VENV) reports

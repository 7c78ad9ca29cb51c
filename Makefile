# One stamp guards the set-up, so each target prepares a bare machine and does nothing twice.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(shell find src -type f -not -name '*.pyc')

.PHONY: report test soak screenshots clean

report: $(STAMP)  ## Survey the embedded demo models.
	$(BIN)/secant report --out reports/demo

test: $(STAMP)  ## Lint, types and tests, on the installed package.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

soak: $(STAMP)  ## The laws again, with new draws, a thousand where no number is set.
	$(BIN)/pytest --hypothesis-profile=soak

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.dependencies: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet -c constraints.txt '.[hf,dev]'
	touch $@

$(STAMP): $(VENV)/.dependencies $(SOURCES) hatch_build.py README.md LICENSE
	$(BIN)/pip install --quiet --no-deps --force-reinstall .
	touch $@

screenshots: $(STAMP)  ## Pictures of the page: light, dark, narrow; installs Debian's chromium.
	command -v chromium >/dev/null || apt-get install -y chromium
	test -f reports/demo/report.html || $(BIN)/secant report --out reports/demo
	$(BIN)/python scripts/screenshots.py reports/demo/report.html

clean:
	rm -rf $(VENV) reports

# The two commands of README: `make demo` and `make test`. `make check` is what CI runs before the tests.
.PHONY: demo test check format clean
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

demo: $(INSTALLED)  ## from MovieLens-100K to an aligned recommender; finished stages are reused
	$(PYTHON) recipes/demo.py

test: $(INSTALLED)  ## all tests
	$(PYTHON) -m pytest

check: $(INSTALLED)  ## lint, format, types, import layers
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(INSTALLED)  ## mend what ruff can mend
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# torch first and by itself: its pinned version has a CPU build, and the packages that need torch then keep it.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt torch
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

clean:  ## remove the environment; runs/ stays
	rm -rf $(VENV)

# The two commands of README: `make demo` and `make test`. `make check` is what CI runs before the tests.
.PHONY: demo test check bench reproduce format clean
JOBS ?= 2
DATA ?= ../shared/data
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

BENCHMARKS := beam_search grpo_step sft_step token_merger reward_scoring trie semantic_ids lazy_ar
bench: $(INSTALLED)  ## the eight benchmarks one after the other, and their table in benchmarks/README.md (sft_step needs `make demo`)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[benchmarks]'
	for name in $(BENCHMARKS); do \
	  $(PYTHON) benchmarks/$$name.py --sweep true --json benchmarks/results/$$name.json || exit 1; done
	$(PYTHON) benchmarks/speed_table.py

reproduce: export OMP_NUM_THREADS := 1
reproduce: $(INSTALLED)  ## the paper's Tables 1 and 2 on Beauty (DATA) and MovieLens, JOBS policies at a time, a thread each: days on two cores; goes on where it stopped
	for data in beauty movielens; do for table in 1 2; do \
	  $(PYTHON) benchmarks/paper_tables.py --data $$data --table $$table --input $(DATA) --jobs $(JOBS) || exit 1; done; done
	$(PYTHON) benchmarks/paper_tables.py --data beauty --sids ours --protocols loo --input $(DATA) --jobs $(JOBS) \
	  --systems popularity genrec genrec_closed genrec_running genrec_wide genrec_running_wide genrec_running_with_valid

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

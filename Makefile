# Both `make demo` and `make test` set everything up: a virtual environment in .venv, installed with the constraints file.
PYTHON ?= python3
BIN := .venv/bin
# Tests run in one process a core; more threads in each would only fight over the cores. At most 8: each takes up to 3 GB.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 8 ? cores : 8)))

.PHONY: demo test check bench format clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: .venv/.installed
	$(BIN)/segshift demo

test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --dist worksteal

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.installed-dev
	$(BIN)/python bench/confusion.py
	$(BIN)/python bench/step.py
	$(BIN)/python bench/thresholds.py
	$(BIN)/python bench/window_vote.py
	$(BIN)/python bench/prototypes.py

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs

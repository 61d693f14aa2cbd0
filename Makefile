# `make demo` and `make test` need Python >= 3.11 with venv and pip, nothing else.
PYTHON ?= python3
BIN := .venv/bin
# Two workers; a file, with its fixtures and what it compiles, belongs to one of them.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all lint format clean

demo: .venv/installed
	$(BIN)/python main.py --config=configs/digits.py --workdir=runs/digits

test: lint
	$(PYTEST) -m "not heavy"

test-all: lint
	$(PYTEST)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv runs

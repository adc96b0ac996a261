# Every target works on a fresh machine: it needs Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: grid test lint check
grid: $(INSTALLED)
	$(BIN)/quarterhour grid

test: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist worksteal --durations 12

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

check: lint
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Every target works on a fresh machine: it needs Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: grid test lint check test-lowest test-newest
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

# The fast tests with the lowest versions that pyproject.toml allows, and with the newest that pip
# finds; warnings are shown. torch is that of constraints.txt: it takes gigabytes.
test-lowest test-newest: test-%:
	$(PYTHON) -m venv --clear .venv-$*
	grep '^torch==' constraints.txt > .venv-$*/versions.txt
	[ $* = newest ] || sed -n '/torch/d; s/\[.*\]//; s/^    "\(.*\)>=\(.*\)",$$/\1==\2/p' \
	    pyproject.toml >> .venv-$*/versions.txt
	.venv-$*/bin/pip install --quiet --constraint .venv-$*/versions.txt --editable '.[dev]'
	.venv-$*/bin/pytest -n 2 --dist worksteal -m "not slow" -W default

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

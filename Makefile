# Two commands for a user: `make demo` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo demo-full test lint clean

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "LiteFrame needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@# Debian's python3 comes without ensurepip unless python3-venv is installed: then the pip in tools/ installs itself.
	$(PYTHON) -c 'import ensurepip' 2>/dev/null && $(PYTHON) -m venv $(VENV) || \
		{ $(PYTHON) -m venv --without-pip $(VENV) && $(BIN)/python $(wildcard tools/pip-*.whl)/pip install --quiet pip; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@# Its own requirements cannot be met beside ours (av <16); what it imports for a run is in the dev
	@# extra. pip may list its other requirements as unmet: they are for models that are not ours.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "lmms_eval==0.7.3"
	@touch $(READY)

demo: $(READY)
	$(BIN)/liteframe demo

demo-full: $(READY)
	$(BIN)/liteframe demo --full

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config setup.cfg
	$(BIN)/mypy

clean:
	rm -rf runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

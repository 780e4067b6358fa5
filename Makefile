# Two commands for a user: `make demo` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MADE := $(VENV)/.made
READY := $(VENV)/.ready
# Processes of `make test`, each with one thread. nproc would count OMP_NUM_THREADS.
JOBS ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || echo auto)

.PHONY: demo demo-full test lint docs constraints clean

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "LiteFrame needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $(MADE)

$(READY): $(MADE) setup.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]" --constraint constraints.txt
	@# Its own requirements cannot be met beside ours (av <16); what it imports for a run is in the dev
	@# extra. pip may list its other requirements as unmet: they are for models that are not ours.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "lmms_eval==0.7.3"
	@touch $(READY)

# The newest releases within setup.cfg and constraints.in, one version of each for every Python from 3.11 on. Run the
# tests on them before committing.
constraints: $(MADE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile setup.cfg --extra dev --constraint constraints.in --upgrade --universal --python-version 3.11 \
		--fork-strategy fewest --no-annotate --custom-compile-command "make constraints" \
		--quiet --output-file constraints.txt

demo: $(READY)
	$(BIN)/liteframe demo

demo-full: $(READY)
	$(BIN)/liteframe demo --full

# Many tests start processes, each of which would compile LiteFrame's files where Python may not keep what it compiled.
test: $(READY)
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config setup.cfg
	$(BIN)/mypy

# The documentation as a site, in build/site; a broken link is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

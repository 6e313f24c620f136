# make demo   installs what is missing, then runs the main job
# make test   installs what is missing, then lints, type-checks and tests

# Any Python >= 3.11 will do; `make PYTHON=/path/to/python3.12 test` chooses another.
find_python = for p in python3.11 python3 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done
PYTHON ?= $(shell $(find_python))
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out/demo
WORKERS ?= 2

.PHONY: demo test lint install clean

demo: $(VENV)/.installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/promptloop demo --out $(OUT) --overwrite

test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(VENV)/.installed-dev

# One stamp for the package, one for the development tools; both are older than pyproject.toml and constraints.txt
# only when these have changed, so nothing is installed twice.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.installed

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "promptloop needs Python 3.11 or newer; none found (try make PYTHON=/path/to/python)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) out build dist

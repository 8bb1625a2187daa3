# Everything a stranger needs: `make demo` renders a prompt list, `make test` runs the checks. Both install what they need.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := .demo
JOBS   ?= 2
SEED   ?= 7

.PHONY: help install demo test lint typecheck unit bench chaos clean

help:
	@echo "make demo   install, and render examples/shapes.txt with the demo model"
	@echo "make test   install, and run all checks: ruff, import-linter, mypy, pytest"
	@echo "make lint   ruff, import-linter and mypy alone"
	@echo "make bench  run the benchmarks (some minutes); they print ratios"
	@echo "make chaos  do 1,000 kinds of harm to a fleet (15 minutes), and see whether anything is lost (SEED=7, JSON=file)"
	@echo "make clean  stop the demo's server and remove what was made"

install: $(VENV)/.installed

# The version is checked before anything is made, so that a wrong Python is a sentence and not a traceback.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v[:2] <= (3, 13) else "renderkiln needs Python 3.10 to 3.13, and %s is %d.%d. Install one (macOS: brew install python@3.12; Debian: apt install python3 python3-venv) and run: make PYTHON=python3.12 $(MAKECMDGOALS)" % (sys.executable, v[0], v[1]))'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing (Debian: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[worker,coreml,coreai,dev]'
	@touch $@

demo: install
	@RENDERKILN_DATA_DIR=$(DEMO)/data $(BIN)/renderkiln render examples/shapes.txt --out $(DEMO)/pictures

test: install lint unit

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Each process begins with a stretch of its own, so that what a module or a folder prepares is prepared once.
unit: install
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

bench: install
	$(BIN)/python -m benchmarks

chaos: install
	$(BIN)/python -m tests.chaos --seed $(SEED) $(if $(JSON),--json $(JSON))

clean:
	@test ! -x $(BIN)/renderkiln || RENDERKILN_DATA_DIR=$(DEMO)/data $(BIN)/renderkiln server stop || true
	rm -rf $(VENV) $(DEMO) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

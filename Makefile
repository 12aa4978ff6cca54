# make demo: from a fresh clone to a free energy. make test: all checks. Both set up .venv by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format notebooks browser bench-energy bench-flow reference clean

help:
	@echo "make demo          train a generator for alanine dipeptide and print a free energy (about 10 minutes on 2 cores)"
	@echo "make test          ruff, mypy and pytest"
	@echo "make lint          ruff and mypy only"
	@echo "make format        let ruff rewrite the code"
	@echo "make notebooks     run the notebooks on a small budget"
	@echo "make browser       draw a molecule in JupyterLab, in headless Chromium where there is one"
	@echo "make bench-energy  accuracy and speed of the compiled energy against OpenMM (about 10 minutes on 2 cores)"
	@echo "make bench-flow    speed of the flow against stacks of the same size, zuko, and with the chain (about 15 minutes)"
	@echo "make reference     compute the reference free energy of alanine dipeptide again (hours)"
	@echo "make clean         remove the virtual environment, caches and demo runs"
	@echo "PYTHON=python3.12 make ... takes another interpreter (3.11, 3.12 or 3.13)"

demo: $(INSTALLED)
	$(BIN)/python -m boltzgen run systems/alanine_dipeptide.pdb --out $(DEMO)

# One thread: the tests are small, and two threads on a busy machine wait for each other most of the time.
test notebooks: export OMP_NUM_THREADS = 1

test: lint
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(INSTALLED)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

notebooks: $(INSTALLED)
	$(BIN)/python -m pytest tests/test_notebooks.py

browser: $(INSTALLED)
	$(BIN)/python -m pytest tests/test_jupyterlab.py --browser

bench-energy: $(INSTALLED)
	$(BIN)/python benchmarks/energy.py $(ARGS)

bench-flow: $(INSTALLED)
	$(BIN)/python benchmarks/flow.py $(ARGS)

reference: $(INSTALLED)
	$(BIN)/python benchmarks/reference.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis runs/demo-*

# Set up once, and again when the requirements change or the environment is broken (a removed interpreter, a moved folder).
ifneq ($(shell $(BIN)/python -c "import pip" 2>&1; head -n 1 $(INSTALLED) 2>/dev/null),$(CURDIR))
.PHONY: $(INSTALLED)
endif

$(INSTALLED): pyproject.toml constraints.txt
	@$(BIN)/python -c "import pip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))" 2>/dev/null || $(MAKE) --no-print-directory $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e ".[test]" -c constraints.txt
	@echo "$(CURDIR)" > $@

.PHONY: $(VENV)
$(VENV):
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON): install Python 3.11, 3.12 or 3.13, or name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))" \
		|| { echo "boltzgen needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is $$($(PYTHON) -V): name another with PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) \
		|| { rm -rf $(VENV); echo "The virtual environment could not be made. On Debian and Ubuntu: apt install python3-venv"; exit 1; }

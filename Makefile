# make demo: the whole main job on simulated slides; make test: all tests; make check: linters;
# make gpu: tests and benchmarks of a GPU.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

OUT ?= gpu-out
DATA ?=

.PHONY: demo test slow check gpu clean
.DELETE_ON_ERROR:

# the mark is made last, so an installation that failed is tried again
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	bash benchmarks/demo.sh $(BIN)/stflow-graph $(DEMO)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow and not gpu'

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy stflow_graph
	$(BIN)/mypy cli

# needs a CUDA device, and no environment of ours: PYTHON has torch and torch-geometric
gpu:
	PYTHON=$(PYTHON) bash benchmarks/gpu.sh $(OUT) $(DATA)

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info

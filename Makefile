# Five verbs: demo, test, lint, bench, fuzz. Each sets up .venv by itself on a machine with Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt hatch_build.py proto/align_proto/v1/align.proto

.PHONY: demo test lint bench fuzz clean

demo: $(VENV)/.server
	@examples/demo.sh $(BIN)

# Two files of tests at a time, each with a server of its own; long ones first, as they are named.
test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python benchmarks/run.py

# More, or the same again: make fuzz FUZZ='--documents 1000000 --seed 7'
fuzz: $(VENV)/.test
	$(BIN)/python tests/fuzz.py $(FUZZ)

clean:
	rm -rf $(VENV) out build dist .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("chatalign needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another with: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

# torch and torchaudio are several gigabytes: the first of these takes minutes.
$(VENV)/.server: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[server]'
	@touch $@

$(VENV)/.test: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	@touch $@

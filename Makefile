# make demo   a batch of real prompts, from nothing to answers
# make test   ruff, mypy and pytest
#
# pip chooses where packages come from. Its default PyTorch for Linux brings CUDA along (several GB); to choose another
# build, name its index: PIP_EXTRA_INDEX_URL=<index of CPU builds> make demo
# PYTHON=python3.12 make demo   chooses the Python that makes the virtual environment.

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTHON ?= $(shell for each in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && break; done)

# torch's threads must not spin while other processes of a test or benchmark want the same cores.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint bench install clean

demo: $(VENV)/.user
	@$(BIN)/pressrun demo

install: $(VENV)/.user

# Two processes, each with a Valkey of its own: most tests wait more than they compute.
test: lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p pressrun

bench: $(VENV)/.dev
	$(BIN)/python bench/service.py
	$(BIN)/python bench/engine.py

# The data folder, with the model, is left alone.
clean:
	rm -rf $(VENV) build *.egg-info

# An installation is repeated only when pyproject.toml has changed since.
$(VENV)/.user: pyproject.toml | $(VENV)/.python
	$(PIP) install --editable '.[engine,demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.python
	$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.user

$(VENV)/.python:
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Pressrun needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

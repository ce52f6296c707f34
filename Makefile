# Lair Chat. Needs make and Python 3.11 or newer with its venv module, nothing else; all goes into .venv and ./data.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c '$(RECENT)' 2>/dev/null && echo $$python && exit; done; echo python3)
RECENT := import sys; sys.exit(sys.version_info < (3, 11))
UV ?= uv
# Processes that run the tests side by side; 0 runs them in one, as a debugger wants it.
WORKERS ?= 2
PYTEST_ARGS ?=
# How long `make fuzz` compares; FUZZ_ARGS='--version 12 --first-seed 0' says what.
SECONDS ?= 60
FUZZ_ARGS ?=
# `make lock LOCK_ARGS=--upgrade` takes the newest versions; without it locked versions stay.
LOCK_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
# The one dependency without a wheel is built by the locked setuptools, not by one that pip would fetch.
LOCKED := --require-hashes --no-build-isolation --use-pep517
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links $(LOCK_ARGS)

.PHONY: run test check bench fuzz invariants lock
.NOTPARALLEL:

run: $(VENV)/run.stamp
	@exec $(BIN)/lair-chat serve --first-admin admin

test: check
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

check: $(VENV)/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/test.stamp
	@exec $(BIN)/python -m tests.benchmarks

fuzz: $(VENV)/test.stamp
	@exec $(BIN)/python -m synapse_compat_tests.fuzz --seconds $(SECONDS) $(FUZZ_ARGS)

invariants: $(VENV)/test.stamp
	@$(BIN)/python -m tests.invariants

lock:
	$(COMPILE) --group build -o requirements-build.lock
	$(COMPILE) -c requirements-build.lock -o requirements.lock pyproject.toml
	$(COMPILE) -c requirements-build.lock -c requirements.lock --extra test -o requirements-test.lock pyproject.toml
	$(COMPILE) --group synapse -o requirements-synapse.lock

$(VENV)/python.stamp:
	@command -v $(PYTHON) >/dev/null && $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo 'Python lacks its venv module. As root: apt-get install $(notdir $(PYTHON))-venv' >&2; exit 1; }
	@$(PYTHON) -c '$(RECENT)' \
		|| { echo 'Lair Chat needs Python 3.11 or newer. Name it: make PYTHON=python3.12' >&2; exit 1; }
	@echo 'Making the virtual environment in $(VENV)'
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/build.stamp: $(VENV)/python.stamp requirements-build.lock
	@$(PIP) install --require-hashes -r requirements-build.lock
	@touch $@

$(VENV)/package.stamp: $(VENV)/build.stamp pyproject.toml
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/run.stamp: $(VENV)/package.stamp requirements.lock
	@echo 'Installing what the server needs'
	@$(PIP) install $(LOCKED) -r requirements.lock
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp requirements-test.lock
	@echo 'Installing what the tests need'
	@$(PIP) install $(LOCKED) -r requirements-test.lock
	@touch $@

# The words of this project, for people and for CI. They need Python 3.11 and make; the rest goes into .venv.
# `make run ARGS="--dataset cifar10"` passes words on.

# The first Python that can make a virtual environment; 3.11 is the one that the tests use.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
	"$$name" -c "import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" >/dev/null 2>&1 \
	&& { command -v "$$name"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt
INPUTS := setup.cfg pyproject.toml constraints.txt
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test test-slow check bench house ui clean
.NOTPARALLEL:

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "  make %-10s %s\n", $$1, $$2 }'

run: $(VENV)/.installed ## the whole pipeline on the built-in digits; ARGS="--dataset FOLDER" for your own images
	@$(BIN)/alexnet run $(ARGS)

test: $(VENV)/.installed-dev ## the quick tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: $(VENV)/.installed-dev ## the tests that take minutes
	@$(BIN)/python -m pytest -m slow $(ARGS)

check: $(VENV)/.installed-dev ## style, types and who may import whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed ## the quick benchmarks, one JSON object a line
	@$(BIN)/python benchmarks/run.py --quick $(ARGS)

house: $(VENV)/.installed-dev ## figures of the code: functions, names, types, duplicates, fingerprints; no gate
	@$(BIN)/python benchmarks/house.py $(ARGS)

ui: $(VENV)/.installed ## MLflow's pages of the runs in mlruns/
	@$(BIN)/alexnet ui $(ARGS)

clean: ## remove .venv, caches and build outputs; results in mlruns/ stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage htmlcov
	find . -path ./mlruns -prune -o -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so that an interrupted installation is done again.
$(VENV)/.installed: $(INPUTS)
	@$(MAKE_VENV)
	@echo "Installing the program into $(VENV): two to four minutes, once."
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(INPUTS)
	@$(MAKE_VENV)
	@echo "Installing the program and its test tools into $(VENV): two to four minutes, once."
	@$(INSTALL) --editable ".[dev]"
	@touch $(VENV)/.installed $@

# A virtual environment whose making was interrupted has a python but no pip: it is made again.
define MAKE_VENV
if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
		echo "No suitable Python was found. Expected Python 3.11, 3.12 or 3.13 with its venv module (on Debian the packages python3" \
			"and python3-venv). Install one, or name one: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; \
	fi; \
	rm -rf $(VENV) && "$$python" -m venv $(VENV); \
fi
endef

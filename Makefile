# `make` lists the targets. All but `venv` and `check` use .venv; `make PYTHON=python3.12 venv` sets it up.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help venv check test fast lint format types tiny tensorboard clean

help: ## these targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

venv: $(BIN)/ruff ## set up .venv with everything that development needs

$(BIN)/ruff: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[dev]'
	@touch $@

check: ## all that CI runs, in fresh environments of its own
	PYTHON=$(PYTHON) bash .ci/run

test: venv ## every test
	$(BIN)/python -m pytest

fast: venv ## the tests that train nothing and start no process
	$(BIN)/python -m pytest -m 'not slow'

lint: venv ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: venv ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: venv ## mypy
	$(BIN)/mypy

tiny: venv ## train palm_tiny, in runs/palm_tiny
	$(BIN)/python -m pretrain.launch --config palm_tiny.py

tensorboard: venv ## the curves of everything in runs/
	$(BIN)/tensorboard --logdir runs

clean: ## what builds and tests left; runs/ and .venv stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src configs tests tools -name __pycache__ -prune -exec rm -rf {} +

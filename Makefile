# Every target is a thin call of the package; where there is no make, run the line itself.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo check test lab bench evaluate lint
setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $(READY)

demo: $(READY)
	$(BIN)/python -m lvmlab demo

evaluate: $(READY)
	$(BIN)/python -m lvmlab evaluate

bench: $(READY)
	$(BIN)/python -m lvmlab bench

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check: lint
	$(BIN)/python -m pytest -m "not slow"

test: $(READY) lint
	$(BIN)/python -m pip install --quiet -e ".[video,lmdb,lora,browser]"
	$(BIN)/python -m pytest
	@if ls notebooks/*.ipynb >/dev/null 2>&1; then LVMLAB_SCALE=smoke $(BIN)/python -m pytest --nbval-lax --nbval-cell-timeout=300 --nbval-current-env notebooks/*.ipynb; fi

lab: $(READY)
	$(BIN)/python -m jupyter lab notebooks

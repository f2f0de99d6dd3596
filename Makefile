# Everything from a bare clone: `make lab`, `make study`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# What an activated environment or a user's settings would mix into ours stays outside.
unexport PYTHONPATH PYTHONHOME
export PIP_USER := 0
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The notebooks are tested in this browser; named (make test CHROMIUM=/path/to/chromium), it must be there.
CHROMIUM ?= $(firstword $(foreach name,chromium chromium-browser google-chrome,$(shell command -v $(name) 2>/dev/null)))
NO_CHROMIUM := The notebooks were NOT tested in a browser: install Chromium (Debian: apt install chromium), or name one: make browser CHROMIUM=/path/to/chromium
NBSUPPORT := $(BIN)/python -m nbsupport

.PHONY: help install study robust seeds lab test test-all browser bench report pages figures doctor links clean
help:
	@echo "make lab      open JupyterLab on notebooks/00_start_here.ipynb"
	@echo "make study    the core of the study on this machine: Tables 1-4, Figures 1-4 (notebooks 00-08)"
	@echo "make robust   the second half: robust classifiers, adaptive attacks, another fusion (09-13, hours)"
	@echo "make seeds    the headline comparisons over three trainings of every denoiser (15, hours)"
	@echo "make report   all results on one web page that needs no network: build/report.html"
	@echo "make pages    linked web pages: the report, the explorer and all notebooks (NOTEBOOKS='00 07': these)"
	@echo "make doctor   what is installed, what is there, what is missing"
	@echo "make test     check everything: style, types, unit tests, every notebook, and each in a browser"
	@echo "make test-all the same with the larger matrices (widths, themes, killed processes)"
	@echo "make bench    speed beside the usual ways"
	@echo "make figures  for maintainers: run all notebooks and write figures/ and the README's table"
	@echo "make clean    remove the virtual environment and build/ (not the store)"

install: $(READY)
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer, or name one: make $(or $(MAKECMDGOALS),study) PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make $(or $(MAKECMDGOALS),study) PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) lacks venv: install it (Debian, Ubuntu: apt install python3-venv), or name another Python: make $(or $(MAKECMDGOALS),study) PYTHON=/path/to/python"; exit 1; }
	@echo "Installing into .venv (once; PyTorch is large, this takes minutes)"
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --editable '.[lab,dev]' --constraint constraints.txt
	@touch $@

study: $(READY)
	@$(NBSUPPORT) compute --tables 1 2 3 4 --workers 2 > /dev/null
	@$(NBSUPPORT) run 00 01 02 03 04 05 06 07 08
	@$(NBSUPPORT) report
	@$(NBSUPPORT) report --html

robust: $(READY)
	@$(NBSUPPORT) run 09 10 11 12 13
	@$(NBSUPPORT) report --html

seeds: $(READY)
	@$(NBSUPPORT) run 15
	@$(NBSUPPORT) report --html

report: $(READY)
	@$(NBSUPPORT) report --html

pages: $(READY)
	@$(NBSUPPORT) run $(NOTEBOOKS)

figures: $(READY)
	NBSUPPORT_FIGURES="$(CURDIR)/figures" $(NBSUPPORT) run
	@$(BIN)/python -m nbsupport.results.report
	@$(BIN)/python -m nbsupport.interactive.explorer build/explorer.html
	@test -z "$(CHROMIUM)" || $(CHROMIUM) --headless --no-sandbox --hide-scrollbars --window-size=1000,735 --virtual-time-budget=5000 --screenshot=figures/explorer.png build/explorer.html
	@$(BIN)/python -c 'import json; from nbsupport.results.save import commit; print(json.dumps(commit()))' > figures/explorer.json

doctor: $(READY)
	@$(NBSUPPORT) doctor

lab: $(READY)
	@$(BIN)/python -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

MATRIX ?= not matrix
# What the notebooks computed in the unit tests serves them in the browser, too.
test: export STORE_OF_NOTEBOOKS := $(CURDIR)/build/store-of-notebooks
test: $(READY)
	@rm -rf "$(STORE_OF_NOTEBOOKS)"
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "$(MATRIX)" --numprocesses auto --maxprocesses 4 --dist worksteal
	$(if $(CHROMIUM),@$(MAKE) --no-print-directory browser,@echo "$(NO_CHROMIUM)")

test-all: MATRIX := matrix or not matrix
test-all: export MATRIX
test-all: test

browser: $(READY)
	@test -n "$(CHROMIUM)" || { echo "$(NO_CHROMIUM)"; exit 1; }
	CHROMIUM="$(CHROMIUM)" $(BIN)/python -m pytest tests/browser -o addopts="-ra --strict-markers" -m "$(MATRIX)" --numprocesses 2 --dist loadfile

bench: $(READY)
	$(BIN)/python -m pytest tests/benchmarks -o addopts= --benchmark-only --benchmark-disable-gc -rP

links: $(READY)
	@$(BIN)/python -m nbsupport.results.notebooks

clean:
	rm -rf .venv build

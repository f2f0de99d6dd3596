# Everything from a bare clone: `make study`, `make lab`, `make test`.
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

.PHONY: help install study robust seeds lab test browser bench report doctor links clean
help:
	@echo "make study    run the core of the study on this machine: Tables 1-4, Figures 1-4 (notebooks 00-08)"
	@echo "make robust   the second half: robust classifiers, the attacker who knows, another fusion (09-13, long)"
	@echo "make seeds    the headline comparisons once more, over three trainings of every denoiser"
	@echo "make lab      open JupyterLab on notebooks/00_start_here.ipynb"
	@echo "make test     check everything: style, types, unit tests, every notebook, and again in a browser"
	@echo "make browser  only the last: every notebook in JupyterLab in Chromium, with screenshots"
	@echo "make bench    how fast, beside the usual ways of doing it"
	@echo "make report   one web page of all results, which needs no network: build/report.html"
	@echo "make doctor   what is installed, what is there, what is missing"
	@echo "make clean    remove the virtual environment and the pages (not the store)"

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
	@$(BIN)/python -m nbsupport run 00 01 02 03 04 05 06 07 08
	@$(BIN)/python -m nbsupport report --tables 1 2 3 4
	@$(BIN)/python -m nbsupport report --html
	@echo; echo "Now walk through it: make lab. The second half, robust classifiers and the attacker who knows: make robust"

robust: $(READY)
	@$(BIN)/python -m nbsupport run 09 10 11 12 13
	@$(BIN)/python -m nbsupport report --tables 5 6 7
	@$(BIN)/python -m nbsupport report --html

seeds: $(READY)
	@$(BIN)/python -m nbsupport run 15
	@$(BIN)/python -m nbsupport report --html

lab: $(READY)
	@$(BIN)/python -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

test: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4
	$(if $(CHROMIUM),@$(MAKE) --no-print-directory browser,@echo "$(NO_CHROMIUM)")

browser: $(READY)
	@test -n "$(CHROMIUM)" || { echo "$(NO_CHROMIUM)"; exit 1; }
	CHROMIUM="$(CHROMIUM)" $(BIN)/python -m pytest tests/browser -o addopts="-ra --strict-markers"

bench: $(READY)
	$(BIN)/python -m pytest tests/benchmarks -o addopts= --benchmark-only --benchmark-disable-gc -rP

report: $(READY)
	@$(BIN)/python -m nbsupport report --html

doctor: $(READY)
	@$(BIN)/python -m nbsupport doctor

links: $(READY)
	@$(BIN)/python -m nbsupport.results.navigation
	@$(BIN)/python -m nbsupport.results.readme

clean:
	rm -rf .venv build

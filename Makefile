# Two commands matter: `make lab` and `make test`. Both set up .venv first, once.

PYTHON ?= python3
LAB_FLAGS ?=
PYTEST_FLAGS ?=
NB ?=

VENV := .venv
PY := $(VENV)/bin/python
NOTEBOOKS := $(wildcard notebooks/[0-9]*.ipynb notebooks/workshop/*.ipynb)
NBVAL := -p tests.nbval_gaps --nbval --nbval-current-env --nbval-cell-timeout 120 \
	--nbval-sanitize-with tests/sanitize.cfg

# The stamp says that .venv holds these pins and points at this folder: a changed pin or a moved
# folder gives another name, and set-up runs again.
KEY := $(shell { cat requirements.txt pyproject.toml; pwd; } | cksum | cut -d ' ' -f 1)
READY := $(VENV)/.ready-$(KEY)

QUIET_LAB := '{"@jupyterlab/apputils-extension:notification": \
	{"fetchNews": "false", "checkForUpdates": false}}'

define CHECK_PYTHON
import sys
found = "%d.%d" % sys.version_info[:2]
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit("minillm needs Python 3.10 to 3.13, but $(PYTHON) is Python " + found + ".\n"
             "Install one of those and name it, for example: make lab PYTHON=python3.12")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("$(PYTHON) has no venv module, which makes the .venv folder.\n"
             "On Debian and Ubuntu: sudo apt install python%s-venv; then run make again." % found)
endef
export CHECK_PYTHON

define HELP
make lab        open the course in JupyterLab          (LAB_FLAGS="--no-browser --port 8889")
make test       run every check                        (PYTEST_FLAGS="-k kv -x")
make test-browser  only those in Chromium; it leaves pictures in tests/browser/shots
make notebooks  rebuild the notebooks from their sources  (NB="00_tour", all without it)
make model      train the shipped models again: hours, can be stopped and resumed
make lint       check the style
make setup      only make .venv                        (PYTHON=python3.12)
make clean      remove .venv and caches
endef
export HELP

.PHONY: help setup lab test test-browser notebooks model lint clean

help:
	@echo "$$HELP"

setup: $(READY)
ifneq ($(filter command environment,$(origin PYTHON)),)
	@version='import sys; print(sys.version_info[:2])'; \
	test "$$($(PYTHON) -c "$$version")" = "$$($(PY) -c "$$version")" || { \
		echo "$(VENV) was made by $$($(PY) -V), not by $(PYTHON): run make clean first."; exit 1; }
endif

$(READY):
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "There is no $(PYTHON) here. Install Python 3.10 to 3.13 and name it if need be:"; \
		echo "make lab PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@echo "Setting up $(VENV) with $$($(PYTHON) -V): once, some minutes, 1.5 GB and more."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --disable-pip-version-check -r requirements.txt -e .
	@# No question about news at the first start, and no look for updates: nothing here asks the network.
	@mkdir -p $(VENV)/share/jupyter/lab/settings && printf '%s\n' $(QUIET_LAB) \
		> $(VENV)/share/jupyter/lab/settings/overrides.json
	@# Proves that it works, and builds matplotlib's font cache before a notebook has to.
	@$(PY) -c "import jupyterlab, matplotlib.font_manager, minillm, torch"
	@rm -f $(VENV)/.ready-*
	@touch $@

# The file browser shows the whole project, so that the code of a lesson is a click away. As
# root, as in a container, JupyterLab wants a flag to start.
lab: setup
	$(PY) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/00_tour.ipynb \
		$(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_FLAGS)

test: setup
	$(PY) -m pytest --durations 5 $(NBVAL) tests $(NOTEBOOKS) $(PYTEST_FLAGS)

# They are part of `make test`. MINILLM_NEED_BROWSER=1 turns "skipped, no Chromium" into a failure.
test-browser: setup
	$(PY) -m pytest --durations 5 tests/browser $(PYTEST_FLAGS)

notebooks: setup
	$(PY) notebooks/source/build.py $(NB)

model: setup
	$(PY) -m data.build.train town
	$(PY) -m data.build.train town-draft --scale 0.25
	$(PY) -m data.build.skills
	$(PY) -m data.build.readme

lint: setup
	$(PY) -m ruff check .

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis tests/browser/shots
	find minillm tests notebooks data -name __pycache__ -prune -exec rm -rf {} +

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEVICE ?= cpu
WORKERS ?= 2
DOCS    := 'mkdocs-material>=9.6' 'mkdocstrings[python]>=0.29' # the extra "docs", without the package

.PHONY: demo test torture check lint types types-oldest docs bench clean

demo: $(STAMP)  ## distil long-tailed digits, score them, write the page (78 s on two idle cores, once installed)
	$(BIN)/potstill recipe recipes/csdm/digits-lt50-ipc10.toml --out runs/demo --force

test: $(STAMP)  ## all tests, on WORKERS processes of one thread each
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

torture: $(STAMP)  ## damage of every kind, at length; see CONTRIBUTING.md
	$(BIN)/python tests/faults/torture.py $(ROOMS) $(if $(SEED),--seed $(SEED)) $(if $(CASES),--cases $(CASES)) $(if $(CASE),--case $(CASE)) $(if $(MINUTES),--minutes $(MINUTES))

check: $(STAMP) lint types test  ## everything a change must pass
	$(BIN)/python benchmarks/results_table.py --check
	$(BIN)/python benchmarks/readme_tables.py --check
	$(BIN)/python benchmarks/method_tables.py --check
	$(BIN)/codespell src docs examples benchmarks README.md CONTRIBUTING.md CHANGELOG.md
	for file in examples/*.py; do echo $$file; $(BIN)/python $$file --quick || exit 1; done

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

types-oldest:  ## mypy beside the oldest torch that pyproject.toml allows, in an environment of its own
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -e '.[dev]' 'torch==2.9.*' 'torchvision==0.24.*'
	.venv-oldest/bin/mypy

docs:  ## the documentation site in build/site, strictly, in an environment of its own without torch
	test -x .venv-docs/bin/mkdocs || ($(PYTHON) -m venv .venv-docs && .venv-docs/bin/pip install --quiet $(DOCS))
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

bench: $(STAMP)  ## speed ratios, one line of JSON each; DEVICE=cuda on a GPU
	cd benchmarks && for name in machine data memory; do ../$(BIN)/python $$name.py || exit 1; done
	cd benchmarks && for name in uncached step students experts trajectory gradient backbone; do ../$(BIN)/python $$name.py --device $(DEVICE) || exit 1; done

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "potstill needs Python 3.11 or newer"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) .venv-oldest .venv-docs build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache

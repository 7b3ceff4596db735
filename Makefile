# A fresh machine needs `make figures` and `make test`; everything else is for those who change the project.
#
#   experiments/NAME.py --run--> build/SCALE/results/NAME.npz --draw--> build/SCALE/figures/NAME.{png,pdf}
#
# A new figure is a new file in experiments/, one in paper_figs/ and an entry in paper_figs/expected.json; no rule here
# names it. At smoke scale a result is redone when the library changes, because there it is a test; at the other scales
# a change of the library only makes `make figures` warn (`make clean-outdated` then deletes what is out of date).

SCALE ?= laptop## smoke, laptop or paper
DEVICE ?= cpu## where experiments run: cpu, cuda, cuda:1, ...
JOBS ?= 2## processes that run tests, one thread each
ARGS ?=## more arguments for pytest or mutants, as in make test ARGS="-k noise"
FOLDER ?=## what make mutants changes: a folder or a file of sgdsde
N ?= 20## mutations
SEED ?= 0## that they are drawn by

MAIN := fig01 fig02 fig03 fig04

ifneq ($(words $(SCALE))-$(words $(filter smoke laptop paper,$(SCALE))),1-1)
$(error SCALE must be one of smoke, laptop, paper, got SCALE="$(SCALE)"; use for example: make figures SCALE=smoke)
endif

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
SITE := build/docs/html
RESULTS := build/$(SCALE)/results
FIGURES := build/$(SCALE)/figures
PEERS := build/peers

# The first Python that the pinned versions accept and that can make an environment.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

ALL_EXPERIMENTS := $(patsubst experiments/%.py,%,$(sort $(wildcard experiments/fig*.py)))
ALL_FIGURES := $(patsubst paper_figs/%.py,%,$(sort $(wildcard paper_figs/fig*.py)))
MAIN_FIGURES := $(foreach prefix,$(MAIN),$(filter $(prefix)_%,$(ALL_FIGURES)))
LIBRARY := $(if $(filter smoke,$(SCALE)),$(shell find sgdsde -name '*.py'))

# Files of folder $(1) that file $(2) imports by a line `from folder.name import ...`.
imports = $(patsubst %,$(1)/%.py,$(shell sed -n 's/^from $(1)\.\([A-Za-z0-9_]*\) import.*/\1/p' $(2)))
# The experiment that figure $(1) draws: its line `EXPERIMENT = "name"`, or the figure's own name.
experiment = $(or $(shell sed -n 's/^EXPERIMENT = "\([A-Za-z0-9_]*\)".*/\1/p' paper_figs/$(1).py),$(1))
pictures = $(foreach name,$(1),$(FIGURES)/$(name).png $(FIGURES)/$(name).pdf)
# Under `make -j` every process gets one thread, so that they do not fight for the cores.
threads = $(if $(findstring jobserver,$(MAKEFLAGS)),OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1})

MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDEXPANSION:
# docs is a folder too.
.PHONY: docs help figures figures-all results $(ALL_FIGURES) test test-slow test-gpu mutants check format dist bench bench-peers venv clean clean-outdated clean-all

help: ## Show this list
	@echo "make TARGET [VARIABLE=VALUE]"; echo; echo "Targets:"
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1	\2/p' Makefile | awk -F '\t' '{ printf "  %-16s %s\n", $$1, $$2 }'
	@echo "  figNN_name       One figure and what it needs, by its name"
	@echo; echo "Variables:"
	@sed -n 's/^\([A-Z]*\) ?= *\([^ #]*\)## \(.*\)/\1	\2	\3/p' Makefile \
		| awk -F '\t' '{ printf "  %-16s %s%s\n", $$1, $$3, $$2 == "" ? "" : " (default: " $$2 ")" }'

figures: $(STAMP) $(call pictures,$(MAIN_FIGURES)) ## Run the main experiments and draw their figures
	@$(BIN)/python -m paper_figs.frame report --scale $(SCALE) $(MAIN_FIGURES)

figures-all: $(STAMP) $(call pictures,$(ALL_FIGURES)) ## Run all experiments and draw all figures
	@$(BIN)/python -m paper_figs.frame report --scale $(SCALE) $(ALL_FIGURES)

results: $(ALL_EXPERIMENTS:%=$(RESULTS)/%.npz) ## Run all experiments, draw nothing

$(ALL_FIGURES): $$(call pictures,$$@) | $(STAMP)
	@$(BIN)/python -m paper_figs.frame report --scale $(SCALE) $@

$(ALL_EXPERIMENTS:%=$(RESULTS)/%.npz): $(RESULTS)/%.npz: experiments/%.py experiments/frame.py experiments/result.py \
		$$(call imports,experiments,experiments/$$*.py) $(LIBRARY) | $(STAMP)
	@$(threads) SGDSDE_DEVICE=$(DEVICE) $(BIN)/python -m experiments.$* --scale $(SCALE) --results $(RESULTS)

$(FIGURES)/%.png $(FIGURES)/%.pdf: paper_figs/%.py paper_figs/frame.py paper_figs/style.py paper_figs/expected.json \
		$$(call imports,paper_figs,paper_figs/$$*.py) $(RESULTS)/$$(call experiment,$$*).npz | $(STAMP)
	@$(threads) $(BIN)/python -m paper_figs.frame draw --scale $(SCALE) $*

test: $(STAMP) ## Run the tests (under five minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

test-slow: $(STAMP) ## Run the long statistical checks (twenty minutes at most)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "slow and not gpu" --durations=10 $(ARGS)

test-gpu: $(STAMP) ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(ARGS)

mutants: $(STAMP) ## Put N mutations into FOLDER, one at a time: which do the tests notice?
	@test -n "$(FOLDER)" || { echo "make mutants needs a folder or a file, for example: make mutants FOLDER=sgdsde/noise" >&2; exit 1; }
	$(BIN)/python -m tests.mutation.run $(FOLDER) --n $(N) --seed $(SEED) --jobs $(JOBS) $(ARGS)

check: $(STAMP) ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --strict --config-file= --follow-imports=silent tests/data/user_script.py

format: $(STAMP) ## Rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DOCS_STAMP) ## Build the documentation site, build/docs/html/index.html
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -d build/docs/doctrees docs $(SITE)
	@$(BIN)/python -m docs.builder.check_links $(SITE)
	@echo "$(SITE)/index.html"

# bench_tiled_mnist wants data, a folder and an hour: run it by hand.
bench: $(STAMP) bench-peers ## Run the benchmarks, on a quiet machine
	@for name in $(filter-out bench_tiled_mnist,$(patsubst benchmarks/%.py,%,$(sort $(wildcard benchmarks/bench_*.py)))); do \
		echo "== benchmarks/$$name.py"; $(BIN)/python -m benchmarks.$$name || exit 1; done

bench-peers: $(PEERS)/jax/.installed $(PEERS)/diffrax/.installed $(PEERS)/torch/.installed ## Create the environments of the tools compared with

# An older jax with its older NumPy cannot share .venv; --no-deps, because the pinned lists are complete.
$(PEERS)/jax/.installed $(PEERS)/diffrax/.installed: $(PEERS)/%/.installed: benchmarks/peers/%.txt | $(STAMP)
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --no-deps -r $<
	@touch $@

# Beside .venv's own torch: a folder for PYTHONPATH, nothing of it in .venv.
$(PEERS)/torch/.installed: benchmarks/peers/torch.txt | $(STAMP)
	rm -rf $(@D)
	$(BIN)/python -m pip install --no-deps --target $(@D) -r $<
	@touch $@

# From a copy of what git tracks, so that nothing else gets in; setuptools for it comes from the package registry.
dist: $(STAMP) ## Build wheel and source distribution into dist/ and check them
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[publish]"
	rm -rf dist build/dist && mkdir -p build/dist
	git archive HEAD | tar -x -C build/dist
	$(BIN)/python -m build --outdir dist build/dist
	$(BIN)/python -m twine check --strict dist/*

venv: $(STAMP) ## Create or update .venv with the tested versions

# torch first and by its exact version: a later step must find it in place and leave it alone.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make needs Python 3.11 or newer with the venv module (on Debian: apt install python3-venv);" \
		"name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@touch $@

# Beside the tested versions what only the pages need, so that the tests do not wait for it.
$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev,docs]"
	@touch $@

clean: ## Delete results, figures and caches
	rm -rf build docs/generated .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-outdated: $(STAMP) ## Delete results computed with other sources of the library
	@$(BIN)/python -m experiments.frame clean-outdated --results $(RESULTS)

clean-all: clean ## Delete .venv too
	rm -rf $(VENV)

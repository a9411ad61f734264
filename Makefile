# Every target sets itself up on a machine that has Python 3.11 to 3.13 and nothing else; a second call installs nothing.
# pip's usual environment variables (and pip.conf) decide where packages come from, for example for a CPU build of torch.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help simulate deployment-demo test check check-all bench clean

VENV := .venv
BIN := $(VENV)/bin
SET_UP := $(VENV)/.set-up
MANIFESTS := pyproject.toml constraints.txt

# One thread for each test process: DP-SGD on small tensors is slower with more, and results are equal on every machine.
TEST := env OMP_NUM_THREADS=1 FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 HF_HUB_OFFLINE=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n 2 --dist worksteal
RUN := env FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r name text; do printf '  make %-16s %s\n' "$$name" "$$text"; done

simulate: $(SET_UP)/run ## install what is needed and run the demo federation
	$(RUN) $(BIN)/isthmus-simulate run demo

deployment-demo: $(SET_UP)/demo ## a coordinator and three partners on this machine, from an empty folder to audited ledgers
	$(RUN) $(BIN)/python -m simulations.deployment_demo

test: $(SET_UP)/test ## fast tests and journeys (at most 12 minutes)
	$(TEST) -m "not slow"

check: $(SET_UP)/check ## format, lint, types, layers, fast tests (at most 4 minutes)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(TEST) -m "not journey and not slow"

check-all: check ## everything: also journeys and slow tests
	$(TEST) -m "journey or slow"

bench: $(SET_UP)/bench ## speed, as ratios in one run
	env FLWR_TELEMETRY_ENABLED=0 HF_HUB_OFFLINE=1 $(BIN)/python tests/bench/run.py

clean: ## remove the environment, caches and bundles; runs stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.fab
	find client server shared simulations tests -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of extras. torch goes first and alone, so that the index or wheel folder that was set up for it decides its build.
$(SET_UP)/venv: $(MANIFESTS)
	@python=""; \
	for name in python3 python3.13 python3.12 python3.11; do \
	    if command -v "$$name" >/dev/null && "$$name" -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	    then python="$$name"; break; fi; \
	done; \
	if [[ -z "$$python" ]]; then echo "isthmus needs Python 3.11, 3.12 or 3.13 with its venv module, and found none." >&2; exit 2; fi; \
	if [[ ! -x $(BIN)/python ]]; then echo "Making $(VENV) with $$python"; "$$python" -m venv $(VENV); fi
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	@mkdir -p $(SET_UP) && touch $@

$(SET_UP)/run: $(SET_UP)/venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(SET_UP)/demo: $(SET_UP)/venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[sql]"
	@touch $@ $(SET_UP)/run

$(SET_UP)/test: $(SET_UP)/venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[ray,sql,serve,onnx,lora,test]"
	@touch $@ $(SET_UP)/run

$(SET_UP)/check: $(SET_UP)/venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[ray,sql,serve,onnx,lora,test,check,crosscheck]"
	@touch $@ $(SET_UP)/test $(SET_UP)/run

$(SET_UP)/bench: $(SET_UP)/venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench,sql,serve,onnx,lora]"
	@touch $@ $(SET_UP)/run

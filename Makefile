# The commands of this checkout; `make help` lists them.
PYTHON3 ?= python3
BIN := .venv/bin
STACK_RUN := $(BIN)/python -m tests.stack
UV = $(or $(shell command -v uv),.stack/tools/bin/uv)

.DEFAULT_GOAL := help
.PHONY: help setup stack-up stack-down stack-status demo lint prose docs unit integration e2e anomalies chaos chaos-short submit-faults engines simulate simulate-exhaustive old-faults mutants bench bench-guard bench-merging bench-inputs bench-status bench-waiting bench-peers bench-5m bench-growth simulate-scale scale-report compose-check archives packages dist version changelog test clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing: Debian packages (as root), uv, .venv with locked dependencies
	@PYTHON="$(PYTHON3)" ./tests/stack/bootstrap.sh

stack-up: setup ## start Slurm, sshd, S3, DynamoDB and Airflow on loopback (STACK=embedded: no Slurm)
	@$(STACK_RUN) up

stack-down: ## stop what stack-up has started
	@[ ! -x $(BIN)/python ] || $(STACK_RUN) down

stack-status: ## show one line per service of the stack
	@$(STACK_RUN) status

demo: stack-up ## run both example DAGs in the stack's Airflow and check that nothing was lost
	@$(BIN)/python -m tests.stack.demo

lint: ## check with ruff, mypy, import contracts and prose, and that every test module loads
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.prose
	$(BIN)/pytest -q --collect-only tests >/dev/null

prose: ## check the English of documents, comments and messages (FILES="README.md ...")
	@$(BIN)/python -m tests.prose $(FILES)

docs: ## build the documentation as one site in docs/_build; a warning is an error
	$(BIN)/sphinx-build -q -E -W -n --keep-going -b html docs docs/_build

unit: ## run the tests that need no service
	$(BIN)/pytest -q -n 3 --dist loadfile tests/unit

integration: ## test each interface against the stack (make stack-up first)
	$(BIN)/pytest -q -n 2 --dist loadfile tests/integration

e2e: ## run DAGs and slurmctl as a user does, against the stack (make stack-up first)
	$(BIN)/pytest -q --durations=10 -n 3 --dist loadscope -m "not alone" tests/e2e
	$(BIN)/pytest -q --durations=5 -m alone tests/e2e

anomalies: ## provoke each kind of anomaly on the stack (make stack-up first; 4 minutes)
	ANOMALIES=all $(BIN)/pytest -q tests/e2e/test_anomalies.py

chaos: ## run a job while workers, commands, daemons, disks and requests fail (make stack-up first; 5 minutes a seed; SEEDS="1 2 3")
	@$(BIN)/python -m tests.chaos $(or $(SEEDS),$(SEED))

chaos-short: ## run one short round of chaos with a fixed seed (make stack-up first)
	$(BIN)/pytest -q tests/chaos

submit-faults: ## submit jobs and die before or after each request in turn (make stack-up first)
	@$(BIN)/python -m tests.chaos.submit_faults --points $(or $(POINTS),200)

engines: setup ## try dynalite, moto and SeaweedFS, also with less than AWS has: the edges' tests and a whole job (ONLY=name; 15 minutes)
	@./tests/engines/packages.sh
	@$(BIN)/python -m tests.engines $(if $(ONLY),--only $(ONLY))

simulate: ## simulate the protocol in virtual time with 10,000 seeds (or SEEDS=n)
	@$(BIN)/python -m tests.simulator --seeds $(or $(SEEDS),10000) --jobs 2

simulate-exhaustive: ## try every schedule of small worlds, up to 400,000 turns each (or TURNS=n, WORLD="one task"; 30 minutes)
	@$(BIN)/python -m tests.simulator.exhaustive $(if $(WORLD),--world "$(WORLD)") $(if $(TURNS),--turns $(TURNS))

old-faults: ## put back each fault of an earlier release; print the first simulated seed that finds it
	@$(BIN)/python -m tests.simulator.old_faults --jobs 2

mutants: ## break each condition and each order of the protocol; the simulator must find 95 % (or SEEDS=n)
	@$(BIN)/python -m tests.simulator.mutants --seeds $(or $(SEEDS),2000) --jobs 2

bench: setup ## measure the worker; writes benchmarks/RESULTS.md (on an idle machine; 8 minutes)
	@$(STACK_RUN) with sh -c '. .stack/env && PATH="$$PWD/.stack/tools/bin:$$PATH" exec $(BIN)/python -m benchmarks.peers --engine > .stack/peers.json'
	@$(BIN)/python -m benchmarks --peers .stack/peers.json

bench-guard: setup ## measure the worker again; fails if a ratio is worse than the committed one
	@$(BIN)/python -m benchmarks --guard

bench-merging: setup ## compare aggregation with DuckDB; writes benchmarks/MERGING.md (10 minutes)
	@$(BIN)/python -m benchmarks.merging --write benchmarks/MERGING.md

bench-inputs: setup ## compare an input of many files with one file; writes benchmarks/INPUTS.md (3 minutes)
	@$(BIN)/python -m benchmarks.inputs --write benchmarks/INPUTS.md

bench-status: ## measure slurmctl status at 100,000 tasks; writes benchmarks/STATUS.md (make stack-up first)
	@sh -c '. .stack/env && exec $(BIN)/python -m benchmarks.status --write benchmarks/STATUS.md'

bench-waiting: ## measure 300 waiting sensors; writes benchmarks/WAITING.md (make stack-up first)
	@sh -c '. .stack/env && exec $(BIN)/python -m benchmarks.waiting --write benchmarks/WAITING.md'

bench-peers: setup ## compare with dask-jobqueue, submitit, Parsl, sbatch and a loop, also after kill -9; writes README and benchmarks/RESULTS.md (make stack-up first; 8 minutes)
	@sh -c '. .stack/env && PATH="$$PWD/.stack/tools/bin:$$PATH" exec $(BIN)/python -m benchmarks.peers --write'

bench-5m: setup ## run five million items and kill workers meanwhile; writes benchmarks/FIVE_MILLION.md (make stack-up first; ITEMS=n KILLS=n)
	@sh -c '. .stack/env && exec $(BIN)/python -m benchmarks.five_million --items $(or $(ITEMS),5000000) --kills $(or $(KILLS),20) $(if $(ITEMS),,--write)'

bench-growth: setup ## measure the coordinator with 10^4 to 10^7 items; writes benchmarks/growth.csv and a plot (15 minutes)
	@$(BIN)/python -m benchmarks.growth --write

simulate-scale: setup ## simulate up to 10^9 items and 10,000 workers; writes benchmarks/billion/results.json (45 minutes)
	@$(BIN)/python -m benchmarks.billion --write

scale-report: bench-growth simulate-scale ## measure and simulate again, and write docs/scale.md
	@$(BIN)/python -m benchmarks.scale_report

compose-check: setup ## run docker-compose.yaml with podman: a job, and the loss of a node (AIRFLOW=1: both DAGs; make stack-down first)
	@./tests/compose/packages.sh
	@$(BIN)/python -m tests.compose.check $(if $(AIRFLOW),--airflow)

archives: ## build the archives and check their content; the worker's must work alone
	$(BIN)/pytest -q tests/packaging

packages: setup ## install the archives with every supported Python and Airflow, and with the lowest dependencies (10 minutes)
	@$(BIN)/python -m tests.packaging $(if $(ONLY),--only $(ONLY))

dist: setup ## build the files of a release in dist/: sdists, wheels, locked requirements, SBOM
	rm -rf dist
	$(UV) build --quiet --all-packages --no-build-isolation --python $(BIN)/python --out-dir dist
	$(UV) export --quiet --frozen --package airflow-slurm-provider --all-extras --no-dev --no-emit-workspace \
		--output-file dist/requirements.txt >/dev/null
	$(UV) export --quiet --frozen --package airflow-slurm-provider --all-extras --no-dev \
		--preview-features sbom-export --format cyclonedx1.5 --output-file dist/sbom.cdx.json >/dev/null
	$(BIN)/python -m tests.packaging.sbom dist/sbom.cdx.json
	@ls -l dist

version: setup ## set the version of both distributions and of the pins between them (VERSION=0.2.0)
	@[ -n "$(VERSION)" ] || { echo "version: no VERSION given; add VERSION=0.2.0" >&2; exit 2; }
	sed -i -E 's/^__version__ = ".*"/__version__ = "$(VERSION)"/' worker/slurm_worker/__init__.py
	sed -i -E 's/("slurm-worker\[[a-z]+\]==)[^"]+/\1$(VERSION)/' pyproject.toml
	$(UV) lock --quiet

changelog: setup ## move docs/changelog.d into CHANGELOG.md, under the current version
	$(BIN)/towncrier build --yes --version "$$($(BIN)/slurm-worker --version | cut -d' ' -f2)"

test: setup ## run all checks and tests; the stack is left as it was
	@$(MAKE) --no-print-directory lint docs unit archives
	@$(STACK_RUN) with $(MAKE) --no-print-directory integration e2e chaos-short

clean: stack-down ## stop the stack; remove its state, .venv and caches
	@[ ! -L .stack ] || rm -rf "$$(readlink .stack)"
	rm -rf .stack .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build docs/_build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

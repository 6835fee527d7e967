# Every target sets up what it needs: a machine with make and Python 3.10 or later is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH := .venv-bench
FUZZ := .venv-fuzz
SECONDS ?= 600
REPLAYS ?= 20000

.PHONY: help demo test coverage coverage-unit coverage-process lint check simulate linearizability fuzz mutants bench clean

help:
	@echo "make demo       eight workers share one breaker in front of a service that breaks and heals"
	@echo "make test       all tests"
	@echo "make coverage   which branches of src the unit tests and most of the process tests do not reach"
	@echo "make lint       the linter, the formatter and the type checker"
	@echo "make check      what CI runs"
	@echo "make simulate   lives in virtual time, SEEDS=10000 of them; SEED=17 shows one"
	@echo "make linearizability   real processes against a sequential model, HISTORIES=300 times; LOSSES=1"
	@echo "                kills their managers"
	@echo "make fuzz       the protocol, guided by coverage, for SECONDS=600; what it finds is in .fuzz"
	@echo "make mutants    small mistakes in what decides that no test notices; MODULES=circuit for one,"
	@echo "                SINCE=COMMIT for the lines that were changed since"
	@echo "make bench      the benchmarks, beside other packages: fifteen minutes, into benchmarks/RESULTS.md"

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.package: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ $(VENV)/.package

demo: $(VENV)/.package
	@$(BIN)/python examples/pool.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest

SEEDS ?= 10000
simulate: $(VENV)/.dev
	@PYTHONPATH=tests:tests/unit $(BIN)/python -m simulation \
		$(if $(SEED),--replay $(SEED),--seeds $(SEEDS)) $(if $(PLANT),--plant $(PLANT))

HISTORIES ?= 300
linearizability: $(VENV)/.dev
	@PYTHONPATH=tests $(BIN)/python -m linearizability --histories $(HISTORIES) \
		$(if $(SEED),--seed $(SEED)) $(if $(LOSSES),--losses)

# What the unit tests reach, and what others do besides.
coverage: coverage-unit
	$(MAKE) coverage-process

# Of the shells, what is reached with real processes, in those that end in good order: one that is
# killed, as managers often are here, takes what it has seen with it. Left out are the tests that take
# long for what they add, and those that fork while other threads run: coverage takes a lock in these,
# which the child would never get.
TRACED := api cli deaths guarantees leases manager outages peers
coverage-process: $(VENV)/.dev
	$(BIN)/coverage run -m pytest -m 'not untraced' $(TRACED:%=tests/process/test_%.py)
	$(BIN)/coverage combine --quiet --append
	$(BIN)/coverage report --fail-under=93

# The unit tests alone, which have to reach every branch of what decides.
coverage-unit: $(VENV)/.dev
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest tests/unit
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/coverage report --fail-under=100 --include="$$($(BIN)/python tests/unit/pure.py)"

# Not in CI, because it takes half an hour. What was found is kept in .mutants while nothing has changed.
mutants: $(VENV)/.dev
	$(BIN)/python tests/mutation $(if $(SINCE),--since $(SINCE)) $(MODULES)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check:
	.ci/run

# The peers have an environment of their own: nothing of them is needed for anything else.
$(BENCH)/.peers: benchmarks/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement benchmarks/requirements.txt --editable .
	touch $@

bench: $(BENCH)/.peers
	$(BENCH)/bin/python benchmarks/run.py

# So has the fuzzer, which is made for fewer Pythons than the package.
$(FUZZ)/.created: pyproject.toml
	$(PYTHON) -m venv $(FUZZ)
	$(FUZZ)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	touch $@

fuzz: $(FUZZ)/.created
	PYTHONPATH=tests/unit $(FUZZ)/bin/python tests/fuzzing/campaign.py \
		--seconds $(SECONDS) --replays $(REPLAYS)

clean:
	rm -rf $(VENV) $(BENCH) $(FUZZ) .venv-3.* .coverage .coverage.* .fuzz .mutants histories build dist

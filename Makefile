# Everything a person or CI does here. Versions are pinned in pyproject.toml.
PYTHON ?= python3
PROMPT ?= a red house and a sailboat at sunset
OUT    ?= out/picture.png
VENV   := .venv
export PROMPT OUT # the shell reads them as variables: any quote or backtick in them is only text
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check install --quiet

.PHONY: help run serve test parity check format lint types proto proto-lint models bench soak clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t14

run: $(VENV)/serve ## one picture from a fresh clone: PROMPT="..." OUT=picture.png
	@$(BIN)/mediagen generate --start-service -o "$$OUT" -- "$$PROMPT"

serve: $(VENV)/serve ## the service, until Ctrl-C, on MEDIAGEN_GRPC_ADDRESS (default 127.0.0.1:50051); JSON at 127.0.0.1:50080/docs
	@$(BIN)/mediagen serve

test: $(VENV)/all ## the whole test suite
	@$(BIN)/python -m pytest

parity: $(VENV)/all ## every comparison with diffusers: minutes
	@$(BIN)/python -m pytest tests/parity -m "thorough or not thorough"

check: format lint types proto-lint test ## everything CI looks at

format: $(VENV)/all ## is the code formatted?
	@$(BIN)/ruff format --check .

lint: $(VENV)/all ## style and likely mistakes
	@$(BIN)/ruff check .

types: $(VENV)/all ## mypy, strict
	@$(BIN)/mypy

proto-lint: $(VENV)/all ## the public API's style
	@cd proto && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code

proto: $(VENV)/all ## generate the stubs in client/mediagen
	@$(BIN)/python -m grpc_tools.protoc -I proto --python_out=client --pyi_out=client --grpc_python_out=client \
		proto/mediagen/v1/*.proto proto/mediagen/builder/v1/*.proto

DEMO := demo/checkpoints
TITLE := Flat landscapes: a tiny checkpoint of the shape of

models: $(VENV)/all ## render model_repository from the default checkpoints
	@$(BIN)/python -m export sd15 --checkpoint $(DEMO)/sd15 --out model_repository --title "$(TITLE) Stable Diffusion 1.5"
	@$(BIN)/python -m export sdxl --checkpoint $(DEMO)/sdxl --refiner $(DEMO)/sdxl-refiner --out model_repository \
		--title "$(TITLE) SDXL, with its refiner"
	@$(BIN)/python -m export photomaker --checkpoint $(DEMO)/sdxl-photomaker/photomaker.bin --engine sdxl --out model_repository
	@$(BIN)/python -m export ssd --checkpoint $(DEMO)/ssd --image-encoder $(DEMO)/sdxl/image_encoder \
		--out model_repository --title "$(TITLE) SSD-1B"
	@$(BIN)/python -m export sd3 --checkpoint $(DEMO)/sd3 --out model_repository --title "$(TITLE) SD3"

bench: $(VENV)/all ## what a call costs outside its engines
	@$(BIN)/python -m bench.overhead

soak: $(VENV)/all ## 500 loads and unloads of variants under traffic: is every answer right, does nothing grow?
	@$(BIN)/python -m bench.soak --cycles 500

clean: ## remove the environment and everything generated
	rm -rf $(VENV) out .cache build *.egg-info

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { echo "mediagen needs Python 3.11 or 3.12; name one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) && touch $@

$(VENV)/serve: pyproject.toml | $(VENV)/created
	@echo "installing the serving set (about a minute, no torch)"
	@$(PIP) -e '.[serve]' && touch $@

$(VENV)/all: $(VENV)/serve
	@echo "installing what export, training and tests need (several minutes: torch)"
	@$(PIP) -e '.[serve,export,demo,dev]' && touch $@

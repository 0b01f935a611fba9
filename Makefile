# make demo    read an example page with the bundled model
# make test    everything that needs no system package, in two processes (JOBS=8: in eight)
# make test-container    the tests of what ships, with the container's own versions (7 GB, once)
# make test-wheel    build the wheel, install it with all that it asks for elsewhere, read a page
# make test-newest    the network's tests with the newest transformers that pyproject.toml allows
# make check   ruff, mypy and the layers of ARCHITECTURE.md
# make bench   full-size random model on this machine, the library's plain class and ours
# make evaluate    read synthetic pages with the bundled model and measure how well
# make pocket  train a model like the bundled one from nothing, into build/pocket-5: hours
# make gpu-report    what an NVIDIA card does: build/gpu-report.json after six minutes
# make verify-checkpoint    for owners of the real weights: load, read three pages, write a report
#
# Everything runs in .venv, which is made when needed. On a machine without a GPU, PyTorch's CPU
# build saves several GB:
#     make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
# The six minutes of gpu-report do not include making .venv, nor writing 6.7 GB of random weights
# once. The torch in .venv is built for CUDA 13, which needs driver 580 or later. For an older driver
# make .venv with a build for CUDA 12, or use a Python of your own that has torch for your card and
# the libraries of requirements/cpu.txt beside it (requirements/cuda.txt pins torch 2.8 and a wheel of
# flash-attn for Python 3.12):
#     make gpu-report TORCH_INDEX=https://download.pytorch.org/whl/cu126
#     make gpu-report GPU_PYTHON=python3

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2
BENCH ?=
GPU ?=
GPU_PYTHON ?= $(BIN)/python
VERIFY ?=
NEWEST := $(CURDIR)/build/newest
NETWORK_TESTS := $(patsubst %,tests/test_%.py,\
	golden checkpoint kernels slots engine adapters vision_kernels)
PAGES ?= 100
SEED ?= 1000003
MODEL ?= pocket
MEASURES ?= ocr:tiny ocr:small ocr:base ocr:gundam markdown:tiny locate:tiny

.PHONY: help demo test test-container test-wheel test-newest check format bench evaluate pocket gpu-report \
	verify-checkpoint clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile | head -11

$(READY): pyproject.toml requirements/checkout.txt requirements/serve.txt tests/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name one with: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements/checkout.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--editable .
	@touch $@

demo: $(READY)
	@echo "Reading examples/fruit.png with the bundled model: a toy of 16 MB that reads a few"
	@echo "lines of clean print. Real pages need the 6.7 GB checkpoint: checkpoints/README.md."
	@echo
	$(BIN)/deepseek-ocr read --model pocket examples/fruit.png

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

test-container:
	OMP_NUM_THREADS=1 $(PYTHON) tests/container.py $(if $(TORCH_INDEX),--index $(TORCH_INDEX)) -- \
		--numprocesses $(JOBS) --dist loadfile

test-wheel:
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(PYTHON) -m venv "$$folder/venv" \
		&& $(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir "$$folder" . \
		&& "$$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
			$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$$folder"/*.whl \
		&& cp examples/fruit.png "$$folder/page.png" && cd "$$folder" \
		&& venv/bin/deepseek-ocr read page.png --model pocket | tee text && grep -qx 'Apple 12' text

test-newest: $(READY)
	rm -rf $(NEWEST)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--target $(NEWEST) "$$(sed -n 's/^ *"\(transformers[^"]*\)".*/\1/p' pyproject.toml)"
	@ls -d $(NEWEST)/transformers-*
	OMP_NUM_THREADS=1 PYTHONPATH=$(NEWEST) $(BIN)/python -m pytest --numprocesses $(JOBS) \
		--dist loadfile $(NETWORK_TESTS)
	PYTHONPATH=$(NEWEST) $(BIN)/python -m deepseek_ocr read --model pocket examples/fruit.png

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python -m benchmarks.page_speed $(BENCH)

evaluate: $(READY)
	rm -rf build/evaluate
	$(BIN)/deepseek-ocr synth --output build/evaluate/pages --pages $(PAGES) --seed $(SEED) \
		--clean --fonts held-out
	$(BIN)/deepseek-ocr split --data_root build/evaluate/pages \
		--output_dir build/evaluate --test_fraction 1
	for measure in $(MEASURES); do \
		$(BIN)/deepseek-ocr evaluate --data_root build/evaluate/pages \
			--test_file build/evaluate/test.json --model_path $(MODEL) \
			--task $${measure%%:*} --size $${measure##*:} --max_tokens 1024 \
			--output_dir build/evaluate/$${measure%%:*}-$${measure##*:} || exit; \
	done

pocket: $(READY)
	$(BIN)/python -m deepseek_ocr.training.pocket.train_pocket --stage 1 --output build/pocket-1
	for stage in 2 3 4 5; do before=build/pocket-$$((stage - 1)); \
		$(BIN)/python -m deepseek_ocr.training.pocket.train_pocket --stage $$stage --output build/pocket-$$stage \
			--start $$before/model --heads $$before/heads.safetensors || exit; \
	done

gpu-report: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(READY))
	$(GPU_PYTHON) -m benchmarks.gpu $(GPU)

verify-checkpoint: $(READY)
	$(BIN)/deepseek-ocr verify-checkpoint $(VERIFY)

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis

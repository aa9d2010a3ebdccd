# The README's commands. `make demo` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NVCC := $(shell command -v nvcc 2>/dev/null)
export LRCN_CUDA ?= $(if $(NVCC),ON,OFF)

.PHONY: setup build demo test bench gpu gpu-resources lint format clean

# Installed once per change of pyproject.toml; `build` is incremental.
$(VENV)/.installed: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "torch>=2.10" torchvision
	$(BIN)/pip install --quiet "scikit-build-core>=0.11" "pybind11>=3" ninja cmake
	$(BIN)/python -c "import sys, tomllib; e = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print('\n'.join(sorted({r for x in ('torch', 'models', 'encoders', 'cli', 'train', 'video', 'runtime', 'caffe', 'export', 'demo', 'eval', 'dev') for r in e[x] if not r.startswith('lrcn_fast')})))" > $(VENV)/requirements.txt
	$(BIN)/pip install --quiet "numpy>=1.26" -r $(VENV)/requirements.txt
	touch $@

NATIVE := $(shell find csrc CMakeLists.txt -type f)
$(VENV)/.built: $(VENV)/.installed $(NATIVE)
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

build setup: $(VENV)/.built

demo: setup
	$(BIN)/lrcn-fast demo

test: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/run.py

bench: setup
	$(BIN)/python benchmarks/run.py

# On a machine with an NVIDIA GPU, with $(PYTHON)'s own torch: nothing is installed or downloaded.
# STEPS="build test" does only those; benchmarks/gpu.py names them all.
gpu:
	$(PYTHON) benchmarks/gpu.py $(STEPS)

# Registers, shared memory and spills of every kernel; needs nvcc, no GPU.
gpu-resources:
	$(PYTHON) benchmarks/cuda_resources.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.cpp' 'tests/*.h' 'tests/*.cu' | xargs $(BIN)/clang-format --dry-run --Werror

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.cpp' 'tests/*.h' 'tests/*.cu' | xargs $(BIN)/clang-format -i

clean:
	rm -rf build $(VENV)

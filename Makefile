# Everything a contributor runs; see CONTRIBUTING.md.
PYTHON ?= python
SANITIZERS ?= address,undefined thread
CLANG ?= clang++-19
DOCS_TOOLS := $(shell sed -n 's/^docs = \[\(.*\)\]$$/\1/p' pyproject.toml | tr -d ',')

.PHONY: develop test interpret gpu ptx ptx-sanitize triton-matrix host-matrix matrix
.PHONY: sanitize clang arm
.PHONY: docs tutorial notebook lint format bench clean

develop: ## editable install with every tool
	$(PYTHON) -m pip install -e ".[dev,bench]"

test:
	$(PYTHON) -m pytest

interpret: ## Triton kernels on the interpreter, no GPU
	TRITON_INTERPRET=1 $(PYTHON) -m pytest -m interpret tests/interpret

gpu: ## on a machine with an NVIDIA GPU
	bash benchmarks/gpu_suite.sh --quick

ptx: ## compiled Triton kernels on the PTX machine, no GPU (docs/ptx.md)
	$(PYTHON) -m pytest -m ptx tests/ptx

ptx-sanitize: ## the PTX machine's own tests, with the machine under ASan and UBSan
	SEDE_PTX_SANITIZE=address,undefined ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  $(PYTHON) -m pytest -q --capture=sys -m ptx tests/ptx --ignore tests/ptx/test_kernels.py \
	  --ignore tests/ptx/test_suites.py

triton-matrix: ## compiler report and executed kernels with the other versions of Triton; hours
	bash .ci/triton-matrix

host-matrix: ## tests of each PyPI host with its oldest allowed version (docs/integrations.md)
	PYTHON=$(PYTHON) bash .ci/host-matrix oldest

matrix: ## all tests with VERSIONS=oldest or newest of torch, numpy and Triton, in an environment of its own
	PYTHON=$(PYTHON) bash .ci/matrix $(or $(VERSIONS),newest)

# All instruction sets are compiled from one text: for data races the narrowest and the widest do.
sanitize: ## the native tests under each sanitizer
	for kind in $(SANITIZERS); do \
	  case $$kind in thread) isas=avx512bf16 ;; *) isas= ;; esac; \
	  cmake -S . -B build/sanitize-$$kind -DSEDE_SANITIZE=$$kind -DSEDE_TESTS=ON \
	    -DSEDE_ISAS=$$isas -DSEDE_PYTHON=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo && \
	  cmake --build build/sanitize-$$kind -j2 && \
	  ctest -j2 --test-dir build/sanitize-$$kind --output-on-failure || exit 1; \
	done

clang: ## the native tests as Clang compiles them, every warning an error
	cmake -S . -B build/clang -DCMAKE_CXX_COMPILER=$(CLANG) -DCMAKE_CXX_FLAGS=-Werror \
	  -DSEDE_TESTS=ON -DSEDE_PYTHON=OFF
	cmake --build build/clang -j2
	ctest -j2 --test-dir build/clang --output-on-failure

# Debian: apt install g++-aarch64-linux-gnu qemu-user. The emulator cannot start threads after a fork.
arm: ## the native tests cross-compiled for aarch64, BF16 included, in an emulator
	cmake -S . -B build/arm -DCMAKE_TOOLCHAIN_FILE=csrc/tests/aarch64.cmake \
	  -DSEDE_TESTS=ON -DSEDE_PYTHON=OFF
	cmake --build build/arm -j2
	ctest --test-dir build/arm --output-on-failure --exclude-regex test_threads

docs: ## the pages as HTML in build/docs; a warning is an error
	$(PYTHON) -m pip install -q $(DOCS_TOOLS)
	PYTHONSAFEPATH=1 $(PYTHON) -m sphinx -q -W --keep-going -b html -d build/doctrees docs build/docs

tutorial: ## run every block of docs/tutorial.md
	$(PYTHON) docs/_sphinx/notebook.py docs/tutorial.md

notebook: ## the same, and write docs/tutorial.ipynb
	$(PYTHON) docs/_sphinx/notebook.py docs/tutorial.md --write

lint:
	$(PYTHON) -m pip install -q ruff==0.17.6 mypy==2.4.1
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

bench:
	$(PYTHON) -m benchmarks.run --quick

clean:
	rm -rf build dist *.egg-info sede_kernels/_cpu*.so

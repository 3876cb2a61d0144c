# A thin front for CMake: installs what is missing, gets and builds llama.cpp once
# outside the tree, then builds, tests and shows cqkv. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := build

# Another model for `make demo`: make demo MODEL=path/to/model.gguf
MODEL ?=

.PHONY: help deps build wheel test demo asan tsan slow format lint clean

help:
	@echo 'make build   cqkv, the device and llama.cpp programs in build/bin'
	@echo 'make demo    calibrate SmolLM2, compare a 1-bit cache as in the paper with ours, copy a text (MODEL=other.gguf)'
	@echo 'make wheel   the Python package, in dist'
	@echo 'make test    build and run the test suite, sanitizers included'
	@echo 'make tsan    the library under the thread sanitizer'
	@echo 'make slow    the long tests on real models'
	@echo 'make format  clang-format over our sources;  make lint: clang-tidy'

deps:
	@scripts/install_deps.sh

build: deps
	@scripts/build.sh release programs

wheel: build
	@cmake --build build --target cqkv_shared
	@scripts/wheel.sh

test: deps
	@scripts/test.sh

asan: deps
	@scripts/build.sh asan

tsan: deps
	@scripts/tsan.sh

slow: deps
	@scripts/build.sh release
	@CQKV_GEMMA_MODEL=$$(scripts/models.sh gemma) ctest --test-dir build -L slow --output-on-failure

demo: build
	@scripts/demo.sh $(MODEL)

format:
	@scripts/format.sh

lint:
	@scripts/lint.sh

clean:
	rm -rf build build-dev build-asan build-tsan build-fuzz build-fuzz-plain

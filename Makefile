# make book     set up, build the book, serve it         (SERVE=0 only builds; PORT=8000)
# make test     set up, run everything
# make lab      set up, lay the exercises out in work/, open JupyterLab there
# make grade EX=04_onnxruntime/ex01_first_session        (FILE= another answer than the one in work/)
# make bench SUITE=cpu SYSTEM=my-laptop                 (ONLY='mlp-*' some cases; AGAIN=1 finished ones too)
# make check    only the rules of the house
# make gpu-test on a machine with an NVIDIA GPU: graders and solutions with the current TensorRT and onnxruntime-gpu

SHELL := /bin/sh
SERVE ?= 1
PORT ?= 8000
EX ?=
FILE ?=
CHROMIUM ?=
JOBS ?= 2
SUITE ?= cpu
SYSTEM ?=
ONLY ?=
AGAIN ?=
PY = .venv/bin/python
export PYTHON CHROMIUM WITH_TORCH
# onnxruntime reports on its use since 1.29, unless told not to.
export ORT_DISABLE_TELEMETRY = 1
.DEFAULT_GOAL := help
.PHONY: help book test lab grade bench check notebooks proofs model lock gpu-test setup setup-test clean

help:
	@sed -n '/^# /s/^# //p; /^$$/q' Makefile

setup:
	@sh course/bootstrap.sh book

setup-test:
	@sh course/bootstrap.sh test

book: setup
	@$(PY) -m course.build --port $(PORT) $(if $(filter 0 no false,$(SERVE)),--no-serve)

# The pages' tests build the book once and share it; each exercise's cases run side by side.
test: setup-test
	@$(PY) -m pytest tests solutions --nbval -n $(JOBS) --dist loadscope -q -rs

check: setup-test
	@$(PY) -m course.house && $(PY) -m course.apinames && $(PY) -m course.notebooks --check && $(PY) -m pytest tests -n $(JOBS) --dist loadscope -q -rs

lab: setup
	@$(PY) -m course.notebooks --work
	@.venv/bin/jupyter lab --notebook-dir=work $(if $(filter 0,$(shell id -u)),--allow-root)

grade: setup
	@$(PY) -m course.check "$(EX)" $(if $(FILE),--file "$(FILE)")

bench: setup
	@$(PY) -m course.bench $(SUITE) $(if $(SYSTEM),--system $(SYSTEM)) $(if $(ONLY),--only $(ONLY)) $(if $(AGAIN),--again)

notebooks: setup
	@$(PY) -m course.notebooks --run

proofs: setup
	@$(PY) -m course.proofs --write

model:
	@WITH_TORCH=1 sh course/bootstrap.sh book
	@$(PY) models/digits_mlp/make.py

lock: setup
	@.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" --extra dev --extra cpu pyproject.toml -o requirements.txt
	@.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" --extra gpu pyproject.toml -o requirements-gpu.txt

gpu-test:
	@sh course/bootstrap.sh gpu
	@.venv-gpu/bin/python -m pytest tests/03_tensorrt tests/04_onnxruntime tests/course/test_exercises.py -q -rs

clean:
	rm -rf _build .pytest_cache .ruff_cache

# make demo      from a clone to a released, served model, with the proof
# make test      the whole test suite
# make test-slow trainings killed at any moment, and whatever else takes minutes
# make test-harness  EleutherAI's lm-evaluation-harness against our server
# make test-stores  releases in S3 and in an OCI registry, on servers of their own
# make test-clients  three generations of the openai client against a live server (.venv-clients)
# make test-ray  the stages over Ray Data, on a cluster of one machine
# make test-vllm exports asked in a real vLLM, which gets a virtual environment of its own (.venv-vllm)
# make setup     .venv with everything (both call it; seconds when nothing changed)
#
# A torch that is already in .venv is kept: create .venv and install yours first if you have a GPU.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
TORCH  ?= torch==2.13.0
BIN    := .venv/bin

.PHONY: setup demo test test-slow test-harness test-ray test-vllm test-stores test-clients lint clean
setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet '$(TORCH)'
	@$(BIN)/python -c 'import torch; print("torch==" + torch.__version__)' > .venv/torch.txt
	@$(BIN)/python -m pip install --quiet -c constraints.txt -c .venv/torch.txt -e '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/python scripts/demo.py

test: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-slow: setup
	@$(BIN)/python -m pytest -m slow

test-harness: setup
	@$(BIN)/python -m pip install --quiet -c constraints.txt -c .venv/torch.txt -e '.[dev,harness]'
	@$(BIN)/python -m pytest -m harness tests/api/test_harness.py

test-ray: setup
	@$(BIN)/python -m pip install --quiet -c constraints.txt -c .venv/torch.txt -e '.[dev,ray]'
	@$(BIN)/python -m pytest -m ray tests/data/test_over_ray.py

test-vllm: setup
	@TORCH='$(TORCH)' bash scripts/install_vllm.sh .venv-vllm
	@TUNESMITH_VLLM=.venv-vllm/bin/vllm $(BIN)/python -m pytest -m vllm tests/exports/test_vllm.py tests/serving/test_vllm_engine.py

test-stores: setup
	@$(BIN)/python -m pip install --quiet -c constraints.txt -c .venv/torch.txt -e '.[dev,stores]'
	@scripts/install_registry.sh .venv/registry
	@$(BIN)/python -m pytest -m stores tests/releases/test_stores_s3.py tests/releases/test_stores_registry.py

test-clients: setup
	@PYTHON='$(PYTHON)' scripts/install_clients.sh .venv-clients
	@TUNESMITH_CLIENTS=.venv-clients $(BIN)/python -m pytest -m clients tests/api/test_clients.py

lint: setup
	@$(BIN)/ruff check .

clean:
	rm -rf .venv .venv-vllm .venv-clients .tunesmith .pytest_cache .ruff_cache

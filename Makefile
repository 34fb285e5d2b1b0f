# make demo       sets everything up, trains on the embedded data set, prints the tables, leaves pictures in runs/demo
# make demo-mudeep   the same with MuDeep_v2; pictures, one of its attention, in runs/demo-mudeep
# make test       sets everything up and runs the tests
# make lint       checks the style of Python and C++ files
# make bench      sets everything up and times the operators beside their peers on the processor, in a quarter of an hour;
#                 fails where a ratio in benches/results got worse. BENCH="--only knn,dmli --quick" takes a part of it
# make bench-growth  how time and memory grow with the number of images
# make gpu-check  builds, tests, sanitizes and benchmarks on the GPU with the PYTHON that is there, no environment and no
#                 network; in under eight minutes, into runs/gpu-check. CHECK="--only bench --rows knn" takes a part of it
#
# PYTHON=python3.12 chooses the interpreter the environment is made with, VENV=path where it lies. REIDOPS_DATA=path adds the
# tests on real data. Build variables (REIDOPS_CUDA, TORCH_CUDA_ARCH_LIST, CUDA_HOME, MAX_JOBS) are described in setup.py.

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
BENCHES := dmli_matrix knn k_reciprocal rank_metrics batch_hard dmli channel_attention threads simd
BENCH_ENVIRONMENT := env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE OPENBLAS_NUM_THREADS=2 OMP_NUM_THREADS=2
SOURCES := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)

.PHONY: demo demo-mudeep test lint bench bench-growth gpu-check clean
.DELETE_ON_ERROR:

demo: $(VENV)/built
	$(RUN) -m train.demo --output runs/demo

demo-mudeep: $(VENV)/built
	$(RUN) -m train.demo --system mudeep --output runs/demo-mudeep

test: $(VENV)/built
	$(RUN) -m pytest

lint: $(VENV)/built
	$(RUN) -m pip install -q ruff==0.17.5 clang-format==23.1.5  # as in .pre-commit-config.yaml
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(SOURCES)

bench: $(VENV)/built $(VENV)/peers
	$(BENCH_ENVIRONMENT) $(RUN) -m pytest $(BENCHES:%=benches/bench_%.py) -q --tb=short --benchmark-quiet $(BENCH)

bench-growth: $(VENV)/built
	$(BENCH_ENVIRONMENT) $(RUN) -m benches.cpu.growth

gpu-check:
	$(PYTHON) -m benches.gpu_check $(CHECK)

# The environment, in three steps, each made again when what it depends on has changed.
$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "reidops needs Python 3.10 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@command -v c++ >/dev/null || { echo "reidops needs a C++ compiler: apt install g++"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "no virtual environment could be made: apt install python3-venv"; exit 1; }
	@touch $@

$(VENV)/packages: $(VENV)/created pyproject.toml
	$(RUN) -m pip install --quiet "setuptools>=77" ninja pybind11 numpy scipy torch torchvision "pillow>=10.1" tqdm matplotlib tensorboard "h5py>=3.5" pytest pytest-benchmark
	@touch $@

$(VENV)/built: $(VENV)/packages setup.py $(SOURCES)
	$(RUN) -m pip install --quiet --no-build-isolation --no-deps --editable .
	$(RUN) -m reidops
	@touch $@

$(VENV)/peers: $(VENV)/packages
	$(RUN) -m pip install --quiet pytorch-metric-learning faiss-cpu torchmetrics || echo "some peers cannot be installed: the table says which"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info reidops/*.so reidops/_build.py

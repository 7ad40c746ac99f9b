# make demo    a fleet of sixteen daemons on real sensor data, compared with local and centralised training
# make test    everything the project promises, on whatever brokers this machine has
# make test-pi the trainer and the daemon on an emulated Raspberry Pi 4, which it makes first; a part of make test
# make chaos   kill -9 of every process, broken networks, set clocks, at named points and from a seed; a part of make test
# make chaos-long  400 faults on each broker, some half an hour; again with the seed it printed: make chaos-long CHAOS_SEED=…
# make soak    500 devices under kills and broken connections, half an hour; a short one is a part of make test
# make check   formatting, types and import direction only
# make bench   the numbers in bench/, printed with their baselines
# make bench-training   a training step beside PyTorch's, some ten minutes
# make fuzz    ten million hostile inputs to the decoders of the wire, some fifty minutes
# make bench-simulation a hundred thousand simulated devices, some five minutes
# make bench-aggregation  strategies, stragglers, attacks and folds on a simulated fleet, more than an hour
# make bench-downlink   accuracy against bytes down, some half an hour
# make bench-api    latency of reads over HTTP with 10 000 devices stored, about a minute
# make dashboard        build the dashboard anew (needs node and npm; what is built is committed, so nobody else does)
# make screens          the screenshots of docs/screens, with a live fleet, some two minutes (needs chromium)
# make bench-dashboard  how soon the dashboard is there with 10 000 devices, about a minute (needs chromium)
# make bench-throughput   updates a second through broker, bridge, log and fold, some two minutes
# make bench-reliability  more than a thousand kills, then fifty thousand hostile messages, some fifty minutes
# make bench-codec      bytes of an update against the entropy bound, and other coders

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-pi chaos chaos-long check bench bench-training bench-aggregation bench-downlink bench-simulation \
  bench-codec bench-api bench-dashboard fuzz dashboard screens clean system-packages

demo: $(VENV)/demo
	@$(BIN)/fedfleet demo

# A developer without the network gets the other tests, and the reason; CI has to run them all.
test: system-packages check
	@$(BIN)/python -m tests.pi.root || [ -z "$$CI" ]
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

# PyTorch is what gradients are compared with; it is several GB with CUDA, so elsewhere those tests are skipped.
ifdef CI
test: $(VENV)/torch
endif

test-pi: $(VENV)/test
	@$(BIN)/python -m tests.pi.root
	@$(BIN)/python -m pytest tests/pi

chaos: $(VENV)/test
	@$(BIN)/python -m pytest tests/chaos

soak: $(VENV)/test
	@SOAK_SECONDS=1800 SOAK_DEVICES=500 $(BIN)/python -m pytest -s tests/soak

chaos-long: $(VENV)/test
	@CHAOS_FAULTS=$${CHAOS_FAULTS:-400} $(BIN)/python -m pytest tests/chaos/test_faults.py -k storm -s

check: $(VENV)/test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/test
	@for script in $(filter-out bench/training.py bench/reliability.py bench/downlink.py bench/simulation.py bench/attacks.py bench/watch.py bench/dashboard.py,$(wildcard bench/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# PyTorch, to compare with: .venv/bin/pip install torch==2.13.0 (a CPU build)
bench-training: $(VENV)/test
	@$(BIN)/python bench/training.py --out bench/results/training.json

# The fuzzer itself grows by some 800 MB in a million runs; the decoders do not.
fuzz: $(VENV)/test
	@for seed in 1 2 3 4 5; do \
	  $(BIN)/python tests/fuzz/decoders.py -runs=2000000 -seed=$$seed -max_len=2000 -rss_limit_mb=2048 -print_final_stats=1 || exit 1; \
	done

# Fashion-MNIST: apt-get install dataset-fashion-mnist. Finished runs stay in .bench and are not run again.
bench-aggregation: $(VENV)/test
	@$(PIP) --editable '.[demo,simulate]'
	@$(BIN)/python bench/commit.py --out bench/results/commit.json
	@$(BIN)/python bench/in_flight.py --out bench/results/in_flight.json
	@for name in mlp small-buffer cnn stragglers sound; do \
	  $(BIN)/fedfleet simulate bench/aggregation/$$name.toml --out .bench/$$name --plots || exit 1; \
	  mkdir -p bench/results/aggregation/$$name && cp .bench/$$name/*.svg bench/results/aggregation/$$name || exit 1; \
	  $(BIN)/fedfleet simulate bench/aggregation/$$name.toml --out .bench/$$name --json > bench/results/aggregation/$$name/comparison.json || exit 1; \
	done
	@$(BIN)/python bench/attacks.py --out bench/results/attacks.json
	@$(BIN)/python bench/watch.py --out bench/results/watch.json

bench-downlink: $(VENV)/test
	@$(BIN)/python bench/downlink.py --out bench/results/downlink.json

bench-simulation: $(VENV)/test
	@$(BIN)/python bench/simulation.py --out bench/results/simulation.json

bench-api: $(VENV)/test
	@$(BIN)/python bench/api.py --out bench/results/api.json

bench-dashboard: $(VENV)/test
	@$(BIN)/python bench/dashboard.py

bench-throughput: $(VENV)/test
	@$(BIN)/python bench/throughput.py --out bench/results/throughput.json

bench-reliability: $(VENV)/test
	@$(BIN)/python -m bench.reliability --out bench/results/reliability.json

bench-codec: $(VENV)/test
	@$(PIP) --group bench
	@$(BIN)/python bench/codec.py --out bench/results/codec.json

dashboard:
	@cd aggregator/dashboard/source && npm ci --no-fund --no-audit && npm run build

screens: $(VENV)/test
	@$(BIN)/python -m tests.browser.screens

clean:
	rm -rf $(VENV) .demo .pi

$(VENV)/demo: pyproject.toml | $(BIN)/pip
	@echo "installing fedfleet with the demo's packages …"
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/test: pyproject.toml $(VENV)/demo
	@echo "installing the tests' packages …"
	@$(PIP) --upgrade 'pip>=25.1'
	@$(PIP) --group test
	@touch $@

$(VENV)/torch: $(VENV)/test
	@echo "installing PyTorch …"
	@$(PIP) torch==2.13.0 onnxscript
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fedfleet needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing python3-venv …"; apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null; \
	  else \
	    echo "Python's venv module is missing; install it with: sudo apt-get install python3-venv" >&2; exit 1; \
	  fi
	@$(PYTHON) -m venv $(VENV)

# Without root the tests of mosquitto, of set clocks and of the dashboard are skipped, with the reason in pytest's summary.
system-packages:
	@if ! command -v mosquitto >/dev/null && ! [ -x /usr/sbin/mosquitto ] && [ "$$(id -u)" = 0 ] \
	  && command -v apt-get >/dev/null; then \
	  echo "installing mosquitto …"; apt-get update -qq && apt-get install -y -qq --no-install-recommends mosquitto >/dev/null; \
	fi
	@if ! ls /usr/lib/*/faketime >/dev/null 2>&1 && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing libfaketime …"; apt-get update -qq && apt-get install -y -qq --no-install-recommends libfaketime >/dev/null; \
	fi
	@if ! command -v mosquitto_sub >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing mosquitto-clients …"; apt-get update -qq && apt-get install -y -qq --no-install-recommends mosquitto-clients >/dev/null; \
	fi
	@if ! command -v chromium >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing chromium …"; apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	fi

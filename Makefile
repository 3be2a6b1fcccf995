# Two commands for a newcomer, as root on Debian 12 or 13: `make demo` and `make test`. Both set up what they need.
PYTHON = .venv/bin/python

.PHONY: demo demo-qemu test check unit lab-test lab-test-all lab-test-long lab-test-qemu soak ready bench-scale bench-failover clean

ready:
	@lab/bootstrap.sh

# The main job on real kernels: a replicated LUN that changes nodes while a client writes to it.
demo: ready
	$(PYTHON) -m lab.demo

demo-qemu: ready
	$(PYTHON) -m lab.demo --machines qemu

test: check unit lab-test

check: ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

unit: ready
	$(PYTHON) -m pytest

# One boot, and the main story on it.
lab-test: ready
	$(PYTHON) -m pytest tests/lab --timeout 900

# All that fits on that boot: the lab itself, contracts on a real kernel, bad input, access, killed agents.
lab-test-all: ready
	HACTL_LAB_SWITCHOVERS=10 $(PYTHON) -m pytest tests/lab tests/lab/more --timeout 900

# Campaigns that are too long for each change: kills at random moments, nodes that come and go. SEED from the
# output of an earlier run makes the same choices again.
KILLS = 30
SEED =
lab-test-long: ready
	HACTL_LAB_ROUNDS=$(KILLS) HACTL_LAB_SEED=$(SEED) $(PYTHON) -m pytest tests/lab/long -s --timeout 7200

# The same with every machine in QEMU: slow where there is no KVM.
lab-test-qemu: ready
	HACTL_LAB_MACHINES=qemu HACTL_LAB_SWITCHOVERS=10 $(PYTHON) -m pytest tests/lab tests/lab/more --timeout 3600

# The lab tests again and again, up to the first failure.
ROUNDS = 20
soak: ready
	for round in $$(seq $(ROUNDS)); do echo "round $$round"; $(PYTHON) -m pytest -q -x tests/lab --timeout 900 || exit 1; done

# What hactl costs by number of resources, and beside targetctl: docs/benchmarks.md. On a quiet machine.
bench-scale: ready
	$(PYTHON) -m tests.bench.scale

# The pause that a host sees when a unit changes nodes, beside the stock set-up on the same machines: docs/benchmarks.md.
bench-failover: ready
	$(PYTHON) -m lab.bench_failover

clean:
	-.venv/bin/lab down --remove
	rm -rf .venv build out

# Each target does one thing; `make help` lists them. QEMU=... tests and measures another binary,
# with words behind it if need be: make test QEMU="/opt/qemu/bin/qemu-system-x86_64 -L /opt/qemu/share"

BUILD := build
VENV := .venv
PY := $(VENV)/bin/python
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Integration tests, demo and bench need root; they enter namespaces of their own first.
ROOT_PY := $(SUDO) env $(if $(QEMU),LINKMGR_QEMU="$(QEMU)") $(PY)
NEXT_QEMU := $(BUILD)/qemu-next/qemu
# What the distribution that this machine runs decides; empty where it has no answer.
OWN := $(shell scripts/debian.sh own)
OTHER := $(shell scripts/debian.sh other)
NEWER := $(shell scripts/debian.sh newer)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.PHONY: setup
setup: $(BUILD)/packages.stamp $(VENV)/stamp ## Install Debian packages and the virtual environment

$(BUILD)/packages.stamp: packages.txt
	@scripts/debian.sh setup
	@mkdir -p $(BUILD)
	@missing=$$(scripts/missing-packages.sh packages.txt); \
	if [ -z "$$missing" ]; then \
		echo "setup: all Debian packages of packages.txt are installed"; \
	else \
		echo "setup: installing Debian packages: $$missing"; \
		$(SUDO) apt-get update -qq && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $$missing; \
	fi
	@touch $@

$(VENV)/stamp: requirements.lock pyproject.toml | $(BUILD)/packages.stamp
	@scripts/make-venv.sh $(VENV)
	@touch $@

.PHONY: lock
lock: ## Write requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --all-extras --group dev -o requirements.lock pyproject.toml
	uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header -c requirements.lock -o packaging/requirements.lock pyproject.toml
	echo hatchling | uv pip compile --quiet --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header -c requirements.lock -o packaging/build-requirements.lock -
	uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header -c requirements.lock --group graph -o scripts/graph-requirements.lock

# What goes into an installation: everything but the compiled remains of a run.
PRODUCT := $(shell find linkmgr packaging hooks -type f -not -path '*/__pycache__/*') \
	pyproject.toml README.md LICENSE

.PHONY: install
install: ## Install under $DESTDIR$PREFIX (/usr/local), on the system's python3
	@DESTDIR="$(DESTDIR)" PREFIX="$(or $(PREFIX),/usr/local)" WHEELS="$(WHEELS)" packaging/install.sh

.PHONY: uninstall
uninstall: ## Remove what `make install` has put under $DESTDIR$PREFIX
	@DESTDIR="$(DESTDIR)" PREFIX="$(or $(PREFIX),/usr/local)" packaging/uninstall.sh

.PHONY: install-tree
install-tree: $(BUILD)/install.stamp ## Install into build/install, for the package and its tests

$(BUILD)/install.stamp: $(PRODUCT)
	@rm -rf $(BUILD)/install
	@DESTDIR="$(abspath $(BUILD))/install" PREFIX=/usr WHEELS="$(abspath $(BUILD))/wheels" \
		packaging/install.sh
	@touch $@

.PHONY: deb
deb: $(BUILD)/deb.stamp ## Build the Debian package

$(BUILD)/deb.stamp: $(BUILD)/install.stamp
	@rm -f $(BUILD)/linkmgr_*.deb
	@packaging/deb.sh $(BUILD)/install $(BUILD)
	@touch $@

# A package of each distribution, in build/packages/SUITE, and one of an older linkmgr, from which its
# test upgrades, where this checkout has its commit.
SUITES := bookworm trixie sid
PACKAGE_BEFORE := $(shell git rev-parse --quiet --verify --short=7 e39dc5c^{commit})
packages = $(foreach suite,$(1),$(addprefix $(BUILD)/packages/$(suite)/,.complete \
	$(PACKAGE_BEFORE:%=%/.complete)))

.PHONY: debs
debs: $(SUITES:%=$(BUILD)/packages/%/.complete) ## Build each Debian's package, in its root

$(BUILD)/packages/%/.complete: $(PRODUCT) scripts/deb-in-root.sh | %
	@$(SUDO) scripts/deb-in-root.sh $*

$(BUILD)/packages/%/$(PACKAGE_BEFORE)/.complete: | %
	@$(SUDO) scripts/deb-in-root.sh $* $(PACKAGE_BEFORE)

.PHONY: test-debs
test-debs: $(call packages,$(SUITES)) images ## Try each package in its Debian, with its systemd and libvirt
	@for suite in $(SUITES); do $(SUDO) scripts/host-root.sh $$suite || exit; done
	@$(SUDO) env LINKMGR_SUITES="$(SUITES)" $(PY) -m pytest -q tests/integration/project/test_packages.py

.PHONY: own-root
own-root: $(BUILD)/packages.stamp ## Make a minimal root of this Debian for the package's tests
	@scripts/debian.sh roots && $(SUDO) packaging/root.sh $(OWN)

.PHONY: other-root
other-root: $(BUILD)/packages.stamp ## Make that of the other Debian whose tests run here
	@scripts/debian.sh roots && $(SUDO) packaging/root.sh $(OTHER)

# The other generations, in roots by debootstrap that are entered in namespaces. What is tried there
# is what depends on libvirt, QEMU, Python or systemd; the rest depends on the kernel, which is this one's.
of_room = $(patsubst %,tests/integration/$(1)/test_%.py,$(2))
GENERATION_TESTS := \
	$(call of_room,swap,story names swaps failures_before failures_gone failures_steps \
		failures_switch failures_watch) \
	$(call of_room,libvirt,libvirt_walk prepare domain_cables listener hook libvirt_passthrough \
		lifecycle_matrix migration host_upgrade) \
	$(call of_room,manager,lifecycle) \
	$(call of_room,hypervisors/qemu,failures_monitor failures_qemu)

.PHONY: bookworm
bookworm: setup ## Make a root of Debian 12 in which the tests run
	@$(SUDO) scripts/test-root.sh $@

.PHONY: trixie
trixie: setup ## Make a root of Debian 13 in which the tests run
	@$(SUDO) scripts/test-root.sh $@

.PHONY: sid
sid: setup ## Make a root of sid in which the tests run
	@$(SUDO) scripts/test-root.sh $@

# Its argument is the suite.
in_root = mkdir -p $(BUILD)/results && exec $(SUDO) env OUT=$(abspath $(BUILD))/results \
	scripts/in-root.sh $(1) python scripts/test-files.py --unit --report /out/$(1).json \
	$(GENERATION_TESTS)

.PHONY: test-trixie
test-trixie: trixie images ## Run what depends on libvirt, QEMU or Python on Debian 13
	@$(call in_root,trixie)

.PHONY: test-sid
test-sid: sid images ## Run it on sid
	@$(call in_root,sid)

.PHONY: compatibility
compatibility: setup ## Write docs/compatibility.md from what these three reported
	@$(PY) scripts/compatibility.py

.PHONY: images
images: $(BUILD)/packages.stamp ## Build the test guest
	@$(MAKE) --no-print-directory -C vm-images

.PHONY: qemu-next
qemu-next: $(BUILD)/packages.stamp ## Unpack the newer QEMU of the backports
	@scripts/qemu-next.sh

.PHONY: corpus-source
corpus-source: $(BUILD)/packages.stamp ## Fetch the domains of libvirt's own tests
	@scripts/corpus-source.sh

.PHONY: corpus
corpus: setup corpus-source ## Prepare and undo all domains of libvirt's own tests
	@$(PY) -m tests.corpus

.PHONY: corpus-sid
corpus-sid: sid corpus-source ## Do so under sid's libvirt and Python
	@exec $(SUDO) scripts/in-root.sh sid python -m tests.corpus

.PHONY: demo
demo: setup images ## Run the story: boot without a cable, plug, swap, unplug
	@$(ROOT_PY) examples/demo.py

# What the tests need is built at the same time, and beside the checks: most of it is downloading.
.PHONY: test
test: setup ## Run every check and test
	@$(MAKE) --no-print-directory --jobs=3 --output-sync lint $(TEST_NEEDS)
	@$(MAKE) --no-print-directory test-all

TEST_NEEDS := images own-root deb qemu-next corpus-source $(OTHER) $(call packages,$(OTHER))

.PHONY: test-all
test-all: setup $(TEST_NEEDS) ## Run all of these, three files at a time
	@$(ROOT_PY) scripts/test-files.py --unit $(if $(NEWER),--next $(abspath $(NEXT_QEMU))) \
		$(if $(OTHER),--suite $(OTHER)) --report $(BUILD)/results/$(OWN).json

.PHONY: test-newer
test-newer: setup images $(OTHER) ## Run the marked subset on Debian 13, from there on Debian 12
	@scripts/debian.sh roots
	@$(ROOT_PY) scripts/test-files.py --suite $(OTHER) --only-suite

.PHONY: test-unit
test-unit: setup ## Run the tests that need no root
	$(PY) -m pytest -q tests/unit

.PHONY: test-integration
test-integration: setup images own-root other-root deb corpus-source ## Run the tests against real QEMU and kernel
	@$(ROOT_PY) scripts/test-files.py

.PHONY: test-next
test-next: setup images qemu-next ## Run the marked subset on the newer QEMU
	$(if $(NEWER),$(SUDO) env LINKMGR_QEMU=$(abspath $(NEXT_QEMU)) $(PY) -m pytest -q -m next_qemu tests/integration)

.PHONY: lint
lint: setup check-commits ## Check style, types, the direction of imports and the form of commits
	$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/ruff format --quiet --check .
	$(VENV)/bin/mypy --no-error-summary
	$(VENV)/bin/lint-imports --no-cache

.PHONY: check-commits
check-commits: setup ## Check the form of commits, where their history is here
	@$(PY) -m scripts.check_commits

.PHONY: format
format: setup ## Format the code
	$(VENV)/bin/ruff check --quiet --fix .
	$(VENV)/bin/ruff format --quiet .

# drawsvg is for this target alone; requirements.lock, with which the tests run, is without it.
$(VENV)/graph.stamp: scripts/graph-requirements.lock | $(VENV)/stamp
	@$(VENV)/bin/pip --disable-pip-version-check --quiet install --no-deps --require-hashes -r $<
	@touch $@

.PHONY: graph
graph: setup $(VENV)/graph.stamp ## Draw the imports between rooms; count rooms, arrows and lines
	@$(PY) -m scripts.graph --svg $(BUILD)/graph.svg

.PHONY: way
way: setup ## Count files, tasks and locks between the route of a plug and its swap
	@$(ROOT_PY) -m scripts.way_of_a_plug

.PHONY: bench
bench: setup images ## Measure; exits 1 when a budget is missed
	@$(ROOT_PY) -m bench

.PHONY: bench-hostile
bench-hostile: setup images ## Measure what attackers cost other guests; exits 1 when it is too much
	@$(ROOT_PY) -m bench.hostile

.PHONY: soak
soak: setup images ## Swap 10,000 times; exits 1 when something has grown
	@$(ROOT_PY) -m bench.soak

.PHONY: soak-kill
soak-kill: setup images ## Kill the service 1,000 times; exits 1 when something is lost, left or taken
	@$(ROOT_PY) -m bench.soak.kills $(if $(SEED),--seed $(SEED))

.PHONY: clean
clean: ## Remove what was built and the virtual environment
	$(SUDO) rm -f $(BUILD)/*/.complete # first: what is half removed is not whole
	$(SUDO) rm -rf $(BUILD) $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

# SPDX-License-Identifier: GPL-2.0-or-later
# What a person types. The work is done by tools/packaging/host (this machine), tests/lab/ (guests)
# and tools/qcow2attach/ (the tool).

LAB := tests/lab/lab
KERNEL ?= stable

# Those of tools/packaging/host, whose defaults are there.
export KVER DESTDIR PREFIX DKMS HOST_BUILD

all:
	+@tools/packaging/host build

install uninstall:
	+@tools/packaging/host $@

help:
	@echo 'make              build the modules and the tool for the running kernel (needs its headers)'
	@echo 'make install      the same, and install them: the modules (by DKMS where it is), the tool,'
	@echo '                  manual page, completion and udev rule. KVER=RELEASE for another kernel,'
	@echo '                  PREFIX=/usr/local, DKMS=yes|no, DESTDIR=; docs/install.md tells more'
	@echo 'make uninstall    remove what that has installed'
	@echo 'make demo         show it all in a guest: an image, a VM on it, and the proof'
	@echo 'make check        static checks, unit tests, and the suite in guests'
	@echo 'make check-full   everything on every kernel (hours)'
	@echo 'make bench        how fast it is, next to what else there is (docs/performance.md)'
	@echo 'make shell        a shell in a guest with the modules loaded (KERNEL=stable|backports|um|debug|kcsan)'
	@echo 'make lab-build    build for the guest kernel KERNEL into build/KERNEL/'
	@echo 'make clean        remove build/'
	@echo
	@echo 'make check ONLY=NAME runs the test files whose name holds NAME; docs/lab.md tells more.'

lab-build:
	@$(LAB) build $(KERNEL)

shell:
	@$(LAB) shell --kernel $(KERNEL)

check:
	@$(LAB) check $(ONLY)

check-full:
	@$(LAB) check --full $(ONLY)

bench:
	@tests/bench/bench.py $(BENCH)

demo:
	@tests/demo/demo

clean:
	rm -rf build

.PHONY: all install uninstall help lab-build shell check check-full bench demo clean

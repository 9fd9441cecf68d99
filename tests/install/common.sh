# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
# What the installation tests share: steps that are counted, and what is on the machine.
# They are shell, since a Debian that was prepared for `make install` alone has no pytest.
kind=${1:-}

user='admin'
export DEBIAN_FRONTEND=noninteractive
tree=/home/$user/qcow2attach

# record STEP OUTCOME
record() {
	[ -z "${LAB_RESULTS:-}" ] || echo "{\"id\": \"${0##*/}${kind:+ $kind}: $1\", \"outcome\": \"$2\"}" >>"$LAB_RESULTS"
}

# step WHAT FUNCTION: one test; later ones stand on it, so the first that fails is the last.
step() {
	record "$1" started
	(set -eu; "$2")
	status=$?
	if [ "$status" = 0 ]; then
		echo "passed  $1"
		record "$1" passed
	else
		echo "FAILED  $1 (exit code $status)"
		record "$1" failed
		exit 1
	fi
}

check() {
	"$@" || { echo "not true: $*" >&2; exit 1; }
}

refuse() {
	if "$@" >&2; then
		echo "should have failed: $*" >&2
		exit 1
	fi
}

# The project as its user has it; files that a build left are none of his.
unpack() {
	mkdir "$tree"
	tar -C /repo --exclude=./build --exclude=./.git -cf - . | tar -C "$tree" -xf -
	chown -R "$user:" "$tree"
}

as_user() {
	runuser -l "$user" -c "cd qcow2attach && $1"
}

# The commands of the README, as they stand there.
readme() {
	sed -n "/^<!-- $1 -->/,/^<!-- end -->/s/^    //p" "$tree/README.md"
}

# All that is on the machine, but what it has written about itself and the large trees of headers.
# Contents count where they are small and others have a hand in them; of the list of users no old copies.
snapshot() {
	find / -xdev \( -path /home -o -path /var/log -o -path /var/cache -o -path '/usr/src/linux-*' \
		-o -path '/var/lib/dkms/[!q]*' \
		-o -path /var/lib/sudo -o -path /repo -o -path /out \
		-o -path '/etc/*-' -o -path /etc/.pwd.lock \) -prune \
		-o -printf '%y %m %u:%g %p %l\n' | sort
	find /lib/modules/*/modules.* /etc -type f ! -path '/etc/*-' ! -path /etc/.pwd.lock -exec sha256sum {} + | sort -k 2
}

unchanged() {
	snapshot >/tmp/now
	check diff -u "$1" /tmp/now
}

nothing_left() {
	left=$(find / -xdev \( -path /home -o -path /repo -o -path /out \) -prune -o \( -name '*qcow2attach*' \
		-o -name 'dm-qcow2*' -o -name 'vhost-blk*' -o -path '*/lib/modules/*/updates*' \) -print)
	[ -z "$left" ] || { echo "left behind: $left" >&2; exit 1; }
}

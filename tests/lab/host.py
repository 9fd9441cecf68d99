# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine the lab runs on: its packages, its apt settings, and how we become root enough.

As root everything runs in a private mount namespace. Without root the same runs in a user namespace
whose root is us and whose other ids are our subordinate ones.
"""
import os
import pwd
import re
import shutil
import subprocess

from common import LabError, read, run, say

# command that shows the package is there -> package
NEEDED = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux", "tar": "tar"}
NEEDED_UNPRIVILEGED = {"newuidmap": "uidmap"}
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
APT = ["apt-get", "-qq", "-y", "-o", "DPkg::Lock::Timeout=600", "--no-install-recommends"]


def is_root():
    return os.geteuid() == 0


def require_packages():
    """Install what is missing when we may, else name it."""
    needed = dict(NEEDED) if is_root() else {**NEEDED, **NEEDED_UNPRIVILEGED}
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [pkg for cmd, pkg in needed.items() if not shutil.which(cmd, path=path)]
    if not os.path.exists(KEYRING):
        missing.append("debian-archive-keyring")
    if not is_root() and "uidmap" not in missing:
        require_subordinate_ids()
    if not missing:
        return
    if not is_root():
        raise LabError("these packages are missing, and only root can install them:\n"
                       f"    apt-get install --no-install-recommends {' '.join(missing)}")
    say(f"installing {' '.join(missing)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(APT + ["update"], env=env)
    run(APT + ["install"] + missing, env=env)


def require_subordinate_ids():
    """The ids besides our own in the user namespace that stands in for being root."""
    name = pwd.getpwuid(os.geteuid()).pw_name
    for path in ("/etc/subuid", "/etc/subgid"):
        lines = read(path).splitlines() if os.path.exists(path) else []
        if not any(line.split(":")[0] in (name, str(os.geteuid())) for line in lines):
            raise LabError(f"{path} gives no ids to {name}, which running this without root takes; "
                           f"as root:\n    usermod --add-subuids 100000-165535 "
                           f"--add-subgids 100000-165535 {name}")


def mirror():
    """The Debian mirror that this machine's apt is set to, or None for mmdebstrap's own default."""
    out = subprocess.run(["apt-get", "indextargets", "--format",
                          "$(CREATED_BY)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"],
                         capture_output=True, text=True).stdout
    for line in out.splitlines():
        _, label, uri = line.split("|", 2)
        if label == "Debian":
            return uri
    return None


def apt_options():
    """apt settings of this machine that a fetch from the same mirror depends on."""
    out = subprocess.run(["apt-config", "dump"], capture_output=True, text=True).stdout
    wanted = re.compile(r'^Acquire::(https?::(.*::)?Proxy|Check-Valid-Until|Check-Date|Retries)\b')
    return [line.rstrip(";") for line in out.splitlines()
            if wanted.match(line) and not line.endswith('"";')]


def as_root(argv):
    """ARGV to be run as root of a private mount namespace."""
    if is_root():
        return ["unshare", "--mount", "--"] + argv
    return ["unshare", "--user", "--map-root-user", "--map-auto", "--mount", "--"] + argv


def remove_tree(path):
    """Delete a tree whose files may belong to subordinate ids."""
    run(as_root(["rm", "-rf", "--one-file-system", path]))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Static checks; runs in the lab's root file system with the project at /repo.

Each check is a function that returns what is wrong as text, "" when nothing is, or raises Skip with the
reason why it cannot run. Outcomes go to the file that LAB_RESULTS names, in the form of the tests'.
"""
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import floors
import hygiene

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HERE = os.path.dirname(os.path.abspath(__file__))
MODULES = ("dm-qcow2", "vhost-blk")
# What Kbuild says while all is well.
PROGRESS = re.compile(r"^make(\[\d+\])?: |^\s+[A-Z][A-Z0-9]* |^warning: the compiler differs|"
                      r"^  The kernel was built by|^  You are using|^\s*$")
# checkpatch's complaints that are about patches to the kernel's own tree.
CHECKPATCH_IGNORE = "FILE_PATH_CHANGES,SPDX_LICENSE_TAG,LINUX_VERSION_CODE," \
                    "CONFIG_DESCRIPTION,CONSTANT_COMPARISON,PREFER_DEFINED_ATTRIBUTE_MACRO"
# Advice to use what only the kernel has.
USERSPACE = "PREFER_KERNEL_TYPES,VOLATILE,ENOSYS,SYMBOLIC_PERMS," \
            "PREFER_FALLTHROUGH,STRLCPY,STRCPY,STRNCPY,MINMAX,NAKED_SSCANF,SSCANF_TO_KSTRTO," \
            "CONST_STRUCT,ALLOC_WITH_MULTIPLY,ARRAY_SIZE,COMPLEX_MACRO,SPLIT_STRING,AVOID_EXTERNS"


class Skip(Exception):
    pass


def run(*argv, **kw):
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", **kw)
    return done.returncode, done.stdout


def verdict(status, text):
    """A tool that fails without a word is a finding, too."""
    return text or (f"exit code {status}" if status else "")


def files(*suffixes, under=("",)):
    return [f for f in hygiene.tracked(REPO) if f.endswith(suffixes) and
            any(f.startswith(u) for u in under)]


@contextlib.contextmanager
def directory():
    """An empty one, always of the same name, so that ccache knows what was compiled in it before."""
    path = os.path.join(tempfile.gettempdir(), "static")
    os.mkdir(path)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def module(name, *make_args, also=None):
    """Build a module from scratch in a temporary directory; what the tools say about it, and what
    ALSO says about the objects when all is well."""
    if not os.path.exists(f"{REPO}/{name}/Kbuild"):
        raise Skip(f"{name} has no Kbuild")
    release = open("/lab/kernel/release").read().strip()
    with directory() as tmp:
        shutil.copytree(f"{REPO}/{name}", f"{tmp}/{name}")
        status, text = run("make", "-C", f"/lib/modules/{release}/build", f"M={tmp}/{name}",
                           f"-j{os.cpu_count()}", "VMLINUX=/lab/kernel/vmlinux",
                           "CONFIG_DEBUG_INFO_BTF_MODULES=", *make_args, "modules")
        text = text.replace(f"{tmp}/", "")
        said = verdict(status, "\n".join(x for x in text.splitlines() if not PROGRESS.match(x)))
        return said or (also(f"{tmp}/{name}") if also else "")


def gcc_and_sparse(name):
    return module(name, "W=1", "C=2", also=lambda objects: floors.check(REPO, name, objects))


def clang(name):
    """Only what is about our files: the kernel's headers are not clean here."""
    text = module(name, "W=1", f"CC={HERE}/clang-for-gcc-kernel")
    return "\n".join(x for x in text.splitlines()
                     if re.match(rf"{name}/\S+\.[ch]:.*: (warning|error)|.*(exit code|\bError\b)", x))


def tool_builds(compiler, also=None):
    if not os.path.exists(f"{REPO}/tools/qcow2attach/Makefile"):
        raise Skip("the tool has no Makefile")
    with directory() as tmp:
        status, text = run("make", "-s", "--no-print-directory", "-C", f"{REPO}/tools/qcow2attach",
                           f"O={tmp}", f"-j{os.cpu_count()}", f"CC={compiler}")
        return verdict(status, text.strip()) or (also(f"{tmp}/obj") if also else "")


def tool_gcc():
    return tool_builds("gcc -Werror", also=lambda objects: floors.check(REPO, "tools/qcow2attach",
                                                                        objects))


def cppcheck():
    sources = files(".c", under=("tools/",))
    if not sources:
        raise Skip("no sources")
    status, text = run("cppcheck", "--quiet", "--enable=warning,portability,performance",
                       "--inline-suppr", "--error-exitcode=1", f"-j{os.cpu_count()}",
                       "--suppress=missingIncludeSystem",
                       "--suppress=normalCheckLevelMaxBranches", "--suppress=nullPointerOutOfMemory",
                       "--suppress=nullPointerArithmeticOutOfMemory", *sources, cwd=REPO)
    return verdict(status, text.strip())


def checkpatch(under, ignore):
    if not os.path.exists("/lab/src/scripts/checkpatch.pl"):
        raise Skip("the kernel's source is not here; use `lab static`")
    sources = files(".c", ".h", under=under)
    if not sources:
        raise Skip("no sources")
    status, text = run("perl", "/lab/src/scripts/checkpatch.pl", "--no-tree", "--file", "--terse",
                       "--no-summary", "--max-line-length=100", "--ignore", ignore, *sources, cwd=REPO)
    return verdict(status, text.strip())


def shell():
    scripts = [f for f in hygiene.tracked(REPO)
               if re.match(r"#!.*\b(sh|bash)\b", hygiene.first_line(REPO, f))]
    status, text = run("shellcheck", "-S", "warning", *scripts, cwd=REPO)
    return verdict(status, text.strip())


def python():
    bad = []
    for name in files(".py"):
        try:
            compile(open(os.path.join(REPO, name)).read(), name, "exec")
        except SyntaxError as e:
            bad.append(str(e))
    return "\n".join(bad)


def manual():
    pages = files(".8", ".7", ".5")
    if not pages:
        raise Skip("no manual pages")
    status, text = run("mandoc", "-T", "lint", "-W", "warning", *pages, cwd=REPO)
    return verdict(status, text.strip())


def checks():
    for name in MODULES:
        yield f"{name}: gcc W=1, sparse and floors", gcc_and_sparse, (name,)
        yield f"{name}: clang W=1", clang, (name,)
        yield f"{name}: checkpatch", checkpatch, ((name + "/",), CHECKPATCH_IGNORE)
    yield "tool: gcc and floors", tool_gcc, ()
    yield "tool: clang", tool_builds, ("clang -Werror",)
    yield "tool: cppcheck", cppcheck, ()
    yield "tool: checkpatch", checkpatch, (("tools/",), CHECKPATCH_IGNORE + "," + USERSPACE)
    yield "test programs: checkpatch", checkpatch, (("tests/",),
                                                    CHECKPATCH_IGNORE + "," + USERSPACE)
    yield "shell scripts", shell, ()
    yield "python files", python, ()
    yield "manual pages", manual, ()
    for name, function in hygiene.RULES.items():
        yield f"repository: {name}", function, (REPO,)


def main():
    failed = False
    for name, function, args in checks():
        reason = ""
        try:
            reason = function(*args)
            outcome = "failed" if reason else "passed"
        except Skip as e:
            outcome, reason = "skipped", str(e)
        failed |= outcome == "failed"
        print(f"{outcome:8}{name}" + (f": {reason}" if outcome == "skipped" else ""), flush=True)
        if outcome == "failed":
            print("\n".join("        " + line for line in reason.splitlines()[:60]), flush=True)
        if os.environ.get("LAB_RESULTS"):
            with open(os.environ["LAB_RESULTS"], "a") as f:
                f.write(json.dumps({"id": name, "outcome": outcome, "reason": reason}) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * filter-arch.h - seccomp's name of the architecture that this is built for. System
 * calls of another one, which a kernel may have, too, have other numbers.
 */
#ifndef QCOW2ATTACH_FILTER_ARCH_H
#define QCOW2ATTACH_FILTER_ARCH_H

#include <linux/audit.h>

#if defined(__x86_64__)
#define FILTER_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define FILTER_ARCH AUDIT_ARCH_AARCH64
#elif defined(__riscv) && __riscv_xlen == 64
#define FILTER_ARCH AUDIT_ARCH_RISCV64
#elif defined(__s390x__)
#define FILTER_ARCH AUDIT_ARCH_S390X
#elif defined(__powerpc64__) && defined(__LITTLE_ENDIAN__)
#define FILTER_ARCH AUDIT_ARCH_PPC64LE
#else
#error "tell filter-arch.h the seccomp name of this architecture"
#endif

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * filter-arch.h - what the system-call filters share: the instructions that they are made of, and
 * seccomp's name of the architecture that this is built for. System calls of another architecture,
 * which a kernel may have, too, have other numbers.
 */
#ifndef QCOW2ATTACH_FILTER_ARCH_H
#define QCOW2ATTACH_FILTER_ARCH_H

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>

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

/* The low half of an argument, wherever this byte order keeps it. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define ARG_LOW 0
#else
#define ARG_LOW 4
#endif

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, what)

#endif

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * icount-plugin.c - a plugin for QEMU that counts the instructions which a guest runs, by place.
 *
 *	-plugin FILE,out=PATH
 *
 * Counts between the two marks of tests/progs/icount_mark.c, and writes PATH.0, PATH.1 and so on, a
 * line `ADDRESS INSTRUCTIONS` for each block of code that was run. All that runs below the kernel's
 * addresses is counted at address 0. For one CPU (`lab run --icount`): there are no locks.
 *
 * QEMU's own header for plugins is in no package, so what is used of it is declared here.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KERNEL 0xffff800000000000ull
#define BUCKETS (1u << 16)

struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { NO_REGISTERS };

/* The interface of version 3, QEMU 9.1 and later. */
int qemu_plugin_version = 3;
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id,
					   void (*cb)(uint64_t id, struct qemu_plugin_tb *tb));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb,
					  void (*cb)(unsigned int cpu, void *data), int flags,
					  void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn,
					    void (*cb)(unsigned int cpu, void *data), int flags,
					    void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t idx);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *dest, size_t len);
int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv);

struct block {
	struct block *next;
	uint64_t address;
	uint64_t instructions;	/* in it */
	uint64_t count;		/* run */
};

static const unsigned char begin_mark[] = { 0x0f, 0x1f, 0x80, 0x71, 0x63, 0x6f, 0x77 };
static const unsigned char end_mark[] = { 0x0f, 0x1f, 0x80, 0x71, 0x63, 0x6f, 0x78 };
static struct block *buckets[BUCKETS];
static const char *out;
static bool counting;
static unsigned int written;

/* A place is translated more than once, and may be cut differently each time. */
static struct block *block_of(uint64_t address, uint64_t instructions)
{
	struct block **head = &buckets[(address >> 2 ^ instructions) % BUCKETS], *b;

	for (b = *head; b; b = b->next)
		if (b->address == address && b->instructions == instructions)
			return b;
	b = calloc(1, sizeof(*b));
	if (!b)
		abort();
	*b = (struct block){ *head, address, instructions, 0 };
	*head = b;
	return b;
}

static void run_block(unsigned int cpu, void *data)
{
	struct block *b = data;

	(void)cpu;
	if (counting)
		b->count += b->instructions;
}

static void begin(unsigned int cpu, void *data)
{
	(void)cpu;
	(void)data;
	for (unsigned int i = 0; i < BUCKETS; i++)
		for (struct block *b = buckets[i]; b; b = b->next)
			b->count = 0;
	counting = true;
}

static void end(unsigned int cpu, void *data)
{
	char path[4096];
	FILE *f;

	(void)cpu;
	(void)data;
	if (!counting)
		return;
	counting = false;
	snprintf(path, sizeof(path), "%s.%u", out, written++);
	f = fopen(path, "w");
	if (!f) {
		perror(path);
		return;
	}
	for (unsigned int i = 0; i < BUCKETS; i++)
		for (struct block *b = buckets[i]; b; b = b->next)
			if (b->count)
				fprintf(f, "%" PRIx64 " %" PRIu64 "\n", b->address, b->count);
	fclose(f);
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb)
{
	uint64_t address = qemu_plugin_tb_vaddr(tb);
	size_t n = qemu_plugin_tb_n_insns(tb);

	(void)id;
	if (address < KERNEL) {
		for (size_t i = 0; i < n; i++) {
			struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
			unsigned char code[sizeof(begin_mark)];

			if (qemu_plugin_insn_data(insn, code, sizeof(code)) != sizeof(code))
				continue;
			if (!memcmp(code, begin_mark, sizeof(code)))
				qemu_plugin_register_vcpu_insn_exec_cb(insn, begin, NO_REGISTERS,
								       NULL);
			if (!memcmp(code, end_mark, sizeof(code)))
				qemu_plugin_register_vcpu_insn_exec_cb(insn, end, NO_REGISTERS,
								       NULL);
		}
		address = 0;
	}
	qemu_plugin_register_vcpu_tb_exec_cb(tb, run_block, NO_REGISTERS, block_of(address, n));
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	(void)info;
	for (int i = 0; i < argc; i++)
		if (!strncmp(argv[i], "out=", 4))
			out = strdup(argv[i] + 4);
	if (!out) {
		fprintf(stderr, "icount-plugin: out=PATH is missing\n");
		return -1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}

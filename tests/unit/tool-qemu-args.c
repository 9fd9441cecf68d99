// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * tool-qemu-args.c - what `run` makes of QEMU command lines, and other texts
 * that the tool reads: sizes, and lines of the kernel's log.
 */
#include <string.h>

#include "kmsg.h"
#include "qemu-args.h"
#include "tool-test.h"
#include "util.h"

#define DISK_TAIL " -chardev socket,id=qcow2attach-chardev,path=/s -device " \
	"vhost-user-blk-pci,id=qcow2attach-disk,chardev=qcow2attach-chardev,num-queues=2"
#define MEMORY(bytes) " -object memory-backend-memfd,id=qcow2attach-memory,size=" bytes \
	",share=on -machine memory-backend=qcow2attach-memory"

static void split(const char *line, struct strv *out)
{
	char *copy = xstrdup(line), *save = NULL;

	for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save))
		strv_add(out, xstrdup(w));
	free(copy);
}

static int build(const char *line, const struct qemu_disk *disk, char *result, size_t len)
{
	struct strv args = { 0 }, out = { 0 };
	size_t at = 0;
	int ret;

	split(line, &args);
	ret = qemu_args_build(args.v, disk, &out);
	result[0] = '\0';
	for (size_t i = 0; i < out.n; i++)
		at += snprintf(result + at, len - at, "%s%s", i ? " " : "", out.v[i]);
	strv_free(&args);
	strv_free(&out);
	return ret;
}

/* LINE gets TAIL added. */
static void expect(const char *line, const char *tail)
{
	struct qemu_disk disk = { .socket = "/s", .queues = 2, .bootindex = -1 };
	char result[2048], wanted[2048];

	CHECK(!build(line, &disk, result, sizeof(result)), "%s: %s", line, cause_text());
	snprintf(wanted, sizeof(wanted), "%s%s", line, tail);
	CHECK(!strcmp(result, wanted), "\n  got    %s\n  wanted %s", result, wanted);
}

static void expect_refused(const char *line, const char *words)
{
	struct qemu_disk disk = { .socket = "/s", .queues = 2, .bootindex = -1 };
	char result[2048];

	CHECK(build(line, &disk, result, sizeof(result)) == -1, "%s", line);
	CHECK(strstr(cause_text(), words), "'%s' is not about '%s'", cause_text(), words);
}

static void test_memory(void)
{
	expect("qemu", MEMORY("134217728") DISK_TAIL ",bootindex=0");
	expect("qemu -m 2G", MEMORY("2147483648") DISK_TAIL ",bootindex=0");
	expect("qemu --m 300", MEMORY("314572800") DISK_TAIL ",bootindex=0");
	expect("qemu -m 1G,slots=2,maxmem=4G", MEMORY("1073741824") DISK_TAIL ",bootindex=0");
	expect("qemu -m maxmem=4G,size=1G", MEMORY("1073741824") DISK_TAIL ",bootindex=0");
	expect("qemu -m 1G -m 512M -M q35", MEMORY("536870912") DISK_TAIL ",bootindex=0");
	/* What the user set up is used when it is fit, whatever its form. */
	expect("qemu -object memory-backend-memfd,id=m,size=1G,share=on -machine "
	       "q35,memory-backend=m", DISK_TAIL ",bootindex=0");
	expect("qemu -machine q35,memory-backend=m -object "
	       "{\"qom-type\":\"memory-backend-file\",\"id\":\"m\",\"share\":true}",
	       DISK_TAIL ",bootindex=0");
	expect("qemu -object memory-backend-memfd,share=yes,id=n0,size=1G -numa "
	       "node,nodeid=0,memdev=n0", DISK_TAIL ",bootindex=0");
	expect("qemu -object memory-backend-shm,id=m,size=1G -M pc,memory-backend=m",
	       DISK_TAIL ",bootindex=0");
	expect_refused("qemu -object memory-backend-memfd,id=m,size=1G -M q35,memory-backend=m",
		       "'m' is not shared");
	expect_refused("qemu -object memory-backend-ram,id=m,size=1G,share=on -M "
		       "q35,memory-backend=m", "memory-backend-ram");
	expect_refused("qemu -M q35,memory-backend=x", "no -object for the memory 'x'");
	expect_refused("qemu -numa node,mem=1G", "-numa node,mem=");
	expect_refused("qemu -mem-path /dev/hugepages", "-mem-path");
	expect_refused("qemu -m banana", "not a size");
	expect_refused("qemu -daemonize", "use attach and serve");
}

static void test_boot(void)
{
	struct qemu_disk disk = { .socket = "/a,b", .queues = 1, .bootindex = 3,
				  .properties = "bus=pci.1" };
	char result[2048];

	expect("qemu -kernel vmlinux", MEMORY("134217728") DISK_TAIL);
	expect("qemu -boot d", MEMORY("134217728") DISK_TAIL);
	expect("qemu -device virtio-net-pci,bootindex=0", MEMORY("134217728") DISK_TAIL);
	CHECK(!build("qemu -kernel x", &disk, result, sizeof(result)));
	CHECK(strstr(result, "path=/a,,b "), "%s", result);
	CHECK(strstr(result, "num-queues=1,bootindex=3,bus=pci.1"), "%s", result);
}

static void expect_queues(const char *line, unsigned int queues)
{
	struct strv args = { 0 };

	split(line, &args);
	CHECK(qemu_args_queues(args.v, 16) == queues, "%s", line);
	strv_free(&args);
}

static void test_queues(void)
{
	expect_queues("qemu", 1);
	expect_queues("qemu -smp 4", 4);
	expect_queues("qemu -smp cpus=3,maxcpus=8", 3);
	expect_queues("qemu -smp sockets=2,cores=2,threads=2", 8);
	expect_queues("qemu -smp 64", 16);
	expect_queues("qemu -smp 0", 1);
}

static void test_sizes(void)
{
	uint64_t n;
	char buf[32];

	CHECK(!parse_size("512", 1, &n) && n == 512);
	CHECK(!parse_size("4k", 1, &n) && n == 4096);
	CHECK(!parse_size("2GiB", 1, &n) && n == 2ull << 30);
	CHECK(!parse_size("7", 1 << 20, &n) && n == 7 << 20);
	CHECK(!parse_size("7B", 1 << 20, &n) && n == 7);
	CHECK(parse_size("", 1, &n) && parse_size("-1", 1, &n) && parse_size("1X", 1, &n));
	CHECK(parse_size("99999999999999999999", 1, &n) && parse_size("16E", 1, &n));
	CHECK(!strcmp(format_size(1536, buf, sizeof(buf)), "1.5 KiB"));
	CHECK(!strcmp(format_size(1ull << 40, buf, sizeof(buf)), "1 TiB"));
	CHECK(!strcmp(format_size(511, buf, sizeof(buf)), "511 B"));
}

static void test_kernel_log(void)
{
	const char *text;

	text = kmsg_line_reason("device-mapper: table: 253:3: qcow2: image is locked (-EBUSY)",
				"253:3");
	CHECK(text && !strcmp(text, "image is locked (-EBUSY)"));
	text = kmsg_line_reason("device-mapper: qcow2: vm1: metadata write failed", "253:3");
	CHECK(text && !strcmp(text, "vm1: metadata write failed"));
	CHECK(!kmsg_line_reason("device-mapper: table: 253:31: qcow2: no", "253:3"));
	CHECK(!kmsg_line_reason("device-mapper: ioctl: error adding target to table", "253:3"));
	CHECK(!kmsg_line_reason("EXT4-fs (dm-3): mounted", "253:3"));
}

int main(void)
{
	test_memory();
	test_boot();
	test_queues();
	test_sizes();
	test_kernel_log();
	return 0;
}

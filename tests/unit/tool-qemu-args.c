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

#define DISK(name) " -chardev socket,id=qcow2attach-chardev-" name ",path=/s -device " \
	"vhost-user-blk-pci,id=qcow2attach-disk-" name ",chardev=qcow2attach-chardev-" name \
	",num-queues=2"
#define DISK_TAIL DISK("vm")
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
	struct qemu_disk disk = { .name = "vm", .socket = "/s", .queues = 2, .bootindex = -1 };
	char result[2048], wanted[2048];

	CHECK(!build(line, &disk, result, sizeof(result)), "%s: %s", line, cause_text());
	snprintf(wanted, sizeof(wanted), "%s%s", line, tail);
	CHECK(!strcmp(result, wanted), "\n  got    %s\n  wanted %s", result, wanted);
}

static void expect_refused(const char *line, const char *words)
{
	struct qemu_disk disk = { .name = "vm", .socket = "/s", .queues = 2, .bootindex = -1 };
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
	/* A memfd is shared unless it is said that it is not; a file, only if it is said. */
	expect("qemu -object memory-backend-memfd,id=m,size=1G -M q35,memory-backend=m",
	       DISK_TAIL ",bootindex=0");
	expect("qemu -object {\"qom-type\":\"memory-backend-memfd\",\"id\":\"m\"} -M "
	       "q35,memory-backend=m", DISK_TAIL ",bootindex=0");
	expect_refused("qemu -object memory-backend-memfd,id=m,size=1G,share=off -M "
		       "q35,memory-backend=m", "'m' is not shared: remove share=off");
	expect_refused("qemu -object {\"qom-type\":\"memory-backend-memfd\",\"id\":\"m\","
		       "\"share\":false} -M q35,memory-backend=m", "'m' is not shared");
	expect_refused("qemu -object memory-backend-file,id=m,size=1G,mem-path=/x -M "
		       "q35,memory-backend=m", "'m' is not shared: add share=on");
	expect_refused("qemu -object memory-backend-ram,id=m,size=1G,share=on -M "
		       "q35,memory-backend=m", "memory-backend-ram");
	expect_refused("qemu -M q35,memory-backend=x", "no -object for the memory 'x'");
	expect_refused("qemu -numa node,mem=1G", "-numa node,mem=");
	expect_refused("qemu -mem-path /dev/hugepages", "-mem-path");
	/* What is null is not said. */
	expect("qemu -object {\"qom-type\":null,\"id\":null} -device {\"driver\":null,"
	       "\"memdev\":null}", MEMORY("134217728") DISK_TAIL ",bootindex=0");
	expect_refused("qemu -m banana", "invalid size");
	expect_refused("qemu -daemonize", "use attach and serve");
}

/* Memory in slots can be private, too; memory that guests share with each other is not theirs. */
static void test_slots(void)
{
	static const char *const devices[] = { "pc-dimm", "nvdimm", "virtio-mem-pci" };
	char line[512];

	for (size_t i = 0; i < ARRAY_SIZE(devices); i++) {
		snprintf(line, sizeof(line), "qemu -m 1G,slots=2,maxmem=4G -object "
			 "memory-backend-ram,id=d,size=1G -device %s,memdev=d", devices[i]);
		expect_refused(line, "'d' is a memory-backend-ram");
		snprintf(line, sizeof(line), "qemu -m 1G,slots=2,maxmem=4G -device "
			 "{\"driver\":\"%s\",\"memdev\":\"d\"} -object "
			 "memory-backend-file,id=d,size=1G,mem-path=/x", devices[i]);
		expect_refused(line, "'d' is not shared");
		snprintf(line, sizeof(line), "qemu -m 1G,slots=2,maxmem=4G -object "
			 "memory-backend-memfd,id=d,size=1G -device %s,memdev=d", devices[i]);
		expect(line, MEMORY("1073741824") DISK_TAIL ",bootindex=0");
	}
	expect("qemu -object memory-backend-file,id=s,size=1M,mem-path=/x -device "
	       "ivshmem-plain,memdev=s", MEMORY("134217728") DISK_TAIL ",bootindex=0");
}

static void test_memory_sizes(void)
{
	static const struct {
		const char *text;
		const char *tail;
	} sizes[] = {
		{ "2.5G", MEMORY("2684354560") }, { "2.5g", MEMORY("2684354560") },
		{ "512", MEMORY("536870912") }, { "1.G", MEMORY("1073741824") },
		{ "1.", MEMORY("8192") }, { ".5G", MEMORY("536870912") },
		{ "0x800000f", MEMORY("134225920") }, { "64.3M", MEMORY("67428352") },
		{ "134217728B", MEMORY("134217728") }, { "1T", MEMORY("1099511627776") },
		/* rounded up, and QEMU's own size */
		{ "1000000b", MEMORY("1007616") }, { "0", MEMORY("134217728") },
	};
	char line[64], tail[1024];

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		snprintf(line, sizeof(line), "qemu -m %s", sizes[i].text);
		snprintf(tail, sizeof(tail), "%s%s", sizes[i].tail, DISK_TAIL ",bootindex=0");
		expect(line, tail);
	}
	expect("qemu -M q35,memory.size=1G", MEMORY("1073741824") DISK_TAIL ",bootindex=0");
	expect_refused("qemu -m 1.5B", "invalid size");
	expect_refused("qemu -m 0.5", "invalid size");
	expect_refused("qemu -m 0x2G", "invalid size");
	expect_refused("qemu -m 2GiB", "invalid size");
	expect_refused("qemu -m -1", "invalid size");
	expect_refused("qemu -m 1e3", "invalid size");
	expect_refused("qemu -m .", "invalid size");
	expect_refused("qemu -m 0x1.8G", "invalid size");
	expect_refused("qemu -m 8E", "too large");
	expect_refused("qemu -m 99999999999999999999", "too large");
}

/* What is said of all disks, and would not hold for this one; where there is no place for it. */
static void test_refused(void)
{
	expect_refused("qemu -snapshot", "-snapshot would not apply to this disk");
	expect_refused("qemu --snapshot -m 1G", "attach an overlay");
	expect_refused("qemu -loadvm s1", "-loadvm would revert the guest");
	expect_refused("qemu -M microvm", "-M microvm,pcie=on");
	expect_refused("qemu -M microvm,pcie=off", "'microvm' has no PCI bus");
	expect_refused("qemu -machine type=isapc", "'isapc' has no PCI bus");
	expect_refused("qemu -M none", "'none' has no PCI bus");
	expect("qemu -M microvm,pcie=on", MEMORY("134217728") DISK_TAIL ",bootindex=0");
	expect("qemu -M isapc -M q35", MEMORY("134217728") DISK_TAIL ",bootindex=0");
}

/* Names for QEMU are of the disk's name, are names to QEMU, and not there yet. */
static void test_ids(void)
{
	struct qemu_disk disk = { .name = "vm 1@x=#", .socket = "/s", .queues = 2, .bootindex = 1 };
	char first[2048], second[4096], line[2048];

	CHECK(!build("qemu", &disk, first, sizeof(first)));
	CHECK(strstr(first, "id=qcow2attach-disk-vm-1-x--,"), "%s", first);
	/* A run in a run: the second sees what the first has added. */
	snprintf(line, sizeof(line), "%s", first);
	CHECK(!build(line, &disk, second, sizeof(second)), "%s", cause_text());
	CHECK(strstr(second, "id=qcow2attach-disk-vm-1-x---2,chardev=qcow2attach-chardev-vm-1-x-"
			     "--2,"),
	      "%s", second);
	CHECK(!strncmp(second, first, strlen(first)));
	CHECK(!strstr(second + strlen(first), "memory-backend"), "%s", second);
	disk.name = "other";
	CHECK(!build(line, &disk, second, sizeof(second)));
	CHECK(strstr(second, "id=qcow2attach-disk-other,"), "%s", second);
	/* The memory's, too. */
	CHECK(!build("qemu -device x,id=qcow2attach-memory", &disk, second, sizeof(second)));
	CHECK(strstr(second, "memory-backend=qcow2attach-memory-2"), "%s", second);
}

static void test_boot(void)
{
	struct qemu_disk disk = { .name = "vm", .socket = "/a,b", .queues = 1, .bootindex = 3,
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

static void expect_printed(const char *text, const char *as)
{
	char *got = printable(text), *again = printable(got);

	CHECK(!strcmp(got, as), "%s", got);
	/* What has been made printable once stays as it is. */
	CHECK(!strcmp(again, as), "%s", again);
	free(again);
	free(got);
}

static void test_printable(void)
{
	expect_printed("", "");
	expect_printed("plain name \\ #", "plain name \\ #");
	expect_printed("two\nlines\r\t\x7f", "two\\012lines\\015\\011\\177");
	expect_printed("\033[31mred", "\\033[31mred");
	expect_printed("\u00fcml\u00e4ut \u20ac \U0001f600", "\u00fcml\u00e4ut \u20ac \U0001f600");
	/* The same sequence in one character, and one that turns the text round. */
	expect_printed("\302\23331m", "\\302\\23331m");
	expect_printed("a\u202egpj.exe", "a\\342\\200\\256gpj.exe");
	/* No UTF-8: a lone byte, an overlong slash, a surrogate, the beginning of a character. */
	expect_printed("\23331m", "\\23331m");
	expect_printed("\xc0\xaf", "\\300\\257");
	expect_printed("\xed\xa0\x80", "\\355\\240\\200");
	expect_printed("end\xe2\x82", "end\\342\\202");
}

static void test_shell_word(void)
{
	char *word = shell_word("it's $(a) \"b\"");

	CHECK(!strcmp(word, "'it'\\''s $(a) \"b\"'"), "%s", word);
	free(word);
	word = shell_word("");
	CHECK(!strcmp(word, "''"));
	free(word);
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
	test_slots();
	test_memory_sizes();
	test_refused();
	test_ids();
	test_boot();
	test_queues();
	test_sizes();
	test_printable();
	test_shell_word();
	test_kernel_log();
	return 0;
}

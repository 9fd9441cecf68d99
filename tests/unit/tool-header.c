// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * tool-header.c - the header parser against headers that are right, cut short,
 * hostile and random, and against what qemu-img says of the same image.
 */
#include <endian.h>
#include <stdbool.h>
#include <string.h>

#include "header.h"
#include "tool-test.h"

#include "../../dm-qcow2/qcow2-format.h"

static unsigned char image[4096];
static size_t image_len;

static ssize_t read_memory(void *ctx, void *buf, size_t len, uint64_t offset)
{
	size_t n;

	(void)ctx;
	if (offset >= image_len)
		return 0;
	n = image_len - offset < len ? image_len - offset : len;
	memcpy(buf, image + offset, n);
	return n;
}

static int parse(struct image_header *h, char *error, size_t len)
{
	error[0] = '\0';
	return header_parse(read_memory, NULL, h, error, len);
}

static struct qcow2_header *head(void)
{
	return (struct qcow2_header *)image;
}

static void put_extension(size_t at, uint32_t type, const char *data, uint32_t len)
{
	struct qcow2_header_ext ext = { .type = htobe32(type), .length = htobe32(len) };

	memcpy(image + at, &ext, sizeof(ext));
	if (data)
		memcpy(image + at + sizeof(ext), data, strlen(data));
}

/* A version 3 header of 64 KiB clusters over "base.qcow2". */
static void make_image(void)
{
	memset(image, 0, sizeof(image));
	image_len = sizeof(image);
	head()->magic = htobe32(QCOW2_MAGIC);
	head()->version = htobe32(3);
	head()->cluster_bits = htobe32(16);
	head()->size = htobe64(1 << 30);
	head()->header_length = htobe32(104);
	head()->refcount_order = htobe32(4);
	put_extension(104, QCOW2_EXT_BACKING_FORMAT, "qcow2", 5);
	put_extension(120, QCOW2_EXT_END, NULL, 0);
	head()->backing_file_offset = htobe64(512);
	head()->backing_file_size = htobe32(10);
	memcpy(image + 512, "base.qcow2", 10);
}

static void expect_refused(const char *words)
{
	struct image_header h;
	char error[256];

	CHECK(parse(&h, error, sizeof(error)) == -1, "expected: %s", words);
	CHECK(strstr(error, words), "'%s' is not about '%s'", error, words);
}

static void expect_accepted(struct image_header *h)
{
	char error[256];

	CHECK(!parse(h, error, sizeof(error)), "%s", error);
}

static void test_good(void)
{
	struct image_header h;

	make_image();
	expect_accepted(&h);
	CHECK(h.version == 3 && h.cluster_bits == 16 && h.size == 1 << 30);
	CHECK(h.has_backing && !strcmp(h.backing_name, "base.qcow2"));
	CHECK(!strcmp(h.backing_format, "qcow2"));

	/* Version 2 has its extensions after 72 bytes. */
	make_image();
	head()->version = htobe32(2);
	memset(image + 72, 0, 100);
	put_extension(72, QCOW2_EXT_BACKING_FORMAT, "raw", 3);
	expect_accepted(&h);
	CHECK(h.version == 2 && !strcmp(h.backing_format, "raw"));

	make_image();
	head()->backing_file_offset = 0;
	expect_accepted(&h);
	CHECK(!h.has_backing && !h.backing_name[0]);
}

static void test_hostile(void)
{
	make_image();
	head()->magic = 0;
	expect_refused("not a qcow2 image");
	make_image();
	head()->version = htobe32(4);
	expect_refused("version 4");
	make_image();
	head()->cluster_bits = htobe32(8);
	expect_refused("cluster_bits 8");
	make_image();
	head()->cluster_bits = htobe32(22);
	expect_refused("cluster_bits 22");
	make_image();
	head()->size = htobe64(1ull << 63);
	expect_refused("impossible size");
	make_image();
	head()->header_length = htobe32(96);
	expect_refused("impossible length");
	make_image();
	head()->header_length = htobe32(108);
	expect_refused("impossible length");
	make_image();
	head()->header_length = htobe32(0x80000000);
	expect_refused("impossible length");
	make_image();
	head()->backing_file_size = htobe32(1024);
	expect_refused("backing file name of 1024 bytes");
	make_image();
	head()->backing_file_size = 0;
	expect_refused("backing file name of 0 bytes");
	make_image();
	head()->backing_file_offset = htobe64(UINT64_MAX);
	expect_refused("invalid backing file name of");
	make_image();
	head()->backing_file_offset = htobe64(65536 - 5);
	expect_refused("invalid backing file name of");
	make_image();
	head()->backing_file_offset = htobe64(60);
	expect_refused("invalid backing file name of");
	/* The first cluster is shorter than the name. */
	make_image();
	head()->cluster_bits = htobe32(9);
	head()->backing_file_offset = htobe64(200);
	head()->backing_file_size = htobe32(600);
	expect_refused("backing file name of 600 bytes at offset 200");
	make_image();
	head()->backing_file_offset = htobe64(4090);
	expect_refused("ends inside its backing file name");
	make_image();
	image[515] = '\0';
	expect_refused("control character 0x00");
	make_image();
	image[515] = '\n';
	expect_refused("control character 0x0a");
	make_image();
	put_extension(104, QCOW2_EXT_BITMAPS, NULL, 0xffffffff);
	expect_refused("does not fit");
	make_image();
	put_extension(104, QCOW2_EXT_BACKING_FORMAT, NULL, 0);
	expect_refused("backing format has 0 bytes");
	make_image();
	put_extension(104, QCOW2_EXT_BACKING_FORMAT, NULL, 32);
	expect_refused("backing format has 32 bytes");
	make_image();
	image[114] = ' ';
	expect_refused("not a word");
}

/* What QEMU refuses, although nothing of it would be used. */
static void test_as_qemu(void)
{
	struct image_header h;

	make_image();
	head()->snapshots_offset = htobe64(0x1234567890abcdef);
	expect_refused("0 snapshots at offset 1311768467294899695");
	make_image();
	head()->snapshots_offset = htobe64(1ull << 63);
	expect_refused("snapshots at offset");
	make_image();
	head()->nb_snapshots = htobe32(65537);
	expect_refused("65537 snapshots");
	make_image();
	head()->snapshots_offset = htobe64(1 << 20);
	expect_accepted(&h);
	make_image();
	head()->autoclear_features = htobe64(QCOW2_AUTOCLEAR_DATA_FILE_RAW);
	expect_refused("external data file is raw");
	head()->incompatible_features = htobe64(QCOW2_INCOMPAT_DATA_FILE);
	expect_accepted(&h);
	/* In version 2 these bytes are none of the header's. */
	make_image();
	head()->version = htobe32(2);
	memset(image + 72, 0, 64);
	put_extension(72, QCOW2_EXT_FEATURE_NAMES, NULL, 16);
	image[80 + 7 + 8] = QCOW2_AUTOCLEAR_DATA_FILE_RAW;
	expect_accepted(&h);
	make_image();
	put_extension(120, QCOW2_EXT_BITMAPS, NULL, 23);
	expect_refused("bitmaps extension has 23 bytes");
	make_image();
	put_extension(120, QCOW2_EXT_BITMAPS, NULL, 24);
	expect_accepted(&h);
	head()->autoclear_features = htobe64(QCOW2_AUTOCLEAR_BITMAPS);
	expect_refused("0 bitmaps");
	make_image();
	put_extension(120, QCOW2_EXT_CRYPTO, NULL, 16);
	expect_refused("no encryption");
	make_image();
	put_extension(120, QCOW2_EXT_FEATURE_NAMES, NULL, 512 - 128 - 4);
	expect_accepted(&h);
	head()->backing_file_offset = htobe64(124);
	memcpy(image + 124, "base.qcow2", 10);
	expect_refused("4 bytes for an extension");
}

static void test_truncated(void)
{
	struct image_header h;
	char error[256];

	for (size_t len = 0; len <= 600; len++) {
		make_image();
		image_len = len;
		if (parse(&h, error, sizeof(error)))
			CHECK(error[0]);
		else
			CHECK(len >= 522, "accepted with %zu bytes", len);
	}
}

/* Whatever the bytes, the answer is well-formed. */
static void test_random(void)
{
	double until = clock_seconds() + random_seconds();
	uint64_t runs = 0, accepted = 0;

	random_begin();
	while (clock_seconds() < until) {
		struct image_header h;
		char error[64];

		make_image();
		for (uint64_t n = 1 + random_below(8); n; n--) {
			size_t at = random_below(random_below(3) ? 160 : sizeof(image));

			image[at] = random_below(2) ? random_u64() : 1u << random_below(8);
		}
		image_len = random_below(4) ? sizeof(image) : random_below(sizeof(image) + 1);
		runs++;
		if (parse(&h, error, sizeof(error))) {
			CHECK(error[0] && strnlen(error, sizeof(error)) < sizeof(error));
			continue;
		}
		accepted++;
		CHECK(h.version == 2 || h.version == 3);
		CHECK(h.cluster_bits >= 9 && h.cluster_bits <= 21);
		CHECK(h.size <= INT64_MAX);
		CHECK(strnlen(h.backing_name, sizeof(h.backing_name)) < sizeof(h.backing_name));
		CHECK(strnlen(h.backing_format, sizeof(h.backing_format)) <
		      sizeof(h.backing_format));
		CHECK(h.has_backing == !!h.backing_name[0]);
	}
	CHECK(accepted && accepted < runs);
	printf("  %llu random headers, %llu accepted\n", (unsigned long long)runs,
	       (unsigned long long)accepted);
}

static void test_against_qemu(void)
{
	static const char *const options[] = {
		"compat=0.10", "compat=1.1", "compat=1.1,cluster_size=2M",
		"compat=1.1,cluster_size=512", "compat=1.1,refcount_bits=1",
		"compat=1.1,extended_l2=on,cluster_size=64k", "compat=0.10,cluster_size=4k",
	};
	char dir[] = "/tmp/tool-header.XXXXXX", command[512];
	struct image_header h;

	if (system("qemu-img --version >/dev/null 2>&1")) {
		printf("  skipped: no qemu-img to compare with\n");
		return;
	}
	CHECK(mkdtemp(dir));
	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		uint64_t size = (i + 1) * 12345 * 512;
		FILE *f;

		snprintf(command, sizeof(command),
			 "cd %s && qemu-img create -q -f raw base %llu && qemu-img create -q -f "
			 "qcow2 -b base -F raw -o %s image %llu", dir, (unsigned long long)size,
			 options[i], (unsigned long long)size);
		CHECK(!system(command), "%s", command);
		snprintf(command, sizeof(command), "%s/image", dir);
		f = fopen(command, "r");
		CHECK(f);
		memset(image, 0, sizeof(image));
		image_len = fread(image, 1, sizeof(image), f);
		fclose(f);
		expect_accepted(&h);
		CHECK(h.size == size, "%s", options[i]);
		CHECK(!strcmp(h.backing_name, "base") && !strcmp(h.backing_format, "raw"), "%s",
		      options[i]);
		snprintf(command, sizeof(command),
			 "qemu-img info --output=json %s/image | grep -q '\"cluster-size\": %u'",
			 dir, 1u << h.cluster_bits);
		CHECK(!system(command), "%s", command);
	}
	snprintf(command, sizeof(command), "rm -r %s", dir);
	CHECK(!system(command));
}

/* What of the header is changed, and whose it is to judge: ours, or the kernel's. */
struct field {
	const char *name;
	size_t offset, width;
	bool kernels;
};

static const struct field fields[] = {
	{ "backing_file_offset", 8, 8, false },
	{ "backing_file_size", 16, 4, false },
	{ "cluster_bits", 20, 4, true },	/* with it all tables are elsewhere */
	{ "size", 24, 8, true },		/* against the L1 table's */
	{ "crypt_method", 32, 4, true },
	{ "l1_size", 36, 4, true },
	{ "l1_table_offset", 40, 8, true },
	{ "refcount_table_offset", 48, 8, true },
	{ "refcount_table_clusters", 56, 4, true },
	{ "nb_snapshots", 60, 4, true },	/* what it counts is read */
	{ "snapshots_offset", 64, 8, false },
	{ "incompatible_features", 72, 8, true },
	{ "compatible_features", 80, 8, false },
	{ "autoclear_features", 88, 8, false },
	{ "refcount_order", 96, 4, true },
	{ "header_length", 100, 4, false },
	{ "first extension", 112, 4, false },
	{ "its length", 116, 4, false },
};

static void put_number(size_t offset, size_t width, uint64_t value)
{
	for (size_t i = 0; i < width; i++)
		image[offset + i] = value >> (8 * (width - 1 - i));
}

static bool qemu_accepts(const char *path)
{
	char command[256];
	FILE *f = fopen(path, "r+");

	CHECK(f && fwrite(image, 1, image_len, f) == image_len && !fclose(f));
	/* "qemu-img info" opens an image that is not to be read, and looks less closely. */
	snprintf(command, sizeof(command), "qemu-io -r -f qcow2 -c quit %s >/dev/null 2>&1", path);
	return !system(command);
}

/* Headers that differ in one field from a good one: what we take for good QEMU takes, too. */
static void test_matrix_against_qemu(void)
{
	static const uint64_t values[] = {
		0, 1, 2, 3, 16, 24, 104, 112, 1000, 65536, 65537, 0x23852875, 0x0537be77,
		0xffffffff, 1ull << 63, 0x1234567890abcdef,
	};
	unsigned int both = 0, refused = 0, stricter = 0, kernels = 0;
	char dir[] = "/tmp/tool-header.XXXXXX", command[512], path[64], error[256];
	static unsigned char good[4096];
	FILE *f;

	if (system("qemu-img --version >/dev/null 2>&1")) {
		printf("  skipped: no qemu-img to compare with\n");
		return;
	}
	CHECK(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/image", dir);
	snprintf(command, sizeof(command), "qemu-img create -q -f qcow2 %s 1M", path);
	CHECK(!system(command));
	f = fopen(path, "r");
	CHECK(f && fread(good, 1, sizeof(good), f) == sizeof(good));
	fclose(f);
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		for (size_t j = 0; j < sizeof(values) / sizeof(values[0]); j++) {
			struct image_header h;
			bool ours, qemus;

			if (fields[i].width == 4 && values[j] > UINT32_MAX)
				continue;
			memcpy(image, good, sizeof(image));
			image_len = sizeof(image);
			put_number(fields[i].offset, fields[i].width, values[j]);
			ours = !parse(&h, error, sizeof(error));
			qemus = qemu_accepts(path);
			both += ours && qemus;
			refused += !ours && !qemus;
			stricter += !ours && qemus;
			kernels += ours && !qemus && fields[i].kernels;
			CHECK(!ours || qemus || fields[i].kernels, "%s = %#llx is taken, but not "
			      "by QEMU", fields[i].name, (unsigned long long)values[j]);
			if (!ours && qemus)
				printf("  stricter than QEMU: %s = %#llx: %s\n", fields[i].name,
				       (unsigned long long)values[j], error);
		}
	}
	printf("  headers: both take %u, both refuse %u, we alone refuse %u, the kernel is to "
	       "refuse %u\n", both, refused, stricter, kernels);
	CHECK(both && refused && kernels);
	snprintf(command, sizeof(command), "rm -r %s", dir);
	CHECK(!system(command));
}

int main(void)
{
	test_good();
	test_hostile();
	test_as_qemu();
	test_truncated();
	test_against_qemu();
	test_matrix_against_qemu();
	test_random();
	return 0;
}

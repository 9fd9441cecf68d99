// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * tool-chain.c - which chains of images are opened, and which are refused and
 * why: loops, foreign directories, protocols, special files, guessed formats.
 */
#include <endian.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "chain.h"
#include "tool-test.h"
#include "util.h"

#include "../../dm-qcow2/qcow2-format.h"

static struct chain chain;

/* An image NAME over BACKING, of this FORMAT, either of which may be NULL. */
static void make(const char *name, const char *backing, const char *format)
{
	unsigned char image[4096] = { 0 };
	struct qcow2_header *h = (void *)image;
	struct qcow2_header_ext ext;
	int fd;

	h->magic = htobe32(QCOW2_MAGIC);
	h->version = htobe32(3);
	h->cluster_bits = htobe32(16);
	h->size = htobe64((1 << 20) + 700);
	h->header_length = htobe32(104);
	if (format) {
		ext.type = htobe32(QCOW2_EXT_BACKING_FORMAT);
		ext.length = htobe32(strlen(format));
		memcpy(image + 104, &ext, sizeof(ext));
		memcpy(image + 112, format, strlen(format));
	}
	if (backing) {
		h->backing_file_offset = htobe64(1024);
		h->backing_file_size = htobe32(strlen(backing));
		memcpy(image + 1024, backing, strlen(backing));
	}
	unlink(name);
	fd = open(name, O_CREAT | O_WRONLY | O_EXCL, 0644);
	CHECK(fd >= 0);
	CHECK(write(fd, image, sizeof(image)) == sizeof(image));
	close(fd);
}

/* What a test allows besides the directory that it passes. */
static const char *backing_option;
static bool no_backing_option;

static int open_with(const char *image, const char *allowed)
{
	struct policy policy = { .none = no_backing_option };
	int ret;

	if (allowed)
		CHECK(!policy_allow(&policy, allowed), "%s", cause_text());
	if (backing_option)
		CHECK(!policy_allow_file(&policy, backing_option), "%s", cause_text());
	ret = chain_open(&chain, image, false, &policy);
	policy_free(&policy);
	return ret;
}

static void expect_opens(const char *image, const char *allowed, unsigned int layers)
{
	CHECK(!open_with(image, allowed), "%s: %s", image, cause_text());
	CHECK(chain.n == layers, "%s: %u layers", image, chain.n);
	chain_close(&chain);
}

static void expect_refused(const char *image, const char *allowed, const char *words)
{
	CHECK(open_with(image, allowed) == -1, "%s was opened", image);
	CHECK(strstr(cause_text(), words), "'%s' is not about '%s'", cause_text(), words);
	chain_close(&chain);
}

static void test_good(void)
{
	char *table;
	int fds[3];
	char expected[128];

	make("base", NULL, NULL);
	make("mid", "base", "qcow2");
	make("top", "./mid", "qcow2");
	expect_opens("base", NULL, 1);
	CHECK(!open_with("top", NULL), "%s", cause_text());
	CHECK(chain.size == ((1 << 20) | 512), "%llu", (unsigned long long)chain.size);
	for (int i = 0; i < 3; i++)
		fds[i] = chain.layer[i].fd;
	table = chain_table(&chain);
	snprintf(expected, sizeof(expected), "3 qcow2:fd:%d qcow2:fd:%d qcow2:fd:%d", fds[0],
		 fds[1], fds[2]);
	CHECK(!strcmp(table, expected), "%s", table);
	/* Only the top is open for writing. */
	CHECK((fcntl(fds[0], F_GETFL) & O_ACCMODE) == O_RDWR);
	CHECK((fcntl(fds[1], F_GETFL) & O_ACCMODE) == O_RDONLY);
	free(table);
	chain_close(&chain);

	/* A raw layer ends the chain, whatever is in it. */
	make("over-raw", "top", "raw");
	expect_opens("over-raw", ".", 2);

	/* Below the top's directory, and relative to the image that names it. */
	CHECK(!mkdir("sub", 0755));
	make("sub/base", NULL, NULL);
	make("sub/mid", "base", "qcow2");
	make("deep", "sub/mid", "qcow2");
	expect_opens("deep", NULL, 3);
	make("sub/up", "../base", "qcow2");
	expect_refused("sub/up", NULL, "not in a directory");
	expect_opens("sub/up", ".", 2);
}

static void test_names(void)
{
	make("nbd", "nbd://host/x", "raw");
	expect_refused("nbd", NULL, "the protocol 'nbd:'");
	make("json", "json:{\"driver\":\"nbd\"}", "raw");
	expect_refused("json", NULL, "json:");
	make("file", "file:base", "qcow2");
	expect_refused("file", NULL, "the protocol 'file:'");
	/* After a slash a colon is an ordinary character. */
	make("a:b", NULL, NULL);
	make("colon", "./a:b", "qcow2");
	expect_opens("colon", NULL, 2);
	make("gone", "no-such-file", "qcow2");
	expect_refused("gone", NULL, "No such file");
	make("guess", "base", NULL);
	expect_refused("guess", NULL, "never guessed");
	make("vmdk", "base", "vmdk");
	expect_refused("vmdk", NULL, "'vmdk' is not supported");
	make("notqcow", "plain", "qcow2");
	CHECK(!close(open("plain", O_CREAT | O_WRONLY, 0644)));
	expect_refused("notqcow", NULL, "not a qcow2 image");
}

static void test_places(void)
{
	struct policy dev = { 0 };
	int fd;

	make("shadow", "/etc/passwd", "raw");
	expect_refused("shadow", NULL, "/etc/passwd is not in a directory");
	expect_opens("shadow", "/etc", 2);
	CHECK(!symlink("/etc/passwd", "link"));
	make("linked", "link", "raw");
	expect_refused("linked", NULL, "/etc/passwd is not in a directory");
	CHECK(!mkfifo("fifo", 0644));
	make("pipe", "fifo", "raw");
	expect_refused("pipe", NULL, "a FIFO");
	expect_refused("fifo", NULL, "a FIFO");
	make("null", "/dev/null", "raw");
	expect_refused("null", "/dev", "a character device");
	make("dir", "sub", "raw");
	expect_refused("dir", NULL, "a directory");
	/* A magic link is not followed, wherever it leads. */
	make("magic", "/proc/self/exe", "raw");
	expect_refused("magic", "/", "links below /proc");
	/* An image in /dev does not open the rest of it. */
	fd = open("/dev", O_PATH | O_DIRECTORY | O_CLOEXEC);
	CHECK(fd >= 0 && !policy_set_home(&dev, fd));
	CHECK(!dev.has_home);
	close(fd);
	expect_refused("sub/", NULL, "a directory");
	expect_refused("sub/..", NULL, "a directory");
	/* A directory whose name begins like an allowed one is another. */
	CHECK(!mkdir("su", 0755));
	expect_refused("sub/up", "su", "not in a directory");
}

/* A raw file is taken when somebody has allowed it, not because it lies there. */
static void test_raw(void)
{
	struct policy p = { 0 };

	make("tenant", NULL, NULL);
	make("raw-over", "tenant", "raw");
	expect_refused("raw-over", NULL, "it is a raw file");
	CHECK(strstr(cause_text(), "--backing FILE") && strstr(cause_text(), "--allow-dir DIR"));
	CHECK(cause_exit() == EXIT_REFUSED);
	expect_opens("raw-over", ".", 2);
	CHECK(!mkdir("rawsub", 0755));
	make("rawsub/tenant", NULL, NULL);
	make("raw-below", "rawsub/tenant", "raw");
	expect_refused("raw-below", NULL, "it is a raw file");
	expect_opens("raw-below", "rawsub", 2);
	/* That very file, by whatever name; not another of its content. */
	backing_option = "tenant";
	expect_opens("raw-over", NULL, 2);
	expect_refused("raw-below", NULL, "it is a raw file");
	CHECK(!link("tenant", "same") && !symlink("../same", "rawsub/other-name"));
	backing_option = "rawsub/other-name";
	expect_opens("raw-over", NULL, 2);
	make("over-etc", "/etc/passwd", "raw");
	expect_refused("over-etc", NULL, "--backing FILE just this file");
	backing_option = "/etc/passwd";
	expect_opens("over-etc", NULL, 2);
	/* A qcow2 file, too, wherever it lies; but not what it stands on. */
	make("rawsub/up", "../mid", "qcow2");
	expect_refused("rawsub/up", NULL, "not in a directory");
	backing_option = "mid";
	expect_refused("rawsub/up", NULL, "base is not in a directory");
	make("rawsub/up", "../base", "qcow2");
	backing_option = "base";
	expect_opens("rawsub/up", NULL, 2);
	backing_option = NULL;
	CHECK(policy_allow_file(&p, "no-such-file") && strstr(cause_text(), "No such file"));
	CHECK(policy_allow_file(&p, "rawsub") && strstr(cause_text(), "--allow-dir"));
	policy_free(&p);
}

static void test_no_backing(void)
{
	no_backing_option = true;
	expect_refused("top", NULL, "--no-backing allows none");
	expect_refused("top", ".", "--no-backing allows none");
	expect_refused("nbd", ".", "--no-backing allows none");
	expect_opens("base", NULL, 1);
	no_backing_option = false;
}

/* An image that lies in the root directory does not open all that there is. */
static void test_root_is_no_home(void)
{
	struct policy p = { 0 };
	int fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);

	CHECK(fd >= 0 && !policy_set_home(&p, fd) && !p.has_home);
	close(fd);
	policy_free(&p);
}

static void test_loops(void)
{
	char name[32], next[32];

	make("self", "self", "qcow2");
	expect_refused("self", NULL, "a loop");
	make("one", "two", "qcow2");
	make("two", "./one", "qcow2");
	expect_refused("one", NULL, "a loop");
	for (int i = 0; i < 70; i++) {
		snprintf(name, sizeof(name), "n%d", i);
		snprintf(next, sizeof(next), "n%d", i + 1);
		make(name, next, "qcow2");
	}
	make("n70", NULL, NULL);
	expect_refused("n0", NULL, "longer than 64");
	expect_opens("n7", NULL, 64);
}

static ino_t inode_of(const char *name)
{
	struct stat st;

	CHECK(!stat(name, &st), "%s", name);
	return st.st_ino;
}

static void __attribute__((noreturn)) swap_for_ever(const char *a, const char *b)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE);
}

/*
 * Somebody swaps the directory that an image is named in with a link to another one, all the time.
 * Whichever the image is taken from: its backing file comes from there, too, or is refused.
 */
static void test_swapped_directories(void)
{
	double until = clock_seconds() + random_seconds();
	unsigned int alone = 0, refused = 0;
	ino_t my_thin, my_secret, your_secret;
	char base[PATH_MAX];
	pid_t child;

	CHECK(!mkdir("mine", 0755) && !mkdir("yours", 0755) && !symlink("yours", "swapped"));
	make("yours/secret", NULL, NULL);
	make("yours/vm", NULL, NULL);
	CHECK(realpath("yours/secret", base));
	make("mine/vm", base, "qcow2");
	make("mine/secret", NULL, NULL);
	make("mine/thin", "secret", "qcow2");
	make("yours/thin", "secret", "qcow2");
	my_thin = inode_of("mine/thin");
	my_secret = inode_of("mine/secret");
	your_secret = inode_of("yours/secret");
	child = fork();
	CHECK(child >= 0);
	if (!child)
		swap_for_ever("mine", "swapped");
	/* On a busy machine it takes longer until both have been seen. */
	while (clock_seconds() < until ||
	       (!(alone && refused) && clock_seconds() < until + 60)) {
		int ret = open_with("mine/vm", NULL);

		/* The one in the other directory has no backing file. */
		CHECK(ret || chain.n == 1, "a file outside its directory was taken after %u tries",
		      alone + refused);
		CHECK(!ret || strstr(cause_text(), "not in a directory"), "%s", cause_text());
		alone += !ret;
		refused += !!ret;
		chain_close(&chain);
		ret = open_with("mine/thin", NULL);
		CHECK(!ret || strstr(cause_text(), "not in a directory"), "%s", cause_text());
		CHECK(ret || chain.layer[1].st.st_ino == (chain.layer[0].st.st_ino == my_thin ?
						   my_secret : your_secret),
		      "a backing file of the other directory was taken");
		chain_close(&chain);
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	printf("  swapped directories: %u opened alone, %u refused\n", alone, refused);
	CHECK(alone && refused, "the other process never came in between");
}

static void test_owner(void)
{
	if (geteuid()) {
		printf("  skipped: files of other owners need root\n");
		return;
	}
	make("owned", NULL, NULL);
	make("over-owned", "owned", "qcow2");
	CHECK(!chown("owned", 1234, 1234) && !chown("over-owned", 4321, 4321));
	expect_refused("over-owned", NULL, "belongs to user 1234");
	expect_opens("over-owned", ".", 2);
	CHECK(!chown("over-owned", 1234, 1234));
	expect_opens("over-owned", NULL, 2);
	CHECK(!chown("owned", 0, 0));
	expect_opens("over-owned", NULL, 2);
}

static void write_text(const char *name, const char *text, mode_t mode)
{
	FILE *f = fopen(name, "w");

	CHECK(f);
	fputs(text, f);
	fclose(f);
	CHECK(!chmod(name, mode));
}

static void test_config(void)
{
	struct policy p = { 0 };

	CHECK(!policy_read_config(&p, "no-such-config") && !p.granted.n);
	write_text("conf", "# a comment\n\n  allow-dir /etc\nallow-dir /no/such/dir\n", 0644);
	CHECK(!policy_read_config(&p, "conf"), "%s", cause_text());
	CHECK(p.granted.n == 1 && !strcmp(p.granted.v[0], "/etc"));
	write_text("conf", "allow-dir etc\n", 0644);
	CHECK(policy_read_config(&p, "conf") && strstr(cause_text(), "conf:1: "));
	write_text("conf", "allow /etc\n", 0644);
	CHECK(policy_read_config(&p, "conf") && strstr(cause_text(), "unknown setting 'allow'"));
	write_text("conf", "allow-dir /etc\n", 0666);
	CHECK(policy_read_config(&p, "conf") && strstr(cause_text(), "written by others"));
	policy_free(&p);
}

int main(void)
{
	char top_dir[] = "/tmp/tool-chain.XXXXXX";
	char command[64];

	CHECK(mkdtemp(top_dir) && !chdir(top_dir));
	CHECK(!chmod(top_dir, 0755));
	test_good();
	test_names();
	test_places();
	test_raw();
	test_no_backing();
	test_root_is_no_home();
	test_loops();
	test_swapped_directories();
	test_owner();
	test_config();
	snprintf(command, sizeof(command), "rm -r %s", top_dir);
	CHECK(!system(command));
	return 0;
}

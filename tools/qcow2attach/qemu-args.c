// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * qemu-args.c - owns reading and extending a QEMU command line: where the
 * guest's memory comes from, how many processors it has, and what is already
 * said about booting.
 */
#include "qemu-args.h"

#include <ctype.h>
#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

/* QEMU's default memory size. */
#define DEFAULT_MEMORY (128ull << 20)

/* QEMU rounds the memory's size up to a multiple of this. */
#define MEMORY_UNIT 8192

/* The most bytes of a disk's name that go into the IDs that QEMU is given. */
#define ID_NAME_MAX 64

/* Options that are about all disks, but that this disk would not follow. */
static const struct refused_option {
	const char *name;
	const char *why;
} refused_options[] = {
	{ "snapshot", "would not apply to this disk, whose writes would go to the image: attach "
		      "an overlay that you throw away (qemu-img create -f qcow2 -b IMAGE -F "
		      "qcow2)" },
	{ "loadvm", "would revert the guest but not this disk, which the guest would damage" },
};

/**
 * struct memory_backend - a memory object of the user's.
 * @id: its name.
 * @type: its type.
 * @shared: share=on, or shared by its nature.
 */
struct memory_backend {
	char *id;
	char *type;
	bool shared;
};

/**
 * struct qemu_view - what matters here of a command line.
 * @memory: bytes of memory.
 * @machine_backend: the name in -machine memory-backend=, or NULL.
 * @backends: the memory objects.
 * @nbackends: how many.
 * @machine: the type of the machine, or NULL.
 * @machine_pcie: the machine was given a PCI bus by pcie=on.
 * @numa_memdevs: names of memory objects that NUMA nodes use.
 * @device_memdevs: names of memory objects that devices are made of.
 * @numa_legacy: a NUMA node has memory without an object.
 * @mem_path: -mem-path is given.
 * @daemonize: -daemonize is given.
 * @refused: an option that this disk cannot follow, and why; or NULL.
 * @boots: another option says what the guest boots from.
 * @cpus: its processors.
 */
struct qemu_view {
	uint64_t memory;
	char *machine_backend;
	char *machine;
	bool machine_pcie;
	struct memory_backend *backends;
	size_t nbackends;
	struct strv numa_memdevs;
	struct strv device_memdevs;
	bool numa_legacy;
	bool mem_path;
	bool daemonize;
	const struct refused_option *refused;
	bool boots;
	unsigned int cpus;
};

/* Is this argument the option -NAME or --NAME? */
static bool is_option(const char *arg, const char *name)
{
	if (arg[0] != '-')
		return false;
	arg += arg[1] == '-' ? 2 : 1;
	return !strcmp(arg, name);
}

/*
 * The value of KEY in "a,key=value,...", where ",," is a comma in a value. The
 * first element may stand for @implied without its name. Allocated, or NULL.
 */
static char *option_value(const char *text, const char *key, const char *implied)
{
	char *found = NULL;
	bool first = true;

	while (*text) {
		char *item = xstrdup(text), *to = item, *eq;
		const char *name, *value;

		while (*text && (*text != ',' || text[1] == ',')) {
			text += *text == ',';
			*to++ = *text++;
		}
		text += *text == ',';
		*to = '\0';
		eq = strchr(item, '=');
		if (eq)
			*eq = '\0';
		name = eq || !first || !implied ? item : implied;
		value = eq ? eq + 1 : first && implied ? item : "on";
		if (!strcmp(name, key)) {
			free(found);
			found = xstrdup(value);
		}
		free(item);
		first = false;
	}
	return found;
}

static bool is_on(const char *value)
{
	return value && (!strcmp(value, "on") || !strcmp(value, "yes") || !strcmp(value, "true") ||
			 !strcmp(value, "y"));
}

static void add_backend(struct qemu_view *v, char *id, char *type, bool shared)
{
	v->backends = xrealloc(v->backends, (v->nbackends + 1) * sizeof(*v->backends));
	v->backends[v->nbackends++] = (struct memory_backend) {
		.id = id, .type = type, .shared = shared,
	};
}

/* Allocated, or NULL; a JSON null is there, but no object. */
static char *json_text(struct json_object *o, const char *key)
{
	struct json_object *value;

	if (!json_object_object_get_ex(o, key, &value) || !value)
		return NULL;
	return xstrdup(json_object_get_string(value));
}

/* Is memory of this type shared by default? */
static bool shared_by_default(const char *type)
{
	return type && (!strcmp(type, "memory-backend-memfd") ||
			!strcmp(type, "memory-backend-shm"));
}

static void see_object(struct qemu_view *v, const char *arg)
{
	char *type, *id, *share;
	bool shared;

	if (arg[0] == '{') {
		struct json_object *o = json_tokener_parse(arg);
		struct json_object *value;

		type = o ? json_text(o, "qom-type") : NULL;
		id = o ? json_text(o, "id") : NULL;
		shared = o && json_object_object_get_ex(o, "share", &value) ?
			 json_object_get_boolean(value) : shared_by_default(type);
		json_object_put(o);
	} else {
		type = option_value(arg, "qom-type", "qom-type");
		id = option_value(arg, "id", "qom-type");
		share = option_value(arg, "share", "qom-type");
		shared = share ? is_on(share) : shared_by_default(type);
		free(share);
	}
	if (type && id && !strncmp(type, "memory-backend-", 15)) {
		add_backend(v, id, type, shared);
		return;
	}
	free(type);
	free(id);
}

/* The number of bytes that a size's suffix stands for, 0 when there is no such suffix. */
static uint64_t suffix_bytes(char c)
{
	static const char suffixes[] = "bkmgtpe";
	const char *at = c ? strchr(suffixes, tolower((unsigned char)c)) : NULL;

	return at ? 1ull << (10 * (at - suffixes)) : 0;
}

/*
 * A size as QEMU reads it: "2.5G", "512", "0x20a". Without a suffix it is counted in @unit. It has
 * no sign, no exponent, and a fraction only with a suffix of more than bytes.
 */
static int qemu_size(const char *text, uint64_t unit, uint64_t *bytes)
{
	bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
	const char *digits = hex ? "0123456789abcdefABCDEF" : "0123456789";
	const char *from = hex ? text + 2 : text;
	size_t whole = strspn(from, digits), part = 0;
	const char *end = from + whole;
	double fraction = 0;
	uint64_t n = 0;

	if (!hex && *end == '.') {
		double digit = 0.1;

		part = strspn(++end, digits);
		for (size_t i = 0; i < part; i++, digit /= 10)
			fraction += digit * (end[i] - '0');
		end += part;
	}
	if (!hex && suffix_bytes(*end))
		unit = suffix_bytes(*end++);
	else if (fraction > 0)
		unit = 1;
	if ((!whole && !part) || *end || (fraction > 0 && unit == 1))
		return cause("invalid size '%s'", text);
	errno = 0;
	if (whole)
		n = strtoull(from, NULL, hex ? 16 : 10);
	if (errno || __builtin_mul_overflow(n, unit, bytes) ||
	    __builtin_add_overflow(*bytes, (uint64_t)(fraction * unit), bytes) ||
	    *bytes > INT64_MAX)
		return cause("size too large: '%s'", text);
	return 0;
}

static int set_memory(struct qemu_view *v, const char *size, uint64_t unit)
{
	if (qemu_size(size, unit, &v->memory))
		return -1;
	if (!v->memory)
		v->memory = DEFAULT_MEMORY;
	v->memory = (v->memory + MEMORY_UNIT - 1) / MEMORY_UNIT * MEMORY_UNIT;
	return 0;
}

static int see_memory(struct qemu_view *v, const char *arg)
{
	char *size = option_value(arg, "size", "size");
	int ret = 0;

	/* A size that ends with a digit is in MiB. */
	if (size && set_memory(v, size, *size && isdigit((unsigned char)size[strlen(size) - 1]) ?
					1 << 20 : 1))
		ret = cause_prefix("-m %s", arg);
	free(size);
	return ret;
}

/* Replace what an earlier option said, if this one says something. */
static void replace(char **old, char *new)
{
	if (!new)
		return;
	free(*old);
	*old = new;
}

static int see_machine(struct qemu_view *v, const char *arg)
{
	char *size = option_value(arg, "memory.size", "type");
	char *pcie = option_value(arg, "pcie", "type");
	int ret = 0;

	replace(&v->machine, option_value(arg, "type", "type"));
	replace(&v->machine_backend, option_value(arg, "memory-backend", "type"));
	if (pcie)
		v->machine_pcie = is_on(pcie);
	if (size && set_memory(v, size, 1))
		ret = cause_prefix("-machine %s", arg);
	free(pcie);
	free(size);
	return ret;
}

static void see_numa(struct qemu_view *v, const char *arg)
{
	char *memdev = option_value(arg, "memdev", "type");
	char *mem = option_value(arg, "mem", "type");

	if (memdev)
		strv_add(&v->numa_memdevs, memdev);
	v->numa_legacy = v->numa_legacy || mem;
	free(mem);
}

/* Memory in slots (pc-dimm, nvdimm, virtio-mem-pci, ...) is guest memory like any other. */
static void see_device(struct qemu_view *v, const char *arg)
{
	char *driver, *memdev;

	if (arg[0] == '{') {
		struct json_object *o = json_tokener_parse(arg);

		driver = o ? json_text(o, "driver") : NULL;
		memdev = o ? json_text(o, "memdev") : NULL;
		json_object_put(o);
	} else {
		driver = option_value(arg, "driver", "driver");
		memdev = option_value(arg, "memdev", "driver");
	}
	/* Guests do not put rings and buffers into memory that they share with each other. */
	if (memdev && driver && strncmp(driver, "ivshmem", 7)) {
		strv_add(&v->device_memdevs, memdev);
		memdev = NULL;
	}
	free(memdev);
	free(driver);
}

static void see_smp(struct qemu_view *v, const char *arg)
{
	static const char *const parts[] = { "sockets", "dies", "clusters", "cores", "threads" };
	char *cpus = option_value(arg, "cpus", "cpus");
	unsigned long n = 1;

	if (cpus) {
		n = strtoul(cpus, NULL, 10);
		free(cpus);
	} else {
		for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
			char *part = option_value(arg, parts[i], "cpus");

			if (part)
				n *= strtoul(part, NULL, 10);
			free(part);
		}
	}
	v->cpus = n > 1 ? n : 1;
}

static int see_all(struct qemu_view *v, char *const *argv)
{
	memset(v, 0, sizeof(*v));
	v->memory = DEFAULT_MEMORY;
	v->cpus = 1;
	for (size_t i = 1; argv[0] && argv[i]; i++) {
		const char *arg = argv[i], *next = argv[i + 1];

		for (size_t r = 0; r < ARRAY_SIZE(refused_options); r++) {
			if (is_option(arg, refused_options[r].name))
				v->refused = &refused_options[r];
		}
		v->mem_path = v->mem_path || is_option(arg, "mem-path");
		v->daemonize = v->daemonize || is_option(arg, "daemonize");
		v->boots = v->boots || is_option(arg, "kernel") || is_option(arg, "boot") ||
			   is_option(arg, "cdrom") || strstr(arg, "bootindex=") ||
			   strstr(arg, "\"bootindex\"");
		if (!next)
			break;
		if (is_option(arg, "m") && see_memory(v, next))
			return -1;
		if ((is_option(arg, "machine") || is_option(arg, "M")) && see_machine(v, next))
			return -1;
		if (is_option(arg, "object"))
			see_object(v, next);
		else if (is_option(arg, "device"))
			see_device(v, next);
		else if (is_option(arg, "numa"))
			see_numa(v, next);
		else if (is_option(arg, "smp"))
			see_smp(v, next);
	}
	return 0;
}

static void forget(struct qemu_view *v)
{
	free(v->machine_backend);
	free(v->machine);
	for (size_t i = 0; i < v->nbackends; i++) {
		free(v->backends[i].id);
		free(v->backends[i].type);
	}
	free(v->backends);
	strv_free(&v->numa_memdevs);
	strv_free(&v->device_memdevs);
}

/* Can another process map the memory of this object? */
static int check_backend(const struct qemu_view *v, const char *id)
{
	for (size_t i = 0; i < v->nbackends; i++) {
		const struct memory_backend *b = &v->backends[i];

		if (strcmp(b->id, id))
			continue;
		if (!strcmp(b->type, "memory-backend-ram"))
			return cause("the memory '%s' is a memory-backend-ram, which no other "
				     "process can map: make it a memory-backend-memfd", id);
		if (!b->shared)
			return cause("the memory '%s' is not shared: %s", id,
				     shared_by_default(b->type) ?
				     "remove share=off from its -object" :
				     "add share=on to its -object");
		return 0;
	}
	return cause("there is no -object for the memory '%s'", id);
}

/* Is the memory that the user set up suitable? *@add is set when we must set it up. */
static int check_memory(const struct qemu_view *v, bool *add)
{
	*add = false;
	if (v->numa_legacy)
		return cause("-numa node,mem= gives memory that no other process can map: use "
			     "memdev= with a memory-backend-memfd");
	if (v->mem_path)
		return cause("-mem-path gives memory that no other process can map: use -object "
			     "memory-backend-file,id=mem,mem-path=...,size=...,share=on with "
			     "-machine memory-backend=mem");
	for (size_t i = 0; i < v->numa_memdevs.n; i++) {
		if (check_backend(v, v->numa_memdevs.v[i]))
			return -1;
	}
	for (size_t i = 0; i < v->device_memdevs.n; i++) {
		if (check_backend(v, v->device_memdevs.v[i]))
			return -1;
	}
	if (v->machine_backend)
		return check_backend(v, v->machine_backend);
	*add = !v->numa_memdevs.n;
	return 0;
}

/* A comma in a value is written twice. */
static char *escape_commas(const char *text)
{
	char *out = xrealloc(NULL, 2 * strlen(text) + 1), *to = out;

	for (; *text; text++) {
		if (*text == ',')
			*to++ = ',';
		*to++ = *text;
	}
	*to = '\0';
	return out;
}

static void add_pair(struct strv *out, const char *option, char *value)
{
	strv_add(out, xstrdup(option));
	strv_add(out, value);
}

/* Has the machine a PCI bus for the disk? QEMU itself refuses machines that are not known here. */
static int check_machine(const struct qemu_view *v)
{
	const char *m = v->machine;

	if (!m)
		return 0;
	if (!strcmp(m, "microvm") && !v->machine_pcie)
		return cause("the machine 'microvm' has no PCI bus, which the disk needs: give it "
			     "one by -M microvm,pcie=on");
	if (!strcmp(m, "isapc") || !strcmp(m, "none"))
		return cause("the machine '%s' has no PCI bus, which the disk needs: use another, "
			     "for instance -M q35", m);
	return 0;
}

/* A letter first, then letters, digits and -._: any other character of @name becomes '-'. */
static char *make_id(const char *what, const char *name, unsigned int n)
{
	char *id = xasprintf("%s-%.*s", what, ID_NAME_MAX, name ? name : "disk");

	for (char *c = id; *c; c++) {
		if (!((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') ||
		      (*c >= '0' && *c <= '9') || strchr("-._", *c)))
			*c = '-';
	}
	if (n > 1) {
		char *longer = xasprintf("%s-%u", id, n);

		free(id);
		id = longer;
	}
	return id;
}

static bool is_mentioned(char *const *argv, const char *id)
{
	for (size_t i = 0; argv[i]; i++) {
		if (strstr(argv[i], id))
			return true;
	}
	return false;
}

/* An ID for a new object of QEMU, which the command line does not have yet. Allocated. */
static char *new_id(char *const *argv, const char *what, const char *name)
{
	char *id = make_id(what, name, 1);

	for (unsigned int n = 2; is_mentioned(argv, id); n++) {
		free(id);
		id = make_id(what, name, n);
	}
	return id;
}

static void add_memory(const struct qemu_view *v, char *const *argv, struct strv *out)
{
	char *id = new_id(argv, "qcow2attach", "memory");

	add_pair(out, "-object",
		 xasprintf("memory-backend-memfd,id=%s,size=%llu,share=on", id,
			   (unsigned long long)v->memory));
	add_pair(out, "-machine", xasprintf("memory-backend=%s", id));
	free(id);
}

static void add_disk(const struct qemu_view *v, const struct qemu_disk *disk, char *const *argv,
		     struct strv *out)
{
	char *socket = new_id(argv, "qcow2attach-chardev", disk->name);
	char *device = new_id(argv, "qcow2attach-disk", disk->name);
	char *path = escape_commas(disk->socket);
	char boot[32] = "";

	if (disk->bootindex >= 0)
		snprintf(boot, sizeof(boot), ",bootindex=%d", disk->bootindex);
	else if (!v->boots)
		snprintf(boot, sizeof(boot), ",bootindex=0");
	add_pair(out, "-chardev", xasprintf("socket,id=%s,path=%s", socket, path));
	add_pair(out, "-device", xasprintf("vhost-user-blk-pci,id=%s,chardev=%s,"
					   "num-queues=%u%s%s%s",
					   device, socket, disk->queues, boot,
					   disk->properties ? "," : "",
					   disk->properties ? disk->properties : ""));
	free(path);
	free(device);
	free(socket);
}

unsigned int qemu_args_queues(char *const *argv, unsigned int most)
{
	struct qemu_view v;
	unsigned int cpus = 1;

	if (!see_all(&v, argv))
		cpus = v.cpus;
	forget(&v);
	return cpus < most ? cpus : most;
}

int qemu_args_build(char *const *argv, const struct qemu_disk *disk, struct strv *out)
{
	struct qemu_view v;
	bool without_memory = false;
	int ret = see_all(&v, argv);

	if (!ret && v.daemonize)
		ret = cause("-daemonize would leave the guest without its disk: use attach and "
			    "serve for a guest in the background");
	if (!ret && v.refused)
		ret = cause("-%s %s", v.refused->name, v.refused->why);
	if (!ret)
		ret = check_machine(&v);
	if (!ret)
		ret = check_memory(&v, &without_memory);
	if (!ret) {
		for (size_t i = 0; argv[i]; i++)
			strv_add(out, xstrdup(argv[i]));
		if (without_memory)
			add_memory(&v, argv, out);
		add_disk(&v, disk, argv, out);
	}
	forget(&v);
	return ret;
}

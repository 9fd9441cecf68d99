// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * qemu-args.c - owns reading and extending a QEMU command line: where the
 * guest's memory comes from, how many processors it has, and what is already
 * said about booting.
 */
#include "qemu-args.h"

#include <ctype.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#define MEMORY_ID "qcow2attach-memory"
#define CHARDEV_ID "qcow2attach-chardev"
#define DEVICE_ID "qcow2attach-disk"

/* QEMU's own memory size when nothing is said. */
#define DEFAULT_MEMORY (128ull << 20)

/**
 * struct memory_backend - a memory object of the user's.
 * @id: its name.
 * @type: its type.
 * @shared: share=on.
 */
struct memory_backend {
	char *id;
	char *type;
	bool shared;
};

/**
 * struct qemu_view - what a command line says that matters here.
 * @memory: bytes of memory.
 * @machine_backend: the name in -machine memory-backend=, or NULL.
 * @backends: the memory objects.
 * @nbackends: how many.
 * @numa_memdevs: names of memory objects that NUMA nodes use.
 * @numa_legacy: a NUMA node has memory without an object.
 * @mem_path: -mem-path is given.
 * @daemonize: -daemonize is given.
 * @boots: what the guest boots from is said otherwise.
 * @cpus: its processors.
 */
struct qemu_view {
	uint64_t memory;
	char *machine_backend;
	struct memory_backend *backends;
	size_t nbackends;
	struct strv numa_memdevs;
	bool numa_legacy;
	bool mem_path;
	bool daemonize;
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
	return value && (!strcmp(value, "on") || !strcmp(value, "yes") || !strcmp(value, "true"));
}

static void add_backend(struct qemu_view *v, char *id, char *type, bool shared)
{
	v->backends = xrealloc(v->backends, (v->nbackends + 1) * sizeof(*v->backends));
	v->backends[v->nbackends++] = (struct memory_backend) {
		.id = id, .type = type, .shared = shared,
	};
}

static char *json_text(struct json_object *o, const char *key)
{
	struct json_object *value;

	if (!json_object_object_get_ex(o, key, &value))
		return NULL;
	return xstrdup(json_object_get_string(value));
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
		shared = o && json_object_object_get_ex(o, "share", &value) &&
			 json_object_get_boolean(value);
		json_object_put(o);
	} else {
		type = option_value(arg, "qom-type", "qom-type");
		id = option_value(arg, "id", "qom-type");
		share = option_value(arg, "share", "qom-type");
		shared = is_on(share);
		/* memory-backend-shm is shared unless told otherwise, which it refuses. */
		if (type && !strcmp(type, "memory-backend-shm") && !share)
			shared = true;
		free(share);
	}
	if (type && id && !strncmp(type, "memory-backend-", 15)) {
		add_backend(v, id, type, shared);
		return;
	}
	free(type);
	free(id);
}

static int see_memory(struct qemu_view *v, const char *arg)
{
	char *size = option_value(arg, "size", "size");
	int ret = 0;

	/* Without a suffix it is mebibytes. */
	if (size && parse_size(size, 1 << 20, &v->memory))
		ret = cause_prefix("-m %s", arg);
	free(size);
	return ret;
}

static void see_machine(struct qemu_view *v, const char *arg)
{
	char *backend = option_value(arg, "memory-backend", "type");

	if (!backend)
		return;
	free(v->machine_backend);
	v->machine_backend = backend;
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

		v->mem_path = v->mem_path || is_option(arg, "mem-path");
		v->daemonize = v->daemonize || is_option(arg, "daemonize");
		v->boots = v->boots || is_option(arg, "kernel") || is_option(arg, "boot") ||
			   is_option(arg, "cdrom") || strstr(arg, "bootindex=") ||
			   strstr(arg, "\"bootindex\"");
		if (!next)
			break;
		if (is_option(arg, "m") && see_memory(v, next))
			return -1;
		if (is_option(arg, "object"))
			see_object(v, next);
		else if (is_option(arg, "machine") || is_option(arg, "M"))
			see_machine(v, next);
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
	for (size_t i = 0; i < v->nbackends; i++) {
		free(v->backends[i].id);
		free(v->backends[i].type);
	}
	free(v->backends);
	strv_free(&v->numa_memdevs);
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
				     "process can map: make it a memory-backend-memfd with "
				     "share=on", id);
		if (!b->shared)
			return cause("the memory '%s' is not shared: add share=on to its -object",
				     id);
		return 0;
	}
	return cause("there is no -object for the memory '%s'", id);
}

/* Is the memory that the user set up fit? *@add is set when it is for us to set it up. */
static int check_memory(const struct qemu_view *v, bool *add)
{
	*add = false;
	if (v->numa_legacy)
		return cause("-numa node,mem= gives memory that no other process can map: use "
			     "memdev= with a memory-backend-memfd,share=on");
	if (v->mem_path)
		return cause("-mem-path gives memory that no other process can map: use -object "
			     "memory-backend-file,id=mem,mem-path=...,size=...,share=on with "
			     "-machine memory-backend=mem");
	for (size_t i = 0; i < v->numa_memdevs.n; i++) {
		if (check_backend(v, v->numa_memdevs.v[i]))
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

static void add_disk(const struct qemu_view *v, const struct qemu_disk *disk, struct strv *out)
{
	char *path = escape_commas(disk->socket);
	char boot[32] = "";

	if (disk->bootindex >= 0)
		snprintf(boot, sizeof(boot), ",bootindex=%d", disk->bootindex);
	else if (!v->boots)
		snprintf(boot, sizeof(boot), ",bootindex=0");
	add_pair(out, "-chardev", xasprintf("socket,id=%s,path=%s", CHARDEV_ID, path));
	add_pair(out, "-device", xasprintf("vhost-user-blk-pci,id=%s,chardev=%s,"
					   "num-queues=%u%s%s%s",
					   DEVICE_ID, CHARDEV_ID, disk->queues, boot,
					   disk->properties ? "," : "",
					   disk->properties ? disk->properties : ""));
	free(path);
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
	bool add_memory = false;
	int ret = see_all(&v, argv);

	if (!ret && v.daemonize)
		ret = cause("-daemonize would leave the guest without its disk: use attach and "
			    "serve for a guest in the background");
	if (!ret)
		ret = check_memory(&v, &add_memory);
	if (!ret) {
		for (size_t i = 0; argv[i]; i++)
			strv_add(out, xstrdup(argv[i]));
		if (add_memory) {
			add_pair(out, "-object",
				 xasprintf("memory-backend-memfd,id=%s,size=%llu,share=on",
					   MEMORY_ID, (unsigned long long)v.memory));
			add_pair(out, "-machine", xasprintf("memory-backend=%s", MEMORY_ID));
		}
		add_disk(&v, disk, out);
	}
	forget(&v);
	return ret;
}

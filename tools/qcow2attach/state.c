// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * state.c - owns the meaning of the words in the target's table and status
 * lines, and the JSON that is made of them.
 */
#include "state.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

static bool is_octal(const char *s)
{
	return s[0] >= '0' && s[0] <= '3' && s[1] >= '0' && s[1] <= '7' && s[2] >= '0' &&
	       s[2] <= '7';
}

/*
 * The next word of a line. The kernel writes a character that would end a word as a backslash and
 * three octal digits; a backslash before any other character makes that character literal.
 */
static char *next_word(const char **line)
{
	const char *at = *line;
	char *word, *to;

	while (isspace((unsigned char)*at))
		at++;
	if (!*at)
		return NULL;
	word = xstrdup(at);
	for (to = word; *at && !isspace((unsigned char)*at); at++) {
		if (*at == '\\' && is_octal(at + 1)) {
			*to++ = (at[1] - '0') << 6 | (at[2] - '0') << 3 | (at[3] - '0');
			at += 3;
			continue;
		}
		if (*at == '\\' && at[1])
			at++;
		*to++ = *at;
	}
	*to = '\0';
	*line = at;
	return word;
}

/* Where in a layer's word its identity begins, at the @; or NULL when it has none. */
static const char *identity_of(const char *word)
{
	const char *colon = strchr(word, ':');
	const char *at = strrchr(word, '@');

	return colon && at && at > colon && !strchr(at, '/') ? at : NULL;
}

/* qcow2:/a/path@8:1:1234 -> qcow2 /a/path */
static char *layer_text(const char *word)
{
	const char *colon = strchr(word, ':');
	const char *at = identity_of(word);
	size_t path_len;

	if (!colon)
		return xstrdup(word);
	path_len = at ? (size_t)(at - colon - 1) : strlen(colon + 1);
	if (path_len == 4 && !strncmp(colon + 1, "fd:-", 4))
		return xasprintf("%.*s (deleted)", (int)(colon - word), word);
	return xasprintf("%.*s %.*s", (int)(colon - word), word, (int)path_len, colon + 1);
}

static void parse_layers(const char *table, struct device_state *state)
{
	char *word = next_word(&table);
	unsigned long n = word ? strtoul(word, NULL, 10) : 0;

	free(word);
	while (n-- && (word = next_word(&table))) {
		const char *at = identity_of(word);

		strv_add(&state->layers, layer_text(word));
		strv_add(&state->identities, xstrdup(at ? at + 1 : ""));
		free(word);
	}
}

const char *state_layer_moved(const struct device_state *state, size_t i)
{
	const char *path = state_layer_path(state->layers.v[i]);
	unsigned int maj, min;
	unsigned long long ino;
	struct stat st;

	if (sscanf(state->identities.v[i], "%u:%u:%llu", &maj, &min, &ino) != 3 || !maj ||
	    path[0] != '/')
		return NULL;
	if (stat(path, &st))
		return "no file has this name any more";
	if (ino ? st.st_dev != makedev(maj, min) || st.st_ino != ino :
		  !S_ISBLK(st.st_mode) || st.st_rdev != makedev(maj, min))
		return "another file has this name now";
	return NULL;
}

static void parse_attention(char *words, struct strv *list)
{
	char *save = NULL;

	if (!strcmp(words, "-"))
		return;
	for (char *w = strtok_r(words, ",", &save); w; w = strtok_r(NULL, ",", &save))
		strv_add(list, xstrdup(w));
}

void state_parse(const struct dm_device *dev, struct device_state *state)
{
	unsigned long long total, host, cache, cache_max;
	char attention[512], allocated[24];

	memset(state, 0, sizeof(*state));
	if (!strcmp(dev->target, "error"))
		strcpy(state->mode, "removed");
	else if (strcmp(dev->target, "qcow2") || !dev->status)
		strcpy(state->mode, "empty");
	else if (sscanf(dev->status, "%23s %23[0-9-]/%llu %llu %llu/%llu %511s", state->mode,
			allocated, &total, &host, &cache, &cache_max, attention) == 7) {
		state->allocated = allocated[0] == '-' ? -1 : strtoll(allocated, NULL, 10);
		state->total = total;
		state->host_bytes = host;
		state->cache_kib = cache;
		state->cache_max_kib = cache_max;
		parse_attention(attention, &state->attention);
	} else {
		strcpy(state->mode, "unknown");
	}
	if (!strcmp(dev->target, "qcow2") && dev->table)
		parse_layers(dev->table, state);
}

void state_free(struct device_state *state)
{
	strv_free(&state->attention);
	strv_free(&state->layers);
	strv_free(&state->identities);
}

const char *state_layer_path(const char *layer)
{
	const char *space = strchr(layer, ' ');

	return space ? space + 1 : layer;
}

static void put(struct json_object *o, const char *key, struct json_object *value)
{
	json_object_object_add(o, key, value);
}

static void put_string(struct json_object *o, const char *key, const char *value)
{
	put(o, key, json_object_new_string(value));
}

static void put_number(struct json_object *o, const char *key, uint64_t value)
{
	put(o, key, json_object_new_uint64(value));
}

static struct json_object *json_layers(const struct device_state *state)
{
	struct json_object *array = json_object_new_array();

	for (size_t i = 0; i < state->layers.n; i++) {
		struct json_object *o = json_object_new_object();
		const char *text = state->layers.v[i];
		const char *path = state_layer_path(text);

		put(o, "format", json_object_new_string_len(text, strcspn(text, " ")));
		put_string(o, "path", path);
		if (state_layer_moved(state, i))
			put(o, "moved", json_object_new_boolean(true));
		json_object_array_add(array, o);
	}
	return array;
}

static struct json_object *json_words(const struct strv *words)
{
	struct json_object *array = json_object_new_array();

	for (size_t i = 0; i < words->n; i++)
		json_object_array_add(array, json_object_new_string(words->v[i]));
	return array;
}

struct json_object *users_json(const struct users *users, dev_t dev)
{
	static const char *const kinds[] = {
		[USER_PROCESS] = "process",
		[USER_MOUNT] = "mount",
		[USER_SWAP] = "swap",
		[USER_DEVICE] = "device",
	};
	struct json_object *array = json_object_new_array();
	struct device_user *list;
	int n = users_of(users, dev, &list);

	for (int i = 0; i < n; i++) {
		struct json_object *o = json_object_new_object();

		put_string(o, "kind", kinds[list[i].kind]);
		put_string(o, "name", list[i].name);
		if (list[i].kind == USER_PROCESS) {
			put(o, "pid", json_object_new_int(list[i].pid));
			put(o, "serve", json_object_new_boolean(list[i].serves));
			if (list[i].socket[0])
				put_string(o, "socket", list[i].socket);
		}
		json_object_array_add(array, o);
	}
	free(list);
	return array;
}

struct json_object *state_json(const struct dm_device *dev, const struct users *users)
{
	struct json_object *o = json_object_new_object();
	struct device_state state;
	char text[160];

	state_parse(dev, &state);
	put_string(o, "name", dev->name);
	snprintf(text, sizeof(text), "/dev/mapper/%s", dev->name);
	put_string(o, "device", text);
	put_number(o, "size", dev->sectors * 512);
	put_string(o, "mode", state.mode);
	put(o, "read_only", json_object_new_boolean(dev->read_only));
	put(o, "attention", json_words(&state.attention));
	put_string(o, "image", state.layers.n ? state_layer_path(state.layers.v[0]) : "");
	if (users) {
		put_string(o, "uuid", dev->uuid);
		snprintf(text, sizeof(text), "%u:%u", major(dev->dev), minor(dev->dev));
		put_string(o, "number", text);
		put(o, "suspended", json_object_new_boolean(dev->suspended));
		put(o, "open_count", json_object_new_int(dev->open_count));
		put(o, "deferred_remove", json_object_new_boolean(dev->deferred_remove));
		put(o, "allocated_clusters",
		    state.allocated < 0 ? NULL : json_object_new_int64(state.allocated));
		put_number(o, "total_clusters", state.total);
		put_number(o, "host_bytes", state.host_bytes);
		put_number(o, "cache_bytes", state.cache_kib * 1024);
		put_number(o, "cache_max_bytes", state.cache_max_kib * 1024);
		put(o, "layers", json_layers(&state));
		put(o, "users", users_json(users, dev->dev));
	}
	state_free(&state);
	return o;
}

void print_json(struct json_object *object)
{
	const char *s = json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY |
							       JSON_C_TO_STRING_NOSLASHESCAPE);

	/* Names of files can be any bytes, JSON is UTF-8, and the library does not convert them. */
	while (*s) {
		int n = utf8_length(s);

		if (n)
			fwrite(s, n, 1, stdout);
		else
			fputs("\xef\xbf\xbd", stdout);
		s += n ? n : 1;
	}
	putchar('\n');
	json_object_put(object);
}

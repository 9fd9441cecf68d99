// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * state.c - owns the meaning of the words in the target's table and status
 * lines, and the JSON that is made of them.
 */
#include "state.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "users.h"

static bool is_octal(const char *s)
{
	return s[0] >= '0' && s[0] <= '3' && s[1] >= '0' && s[1] <= '7' && s[2] >= '0' &&
	       s[2] <= '7';
}

/*
 * The next word of a line. The kernel writes what would end a word as a backslash
 * and three octal digits, and a backslash takes any other meaning off a character.
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

/* qcow2:/a/path@8:1:1234 -> qcow2 /a/path */
static char *layer_text(const char *word)
{
	const char *colon = strchr(word, ':');
	const char *at = strrchr(word, '@');
	size_t path_len;

	if (!colon)
		return xstrdup(word);
	path_len = at && at > colon && !strchr(at, '/') ? (size_t)(at - colon - 1)
							: strlen(colon + 1);
	if (path_len == 4 && !strncmp(colon + 1, "fd:-", 4))
		return xasprintf("%.*s (deleted)", (int)(colon - word), word);
	return xasprintf("%.*s %.*s", (int)(colon - word), word, (int)path_len, colon + 1);
}

static void parse_layers(const char *table, struct strv *layers)
{
	char *word = next_word(&table);
	unsigned long n = word ? strtoul(word, NULL, 10) : 0;

	free(word);
	while (n-- && (word = next_word(&table))) {
		strv_add(layers, layer_text(word));
		free(word);
	}
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
		parse_layers(dev->table, &state->layers);
}

void state_free(struct device_state *state)
{
	strv_free(&state->attention);
	strv_free(&state->layers);
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

static struct json_object *json_layers(const struct strv *layers)
{
	struct json_object *array = json_object_new_array();

	for (size_t i = 0; i < layers->n; i++) {
		struct json_object *o = json_object_new_object();
		const char *text = layers->v[i];
		const char *path = state_layer_path(text);

		put(o, "format", json_object_new_string_len(text, strcspn(text, " ")));
		put_string(o, "path", path);
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

static struct json_object *json_users(dev_t dev)
{
	static const char *const kinds[] = {
		[USER_PROCESS] = "process",
		[USER_MOUNT] = "mount",
		[USER_SWAP] = "swap",
		[USER_DEVICE] = "device",
	};
	struct json_object *array = json_object_new_array();
	struct device_user *list;
	int n = users_find(dev, &list);

	for (int i = 0; i < n; i++) {
		struct json_object *o = json_object_new_object();

		put_string(o, "kind", kinds[list[i].kind]);
		put_string(o, "name", list[i].name);
		if (list[i].kind == USER_PROCESS) {
			put(o, "pid", json_object_new_int(list[i].pid));
			put(o, "serve", json_object_new_boolean(list[i].serves));
		}
		json_object_array_add(array, o);
	}
	free(list);
	return array;
}

struct json_object *state_json(const struct dm_device *dev, bool full)
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
	if (full) {
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
		put(o, "layers", json_layers(&state.layers));
		put(o, "users", json_users(dev->dev));
	}
	state_free(&state);
	return o;
}

/* How many bytes at @s are one character of UTF-8 (RFC 3629), 0 when it is none. */
static int utf8_length(const char *s)
{
	const unsigned char *c = (const unsigned char *)s;
	int n = c[0] < 0x80 ? 1 : c[0] >= 0xc2 && c[0] < 0xe0 ? 2 : c[0] >= 0xe0 && c[0] < 0xf0 ? 3
		: c[0] >= 0xf0 && c[0] < 0xf5 ? 4 : 0;

	for (int i = 1; i < n; i++) {
		if ((c[i] & 0xc0) != 0x80)
			return 0;
	}
	/* What could be said shorter, surrogates, and what lies behind the last character. */
	if ((c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xed && c[1] > 0x9f) ||
	    (c[0] == 0xf0 && c[1] < 0x90) || (c[0] == 0xf4 && c[1] > 0x8f))
		return 0;
	return n;
}

void print_json(struct json_object *object)
{
	const char *s = json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY |
							       JSON_C_TO_STRING_NOSLASHESCAPE);

	/* Names of files can be any bytes, JSON is UTF-8, and the library does not see to it. */
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

// SPDX-License-Identifier: GPL-2.0-or-later
/* What a workload did and was promised; see journal.h. */
#include "journal.h"

#include <inttypes.h>

#include "../progs/sector.h"
#include "files.h"

static int by_begun(const void *a, const void *b)
{
	const struct journal_op *x = a, *y = b;

	return x->begun < y->begun ? -1 : x->begun > y->begun;
}

static int by_id(const void *a, const void *b)
{
	const struct journal_id *x = a, *y = b;

	return x->id < y->id ? -1 : x->id > y->id;
}

static const struct journal_op *op_by_id(const struct journal *journal, uint64_t id,
					 unsigned int *index)
{
	struct journal_id key = { .id = id };
	const struct journal_id *found = bsearch(&key, journal->ids, journal->nr_ops, sizeof(key),
						 by_id);

	if (!found)
		return NULL;
	*index = found->index;
	return &journal->ops[found->index];
}

void journal_load(struct journal *journal, const char *path, uint64_t sectors)
{
	FILE *file = fopen(path, "r");
	unsigned int i, room = 0;
	char line[256];
	uint64_t s;

	if (!file)
		bad(path, strerror(errno));
	journal->sectors = sectors;
	if (!fgets(line, sizeof(line), file) ||
	    sscanf(line, "# seed %" SCNu64, &journal->seed) != 1)
		bad(path, "no '# seed' line");
	while (fgets(line, sizeof(line), file)) {
		uint64_t thread, seq, asked_first, asked_end;
		struct journal_op *op;

		if (line[0] == '#')
			continue;
		if (journal->nr_ops == room) {
			room = room ? room * 2 : 1024;
			journal->ops = realloc(journal->ops, room * sizeof(*op));
			if (!journal->ops)
				bad(path, "no memory");
		}
		op = &journal->ops[journal->nr_ops++];
		if (sscanf(line, "%" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %15s %" SCNu64
			   " %" SCNu64 " %" SCNu64 " %" SCNu64, &op->begun, &op->done, &thread,
			   &seq, op->type, &asked_first, &asked_end, &op->first, &op->end) != 9 ||
		    op->end > sectors)
			bad(path, line);
		op->id = (thread + 1) << 32 | (seq + 1);
		op->writes = !strncmp(op->type, "write", 5);
	}
	fclose(file);
	qsort(journal->ops, journal->nr_ops, sizeof(*journal->ops), by_begun);
	journal->must = calloc(sectors, sizeof(*journal->must));
	journal->last_zero = calloc(sectors, sizeof(*journal->last_zero));
	journal->ids = calloc(journal->nr_ops, sizeof(*journal->ids));
	if (!journal->must || !journal->last_zero || !journal->ids)
		bad(path, "no memory");
	for (i = 0; i < journal->nr_ops; i++) {
		journal->ids[i] = (struct journal_id){ journal->ops[i].id, i };
		if (!journal->ops[i].writes)
			for (s = journal->ops[i].first; s < journal->ops[i].end; s++)
				journal->last_zero[s] = i + 1;
	}
	qsort(journal->ids, journal->nr_ops, sizeof(*journal->ids), by_id);
}

/* Operations on one sector do not overlap in time, so their order is that of 'begun'. */
static void require(struct journal *journal, unsigned int index)
{
	const struct journal_op *op = &journal->ops[index];
	uint64_t s;

	for (s = op->first; s < op->end; s++)
		if (journal->must[s] < index + 1)
			journal->must[s] = index + 1;
}

void journal_mark(struct journal *journal, const char *text)
{
	unsigned int i;
	uint64_t value;

	if (sscanf(text, "flush:%" SCNu64, &value) == 1) {
		for (i = 0; i < journal->nr_ops; i++)
			if (journal->ops[i].done && journal->ops[i].done < value)
				require(journal, i);
	} else if (sscanf(text, "fua:%" SCNu64, &value) == 1) {
		if (op_by_id(journal, value, &i))
			require(journal, i);
	}
}

static const void *initial_sector(const struct journal *journal, uint64_t sector)
{
	static const char zeroes[SECTOR_SIZE];

	return sector < journal->initial_sectors ? journal->initial + sector * SECTOR_SIZE :
						   (const uint8_t *)zeroes;
}

static void describe(const struct journal *journal, uint64_t sector, const void *buf, FILE *out)
{
	uint64_t at, id, salt, i;
	unsigned int index;
	enum sector_kind kind = sector_parse(buf, &at, &id, &salt);
	const struct journal_op *op;

	fprintf(out, "guest sector %" PRIu64 " (0x%" PRIx64 ") holds ", sector, sector * SECTOR_SIZE);
	if (kind == SECTOR_ZERO) {
		fprintf(out, "zeroes");
	} else if (kind == SECTOR_OTHER) {
		for (i = 0; i < journal->initial_sectors; i++)
			if (!memcmp(buf, initial_sector(journal, i), SECTOR_SIZE))
				break;
		if (i < journal->initial_sectors)
			fprintf(out, "the initial data of sector %" PRIu64, i);
		else
			fprintf(out, *(const uint8_t *)buf == JOURNAL_DISCARDED ?
				"what a discard of the storage left" : "unknown data");
	} else {
		op = salt == journal->seed ? op_by_id(journal, id, &index) : NULL;
		fprintf(out, "%sdata of sector %" PRIu64, kind == SECTOR_TORN ? "torn " : "", at);
		if (op)
			fprintf(out, " from op %" PRIx64 " (%s %" PRIu64 "..%" PRIu64 ")", id,
				op->type, op->first, op->end);
	}
	if (journal->must[sector]) {
		op = &journal->ops[journal->must[sector] - 1];
		fprintf(out, "; flushed was op %" PRIx64 " (%s %" PRIu64 "..%" PRIu64 ")\n", op->id,
			op->type, op->first, op->end);
	} else {
		fprintf(out, "; nothing flushed there\n");
	}
}

bool journal_allows(const struct journal *journal, uint64_t sector, const void *buf, FILE *out)
{
	uint32_t must = journal->must[sector];
	const struct journal_op *op;
	uint64_t at, id, salt;
	unsigned int index;

	if (!must && !memcmp(buf, initial_sector(journal, sector), SECTOR_SIZE))
		return true;
	switch (sector_parse(buf, &at, &id, &salt)) {
	case SECTOR_ZERO:
		if (journal->last_zero[sector] && journal->last_zero[sector] >= must)
			return true;
		break;
	case SECTOR_TAGGED:
		if (at != sector || salt != journal->seed)
			break;
		if (must && journal->ops[must - 1].id == id)
			return true;
		op = op_by_id(journal, id, &index);
		if (op && op->writes && op->first <= sector && sector < op->end && index + 1 >= must)
			return true;
		break;
	case SECTOR_TORN:
	case SECTOR_OTHER:
		break;
	}
	if (out)
		describe(journal, sector, buf, out);
	return false;
}

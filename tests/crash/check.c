// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Judges one image in a file after a power cut: `crash_check IMAGE JOURNAL MARKS
 * [INITIAL BACKING]`.  MARKS is a file with the marks that the storage carried, one
 * a line.  Owns nothing; see judge.h.
 */
#include "files.h"
#include "judge.h"

int main(int argc, char **argv)
{
	struct judge judge = { };
	uint64_t bytes;
	char line[256];
	const uint8_t *data;
	FILE *marks;

	if (argc != 4 && argc != 6)
		bad("usage", "crash_check IMAGE JOURNAL MARKS [INITIAL BACKING]");
	data = map_file(argv[1], &bytes);
	judge_init(&judge, data, bytes, argv[2], argc == 6 ? argv[4] : NULL,
		   argc == 6 ? argv[5] : NULL);
	marks = fopen(argv[3], "r");
	if (!marks)
		bad(argv[3], strerror(errno));
	while (fgets(line, sizeof(line), marks))
		journal_mark(&judge.journal, line);
	fclose(marks);
	return judge_image(&judge, data, bytes, true) ? 0 : 1;
}

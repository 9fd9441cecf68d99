// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * verb-attach.c - `qcow2attach attach`: from an image to a device under /dev/mapper.
 */
#include <stdio.h>
#include <stdlib.h>

#include "attach.h"
#include "cli.h"
#include "options.h"
#include "util.h"

static int attach_main(int argc, char **argv)
{
	static const struct option options[] = {
		ATTACH_LONG_OPTIONS,
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct attach_options o = { 0 };
	int opt, code = EXIT_OK;
	char *name;

	while ((opt = next_option(&verb_attach, argc, argv, options, &code)) >= 0) {
		if (attach_option(&o, opt, optarg))
			return usage_error("%s", cause_text());
	}
	if (opt == -2)
		return code;
	if (argc - optind != 1)
		return usage_error("%s", argc == optind ? "IMAGE is missing" :
				   "one image at a time");
	name = attach_image(argv[optind], &o, NULL);
	if (name)
		printf("/dev/mapper/%s\n", name);
	else
		code = report(argv[optind]);
	free(name);
	attach_options_free(&o);
	return code;
}

const struct verb verb_attach = {
	.name = "attach",
	.summary = "make a block device of an image",
	.help = "Usage: qcow2attach attach IMAGE [OPTION]...\n\n"
		"Make a block device of the qcow2 image IMAGE (a file or a block device) and\n"
		"print its name. A qcow2 file that it stands on is taken from the directory of\n"
		"IMAGE and below; one that lies elsewhere, and any raw file, must be allowed.\n\n"
		ATTACH_HELP,
	.run = attach_main,
};

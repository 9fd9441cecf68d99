// SPDX-License-Identifier: GPL-2.0-only
/*
 * target.c - the device-mapper target: table line, life cycle, status, messages.
 *
 * Takes no locks; DM serialises the constructor, suspend, resume and the destructor of a device.
 *
 * Table line:	<nr_layers> <layer>... [<#features> <feature>...]
 * layer:	qcow2:<path> | raw:<path> | qcow2:fd:<n> | raw:fd:<n>, top first; a path may be
 *		followed by @<major>:<minor>:<inode>, and then must be that file; \ooo in a path is
 *		the character with that octal number
 * features:	read_only, l2_cache_kib <n>, discard_no_unref, no_discard_passdown,
 *		error_if_no_space, space_timeout <seconds>, view_limit_mib <n>, view <name>
 */
#include <linux/device-mapper.h>
#include <linux/kstrtox.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/string_helpers.h>

#include "alloc.h"
#include "commit.h"
#include "compat.h"
#include "cow.h"
#include "device.h"
#include "epoch.h"
#include "generation.h"
#include "image.h"
#include "io.h"
#include "map.h"
#include "query.h"
#include "registry.h"
#include "state.h"
#include "storage.h"
#include "table-cache.h"
#include "view.h"
#include "wait.h"
#include "writer.h"

#define MAX_CACHE_KIB		(1U << 20)
#define MAX_SPACE_TIMEOUT	(365U * 24 * 3600)	/* seconds */
#define SPACE_TIMEOUT		60U			/* seconds, unless the table says */

/* "<major>:<minor>:<inode>" behind the last @, if that is what is there. */
static void parse_identity(struct layer_spec *spec)
{
	char *at = strrchr(spec->path, '@');
	unsigned int major, minor;
	unsigned long long ino;
	int n = 0;

	if (!at || sscanf(at + 1, "%u:%u:%llu%n", &major, &minor, &ino, &n) != 3 || at[1 + n])
		return;
	*at = '\0';
	spec->check = true;
	spec->dev = MKDEV(major, minor);
	spec->ino = ino;
}

static int parse_layer(struct dm_target *ti, const char *arg, struct layer_spec *spec)
{
	char *rest;

	memset(spec, 0, sizeof(*spec));
	rest = strchr(arg, ':');
	if (!rest || !rest[1]) {
		ti->error = "Layer is not of the form format:path";
		return -EINVAL;
	}
	if (!strncmp(arg, "raw:", 4)) {
		spec->raw = true;
	} else if (strncmp(arg, "qcow2:", 6)) {
		ti->error = "Unknown layer format: only qcow2 and raw are supported";
		return -EINVAL;
	}
	rest++;
	if (!strncmp(rest, "fd:", 3)) {
		if (kstrtoint(rest + 3, 10, &spec->fd) || spec->fd < 0) {
			ti->error = "Invalid file descriptor";
			return -EINVAL;
		}
		return 0;
	}
	if (*rest != '/') {
		ti->error = "Layer path is not absolute";
		return -EINVAL;
	}
	string_unescape_inplace(rest, UNESCAPE_OCTAL);
	spec->path = rest;
	parse_identity(spec);
	return 0;
}

static int refuse_feature(struct dm_target *ti, const char *name, char *why)
{
	DMERR("%s: feature %s is refused", dm_device_name(dm_table_get_md(ti->table)), name);
	ti->error = why;
	return -EINVAL;
}

/**
 * struct feature - an optional argument of the table line
 * @name:	The word.
 * @flag:	Offset in struct qcow2_features of the bool that says that the word was given.
 * @value:	Offset of the number that follows the word, or 0: none follows.
 * @text:	Offset of the VIEW_NAME_SIZE characters for the name that follows, or 0.
 * @min:	The smallest number.
 * @max:	The largest one.
 * @error:	The error when the number is invalid, or not between them.
 */
struct feature {
	const char *name;
	size_t flag;
	size_t value;
	size_t text;
	unsigned int min;
	unsigned int max;
	char *error;
};

#define FLAG(field)	offsetof(struct qcow2_features, field)

/* In the order of `dmsetup table`. */
static const struct feature features[] = {
	{ "read_only", FLAG(read_only) },
	{ "l2_cache_kib", FLAG(has_cache_kib), FLAG(cache_kib), 0, 1, MAX_CACHE_KIB,
	  "Invalid l2_cache_kib" },
	{ "discard_no_unref", FLAG(discard_no_unref) },
	{ "no_discard_passdown", FLAG(no_discard_passdown) },
	{ "error_if_no_space", FLAG(error_if_no_space) },
	{ "space_timeout", FLAG(has_space_timeout), FLAG(space_timeout), 0, 0,
	  MAX_SPACE_TIMEOUT, "Invalid space_timeout" },
	{ "view_limit_mib", FLAG(has_view_limit), FLAG(view_limit_mib), 0, 1, MAX_VIEW_LIMIT_MIB,
	  "Invalid view_limit_mib" },
	{ "view", FLAG(has_view), 0, FLAG(view), 0, 0, "Invalid name of a view" },
};

static bool *feature_flag(const struct qcow2_features *f, const struct feature *feature)
{
	return (void *)f + feature->flag;
}

static char *feature_text(const struct qcow2_features *f, const struct feature *feature)
{
	return (void *)f + feature->text;
}

/* How many words follow. */
static unsigned int feature_words(const struct feature *feature)
{
	return feature->value || feature->text;
}

static unsigned int *feature_value(const struct qcow2_features *f, const struct feature *feature)
{
	return (void *)f + feature->value;
}

static int parse_feature(struct dm_target *ti, struct dm_arg_set *as, const char *name,
			 unsigned int *argc, struct qcow2_features *f)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(features); i++) {
		const struct feature *feature = &features[i];
		struct dm_arg arg = { feature->min, feature->max, feature->error };

		if (strcasecmp(name, feature->name) || *argc < feature_words(feature))
			continue;
		*feature_flag(f, feature) = true;
		if (!feature_words(feature))
			return 0;
		(*argc)--;
		if (feature->text) {
			if (strscpy(feature_text(f, feature), dm_shift_arg(as), VIEW_NAME_SIZE) > 0)
				return 0;
			ti->error = feature->error;
			return -EINVAL;
		}
		return dm_read_arg(&arg, as, feature_value(f, feature), &ti->error);
	}
	if (!strcasecmp(name, "snapshot") || !strcasecmp(name, "data"))
		return refuse_feature(ti, name, "Feature is not supported by this version");
	return refuse_feature(ti, name, "Unrecognised feature");
}

static int parse_features(struct dm_target *ti, struct dm_arg_set *as, struct qcow2_features *f)
{
	static const struct dm_arg group = { 0, 16, "Invalid number of feature arguments" };
	unsigned int argc;
	int r;

	if (!as->argc)
		return 0;
	r = dm_read_arg_group(&group, as, &argc, &ti->error);
	while (!r && argc) {
		const char *name = dm_shift_arg(as);

		argc--;
		r = parse_feature(ti, as, name, &argc, f);
	}
	if (r)
		return r;
	if (as->argc) {
		ti->error = "Too many arguments";
		return -EINVAL;
	}
	return 0;
}

/*
 * Users of a live device have been told the size of its blocks and do not ask again.  A table that
 * needs larger blocks is refused; one that could use smaller blocks keeps the size.
 */
static int check_blocks(struct dm_target *ti, struct qcow2_dev *dev)
{
	struct gendisk *disk = dm_disk(dm_table_get_md(ti->table));
	/* A device that has no live table yet has no size. */
	unsigned int live = get_capacity(disk) ? queue_logical_block_size(disk->queue) : 0, i;

	for (i = 0; i < dev->nr_layers; i++)
		dev->block_size = max(dev->block_size, dev->layers[i].img->st.block_size);
	if (live && dev->block_size > live) {
		DMERR("%s: table needs blocks of %u bytes, but the live device has %u",
		      dm_device_name(dm_table_get_md(ti->table)), dev->block_size, live);
		ti->error = "Storage has larger blocks than the live device";
		return -EINVAL;
	}
	dev->block_size = max(dev->block_size, live);
	for (i = 0; i < dev->nr_layers; i++) {
		if (!IS_ALIGNED(dev->layers[i].size, dev->block_size)) {
			DMERR("%s: size is not a multiple of the block size %u",
			      dev->layers[i].img->name, dev->block_size);
			ti->error = "Layer size is not a multiple of the storage's block size";
			return -EINVAL;
		}
	}
	return 0;
}

/* The chain that the headers name must be the chain that the table gives. */
static int check_chain(struct dm_target *ti, struct qcow2_dev *dev)
{
	unsigned int i, j;

	if (dev->layers[0].img->raw) {
		ti->error = "Top layer must be qcow2";
		return -EINVAL;
	}
	for (i = 0; i < dev->nr_layers; i++) {
		struct qcow2_image *img = dev->layers[i].img;
		bool last = i + 1 == dev->nr_layers;

		for (j = 0; j < i; j++) {
			if (dev->layers[j].img == img) {
				ti->error = "A layer appears twice";
				return -EINVAL;
			}
		}
		if (!last && (img->raw || !img->has_backing)) {
			DMERR("%s: has no backing file, but is not the last layer", img->name);
			ti->error = "Chain is longer than the headers say";
			return -EINVAL;
		}
		if (last && img->has_backing) {
			DMERR("%s: has a backing file, but is the last layer", img->name);
			ti->error = "Chain is shorter than the headers say";
			return -EINVAL;
		}
		if (!last && img->backing_format[0] &&
		    strcmp(img->backing_format, dev->layers[i + 1].img->raw ? "raw" : "qcow2")) {
			DMERR("%s: says its backing file is %s", img->name, img->backing_format);
			ti->error = "Backing format is not what the header says";
			return -EINVAL;
		}
		if (!img->raw)
			dev->granule = min_not_zero(dev->granule, (u64)img->cluster_size);
	}
	return check_blocks(ti, dev);
}

static void close_layers(struct qcow2_dev *dev)
{
	unsigned int i;

	for (i = 0; i < dev->nr_layers; i++)
		if (dev->layers[i].img)
			qcow2_layer_close(dev->ti, &dev->layers[i]);
}

static int open_layers(struct dm_target *ti, struct qcow2_dev *dev, char **names)
{
	unsigned int i;
	int r;

	for (i = 0; i < dev->nr_layers; i++) {
		bool write = i == 0 && dev->writable;
		struct layer_spec spec;

		r = parse_layer(ti, names[i], &spec);
		if (i == 0 && dev->features.has_view)
			spec.view = dev->features.view;
		if (!r && write && spec.raw) {
			ti->error = "Top layer must be qcow2";
			r = -EINVAL;
		}
		if (!r)
			r = qcow2_layer_open(ti, &dev->layers[i], &spec, i == 0, write,
					     dev->features.cache_kib);
		if (r)
			return r;
	}
	r = check_chain(ti, dev);
	if (r)
		return r;
	dev->size = (u64)ti->len << SECTOR_SHIFT;
	if (ti->len != dev->layers[0].size >> SECTOR_SHIFT) {
		DMERR("%s: has %llu sectors", dev->layers[0].img->name,
		      dev->layers[0].size >> SECTOR_SHIFT);
		ti->error = "Table length is not the virtual size of the image";
		return -EINVAL;
	}
	return 0;
}

static int qcow2_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	static const struct dm_arg args[] = {
		{ 1, MAX_LAYERS, "Invalid number of layers" },
	};
	struct dm_arg_set as = { .argc = argc, .argv = argv };
	struct qcow2_dev *dev;
	unsigned int nr;
	char **names;
	int r;

	if (ti->begin) {
		ti->error = "Target must be the only one of its device";
		return -EINVAL;
	}
	r = dm_read_arg(args, &as, &nr, &ti->error);
	if (r)
		return r;
	if (as.argc < nr) {
		ti->error = "Not enough layers";
		return -EINVAL;
	}
	names = as.argv;
	dm_consume_args(&as, nr);

	dev = kzalloc(struct_size(dev, layers, nr), GFP_KERNEL);
	if (!dev) {
		ti->error = "Out of memory";
		return -ENOMEM;
	}
	dev->ti = ti;
	dev->nr_layers = nr;
	dev->features.space_timeout = SPACE_TIMEOUT;
	init_llist_head(&dev->missed);
	INIT_WORK(&dev->miss_work, qcow2_miss_work);
	r = parse_features(ti, &as, &dev->features);
	if (r)
		goto bad;
	dev->writable = !dev->features.read_only && !dev->features.has_view &&
			dm_table_get_mode(ti->table) & BLK_OPEN_WRITE;
	dev->in_epoch = dev->writable || dev->features.has_view;
	r = open_layers(ti, dev, names);
	if (r)
		goto bad;

	ti->private = dev;
	ti->per_io_data_size = sizeof(struct qcow2_io);
	ti->num_flush_bios = 1;
	/*
	 * Also on storage without a volatile cache: a flush commits metadata, and the block core
	 * would not send us any.
	 */
	ti->flush_supported = true;
	if (dev->writable) {
		ti->num_discard_bios = 1;
		ti->discards_supported = true;
		ti->num_write_zeroes_bios = 1;
	}
	return 0;
bad:
	close_layers(dev);
	kfree(dev);
	return r;
}

static void qcow2_dtr(struct dm_target *ti)
{
	struct qcow2_dev *dev = ti->private;

	/* A thread may have put a bio on a list and not have queued the work for it yet (io.h). */
	synchronize_rcu();
	flush_work(&dev->miss_work);
	close_layers(dev);
	kfree(dev);
}

static int qcow2_map(struct dm_target *ti, struct bio *bio)
{
	bio->bi_iter.bi_sector = dm_target_offset(ti, bio->bi_iter.bi_sector);
	return qcow2_map_bio(ti->private, bio);
}

static int qcow2_end_io(struct dm_target *ti, struct bio *bio, blk_status_t *error)
{
	struct qcow2_io *io = bio_io(bio);

	if (io->in_place) {
		if (unlikely(*error == BLK_STS_NOSPC)) {
			qcow2_retry_refused(io);
			return DM_ENDIO_INCOMPLETE;
		}
		io->in_place = false;
		if (unlikely(io->retried) && !*error)
			qcow2_has_room(io->dev->layers[0].img);
	}
	/* Before the bio waits for a commit, which may need clusters reclaimed afterwards. */
	if (io->epoch) {
		epoch_leave(io->epoch);
		io->epoch = NULL;
	}
	if (io->more) {
		struct qcow2_layer *top = &io->dev->layers[0];

		io->more = false;
		if (!*error && !top->view) {
			qcow2_commit_add_io(top->img, io);
			return DM_ENDIO_INCOMPLETE;
		}
		/* The clusters may have been written since the view was dropped. */
		if (!*error && qcow2_view_is_dropped(top->view))
			*error = BLK_STS_IOERR;
	}
	return DM_ENDIO_DONE;
}

static void qcow2_presuspend(struct dm_target *ti)
{
	struct qcow2_dev *dev = ti->private;

	if (dev->writable)
		qcow2_writer_release_waiting(dev->layers[0].img, dm_noflush_suspending(ti));
}

static void qcow2_presuspend_undo(struct dm_target *ti)
{
	struct qcow2_dev *dev = ti->private;

	if (dev->writable)
		qcow2_writer_resume(dev->layers[0].img);
}

static void qcow2_postsuspend(struct dm_target *ti)
{
	struct qcow2_dev *dev = ti->private;
	unsigned int noio = memalloc_noio_save();

	flush_work(&dev->miss_work);
	if (dev->writable)
		qcow2_image_release(dev->layers[0].img, ti);
	memalloc_noio_restore(noio);
}

static void qcow2_io_hints(struct dm_target *ti, struct queue_limits *limits)
{
	struct qcow2_dev *dev = ti->private;
	struct qcow2_image *top = dev->layers[0].img;
	/*
	 * A longer request is split there, and a cluster that is split cannot be unmapped: zeroes
	 * are written to its parts.
	 */
	unsigned int most = round_down(UINT_MAX, top->cluster_size) >> SECTOR_SHIFT;
	unsigned int i;

	limits->logical_block_size = max(limits->logical_block_size, dev->block_size);
	for (i = 0; i < dev->nr_layers; i++) {
		const struct qcow2_storage *st = &dev->layers[i].img->st;

		/* Device-mapper passes on a block device's requirement. */
		if (!st->bdev && mapping_stable_writes(st->file->f_mapping))
			limits->features |= BLK_FEAT_STABLE_WRITES;
		/* Filesystems require that of every segment's length, too. */
		limits->dma_alignment = max(limits->dma_alignment,
					    max(st->mem_align, st->bdev ? 0 : st->block_size) - 1);
	}
	limits->physical_block_size = max(limits->physical_block_size, limits->logical_block_size);
	limits->io_min = max(limits->io_min, limits->physical_block_size);
	limits->io_opt = max(limits->io_opt, top->cluster_size);
	/* A bio that we hold back is on no queue that could be polled. */
	limits->features &= ~BLK_FEAT_POLL;
	if (dev->writable) {
		limits->discard_granularity = top->cluster_size;
		limits->max_hw_discard_sectors = most;
		compat_set_write_zeroes(limits, most);
	} else {
		limits->max_hw_discard_sectors = 0;
		compat_set_write_zeroes(limits, 0);
	}
}

/*
 * DM recalculates the limits for a table that replaces another, except for a table on no device,
 * such as a chain in files: DM takes that for a multipath without paths, and leaves the limits of
 * the table before.  So they are made here, as DM makes them for a new device.  Limits that DM has
 * just decided for this table, and those that the administrator has set, are kept.
 *
 * The device is suspended, and DM has just set the limits of the queue in the same way.
 */
static int renew_limits(struct dm_target *ti)
{
	struct qcow2_dev *dev = ti->private;
	struct request_queue *q = dm_disk(dm_table_get_md(ti->table))->queue;
	struct queue_limits limits, now;
	unsigned int i;

	for (i = 0; i < dev->nr_layers; i++)
		if (dev->layers[i].dev)
			return 0;
	blk_set_stacking_limits(&limits);
	/* As blk_stack_limits() leaves a device without zones; 6.12 refuses any other. */
	limits.max_zone_append_sectors = 0;
	qcow2_io_hints(ti, &limits);
	now = queue_limits_start_update(q);
	limits.features |= now.features & ~(BLK_FEAT_POLL | BLK_FEAT_STABLE_WRITES |
					    BLK_FEAT_ROTATIONAL);
	limits.flags = now.flags;
	compat_keep_user_limits(&limits, &now);
	return queue_limits_commit_update(q, &limits);
}

static int qcow2_preresume(struct dm_target *ti)
{
	struct qcow2_dev *dev = ti->private;
	struct qcow2_image *img = dev->layers[0].img;
	unsigned int noio = memalloc_noio_save(), i;
	int r;

	if (dev->writable)
		qcow2_writer_configure(img, &dev->features);
	if (dev->features.has_cache_kib)
		qcow2_cache_resize(&img->cache, dev->features.cache_kib);
	r = renew_limits(ti);
	if (r)
		DMERR("%s: cannot set the limits of the device: error %d", img->name, r);
	else
		r = qcow2_image_claim(img, ti, dev->writable);
	/* An image that was the top before an external snapshot is no longer written. */
	for (i = 1; i < dev->nr_layers && !r; i++)
		r = qcow2_image_claim(dev->layers[i].img, ti, false);
	memalloc_noio_restore(noio);
	return r;
}

static const char *mode_word(const struct qcow2_dev *dev)
{
	if (!dev->writable)
		return "ro";
	switch (image_mode(dev->layers[0].img)) {
	case MODE_RW:
		return "rw";
	case MODE_OUT_OF_SPACE:
		return "out_of_space";
	case MODE_READ_ONLY:
		return "ro";
	default:
		return "failed";
	}
}

/*
 * Emit a path.  Characters that separate words, begin a comment for dmsetup, escape, or move a
 * terminal's cursor become octal numbers.  DM's own way of quoting, a backslash, cannot be used:
 * libdevmapper doubles every backslash.
 *
 * Like DMEMIT this always ends the text with a zero, in @maxlen bytes, of which there is at least
 * one: DM finds the end of the line by that zero, and sees by the length that the line did not fit.
 */
static unsigned int emit_escaped(char *result, unsigned int maxlen, const char *s)
{
	static const char special[] =
		"\001\002\003\004\005\006\007\010\011\012\013\014\015\016\017\020"
		"\021\022\023\024\025\026\027\030\031\032\033\034\035\036\037\177 \\#";
	unsigned int n = string_escape_mem(s, strlen(s), result, maxlen, ESCAPE_OCTAL, special);

	n = min(n, maxlen - 1);
	result[n] = '\0';
	return n;
}

static unsigned int emit_layer(const struct qcow2_layer *layer, char *result, unsigned int maxlen)
{
	struct qcow2_image *img = layer->img;
	struct file *file = img->st.file;
	/* DM holds the live table and a resume waits for that: wait for no suspended device. */
	char *buf = kmalloc(PATH_MAX, GFP_NOIO);
	unsigned int sz = 0;
	char *path;

	DMEMIT(" %s:", img->raw ? "raw" : "qcow2");
	/* Where the file is now: it may have been renamed since it was opened. */
	path = buf ? file_path(file, buf, PATH_MAX) : ERR_PTR(-ENOMEM);
	if (IS_ERR(path) || d_unlinked(file->f_path.dentry)) {
		DMEMIT("fd:-");
	} else {
		sz += emit_escaped(result + sz, maxlen - sz, path);
		DMEMIT("@%u:%u:%llu", MAJOR(img->key_dev), MINOR(img->key_dev), img->key_ino);
	}
	kfree(buf);
	return sz;
}

static void emit_table(struct qcow2_dev *dev, char *result, unsigned int maxlen)
{
	const struct qcow2_features *f = &dev->features;
	unsigned int i, sz = 0, argc = 0;

	DMEMIT("%u", dev->nr_layers);
	for (i = 0; i < dev->nr_layers; i++)
		sz += emit_layer(&dev->layers[i], result + sz, maxlen - sz);
	for (i = 0; i < ARRAY_SIZE(features); i++)
		if (*feature_flag(f, &features[i]))
			argc += 1 + feature_words(&features[i]);
	if (argc)
		DMEMIT(" %u", argc);
	for (i = 0; i < ARRAY_SIZE(features); i++) {
		if (!*feature_flag(f, &features[i]))
			continue;
		DMEMIT(" %s", features[i].name);
		if (features[i].value)
			DMEMIT(" %u", *feature_value(f, &features[i]));
		if (features[i].text)
			DMEMIT(" %s", feature_text(f, &features[i]));
	}
}

static void emit_info(struct qcow2_dev *dev, char *result, unsigned int maxlen)
{
	struct qcow2_image *img = dev->layers[0].img;
	u64 total = DIV_ROUND_UP_ULL(dev->size, img->cluster_size);
	bool corrupt = READ_ONCE(img->corrupt), dirty = false;
	struct qcow2_view_cost cost;
	unsigned int sz = 0;

	if (dev->writable)
		dirty = !qcow2_is_clean(img);
	DMEMIT("%s %llu/%llu %llu ", mode_word(dev), qcow2_alloc_used(img), total,
	       img->st.ops->used(&img->st, qcow2_alloc_end(img)));
	DMEMIT("%u/%u ", READ_ONCE(img->cache.nr) * (SLICE_SIZE / 1024),
	       READ_ONCE(img->cache.max) * (SLICE_SIZE / 1024));
	if (corrupt || dirty)
		DMEMIT("%s%s%s", corrupt ? "corrupt" : "", corrupt && dirty ? "," : "",
		       dirty ? "uncommitted" : "");
	else
		DMEMIT("-");
	if (!dev->writable)
		return;
	qcow2_view_cost(img, &cost);
	if (cost.nr || cost.clusters)
		DMEMIT(" views %u %llu %llu/%llu", cost.nr, cost.clusters, cost.bytes >> 10,
		       img->views.limit >> 10);
}

static void qcow2_status(struct dm_target *ti, status_type_t type, unsigned int flags,
			 char *result, unsigned int maxlen)
{
	struct qcow2_dev *dev = ti->private;
	unsigned int sz = 0;

	switch (type) {
	case STATUSTYPE_INFO:
		emit_info(dev, result, maxlen);
		break;
	case STATUSTYPE_TABLE:
		emit_table(dev, result, maxlen);
		break;
	case STATUSTYPE_IMA:
		DMEMIT_TARGET_NAME_VERSION(ti->type);
		DMEMIT(",layers=%u,read_only=%c;", dev->nr_layers, dev->writable ? 'n' : 'y');
		break;
	}
}

static int message_map(struct qcow2_dev *dev, const char *from, char *result, unsigned int maxlen)
{
	const char *name = dev->layers[0].img->name;
	u64 sector;

	if (kstrtoull(from, 10, &sector)) {
		DMERR("%s: map: invalid sector '%s'", name, from);
		return -EINVAL;
	}
	if (sector >= dev->size >> SECTOR_SHIFT) {
		DMERR("%s: map: the disk has %llu sectors", name, dev->size >> SECTOR_SHIFT);
		return -EINVAL;
	}
	/* 1: there is an answer. */
	return qcow2_query_map(dev, sector << SECTOR_SHIFT, result, maxlen) ?: 1;
}

static int qcow2_message(struct dm_target *ti, unsigned int argc, char **argv, char *result,
			 unsigned int maxlen)
{
	struct qcow2_dev *dev = ti->private;
	struct qcow2_image *img = dev->layers[0].img;

	if (argc == 1 && !strcasecmp(argv[0], "drop_cache")) {
		unsigned int i;

		for (i = 0; i < dev->nr_layers; i++)
			if (!dev->layers[i].img->raw)
				qcow2_cache_drop(&dev->layers[i].img->cache);
		return 0;
	}
	if (argc == 1 && !strcasecmp(argv[0], "commit")) {
		if (!dev->writable) {
			DMERR("%s: commit: device is read-only", img->name);
			return -EROFS;
		}
		return qcow2_commit_for_caller(img);
	}
	if (argc == 1 && !strcasecmp(argv[0], "grown")) {
		if (dev->writable)
			qcow2_writer_grown(img);
		return 0;
	}
	if ((argc == 1 || argc == 2) && !strcasecmp(argv[0], "map"))
		return message_map(dev, argc == 2 ? argv[1] : "0", result, maxlen);
	if (!strcasecmp(argv[0], "view")) {
		if (dev->writable)
			return qcow2_view_message(img, argc - 1, argv + 1, result, maxlen);
		DMERR("%s: view: device is read-only", img->name);
		return -EROFS;
	}
	DMERR("%s: unrecognised message %s", img->name, argv[0]);
	return -EINVAL;
}

/*
 * DM asks two kinds of question: what limits the devices have (with @data to collect them), and
 * whether all of them are able to do something (without).  We answer the second kind for them: the
 * format does discarding and zeroing, on any device.
 */
static int qcow2_iterate_devices(struct dm_target *ti, iterate_devices_callout_fn fn, void *data)
{
	struct qcow2_dev *dev = ti->private;
	unsigned int i;
	int r = 0;

	for (i = 0; data && i < dev->nr_layers && !r; i++) {
		struct dm_dev *d = dev->layers[i].dev;

		if (d)
			r = fn(ti, d, 0, bdev_nr_sectors(d->bdev), data);
	}
	return r;
}

static struct target_type qcow2_target = {
	.name = "qcow2",
	.version = { 1, 0, 0 },
	.features = DM_TARGET_SINGLETON | DM_TARGET_NOWAIT,
	.module = THIS_MODULE,
	.ctr = qcow2_ctr,
	.dtr = qcow2_dtr,
	.map = qcow2_map,
	.end_io = qcow2_end_io,
	.presuspend = qcow2_presuspend,
	.presuspend_undo = qcow2_presuspend_undo,
	.postsuspend = qcow2_postsuspend,
	.preresume = qcow2_preresume,
	.status = qcow2_status,
	.message = qcow2_message,
	.iterate_devices = qcow2_iterate_devices,
	.io_hints = qcow2_io_hints,
};

static int __init qcow2_init(void)
{
	int r;

	r = qcow2_storage_module_init();
	if (r)
		return r;
	r = qcow2_cache_module_init();
	if (r)
		goto bad_cache;
	r = qcow2_generation_module_init();
	if (r)
		goto bad_generation;
	r = qcow2_cow_module_init();
	if (r)
		goto bad_cow;
	r = qcow2_view_module_init();
	if (r)
		goto bad_view;
	r = qcow2_registry_init();
	if (r)
		goto bad_registry;
	r = dm_register_target(&qcow2_target);
	if (!r)
		return 0;
	qcow2_registry_exit();
bad_registry:
	qcow2_view_module_exit();
bad_view:
	qcow2_cow_module_exit();
bad_cow:
	qcow2_generation_module_exit();
bad_generation:
	qcow2_cache_module_exit();
bad_cache:
	qcow2_storage_module_exit();
	return r;
}

static void __exit qcow2_exit(void)
{
	dm_unregister_target(&qcow2_target);
	qcow2_registry_exit();
	qcow2_view_module_exit();
	qcow2_cow_module_exit();
	qcow2_generation_module_exit();
	qcow2_cache_module_exit();
	qcow2_storage_module_exit();
}

module_init(qcow2_init);
module_exit(qcow2_exit);

MODULE_DESCRIPTION("QCOW2 images as device-mapper devices");
MODULE_AUTHOR("The qcow2attach developers");
MODULE_LICENSE("GPL");

// SPDX-License-Identifier: GPL-2.0-only
/*
 * image.c - opening, sharing and closing images and raw layers.
 *
 * An image is found by what it is (device number, or filesystem and inode), so that all devices
 * that use it share one object: a golden image under many overlays has one table cache, and a
 * table that is loaded to replace another one of the same device takes the image over as it is.
 *
 * Owns the registry and takes registry_lock (outermost), under which images are opened and closed,
 * and inside it, or alone, role_lock, under which they change hands.
 */
#include <linux/device-mapper.h>
#include <linux/file.h>
#include <linux/namei.h>
#include <linux/slab.h>

#include "alloc.h"
#include "commit.h"
#include "device.h"
#include "locks.h"
#include "write.h"

static DEFINE_MUTEX(registry_lock);
static LIST_HEAD(registry);		/* registry_lock */

/*
 * Who may write an image.  Apart from registry_lock, which is held while images are opened: a
 * device that resumes must not wait for the storage of another, which may lie on it.
 */
static DEFINE_MUTEX(role_lock);

/*
 * A file is its inode in memory: numbers do not tell, since on btrfs they repeat in each subvolume.
 * A block device has many nodes and is its number.
 */
static struct qcow2_image *find_image(const struct inode *inode)
{
	struct qcow2_image *img;

	list_for_each_entry(img, &registry, node) {
		if (img->st.bdev ? S_ISBLK(inode->i_mode) && img->key_dev == inode->i_rdev :
				   file_inode(img->st.file) == inode)
			return img;
	}
	return NULL;
}

static void free_image(struct qcow2_image *img)
{
	/* Commits wake the writer, and both raise events. */
	commit_exit(img);
	writer_exit(img);
	cancel_work_sync(&img->event_work);
	alloc_exit(img);
	if (img->can_write)
		epoch_exit(&img->epoch);
	if (!img->raw) {
		flat_table_free(&img->l1, img);
		flat_table_free(&img->reftable, img);
		cache_exit(&img->cache);
		decompress_exit(img);
		header_free(img);
		/*
		 * Not left to RCU: nobody reads the set any more, and mt_free_walk() follows what
		 * is no pointer in an inner node with one slot to spare, as a large set has.
		 */
		mt_clear_in_rcu(&img->metadata);
		mtree_destroy(&img->metadata);
	}
	if (img->locked)
		image_unlock(img->st.file);
	storage_close(&img->st);
	kfree(img->name);
	kfree(img);
}

static int open_storage(struct dm_target *ti, struct qcow2_image *img, struct block_device *bdev)
{
	int r = bdev ? storage_init_bdev(&img->st, bdev) : storage_init_file(&img->st);

	if (r == -EOPNOTSUPP)
		ti->error = "Filesystem does not support direct I/O";
	else if (r)
		ti->error = "Cannot set up the storage";
	return r;
}

static int lock_image(struct dm_target *ti, struct qcow2_image *img, bool write)
{
	int r = image_lock(img->st.file, write);

	if (r) {
		if (r == -EAGAIN)
			DMERR("%s: image is locked by another process", img->name);
		else
			DMERR("%s: cannot lock the image: error %d", img->name, r);
		ti->error = r == -EAGAIN ?
			    "Image is in use by another process (QEMU or its tools)" :
			    "Cannot lock the image";
		return r == -EAGAIN ? -EBUSY : r;
	}
	img->locked = true;
	img->locked_rw = write;
	return 0;
}

static int open_writable(struct dm_target *ti, struct qcow2_image *img)
{
	int r;

	r = epoch_init(&img->epoch);
	if (r) {
		ti->error = "Out of memory opening the image";
		return r;
	}
	img->can_write = true;
	mutex_init(&img->alloc_lock);
	mutex_init(&img->meta_lock);
	INIT_LIST_HEAD(&img->dirty);
	r = commit_init(img);
	if (!r)
		r = writer_init(img);
	if (r)
		ti->error = "Out of memory opening the image";
	return r;
}

static int open_qcow2(struct dm_target *ti, struct qcow2_image *img, bool write,
		      unsigned int cache_kib)
{
	u64 cover;
	int r;

	mt_init_flags(&img->metadata, MT_FLAGS_USE_RCU);
	r = cache_init(&img->cache, img, cache_kib);
	if (r) {
		ti->error = "Out of memory opening the image";
		return r;
	}
	r = header_read(ti, img, write);
	if (r)
		return r;
	if (img->st.block_size > SLICE_SIZE) {
		ti->error = "Storage blocks are larger than 4 KiB";
		return -EINVAL;
	}
	/* More than all L2 tables and an eighth for refcounts is never needed. */
	cover = (img->size >> (img->cluster_bits - 3)) * 9 / 8 / 1024;
	if (!cache_kib)
		cache_resize(&img->cache, clamp_t(u64, cover, 256, 32 * 1024));
	r = tables_load(ti, img);
	if (r)
		return r;
	return write ? open_writable(ti, img) : 0;
}

static struct qcow2_image *open_image(struct dm_target *ti, const struct layer_spec *spec,
				      struct file *file, struct block_device *bdev, bool write,
				      unsigned int cache_kib)
{
	struct qcow2_image *img;
	char *buf, *path;
	int r = -ENOMEM;

	img = kzalloc(sizeof(*img), GFP_KERNEL);
	buf = kmalloc(PATH_MAX, GFP_KERNEL);
	if (img && buf) {
		path = file_path(file, buf, PATH_MAX);
		img->name = kstrdup(IS_ERR(path) ? "(image)" : path, GFP_KERNEL);
	}
	kfree(buf);
	if (!img || !img->name) {
		ti->error = "Out of memory opening the image";
		kfree(img);
		fput(file);
		return ERR_PTR(-ENOMEM);
	}
	mutex_init(&img->header_lock);
	mutex_init(&img->event_lock);
	spin_lock_init(&img->state_lock);
	INIT_WORK(&img->event_work, image_event_work);
	img->raw = true;	/* until there is something to free */
	img->st.file = file;
	img->mode = write ? MODE_RW : MODE_READ_ONLY;
	r = open_storage(ti, img, bdev);
	if (r)
		goto bad;
	r = lock_image(ti, img, write);
	if (r)
		goto bad;
	img->size = round_up(img->st.ops->size(&img->st), SECTOR_SIZE);
	if (spec->raw)
		return img;
	img->raw = false;
	r = open_qcow2(ti, img, write, cache_kib);
	if (!r)
		return img;
bad:
	free_image(img);
	return ERR_PTR(r);
}

/* May this table use an image that is open already? */
static int may_share(struct dm_target *ti, const struct qcow2_image *img,
		     const struct layer_spec *spec, bool write)
{
	struct mapped_device *md = dm_table_get_md(ti->table);

	if (img->raw != spec->raw) {
		ti->error = "Image is in use with the other format";
		return -EINVAL;
	}
	if (img->owner && img->owner != md) {
		DMERR("%s: attached read-write by %s", img->name, dm_device_name(img->owner));
		ti->error = "Image is attached read-write by another device";
		return -EBUSY;
	}
	if (!write || img->owner == md)
		return 0;
	ti->error = "Image is attached read-only: remove the devices that use it first";
	return -EBUSY;
}

/* Open by path or descriptor, with a file of our own, after looking at what it is. */
static struct file *open_node(struct dm_target *ti, const struct layer_spec *spec, bool write)
{
	int flags = O_LARGEFILE | (write ? O_RDWR : O_RDONLY);
	struct path path;
	struct file *file;
	umode_t mode;
	int r;

	if (spec->path) {
		r = kern_path(spec->path, LOOKUP_FOLLOW, &path);
		if (r) {
			DMERR("%s: cannot be opened: error %d", spec->path, r);
			ti->error = "Cannot open a layer";
			return ERR_PTR(r);
		}
	} else {
		struct file *given = fget(spec->fd);

		if (!given || (write && !(given->f_mode & FMODE_WRITE))) {
			ti->error = given ? "File descriptor is not open for writing" :
					    "Bad file descriptor";
			if (given)
				fput(given);
			return ERR_PTR(-EBADF);
		}
		path = given->f_path;
		path_get(&path);
		fput(given);
	}
	mode = d_inode(path.dentry)->i_mode;
	if (S_ISREG(mode))
		flags |= O_DIRECT | O_NOATIME;
	else if (!S_ISBLK(mode)) {
		ti->error = "Layer is neither a file nor a block device";
		path_put(&path);
		return ERR_PTR(-EINVAL);
	}
	file = dentry_open(&path, flags, current_cred());
	if (IS_ERR(file)) {
		DMERR("%s: cannot be opened: error %ld", spec->path ?: "descriptor",
		      PTR_ERR(file));
		ti->error = PTR_ERR(file) == -EINVAL ? "Filesystem does not support direct I/O" :
			    PTR_ERR(file) == -EBUSY ? "Block device is in use: mounted or claimed" :
						      "Cannot open a layer";
	}
	path_put(&path);
	return file;
}

static struct block_device *get_bdev(struct dm_target *ti, struct qcow2_layer *layer, dev_t dev,
				     bool write)
{
	char name[24];
	int r;

	snprintf(name, sizeof(name), "%u:%u", MAJOR(dev), MINOR(dev));
	r = dm_get_device(ti, name, BLK_OPEN_READ | (write ? BLK_OPEN_WRITE : 0), &layer->dev);
	if (r) {
		ti->error = r == -EBUSY ? "Block device is in use: mounted or claimed" :
					  "Cannot open a block device";
		return ERR_PTR(r);
	}
	if (write && bdev_read_only(layer->dev->bdev)) {
		ti->error = "Block device is read-only";
		dm_put_device(ti, layer->dev);
		layer->dev = NULL;
		return ERR_PTR(-EROFS);
	}
	if (bdev_is_zoned(layer->dev->bdev)) {
		ti->error = "Zoned block devices are not supported";
		dm_put_device(ti, layer->dev);
		layer->dev = NULL;
		return ERR_PTR(-EINVAL);
	}
	return layer->dev->bdev;
}

/**
 * layer_open - open a layer, or share it when it is open
 * @ti: the target
 * @layer: filled in
 * @spec: what the table line says
 * @top: it is the top layer
 * @write: and will be written
 * @cache_kib: bound of the table cache if it is opened now, or 0 for the default
 *
 * Writes nothing.  Return: 0, or an error with ti->error set; layer_close() is due if @layer has an
 * image.
 */
int layer_open(struct dm_target *ti, struct qcow2_layer *layer, const struct layer_spec *spec,
	       bool top, bool write, unsigned int cache_kib)
{
	struct block_device *bdev = NULL;
	struct qcow2_image *img;
	struct inode *inode;
	struct file *file;
	dev_t dev;
	u64 ino;
	int r;

	file = open_node(ti, spec, write);
	if (IS_ERR(file))
		return PTR_ERR(file);
	inode = file_inode(file);
	dev = S_ISBLK(inode->i_mode) ? inode->i_rdev : inode->i_sb->s_dev;
	ino = S_ISBLK(inode->i_mode) ? 0 : inode->i_ino;
	if (spec->check && (dev != spec->dev || ino != spec->ino)) {
		ti->error = "Layer is not the file that the table names by device and inode";
		fput(file);
		return -ESTALE;
	}
	if (S_ISBLK(inode->i_mode)) {
		bdev = get_bdev(ti, layer, dev, write);
		if (IS_ERR(bdev)) {
			fput(file);
			return PTR_ERR(bdev);
		}
	}

	mutex_lock(&registry_lock);
	img = find_image(inode);
	if (img) {
		fput(file);	/* the image holds the inode */
		r = 0;
	} else {
		img = open_image(ti, spec, file, bdev, write, cache_kib);
		r = PTR_ERR_OR_ZERO(img);
		if (!r) {
			img->key_dev = dev;
			img->key_ino = ino;
			list_add(&img->node, &registry);
		}
	}
	if (!r) {
		mutex_lock(&role_lock);
		r = img->users ? may_share(ti, img, spec, write) : 0;
		if (!r && write)
			img->owner = dm_table_get_md(ti->table);
		mutex_unlock(&role_lock);
	}
	if (!r) {
		img->users++;
		layer->img = img;
		layer->size = img->size;
		/* For allocation, and for the status to say what is in use. */
		if (top && !img->raw && !img->alloc) {
			r = alloc_init(ti, img);
			if (r)
				alloc_exit(img);
		}
	}
	mutex_unlock(&registry_lock);
	if (!layer->img && layer->dev) {
		dm_put_device(ti, layer->dev);
		layer->dev = NULL;
	}
	return r;
}

/**
 * layer_close - let go of a layer
 * @ti: the target
 * @layer: opened by layer_open()
 */
void layer_close(struct dm_target *ti, struct qcow2_layer *layer)
{
	mutex_lock(&registry_lock);
	if (!--layer->img->users) {
		list_del(&layer->img->node);
		free_image(layer->img);
	}
	mutex_unlock(&registry_lock);
	layer->img = NULL;
	if (layer->dev)
		dm_put_device(ti, layer->dev);
}

/**
 * image_claim - a table becomes live: take the role that it has for its top image
 * @img: the image
 * @ti: the target
 * @write: it will write
 *
 * Sleeps.  Return: 0, or -errno with nothing changed.
 */
int image_claim(struct qcow2_image *img, struct dm_target *ti, bool write)
{
	struct mapped_device *md = dm_table_get_md(ti->table);
	int r = 0;

	mutex_lock(&role_lock);
	if (write && img->owner != md) {
		DMERR("%s: lost write access to the image", img->name);
		r = -EBUSY;
	} else if (!write && img->owner == md) {
		image_lock_downgrade(img->st.file);
		img->locked_rw = false;
		img->owner = NULL;
	}
	mutex_unlock(&role_lock);
	if (r || !write)
		return r;

	if (!img->reserved)
		r = tables_reserve(img);
	if (r)
		DMERR("%s: no room on the host for the tables: error %d", img->name, r);
	else
		r = header_prepare_write(img);
	img->reserved = !r;
	if (r) {
		DMERR("%s: cannot make the image writable: error %d", img->name, r);
		return r;
	}
	mutex_lock(&img->event_lock);
	img->ti = ti;
	mutex_unlock(&img->event_lock);
	writer_resume(img);
	return 0;
}

/**
 * image_release - a table that writes stops being live: leave a clean image
 * @img: the image
 * @ti: the target; no bio is in flight
 *
 * Sleeps.  What goes wrong is in the log and in the image's mode.
 */
void image_release(struct qcow2_image *img, struct dm_target *ti)
{
	writer_flush(img);
	commit_everything(img);
	flush_work(&img->event_work);	/* which writes the corrupt bit, while it may */
	mutex_lock(&img->event_lock);
	if (img->ti == ti)
		img->ti = NULL;
	mutex_unlock(&img->event_lock);
}

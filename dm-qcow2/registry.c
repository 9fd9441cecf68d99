// SPDX-License-Identifier: GPL-2.0-only
/*
 * registry.c - opening, sharing and closing images and raw layers.
 *
 * An image is found by what it is (device number, or filesystem and inode), so that all devices
 * that use it share one object: a golden image under many overlays has one table cache, and a
 * table that is loaded to replace another one of the same device takes the image over as it is.
 *
 * The I/O of opening and closing may never end: the storage may hang, or be a suspended device of
 * this target that waits for a table whose constructor needs the registry.  So no such I/O is done
 * under a lock.  An image enters the registry before it is opened and leaves it after it was
 * closed; a thread that wants the image meanwhile waits for that one image, until the thread is
 * killed.  A worker opens images, since their I/O cannot be cancelled: when the process that asked
 * is killed, the worker alone has the image, and closes it when done.
 *
 * Owns the registry.  Takes registry_lock (outermost), under which images come, go and change
 * phase; and inside it, or alone, role_lock, under which images change owners.  No I/O under
 * either.
 */
#include <linux/device-mapper.h>
#include <linux/file.h>
#include <linux/namei.h>
#include <linux/slab.h>
#include <linux/string_helpers.h>

#include "alloc.h"
#include "commit.h"
#include "decompress.h"
#include "device.h"
#include "epoch.h"
#include "generation.h"
#include "header.h"
#include "image.h"
#include "locks.h"
#include "registry.h"
#include "state.h"
#include "storage.h"
#include "table-cache.h"
#include "tables.h"
#include "view.h"
#include "writer.h"

static DEFINE_MUTEX(registry_lock);
static LIST_HEAD(registry);		/* registry_lock */
static DECLARE_WAIT_QUEUE_HEAD(registry_wait);	/* for an image to change phase */
static struct workqueue_struct *open_wq;	/* no work on it waits for another */

/* Which device may write an image. */
static DEFINE_MUTEX(role_lock);

/*
 * struct image_opening - what a task that opens a layer asks a worker to do
 *
 * Owned by the asking task until it is queued, then by the worker until the phase is IMAGE_OPENED,
 * then by the asking task again; by the worker for good when the asking task was killed.
 */
struct image_opening {
	struct work_struct work;
	struct qcow2_image *img;
	struct block_device *bdev;
	bool fresh;			/* nothing of the image is open yet */
	bool raw;
	bool top;			/* it needs an allocator */
	bool write;
	unsigned int cache_kib;
	bool abandoned;			/* the asking task was killed; registry lock to change */
	int result;
	char *error;
};

/*
 * A file is known by its inode in memory, not by numbers, which repeat in each subvolume of btrfs.
 * A block device has many nodes and is known by its number.  An image that is being closed may have
 * dropped its inode; a file whose inode now has that place in memory waits for the close, too.
 */
static struct qcow2_image *find_image(const struct inode *inode)
{
	struct qcow2_image *img;

	lockdep_assert_held(&registry_lock);
	list_for_each_entry(img, &registry, node) {
		if (img->key_inode ? img->key_inode == inode :
				     S_ISBLK(inode->i_mode) && img->key_dev == inode->i_rdev)
			return img;
	}
	return NULL;
}

/* Stop and release everything but the object itself.  Sleeps, also on the storage. */
static void shut_image(struct qcow2_image *img)
{
	if (img->writer)
		qcow2_view_finish(img);
	/*
	 * First stop all that runs, in the order in which one wakes the other: looking for space
	 * starts commits, commits wake the writer, and all raise events.  Then free what they use.
	 */
	qcow2_writer_stop_polling(img);
	qcow2_commit_stop(img);
	qcow2_writer_stop(img);
	cancel_work_sync(&img->event_work);
	qcow2_view_exit(img);
	qcow2_commit_exit(img);
	qcow2_generation_exit(img);
	qcow2_writer_exit(img);
	qcow2_alloc_exit(img);
	if (img->can_write)
		qcow2_epoch_exit(&img->epoch);
	if (!img->raw) {
		qcow2_flat_table_free(&img->root.l1, img);
		qcow2_flat_table_free(&img->reftable, img);
		qcow2_cache_exit(&img->cache);
		qcow2_decompress_exit(img);
		qcow2_header_free(img);
		/*
		 * Not left to RCU: nobody reads the set any more, and mt_free_walk() follows a
		 * value that is no pointer in an inner node with one slot to spare, as a large set
		 * has.
		 */
		mt_clear_in_rcu(&img->metadata);
		mtree_destroy(&img->metadata);
	}
	if (img->locked)
		qcow2_image_unlock(img->st.file);
	qcow2_storage_close(&img->st);
}

static int open_storage(struct qcow2_image *img, struct block_device *bdev, char **error)
{
	int r = bdev ? qcow2_storage_init_bdev(&img->st, bdev) : qcow2_storage_init_file(&img->st);

	if (r == -EOPNOTSUPP)
		*error = "Filesystem does not support direct I/O";
	else if (r)
		*error = "Cannot set up the storage";
	return r;
}

static int lock_image(struct qcow2_image *img, bool write, char **error)
{
	int r = qcow2_image_lock(img->st.file, write);

	if (r) {
		if (r == -EAGAIN)
			DMERR("%s: image is locked by another process", img->name);
		else
			DMERR("%s: cannot lock the image: error %d", img->name, r);
		*error = r == -EAGAIN ? "Image is in use by another process (QEMU or its tools)" :
					"Cannot lock the image";
		return r == -EAGAIN ? -EBUSY : r;
	}
	img->locked = true;
	return 0;
}

static int open_writable(struct qcow2_image *img, char **error)
{
	int r;

	r = qcow2_epoch_init(&img->epoch);
	if (r) {
		*error = "Out of memory opening the image";
		return r;
	}
	img->can_write = true;
	mutex_init(&img->alloc_lock);
	mutex_init(&img->meta_lock);
	r = qcow2_generation_init(img);
	if (!r)
		r = qcow2_commit_init(img);
	if (!r)
		r = qcow2_writer_init(img);
	if (r)
		*error = "Out of memory opening the image";
	return r;
}

static int open_qcow2(struct qcow2_image *img, bool write, unsigned int cache_kib, char **error)
{
	u64 cover;
	int r;

	mt_init_flags(&img->metadata, MT_FLAGS_USE_RCU);
	r = qcow2_cache_init(&img->cache, img, cache_kib);
	if (r) {
		*error = "Out of memory opening the image";
		return r;
	}
	r = qcow2_header_read(img, write, error);
	if (r)
		return r;
	if (img->st.block_size > SLICE_SIZE) {
		*error = "Storage blocks are larger than 4 KiB";
		return -EINVAL;
	}
	/* More than all L2 tables and an eighth for refcounts is never needed. */
	cover = (img->root.size >> (img->cluster_bits - 3)) * 9 / 8 / 1024;
	if (!cache_kib)
		qcow2_cache_resize(&img->cache, clamp_t(u64, cover, 256, 32 * 1024));
	r = qcow2_tables_load(img, error);
	if (r)
		return r;
	return write ? open_writable(img, error) : 0;
}

/* Open an image for qcow2_layer_open(), in a worker, as struct image_opening says. */
static int open_image(struct qcow2_image *img, struct image_opening *o)
{
	int r;

	r = open_storage(img, o->bdev, &o->error);
	if (!r)
		r = lock_image(img, o->write, &o->error);
	if (r)
		return r;
	/* Locked first: QEMU's tools have written everything by now. */
	r = img->st.ops->take_over(&img->st);
	if (r) {
		DMERR("%s: cannot write back its page cache: error %d", img->name, r);
		o->error = "Cannot write back what the page cache has of the image";
		return r;
	}
	img->root.size = round_up(img->st.ops->size(&img->st), SECTOR_SIZE);
	if (o->raw)
		return 0;
	img->raw = false;
	return open_qcow2(img, o->write, o->cache_kib, &o->error);
}

/* Under registry_lock. */
static void set_phase(struct qcow2_image *img, enum image_phase phase)
{
	lockdep_assert_held(&registry_lock);
	img->phase = phase;
	wake_up_all(&registry_wait);
}

/* Under registry_lock, which is dropped meanwhile.  -EINTR when the caller is being killed. */
static int wait_phase(void)
{
	DEFINE_WAIT(wait);

	lockdep_assert_held(&registry_lock);
	prepare_to_wait(&registry_wait, &wait, TASK_KILLABLE);
	mutex_unlock(&registry_lock);
	if (!fatal_signal_pending(current))
		schedule();
	finish_wait(&registry_wait, &wait);
	mutex_lock(&registry_lock);
	return fatal_signal_pending(current) ? -EINTR : 0;
}

/* Under registry_lock, dropped meanwhile: drop a user of the image; the last one closes it. */
static void put_image(struct qcow2_image *img)
{
	lockdep_assert_held(&registry_lock);
	if (--img->users)
		return;
	set_phase(img, IMAGE_CLOSING);
	mutex_unlock(&registry_lock);
	shut_image(img);
	mutex_lock(&registry_lock);
	list_del(&img->node);
	wake_up_all(&registry_wait);
	kfree(img->name);
	kfree(img);
}

static void open_work(struct work_struct *work)
{
	struct image_opening *o = container_of(work, struct image_opening, work);
	struct qcow2_image *img = o->img;
	int r = 0;

	if (o->fresh)
		r = open_image(img, o);
	/* For allocation, and for the status to say what is in use. */
	if (!r && o->top && !img->raw && !img->alloc) {
		r = qcow2_alloc_init(img, &o->abandoned, &o->error);
		if (r)
			qcow2_alloc_exit(img);
	}
	mutex_lock(&registry_lock);
	if (o->abandoned) {
		set_phase(img, IMAGE_OPEN);
		img->writers -= o->write;
		put_image(img);
		kfree(o);
	} else {
		o->result = r;
		set_phase(img, IMAGE_OPENED);
	}
	mutex_unlock(&registry_lock);
	module_put(THIS_MODULE);
}

/*
 * Under registry_lock, which is dropped meanwhile: let a worker do what @o says, and wait for the
 * worker.  The caller is one of the image's users, and no longer after a failure.
 */
static int do_opening(struct image_opening *o, char **error)
{
	struct qcow2_image *img = o->img;
	int r;

	INIT_WORK(&o->work, open_work);
	set_phase(img, IMAGE_OPENING);
	/* The worker may outlive the caller, and even all devices; see qcow2_registry_exit(). */
	__module_get(THIS_MODULE);
	queue_work(open_wq, &o->work);
	while (img->phase == IMAGE_OPENING) {
		if (wait_phase() && img->phase == IMAGE_OPENING) {
			DMERR("%s: killed while it was opened", img->name);
			*error = "Killed while the image was opened";
			WRITE_ONCE(o->abandoned, true);
			return -EINTR;
		}
	}
	r = o->result;
	*error = o->error;
	set_phase(img, IMAGE_OPEN);
	/* With no other user, an image that could not be opened goes at once. */
	if (r) {
		img->writers -= o->write;
		put_image(img);
	}
	kfree(o);
	return r;
}

/* Make an image for the registry, not open yet; takes over @file. */
static struct qcow2_image *new_image(struct file *file, bool write)
{
	const struct inode *inode = file_inode(file);
	struct qcow2_image *img = kzalloc(sizeof(*img), GFP_KERNEL);

	if (img)
		img->name = kstrdup_quotable_file(file, GFP_KERNEL);
	if (!img || !img->name) {
		kfree(img);
		fput(file);
		return NULL;
	}
	mutex_init(&img->header_lock);
	mutex_init(&img->event_lock);
	spin_lock_init(&img->state_lock);
	INIT_WORK(&img->event_work, qcow2_event_work);
	qcow2_view_init(img);
	img->raw = true;	/* until there is something to free */
	img->st.file = file;
	img->data = &img->st;
	img->mode = write ? MODE_RW : MODE_READ_ONLY;
	if (S_ISBLK(inode->i_mode)) {
		img->key_dev = inode->i_rdev;
	} else {
		img->key_inode = inode;
		img->key_dev = inode->i_sb->s_dev;
		img->key_ino = inode->i_ino;
	}
	return img;
}

/* May this table use an image that is open already? */
static int may_share(struct dm_target *ti, const struct qcow2_image *img,
		     const struct layer_spec *spec, bool write)
{
	struct mapped_device *md = dm_table_get_md(ti->table);

	lockdep_assert_held(&role_lock);
	if (img->raw != spec->raw) {
		ti->error = "Image is in use with the other format";
		return -EINVAL;
	}
	if (spec->view) {
		if (img->owner == md) {
			ti->error = "Device cannot show a view of its own image";
			return -EINVAL;
		}
		/* Only an image that is written has views; nothing of it is still to be opened. */
		if (img->owner)
			return 0;
		ti->error = "No such view";
		return -ENOENT;
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

/* Open a layer by path or descriptor, as a file of our own, after a look at its type. */
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

/*
 * Get the image of @file, existing or new, with the caller as a user.  Takes over @file.
 */
static struct qcow2_image *get_image(struct dm_target *ti, const struct layer_spec *spec,
				     struct file *file, struct block_device *bdev, bool top,
				     bool write, unsigned int cache_kib)
{
	struct image_opening *o = kzalloc(sizeof(*o), GFP_KERNEL);
	struct qcow2_image *img;
	int r = 0;

	if (!o) {
		ti->error = "Out of memory opening the image";
		fput(file);
		return ERR_PTR(-ENOMEM);
	}
	mutex_lock(&registry_lock);
	/* @file holds its inode until the image is found, so no other inode can have that place. */
	while ((img = find_image(file_inode(file))) && img->phase != IMAGE_OPEN && !r)
		r = wait_phase();
	if (r) {
		ti->error = "Killed while waiting for the image";
		goto out;
	}
	if (!img && spec->view) {
		ti->error = "View of an image that is not attached";
		r = -ENOENT;
		goto out;
	}
	o->fresh = !img;
	if (img) {
		mutex_lock(&role_lock);
		r = may_share(ti, img, spec, write);
		mutex_unlock(&role_lock);
	} else {
		img = new_image(file, write);
		file = NULL;
		if (img)
			list_add(&img->node, &registry);
		else
			ti->error = "Out of memory opening the image";
		r = img ? 0 : -ENOMEM;
	}
	if (r)
		goto out;
	if (write) {
		mutex_lock(&role_lock);
		img->owner = dm_table_get_md(ti->table);
		mutex_unlock(&role_lock);
	}
	img->users++;
	img->writers += write;
	img->viewers += !!spec->view;
	if (o->fresh || (top && !img->raw && !img->alloc)) {
		o->img = img;
		o->bdev = bdev;
		o->raw = spec->raw;
		o->top = top;
		o->write = write;
		o->cache_kib = cache_kib;
		r = do_opening(o, &ti->error);
		o = NULL;
	}
out:
	mutex_unlock(&registry_lock);
	if (file)
		fput(file);	/* the image holds the inode */
	kfree(o);
	return r ? ERR_PTR(r) : img;
}

int qcow2_layer_open(struct dm_target *ti, struct qcow2_layer *layer, const struct layer_spec *spec,
		     bool top, bool write, unsigned int cache_kib)
{
	struct block_device *bdev = NULL;
	struct qcow2_image *img;
	struct inode *inode;
	struct file *file;
	dev_t dev;
	u64 ino;

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

	img = get_image(ti, spec, file, bdev, top, write, cache_kib);
	if (IS_ERR(img)) {
		if (layer->dev)
			dm_put_device(ti, layer->dev);
		layer->dev = NULL;
		return PTR_ERR(img);
	}
	layer->img = img;
	layer->write = write;
	layer->shows = spec->view;
	layer->size = img->root.size;
	if (spec->view) {
		layer->view = qcow2_view_find(img, spec->view);
		if (!layer->view) {
			DMERR("%s: has no view %s", img->name, spec->view);
			ti->error = "No such view";
			return -ENOENT;
		}
		layer->size = layer->view->size;
	} else if (!img->raw) {
		layer->root = &img->root;
	}
	return 0;
}

/*
 * Under registry_lock, dropped meanwhile: the device that wrote the image has gone, and others
 * still show its views.  They fail from now on.  The caller is still a user; others wait.
 */
static void stop_writing(struct qcow2_image *img)
{
	lockdep_assert_held(&registry_lock);
	set_phase(img, IMAGE_STOPPING);
	mutex_unlock(&registry_lock);
	qcow2_view_finish(img);
	mutex_lock(&role_lock);
	img->owner = NULL;
	mutex_unlock(&role_lock);
	mutex_lock(&registry_lock);
	set_phase(img, IMAGE_OPEN);
}

void qcow2_layer_close(struct dm_target *ti, struct qcow2_layer *layer)
{
	struct qcow2_image *img = layer->img;

	if (layer->view)
		qcow2_view_put(layer->view);
	layer->view = NULL;
	mutex_lock(&registry_lock);
	img->viewers -= layer->shows;
	img->writers -= layer->write;
	if (!img->writers && READ_ONCE(img->owner) && img->viewers &&
	    img->users - 1 == img->viewers)
		stop_writing(img);
	put_image(img);
	mutex_unlock(&registry_lock);
	layer->img = NULL;
	if (layer->dev)
		dm_put_device(ti, layer->dev);
}

int qcow2_image_claim(struct qcow2_image *img, struct dm_target *ti, bool write)
{
	struct mapped_device *md = dm_table_get_md(ti->table);
	bool downgrade = false;
	int r = 0;

	/* Only this device's tables change its owner from @md to none. */
	if (!write && READ_ONCE(img->owner) == md)
		qcow2_view_finish(img);
	mutex_lock(&role_lock);
	if (write && img->owner != md) {
		DMERR("%s: lost write access to the image", img->name);
		r = -EBUSY;
	} else if (!write && img->owner == md && !qcow2_is_clean(img)) {
		/* A reader that does not write would never write the missing tables. */
		DMERR("%s: cannot become read-only: its tables could not be written", img->name);
		r = -EIO;
	} else if (!write && img->owner == md) {
		img->owner = NULL;
		downgrade = true;
	}
	mutex_unlock(&role_lock);
	/* Nobody else becomes its writer as long as it is open. */
	if (downgrade)
		qcow2_image_lock_downgrade(img->st.file);
	if (r || !write)
		return r;

	if (!img->reserved)
		r = qcow2_tables_reserve(img);
	if (r)
		DMERR("%s: no room on the host for the tables: error %d", img->name, r);
	else
		r = qcow2_header_prepare_write(img);
	img->reserved = !r;
	if (r) {
		DMERR("%s: cannot make the image writable: error %d", img->name, r);
		return r;
	}
	mutex_lock(&img->event_lock);
	img->ti = ti;
	mutex_unlock(&img->event_lock);
	qcow2_writer_resume(img);
	return 0;
}

void qcow2_image_release(struct qcow2_image *img, struct dm_target *ti)
{
	qcow2_writer_flush(img);
	qcow2_commit_everything(img);
	img->st.ops->hand_back(&img->st);
	flush_work(&img->event_work);	/* which writes the corrupt bit, while it may */
	mutex_lock(&img->event_lock);
	if (img->ti == ti)
		img->ti = NULL;
	mutex_unlock(&img->event_lock);
}

int qcow2_registry_init(void)
{
	open_wq = alloc_workqueue("qcow2_open", WQ_UNBOUND, 0);
	return open_wq ? 0 : -ENOMEM;
}

/*
 * No image is being opened, since each opening has a reference to the module; but a worker may just
 * have dropped its reference.
 */
void qcow2_registry_exit(void)
{
	destroy_workqueue(open_wq);
}

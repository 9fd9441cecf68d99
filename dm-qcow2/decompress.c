// SPDX-License-Identifier: GPL-2.0-only
/*
 * decompress.c - reading compressed clusters (deflate, compression type 0).
 *
 * Each image that has been found to hold compressed clusters keeps a few decompressed ones, so that
 * a reader of small pieces inflates a cluster once.  A compressed cluster is never rewritten in
 * place, and is known by its position: a kept cluster cannot become stale.
 *
 * Takes inflate_slot.lock, under which it reads from the storage.
 */
#include <linux/device-mapper.h>
#include <linux/hash.h>
#include <linux/highmem.h>
#include <linux/mutex.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/zlib.h>

#include "decompress.h"
#include "image.h"
#include "io.h"
#include "lookup.h"
#include "storage.h"

#define SLOT_BITS	2
#define NR_SLOTS	(1U << SLOT_BITS)
#define IN_SIZE		(64U << 10)
#define IN_SIZE_LEAST	(8U << 10)	/* a block of the storage, and what can be waited for */

struct inflate_slot {
	struct mutex lock;
	u64 pos;		/* of the data that @out holds; @lock like all below */
	u32 len;		/* and its length, or 0: it holds none */
	void *in;		/* compressed data being read */
	u32 in_size;		/* IN_SIZE or IN_SIZE_LEAST */
	void *out;		/* a cluster */
	void *workspace;	/* zlib's */
};

struct decompressor {
	struct inflate_slot slots[NR_SLOTS];
};

/* Pages: see buffer_alloc() in table-cache.c. */
static void *alloc_in(u32 size, gfp_t gfp)
{
	return (void *)__get_free_pages(gfp | __GFP_COMP, get_order(size));
}

static void free_slots(struct decompressor *d)
{
	unsigned int i;

	for (i = 0; i < NR_SLOTS; i++) {
		free_pages((unsigned long)d->slots[i].in, get_order(d->slots[i].in_size));
		kvfree(d->slots[i].out);
		kvfree(d->slots[i].workspace);
	}
	kfree(d);
}

static struct decompressor *get_decompressor(struct qcow2_image *img)
{
	struct decompressor *d, *old;
	unsigned int i;

	/* Pairs with the cmpxchg() below, which publishes a decompressor that is set up. */
	d = smp_load_acquire(&img->decompressor);
	if (d)
		return d;
	d = kzalloc(sizeof(*d), GFP_NOIO | __GFP_NOFAIL);
	for (i = 0; i < NR_SLOTS; i++)
		mutex_init(&d->slots[i].lock);
	old = cmpxchg(&img->decompressor, NULL, d);
	if (old) {
		free_slots(d);
		return old;
	}
	return d;
}

/*
 * The first use of a slot allocates its buffers; @in is linear because the storage needs that.  A
 * shortage of memory makes a reader wait, as everywhere else, and is not reported as an I/O error.
 */
static void fill_slot(struct qcow2_image *img, struct inflate_slot *slot)
{
	if (!slot->in) {
		slot->in_size = IN_SIZE;
		slot->in = alloc_in(IN_SIZE, GFP_NOIO | __GFP_NORETRY | __GFP_NOWARN);
	}
	if (!slot->in) {
		slot->in_size = IN_SIZE_LEAST;
		slot->in = alloc_in(IN_SIZE_LEAST, GFP_NOIO | __GFP_NOFAIL);
	}
	if (!slot->out)
		slot->out = kvmalloc(img->cluster_size, GFP_NOIO | __GFP_NOFAIL);
	if (!slot->workspace)
		slot->workspace = kvmalloc(zlib_inflate_workspacesize(), GFP_NOIO | __GFP_NOFAIL);
}

static int inflate(struct qcow2_image *img, struct inflate_slot *slot, u64 pos, u32 len)
{
	u64 from, size = img->st.ops->size(&img->st);
	struct z_stream_s strm = { };
	u32 skip, n;
	int r;

	from = round_down(pos, img->st.block_size);
	skip = pos - from;
	len = min_t(u64, len, round_up(size, SECTOR_SIZE) - pos);
	strm.workspace = slot->workspace;
	strm.next_out = slot->out;
	strm.avail_out = img->cluster_size;
	if (zlib_inflateInit2(&strm, -MAX_WBITS) != Z_OK)
		return -EIO;
	/*
	 * Anything may follow the stream up to the end of its sector, so success means that the
	 * stream filled the cluster.
	 */
	for (; len && strm.avail_out; len -= n) {
		n = min(len, slot->in_size - skip);
		r = qcow2_storage_rw_sync(&img->st, REQ_OP_READ, from, slot->in,
					  round_up(skip + n, img->st.block_size));
		if (r)
			return r;
		strm.next_in = slot->in + skip;
		strm.avail_in = n;
		if (zlib_inflate(&strm, Z_SYNC_FLUSH) != Z_OK)
			break;		/* the end of the stream, or nonsense */
		from += slot->in_size;
		skip = 0;
	}
	zlib_inflateEnd(&strm);
	if (strm.avail_out) {
		DMERR_LIMIT("%s: compressed cluster at %llu cannot be inflated", img->name, pos);
		return -EIO;
	}
	return 0;
}

/* Get the decompressed cluster of the data at @pos; release with mutex_unlock(&slot->lock). */
static struct inflate_slot *lock_slot(struct qcow2_image *img, u64 pos, u32 len)
{
	struct decompressor *d = get_decompressor(img);
	struct inflate_slot *slot;
	int r;

	slot = &d->slots[hash_64(pos, SLOT_BITS)];
	mutex_lock(&slot->lock);
	if (slot->pos == pos && slot->len == len)
		return slot;
	slot->len = 0;
	fill_slot(img, slot);
	r = inflate(img, slot, pos, len);
	if (r) {
		mutex_unlock(&slot->lock);
		return ERR_PTR(r);
	}
	slot->pos = pos;
	slot->len = len;
	return slot;
}

int qcow2_decompress_read(const struct extent *ext, u32 skip, void *buf)
{
	struct inflate_slot *slot = lock_slot(ext->img, ext->host, ext->stored);

	if (IS_ERR(slot))
		return PTR_ERR(slot);
	memcpy(buf, slot->out + skip, ext->len);
	mutex_unlock(&slot->lock);
	return 0;
}

static void decompress_work(struct work_struct *work)
{
	struct qcow2_io *io = container_of(work, struct qcow2_io, inflate.work);
	unsigned int noio = memalloc_noio_save();
	struct qcow2_image *img = io->inflate.img;
	struct bio *bio = io_bio(io);
	struct inflate_slot *slot;
	struct bvec_iter iter;
	struct bio_vec bv;
	void *from;

	slot = lock_slot(img, io->compressed.pos, io->compressed.len);
	if (IS_ERR(slot)) {
		qcow2_io_end(io, errno_to_blk_status(PTR_ERR(slot)));
		goto out;
	}
	from = slot->out + in_cluster(img, io_start(io));
	bio_for_each_segment(bv, bio, iter) {
		memcpy_to_bvec(&bv, from);
		from += bv.bv_len;
	}
	mutex_unlock(&slot->lock);
	qcow2_io_end(io, BLK_STS_OK);
out:
	memalloc_noio_restore(noio);
}

void qcow2_decompress_io(struct qcow2_io *io, const struct extent *ext)
{
	io->compressed.pos = ext->host;
	io->compressed.len = ext->stored;
	io->inflate.img = ext->img;
	INIT_WORK(&io->inflate.work, decompress_work);
	queue_work(ext->img->cache.lookup_wq, &io->inflate.work);
}

void qcow2_decompress_exit(struct qcow2_image *img)
{
	if (img->decompressor)
		free_slots(img->decompressor);
	img->decompressor = NULL;
}

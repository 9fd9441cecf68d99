/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * reuse.pml - how host clusters of a writable image are committed, freed and used again.
 *
 * Two guest clusters, two host clusters. Checked in every state, so also at any power cut: an entry on
 * disk leads to its own guest cluster's data and is counted; what was flushed is there; no I/O touches
 * a cluster that has become another's.
 *
 * A write to the storage stays in its cache until a flush: a power cut keeps any subset of such writes.
 * So each location has what is durable and what was written last.
 *
 * The functions that each process stands for are named beside it. With BROKEN set to one of the names
 * below the model has that mistake, and the checker must find it.
 */
#define NONE		0	/* the model as it should be */
#define EARLY_REUSE	1	/* refcount lowered when the entry goes, not when that is durable */
#define NO_EPOCH	2	/* clusters reclaimed while an I/O may still use them */
#define NO_FLUSH	3	/* L2 written without a flush after the refcounts */
#define L2_FIRST	4	/* L2 written before the refcounts */
#define MAP_EARLY	5	/* entry set before the data is written */
#define TRIM_LATE	6	/* allocatable before the discard has completed */
#define OPEN_FREED	7	/* what the open generation freed reclaimed with the closed one's */

#ifndef BROKEN
#define BROKEN NONE
#endif

#define G	2		/* guest clusters 1 and 2; 0 is nobody's data */
#define H	2		/* host clusters 1 and 2; 0 is no entry */
#define ARRAY	3

/* In memory. */
byte l2[ARRAY];			/* L2 entries: host cluster or 0 */
bit ref[ARRAY];			/* refcounts */
bit freed_open[ARRAY];		/* generation.freed */
bit freed_closed[ARRAY];	/* generation.closed_freed */
bit freed_durable[ARRAY];	/* commit.durable */
byte inside[2];			/* I/Os in each phase of the epoch */
bit phase;

/* On the storage: durable, and written last. */
byte l2_d[ARRAY], l2_w[ARRAY];
bit ref_d[ARRAY], ref_w[ARRAY];
byte data_d[ARRAY], data_w[ARRAY];	/* whose data; 0 after a discard */

bit flushed[ARRAY];		/* a guest cluster whose data the guest knows to be durable */
bit since[ARRAY];		/* it was discarded since the generation was closed */

/* An older write that was in the cache may have become durable before the newer one. */
inline put(durable, last, value)
{
	if
	:: durable = last
	:: skip
	fi;
	last = value
}

inline flush()
{
	d_step {
		l2_d[1] = l2_w[1]; l2_d[2] = l2_w[2];
		ref_d[1] = ref_w[1]; ref_d[2] = ref_w[2];
		data_d[1] = data_w[1]; data_d[2] = data_w[2]
	}
}

/* qcow2_start_allocating(), finish_op(): the cluster is counted, written, then mapped. */
inline allocate(g, h)
{
	atomic {
		ref[h] == 0 && l2[g] == 0;
		assert(l2[1] != h && l2[2] != h);
		ref[h] = 1
	}
	if
	:: BROKEN == MAP_EARLY -> l2[g] = h
	:: else
	fi;
	atomic {
		put(data_d[h], data_w[h], g)
	}
	l2[g] = h
}

/* set_entries(), qcow2_set_mapping(): the entry goes, the cluster is recorded as freed. */
inline discard(g)
{
	atomic {
		l2[g] != 0;
		flushed[g] = 0;
		since[g] = 1;
		freed_open[l2[g]] = 1;
		if
		:: BROKEN == EARLY_REUSE -> ref[l2[g]] = 0
		:: else
		fi;
		l2[g] = 0
	}
}

/* The writer's work item: one change at a time. */
active proctype writer()
{
	do
	:: allocate(1, 1)
	:: allocate(1, 2)
	:: allocate(2, 1)
	:: allocate(2, 2)
	:: discard(1)
	:: discard(2)
	od
}

/* qcow2_commit_now(), write_generation(), write_closed(); a guest's FLUSH waits for it. */
active proctype committer()
{
	byte l2_s[ARRAY];		/* shadows */
	bit ref_s[ARRAY];

	do
	:: atomic {			/* qcow2_generation_close() */
		since[1] = 0; since[2] = 0;
		l2_s[1] = l2[1]; l2_s[2] = l2[2];
		ref_s[1] = ref[1]; ref_s[2] = ref[2];
		freed_closed[1] = freed_open[1]; freed_closed[2] = freed_open[2];
		freed_open[1] = 0; freed_open[2] = 0
	   }
	   if
	   :: BROKEN == L2_FIRST ->
		atomic { put(l2_d[1], l2_w[1], l2_s[1]); put(l2_d[2], l2_w[2], l2_s[2]) }
	   :: else
	   fi;
	   atomic { put(ref_d[1], ref_w[1], ref_s[1]); put(ref_d[2], ref_w[2], ref_s[2]) }
	   if
	   :: BROKEN == NO_FLUSH
	   :: else -> flush()
	   fi;
	   atomic { put(l2_d[1], l2_w[1], l2_s[1]); put(l2_d[2], l2_w[2], l2_s[2]) }
	   atomic {			/* qcow2_generation_finish() */
		flush();
		if
		:: BROKEN == OPEN_FREED ->
			freed_closed[1] = freed_closed[1] | freed_open[1]; freed_open[1] = 0;
			freed_closed[2] = freed_closed[2] | freed_open[2]; freed_open[2] = 0
		:: else
		fi;
		freed_durable[1] = freed_durable[1] | freed_closed[1];
		freed_durable[2] = freed_durable[2] | freed_closed[2];
		if
		:: l2_s[1] != 0 && !since[1] -> flushed[1] = 1
		:: else
		fi;
		if
		:: l2_s[2] != 0 && !since[2] -> flushed[2] = 1
		:: else
		fi;
		freed_closed[1] = 0; freed_closed[2] = 0;
		l2_s[1] = 0; l2_s[2] = 0; ref_s[1] = 0; ref_s[2] = 0
	   }
	od
}

/* qcow2_alloc_reclaim(), drop_refs(): discarded on the storage, and that has completed, then free. */
inline reclaim(h)
{
	if
	:: taken[h] && BROKEN == TRIM_LATE ->
		ref[h] = 0;
		atomic { put(data_d[h], data_w[h], 0) }
	:: taken[h] && BROKEN != TRIM_LATE ->
		atomic { put(data_d[h], data_w[h], 0) }
		ref[h] = 0
	:: else
	fi;
	taken[h] = 0
}

/* reclaim_work(). */
active proctype reclaimer()
{
	bit taken[ARRAY];

	do
	:: atomic {
		freed_durable[1] || freed_durable[2];
		taken[1] = freed_durable[1]; taken[2] = freed_durable[2];
		freed_durable[1] = 0; freed_durable[2] = 0
	   }
	   if
	   :: BROKEN == NO_EPOCH
	   :: else ->			/* qcow2_epoch_flip() */
		phase = 1 - phase;
		inside[1 - phase] == 0
	   fi;
	   reclaim(1);
	   reclaim(2)
	od
}

/* map_read(), map_write(): in an epoch from the lookup to the end of the I/O. */
active proctype bio()
{
	byte g, h;
	bit mine;

	do
	:: atomic {
		if
		:: g = 1
		:: g = 2
		fi;
		mine = phase; inside[mine]++
	   }
	   h = l2[g];
	   atomic {
		if
		:: h == 0
		:: h != 0 -> assert(data_w[h] == g)		/* a read */
		:: h != 0 ->					/* a write in place */
			assert(data_w[h] == g && l2[3 - g] != h);
			put(data_d[h], data_w[h], g)
		fi;
		inside[mine]--; g = 0; h = 0; mine = 0
	   }
	od
}

/* A power cut: of each location either is what is left. */
#define CUT(g, entry, other) \
	(entry == 0 || \
	 (ref_d[entry] && ref_w[entry] && data_d[entry] == g && data_w[entry] == g))
#define SOUND(g) \
	(CUT(g, l2_d[g], 0) && CUT(g, l2_w[g], 0) && \
	 (!flushed[g] || (l2_d[g] != 0 && l2_w[g] != 0)))

active proctype power_cut()
{
	atomic {
		!(SOUND(1) && SOUND(2)) -> assert(false)
	}
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * vu-proto.h - the vhost-user protocol as it is on the wire: message numbers,
 * feature bits and payloads. Everything is in the byte order of the machine.
 */
#ifndef QCOW2ATTACH_VU_PROTO_H
#define QCOW2ATTACH_VU_PROTO_H

#include <stdint.h>

/* Requests of the front end that this back end knows. */
enum vu_request {
	VU_GET_FEATURES = 1,
	VU_SET_FEATURES = 2,
	VU_SET_OWNER = 3,
	VU_RESET_OWNER = 4,
	VU_SET_MEM_TABLE = 5,
	VU_SET_LOG_BASE = 6,
	VU_SET_LOG_FD = 7,
	VU_SET_VRING_NUM = 8,
	VU_SET_VRING_ADDR = 9,
	VU_SET_VRING_BASE = 10,
	VU_GET_VRING_BASE = 11,
	VU_SET_VRING_KICK = 12,
	VU_SET_VRING_CALL = 13,
	VU_SET_VRING_ERR = 14,
	VU_GET_PROTOCOL_FEATURES = 15,
	VU_SET_PROTOCOL_FEATURES = 16,
	VU_GET_QUEUE_NUM = 17,
	VU_SET_VRING_ENABLE = 18,
	VU_SET_BACKEND_REQ_FD = 21,
	VU_GET_CONFIG = 24,
	VU_SET_CONFIG = 25,
	VU_RESET_DEVICE = 34,
	VU_GET_MAX_MEM_SLOTS = 36,
	VU_ADD_MEM_REG = 37,
	VU_REM_MEM_REG = 38,
	VU_SET_STATUS = 39,
	VU_GET_STATUS = 40,
};

/* The request of ours on the back-end channel: read the configuration again. */
#define VU_BACKEND_CONFIG_CHANGE 2

/* The feature bit that is the transport's, not the device's. */
#define VU_F_PROTOCOL_FEATURES 30

enum vu_protocol_feature {
	VU_PROTOCOL_F_MQ = 0,
	VU_PROTOCOL_F_LOG_SHMFD = 1,
	VU_PROTOCOL_F_REPLY_ACK = 3,
	VU_PROTOCOL_F_BACKEND_REQ = 5,
	VU_PROTOCOL_F_CONFIG = 9,
	VU_PROTOCOL_F_RESET_DEVICE = 13,
	VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS = 15,
	VU_PROTOCOL_F_STATUS = 16,
};

#define VU_VERSION 1u
#define VU_VERSION_MASK 3u
#define VU_FLAG_REPLY (1u << 2)
#define VU_FLAG_NEED_REPLY (1u << 3)

/* In the number of SET_VRING_KICK, CALL and ERR: the ring, and "no descriptor is sent". */
#define VU_VRING_INDEX_MASK 0xffu
#define VU_VRING_NOFD (1u << 8)

/* SET_MEM_TABLE holds at most this many regions; more come by ADD_MEM_REG. */
#define VU_TABLE_REGIONS 8
#define VU_CONFIG_MAX 256

struct vu_header {
	uint32_t request;
	uint32_t flags;
	uint32_t size;
} __attribute__((packed));

/* A range of guest memory; the file it is in comes beside the message. */
struct vu_region {
	uint64_t guest_addr;
	uint64_t size;
	uint64_t front_addr;	/* where the front end has it: ring addresses are in these */
	uint64_t mmap_offset;
} __attribute__((packed));

struct vu_mem_table {
	uint32_t nregions;
	uint32_t padding;
	struct vu_region region[VU_TABLE_REGIONS];
} __attribute__((packed));

struct vu_mem_reg {
	uint64_t padding;
	struct vu_region region;
} __attribute__((packed));

struct vu_vring_state {
	uint32_t index;
	uint32_t num;
} __attribute__((packed));

struct vu_vring_addr {
	uint32_t index;
	uint32_t flags;
	uint64_t desc;
	uint64_t used;
	uint64_t avail;
	uint64_t log;
} __attribute__((packed));

struct vu_config {
	uint32_t offset;
	uint32_t size;
	uint32_t flags;
	uint8_t data[VU_CONFIG_MAX];
} __attribute__((packed));

struct vu_log {
	uint64_t size;
	uint64_t offset;
} __attribute__((packed));

union vu_payload {
	uint64_t u64;
	struct vu_mem_table table;
	struct vu_mem_reg mem_reg;
	struct vu_vring_state state;
	struct vu_vring_addr addr;
	struct vu_config config;
	struct vu_log log;
};

#endif

// SPDX-License-Identifier: MIT
/*
 * Packets by the million through BPF_PROG_TEST_RUN: the real ones of a file, or malformed and truncated ones that are
 * made of them.
 *
 *	fuzz CORPUS COUNT SEED PROCESSES FD...
 *
 * CORPUS: records of three u32 (length, gso_segs, gso_size) and the bytes of a frame. COUNT 0: each as it is, once;
 * else so many made of them, always the same for one SEED. Each goes to each of the programs FD.
 *
 * What is asked of a program: no error, the verdict TC_ACT_UNSPEC, every byte of the packet and its mark, priority and
 * control block as before. The answer is one line of JSON; "first" is the first packet of which that did not hold.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_PACKET 2048
#define MIN_PACKET 15 /* TEST_RUN wants a whole link header, and kernels before 6.2 a byte behind it */
#define MAX_PROGRAMS 64
#define MAX_PROCESSES 16
#define L2 14
#define UNSPEC 0xffffffffu

struct record {
	uint32_t length, segments, size;
	uint8_t data[];
};

struct packet {
	uint32_t length, segments, size;
	uint8_t data[MAX_PACKET];
};

struct result {
	uint64_t runs, bytes, errors, verdicts, changed, marked;
	uint64_t sizes[4]; /* packets by length: up to 34, 54, 128, above */
	uint64_t failed; /* number of the first that failed, and how */
	int program, error;
	uint32_t verdict;
	struct packet packet;
};

static const struct record **corpus;
static size_t corpus_size;

/* splitmix64: each packet's numbers follow from the seed and its own number */
static uint64_t state;

static uint64_t next(void)
{
	uint64_t z = (state += 0x9e3779b97f4a7c15ull);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static uint32_t below(uint32_t limit)
{
	return (next() >> 32) * limit >> 32;
}

static void load(const char *path)
{
	FILE *file = fopen(path, "rb");
	struct record head;

	if (!file) {
		perror(path);
		exit(2);
	}
	while (fread(&head, sizeof(head), 1, file) == 1) {
		struct record *record = malloc(sizeof(head) + head.length);

		*record = head;
		if (head.length > MAX_PACKET || fread(record->data, 1, head.length, file) != head.length) {
			fprintf(stderr, "%s: not a corpus\n", path);
			exit(2);
		}
		corpus = realloc(corpus, (corpus_size + 1) * sizeof(*corpus));
		corpus[corpus_size++] = record;
	}
	fclose(file);
	if (!corpus_size) {
		fprintf(stderr, "%s: empty\n", path);
		exit(2);
	}
}

/* A byte as headers have it: lengths, flags, protocols and their neighbours. */
static uint8_t odd_byte(void)
{
	static const uint8_t interesting[] = {
		0,   1,   2,   3,   4,   5,    6,    7,    8,    15,   16,   17,   20,   40,   41,   43,
		44,  47,  50,  51,  53,  58,   59,   60,   64,   80,   0x0f, 0x41, 0x44, 0x45, 0x46, 0x4f,
		103, 128, 129, 132, 136, 0x60, 0x6f, 0x81, 0x86, 0x88, 0xa8, 0xdd, 0xe0, 0xf0, 0xfe, 0xff,
	};

	return next() & 1 ? interesting[below(sizeof(interesting))] : next();
}

static void resize(struct packet *p, uint32_t length)
{
	if (length > MAX_PACKET)
		length = MAX_PACKET;
	for (uint32_t i = p->length; i < length; i++)
		p->data[i] = odd_byte();
	p->length = length < MIN_PACKET ? MIN_PACKET : length;
}

/* An IPv6 chain that may end anywhere, with lengths that may lead anywhere. */
static void chain(struct packet *p)
{
	static const uint8_t extensions[] = {0, 43, 44, 51, 60, 0, 43, 60};
	static const uint8_t ends[] = {6, 17, 58, 59, 50, 132, 136, 135};
	uint32_t at = L2 + 40, count = below(10);
	uint8_t *next_header = &p->data[L2 + 6];

	resize(p, MAX_PACKET);
	p->data[12] = 0x86;
	p->data[13] = 0xdd;
	p->data[L2] = 0x60;
	for (uint32_t i = 0; i < count && at + 8 < MAX_PACKET; i++) {
		uint8_t kind = extensions[below(sizeof(extensions))];

		*next_header = kind;
		next_header = &p->data[at];
		p->data[at + 1] = below(8) ? below(3) : odd_byte();
		if (kind == 44) {
			p->data[at + 2] = below(4) ? 0 : odd_byte();
			p->data[at + 3] = below(4) ? 0 : odd_byte();
			at += 8;
		} else {
			at += kind == 51 ? (p->data[at + 1] + 2) * 4 : (p->data[at + 1] + 1) * 8;
		}
	}
	*next_header = ends[below(sizeof(ends))];
	resize(p, at + below(48));
	p->data[L2 + 4] = (p->length - L2 - 40) >> 8;
	p->data[L2 + 5] = p->length - L2 - 40;
}

/*
 * TEST_RUN itself refuses (EINVAL, from 6.17 or so on) what its EtherType says is IP and has no room for the header.
 * Behind a VLAN tag it does not look.
 */
static void tag(struct packet *p)
{
	uint16_t type = p->data[12] << 8 | p->data[13];

	if (!(type == 0x0800 && p->length < L2 + 20) && !(type == 0x86dd && p->length < L2 + 40))
		return;
	memmove(p->data + 16, p->data + 12, p->length - 12);
	memcpy(p->data + 12, "\x81\0\0\x2a", 4);
	p->length += 4;
}

static void make(struct packet *p, uint64_t number, uint64_t seed)
{
	const struct record *from;
	uint32_t count, i;

	state = seed ^ number * 0xd1342543de82ef95ull;
	from = corpus[below(corpus_size)];
	p->length = from->length;
	memcpy(p->data, from->data, from->length);
	resize(p, p->length);
	switch (below(8)) {
	case 0: /* nothing but an EtherType that makes sense */
		resize(p, MIN_PACKET + below(200));
		for (i = L2; i < p->length; i++)
			p->data[i] = next();
		break;
	case 1:
		chain(p);
		break;
	case 2: { /* the head of one, the tail of another */
		const struct record *other = corpus[below(corpus_size)];

		i = L2 + below(60);
		if (i < other->length && i < p->length) {
			memcpy(p->data + i, other->data + i, other->length - i);
			p->length = other->length;
		}
		break;
	}
	case 3: /* longer than it says */
		resize(p, p->length + below(600));
		break;
	case 4: /* only cut */
		break;
	default:
		count = 1 + below(8);
		for (i = 0; i < count; i++)
			p->data[12 + below(p->length < 90 ? p->length - 12 : 78)] = odd_byte();
	}
	if (!(next() & 3)) /* in the middle of the headers, most often */
		resize(p, below(2) ? MIN_PACKET + below(80) : below(p->length));
	tag(p);
	p->segments = 0;
	p->size = 0;
	if (!(next() & 3)) {
		p->segments = below(4) ? below(64) : below(65536);
		p->size = below(4) ? 1 + below(1500) : below(65536);
	}
}

static void failed(struct result *r, uint64_t number, int program, int error, uint32_t verdict,
		   const struct packet *p)
{
	if (r->errors + r->verdicts + r->changed + r->marked > 1)
		return;
	r->failed = number;
	r->program = program;
	r->error = error;
	r->verdict = verdict;
	r->packet = *p;
}

static void run(struct result *r, const struct packet *p, uint64_t number, const int *programs, int count)
{
	static uint8_t out[MAX_PACKET + 256];
	struct __sk_buff before = {
		.mark = 0x6e657474,
		.priority = 7,
		.cb = {1, 2, 3, 4, 5},
		.gso_segs = p->segments,
		.gso_size = p->size,
	};

	r->sizes[p->length <= 34 ? 0 : p->length <= 54 ? 1 : p->length <= 128 ? 2 : 3]++;
	r->bytes += p->length;
	for (int i = 0; i < count; i++) {
		struct __sk_buff after = {};
		union bpf_attr attr = {};

		attr.test.prog_fd = programs[i];
		attr.test.repeat = 1;
		attr.test.data_in = (uintptr_t)p->data;
		attr.test.data_size_in = p->length;
		attr.test.data_out = (uintptr_t)out;
		attr.test.data_size_out = sizeof(out);
		attr.test.ctx_in = (uintptr_t)&before;
		attr.test.ctx_size_in = sizeof(before);
		attr.test.ctx_out = (uintptr_t)&after;
		attr.test.ctx_size_out = sizeof(after);
		r->runs++;
		if (syscall(__NR_bpf, BPF_PROG_TEST_RUN, &attr, sizeof(attr.test)) < 0) {
			r->errors++;
			failed(r, number, i, errno, 0, p);
			continue;
		}
		if (attr.test.retval != UNSPEC) {
			r->verdicts++;
			failed(r, number, i, 0, attr.test.retval, p);
		}
		if (attr.test.data_size_out != p->length || memcmp(out, p->data, p->length)) {
			r->changed++;
			failed(r, number, i, 0, attr.test.retval, p);
		}
		if (after.mark != before.mark || after.priority != before.priority ||
		    memcmp(after.cb, before.cb, sizeof(after.cb)) || after.gso_segs != before.gso_segs ||
		    after.gso_size != before.gso_size) {
			r->marked++;
			failed(r, number, i, 0, attr.test.retval, p);
		}
	}
}

int main(int argc, char **argv)
{
	int programs[MAX_PROGRAMS], count = argc - 5, processes = argc > 4 ? atoi(argv[4]) : 0, broken = 0;
	uint64_t packets, seed;
	struct result *results, total = {};

	if (count < 1 || count > MAX_PROGRAMS || processes < 1 || processes > MAX_PROCESSES) {
		fprintf(stderr, "usage: fuzz CORPUS COUNT SEED PROCESSES FD...\n");
		return 2;
	}
	load(argv[1]);
	packets = strtoull(argv[2], NULL, 0);
	seed = strtoull(argv[3], NULL, 0);
	for (int i = 0; i < count; i++)
		programs[i] = atoi(argv[5 + i]);
	results = mmap(NULL, processes * sizeof(*results), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		       -1, 0);
	if (results == MAP_FAILED)
		return 2;
	for (int process = 0; process < processes; process++) {
		if (fork())
			continue;
		prctl(PR_SET_PDEATHSIG, 9);
		static struct packet packet;

		for (uint64_t i = process; i < (packets ? packets : corpus_size); i += processes) {
			if (packets) {
				make(&packet, i, seed);
			} else {
				packet.length = corpus[i]->length;
				packet.segments = corpus[i]->segments;
				packet.size = corpus[i]->size;
				memcpy(packet.data, corpus[i]->data, packet.length);
			}
			run(&results[process], &packet, i, programs, count);
		}
		_exit(0);
	}
	for (int process = 0; process < processes; process++) {
		int status;

		if (wait(&status) < 0 || status)
			broken = 1;
	}
	for (int process = 0; process < processes; process++) {
		struct result *r = &results[process];

		if (r->errors + r->verdicts + r->changed + r->marked &&
		    (!total.packet.length || r->failed < total.failed)) {
			total.failed = r->failed;
			total.program = r->program;
			total.error = r->error;
			total.verdict = r->verdict;
			total.packet = r->packet;
		}
		total.runs += r->runs;
		total.bytes += r->bytes;
		total.errors += r->errors;
		total.verdicts += r->verdicts;
		total.changed += r->changed;
		total.marked += r->marked;
		for (int i = 0; i < 4; i++)
			total.sizes[i] += r->sizes[i];
	}
	printf("{\"runs\": %lu, \"bytes\": %lu, \"errors\": %lu, \"verdicts\": %lu, \"changed\": %lu, "
	       "\"marked\": %lu, "
	       "\"sizes\": [%lu, %lu, %lu, %lu], \"first\": ",
	       total.runs, total.bytes, total.errors, total.verdicts, total.changed, total.marked,
	       total.sizes[0], total.sizes[1], total.sizes[2], total.sizes[3]);
	if (total.packet.length) {
		printf("{\"number\": %lu, \"program\": %d, \"error\": \"%s\", \"verdict\": %d, \"segments\": "
		       "%u, "
		       "\"size\": %u, \"packet\": \"",
		       total.failed, total.program, total.error ? strerror(total.error) : "",
		       (int)total.verdict, total.packet.segments, total.packet.size);
		for (uint32_t i = 0; i < total.packet.length; i++)
			printf("%02x", total.packet.data[i]);
		printf("\"}}\n");
	} else {
		printf("null}\n");
	}
	return broken;
}

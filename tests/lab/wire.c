// SPDX-License-Identifier: MIT
/*
 * A wire of known delay: forwards Ethernet frames between pairs of TAPs, each in a network namespace of its own, and
 * holds every frame for a set time. It measures how long it really held them, so that a test compares with that and
 * not with the wish.
 *
 *	wire [-p PRIORITY] [-s SPIN_US] [-x SEED] --link NS_A TAP_A NS_B TAP_B SPEC_AB SPEC_BA [--link ...]
 *
 * SPEC: delay=NS,rate=BITS_PER_S,loss=PPM,duplicate=PPM,reorder=PPM,extra=NS,queue=PACKETS (all optional).
 * Stdin takes "report", "reset" and "set LINK DIRECTION SPEC", one a line; each is answered by one line of JSON. End
 * of file ends it, so no wire outlives the test that made it.
 *
 * One thread serves all directions: a frame is stamped when read, queued by deadline, and written when that is due.
 * Within SPIN_US of a deadline it polls instead of sleeping, up to half of the time.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lab.h"

#define MAX_LINKS 4
#define FRAME_SIZE 2048
#define RING 32768 /* packets a direction; a power of two, and the most that queue= may ask for */
#define READ_BURST 1024 /* read ahead of writing: a frame's delay is known from its reading on */
#define WRITE_BURST 8
#define SPIN_WINDOW_NS 10000000ull
#define PPM 1000000u

/* Log-linear histogram: 1024 steps an octave, so a percentile is off by less than 0.1 %. */
#define STEP_BITS 10
#define STEPS (1u << STEP_BITS)
#define BUCKETS ((64 - STEP_BITS + 1) * STEPS)

struct histogram {
	uint64_t count, min, max;
	uint64_t bucket[BUCKETS];
};

struct spec {
	uint64_t delay_ns, extra_ns, rate_bits_per_s, queue;
	uint32_t loss_ppm, duplicate_ppm, reorder_ppm;
};

struct packet {
	uint64_t read_ns, due_ns;
	uint32_t length, slot;
};

/* Deadlines within one fifo never fall, so its head is always the next one due. */
struct fifo {
	struct packet at[RING];
	uint32_t head, tail;
};

struct counts {
	uint64_t lost, duplicated, reordered, queue_drops, oversize;
	struct histogram hold; /* from read to write, frames in the normal queue */
};

struct direction {
	int in, out;
	struct spec spec;
	struct fifo normal, late; /* late: those that reordering makes others overtake */
	uint32_t free_slots[RING], free_count;
	unsigned char (*slots)[FRAME_SIZE];
	uint64_t line_free_ns; /* when a rate-limited line has sent all it was given */
	struct counts seen;
};

static struct direction *directions[2 * MAX_LINKS];
static int direction_count;
static uint64_t spin_ns = 60000;
static uint64_t random_state = 1;

/* xorshift64*: the same seed gives the same losses. */
static bool happens(uint32_t ppm)
{
	if (!ppm)
		return false;
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return (random_state * 0x2545f4914f6cdd1dull >> 32) % PPM < ppm;
}

static uint32_t bucket_of(uint64_t value)
{
	int shift;

	if (value < STEPS)
		return value;
	shift = 63 - __builtin_clzll(value) - STEP_BITS;
	return (shift + 1) * STEPS + (uint32_t)((value >> shift) - STEPS);
}

/* The middle of a bucket. */
static uint64_t value_of(uint32_t bucket)
{
	int shift = (int)(bucket / STEPS) - 1;

	if (shift < 0)
		return bucket;
	return ((uint64_t)(STEPS + bucket % STEPS) << shift) + ((1ull << shift) >> 1);
}

static void count(struct histogram *histogram, uint64_t value)
{
	if (!histogram->count || value < histogram->min)
		histogram->min = value;
	if (value > histogram->max)
		histogram->max = value;
	histogram->count++;
	histogram->bucket[bucket_of(value)]++;
}

static uint64_t median(const struct histogram *histogram)
{
	uint64_t wanted = histogram->count / 2, seen = 0, value;

	for (uint32_t i = 0; i < BUCKETS; i++) {
		seen += histogram->bucket[i];
		if (seen > wanted) {
			value = value_of(i);
			if (value < histogram->min)
				return histogram->min;
			return value > histogram->max ? histogram->max : value;
		}
	}
	return histogram->max;
}

static uint32_t queued(const struct direction *direction)
{
	return direction->normal.tail - direction->normal.head + direction->late.tail - direction->late.head;
}

static void report(void)
{
	printf("{\"directions\": [");
	for (int i = 0; i < direction_count; i++) {
		const struct counts *c = &directions[i]->seen;

		printf("%s{\"lost\": %lu, \"duplicated\": %lu, \"reordered\": %lu, \"queue_drops\": %lu, "
		       "\"oversize\": %lu, \"hold_ns\": {\"count\": %lu, \"min\": %lu, \"median\": %lu, "
		       "\"max\": %lu}}",
		       i ? ", " : "", c->lost, c->duplicated, c->reordered, c->queue_drops, c->oversize,
		       c->hold.count, c->hold.min, median(&c->hold), c->hold.max);
	}
	printf("]}\n");
	fflush(stdout);
}

static void reset(void)
{
	for (int i = 0; i < direction_count; i++)
		memset(&directions[i]->seen, 0, sizeof(directions[i]->seen));
}

static struct spec parse_spec(char *text)
{
	struct spec spec = {.queue = RING / 2};
	char *saved, *part, *end;

	for (part = strtok_r(text, ",", &saved); part; part = strtok_r(NULL, ",", &saved)) {
		char *equals = strchr(part, '=');
		uint64_t value;

		if (!equals)
			errx(1, "no value in %s", part);
		*equals = '\0';
		value = strtoull(equals + 1, &end, 10);
		if (*end || end == equals + 1)
			errx(1, "%s is no whole number", equals + 1);
		if (!strcmp(part, "delay"))
			spec.delay_ns = value;
		else if (!strcmp(part, "extra"))
			spec.extra_ns = value;
		else if (!strcmp(part, "rate"))
			spec.rate_bits_per_s = value;
		else if (!strcmp(part, "queue"))
			spec.queue = value;
		else if (!strcmp(part, "loss"))
			spec.loss_ppm = value;
		else if (!strcmp(part, "duplicate"))
			spec.duplicate_ppm = value;
		else if (!strcmp(part, "reorder"))
			spec.reorder_ppm = value;
		else
			errx(1, "no such setting: %s", part);
	}
	if (!spec.queue || spec.queue > RING)
		errx(1, "queue must be 1 to %d packets", RING);
	return spec;
}

static int open_tap(const char *namespace, const char *name)
{
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "/run/netns/%s", namespace);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET))
		err(1, "cannot enter %s", path);
	close(fd);
	fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		err(1, "/dev/net/tun");
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	/* No IFF_VNET_HDR and no offload: the kernel hands over whole frames with their checksums. */
	if (ioctl(fd, TUNSETIFF, &request))
		err(1, "cannot make %s", name);
	return fd;
}

static void add_direction(int in, int out, char *spec)
{
	struct direction *d = calloc(1, sizeof(*d));

	if (!d)
		err(1, "no memory");
	d->slots = mmap(NULL, (size_t)RING * FRAME_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			-1, 0);
	if (d->slots == MAP_FAILED)
		err(1, "no memory");
	d->in = in;
	d->out = out;
	d->spec = parse_spec(spec);
	for (uint32_t i = 0; i < RING; i++)
		d->free_slots[i] = RING - 1 - i;
	d->free_count = RING;
	directions[direction_count++] = d;
}

static void enqueue(struct direction *d, struct fifo *fifo, uint64_t read_ns, uint64_t due_ns,
		    uint32_t length, const void *frame)
{
	uint32_t slot = d->free_slots[--d->free_count];
	struct packet *packet = &fifo->at[fifo->tail % RING];

	/* A shorter delay set while frames wait must not make them overtake each other. */
	if (fifo->tail != fifo->head && fifo->at[(fifo->tail - 1) % RING].due_ns > due_ns)
		due_ns = fifo->at[(fifo->tail - 1) % RING].due_ns;
	memcpy(d->slots[slot], frame, length);
	*packet = (struct packet){.read_ns = read_ns, .due_ns = due_ns, .length = length, .slot = slot};
	fifo->tail++;
}

/* Returns whether anything was read. */
static bool receive(struct direction *d)
{
	static unsigned char frame[FRAME_SIZE + 1];
	bool any = false;

	for (int i = 0; i < READ_BURST; i++) {
		ssize_t length = read(d->in, frame, sizeof(frame));
		struct fifo *fifo = &d->normal;
		uint64_t read_ns, due_ns;
		int copies = 1;

		if (length <= 0)
			break;
		read_ns = now_ns();
		any = true;
		if (length > FRAME_SIZE) {
			d->seen.oversize++;
			continue;
		}
		if (happens(d->spec.loss_ppm)) {
			d->seen.lost++;
			continue;
		}
		if (happens(d->spec.duplicate_ppm)) {
			copies = 2;
			d->seen.duplicated++;
		}
		if (queued(d) + copies > d->spec.queue || d->free_count < (uint32_t)copies) {
			d->seen.queue_drops += copies;
			continue;
		}
		due_ns = read_ns;
		if (d->spec.rate_bits_per_s) {
			if (d->line_free_ns < read_ns)
				d->line_free_ns = read_ns;
			d->line_free_ns += length * 8 * NS_PER_S / d->spec.rate_bits_per_s;
			due_ns = d->line_free_ns;
		}
		due_ns += d->spec.delay_ns;
		if (happens(d->spec.reorder_ppm)) {
			due_ns += d->spec.extra_ns;
			fifo = &d->late;
			d->seen.reordered++;
		}
		while (copies--)
			enqueue(d, fifo, read_ns, due_ns, length, frame);
	}
	return any;
}

/* Write what is due. Returns the deadline of the next frame, or UINT64_MAX. */
static uint64_t release(struct direction *d, struct fifo *fifo, bool counted)
{
	for (int i = 0; fifo->head != fifo->tail; i++) {
		struct packet *packet = &fifo->at[fifo->head % RING];
		uint64_t write_ns = now_ns();

		if (packet->due_ns > write_ns)
			return packet->due_ns;
		if (i >= WRITE_BURST)
			return write_ns; /* what has come in meanwhile must be stamped first */
		if (write(d->out, d->slots[packet->slot], packet->length) == (ssize_t)packet->length &&
		    counted)
			count(&d->seen.hold, write_ns - packet->read_ns);
		d->free_slots[d->free_count++] = packet->slot;
		fifo->head++;
	}
	return UINT64_MAX;
}

static void obey(char *line)
{
	int link, way;
	char spec[256];

	if (!strcmp(line, "report")) {
		report();
		return;
	}
	if (!strcmp(line, "reset")) {
		reset();
	} else if (sscanf(line, "set %d %d %255s", &link, &way, spec) == 3 && link >= 0 && way >= 0 &&
		   way < 2 && 2 * link + way < direction_count) {
		directions[2 * link + way]->spec = parse_spec(spec);
	} else {
		errx(1, "no such request: %s", line);
	}
	printf("{}\n");
	fflush(stdout);
}

/* Returns false at the end of file. */
static bool listen_to_stdin(void)
{
	static char buffer[4096];
	static size_t used;
	ssize_t length = read(STDIN_FILENO, buffer + used, sizeof(buffer) - used - 1);
	char *newline;

	if (length <= 0)
		return false;
	used += length;
	buffer[used] = '\0';
	while ((newline = memchr(buffer, '\n', used))) {
		*newline = '\0';
		obey(buffer);
		used -= newline + 1 - buffer;
		memmove(buffer, newline + 1, used);
	}
	return true;
}

static void forward(void)
{
	struct pollfd polled[2 * MAX_LINKS + 1];
	uint64_t window_ns = now_ns(), spun_ns = 0;

	for (int i = 0; i < direction_count; i++)
		polled[i] = (struct pollfd){.fd = directions[i]->in, .events = POLLIN};
	polled[direction_count] = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};

	for (;;) {
		uint64_t next_ns = UINT64_MAX, begin_ns, left_ns, margin_ns;
		struct timespec timeout;
		bool any = false;

		begin_ns = now_ns();
		for (int i = 0; i < direction_count; i++)
			any |= receive(directions[i]);
		for (int i = 0; i < direction_count; i++) {
			uint64_t normal_ns = release(directions[i], &directions[i]->normal, true);
			uint64_t late_ns = release(directions[i], &directions[i]->late, false);

			next_ns = normal_ns < next_ns ? normal_ns : next_ns;
			next_ns = late_ns < next_ns ? late_ns : next_ns;
		}
		if (begin_ns - window_ns > SPIN_WINDOW_NS) {
			/* Once a window, also when never idle: a busy wire must still hear its owner. */
			struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};

			if (poll(&input, 1, 0) > 0 && !listen_to_stdin())
				return;
			window_ns = begin_ns;
			spun_ns = 0;
		}
		left_ns = now_ns();
		margin_ns = spun_ns < SPIN_WINDOW_NS / 2 ? spin_ns : 0;
		if (next_ns <= left_ns)
			continue;
		if (next_ns != UINT64_MAX && next_ns - left_ns <= margin_ns) {
			if (!any)
				spun_ns += left_ns - begin_ns;
			continue;
		}
		if (any)
			continue; /* more may be there already */
		left_ns = next_ns == UINT64_MAX ? NS_PER_S : next_ns - left_ns - margin_ns;
		timeout.tv_sec = left_ns / NS_PER_S;
		timeout.tv_nsec = left_ns % NS_PER_S;
		if (ppoll(polled, direction_count + 1, &timeout, NULL) > 0 &&
		    polled[direction_count].revents && !listen_to_stdin())
			return;
	}
}

int main(int argc, char **argv)
{
	int priority = 10, i = 1;

	for (; i + 1 < argc && strcmp(argv[i], "--link"); i += 2) {
		uint64_t value = strtoull(argv[i + 1], NULL, 10);

		if (!strcmp(argv[i], "-p"))
			priority = value;
		else if (!strcmp(argv[i], "-s"))
			spin_ns = value * 1000;
		else if (!strcmp(argv[i], "-x"))
			random_state = value ? value : 1;
		else
			errx(1, "no such option: %s", argv[i]);
	}
	for (; i < argc; i += 7) {
		int a, b;

		if (strcmp(argv[i], "--link") || i + 6 >= argc || direction_count == 2 * MAX_LINKS)
			errx(1, "expected up to %d times --link NS_A TAP_A NS_B TAP_B SPEC_AB SPEC_BA",
			     MAX_LINKS);
		a = open_tap(argv[i + 1], argv[i + 2]);
		b = open_tap(argv[i + 3], argv[i + 4]);
		add_direction(a, b, argv[i + 5]);
		add_direction(b, a, argv[i + 6]);
	}
	if (!direction_count)
		errx(1, "no --link");
	signal(SIGPIPE, SIG_IGN);
	if (priority && sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = priority}))
		fprintf(stderr, "wire: no real-time priority: %s\n", strerror(errno));
	printf("{\"ready\": true}\n");
	fflush(stdout);
	forward();
	return 0;
}

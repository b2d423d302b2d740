// SPDX-License-Identifier: MIT
/*
 * Sends the frames of stdin (a line of hexadecimal digits each) in turn, past qdisc and TC, until COUNT were sent, SECONDS
 * are over (0: no such limit) or SIGTERM comes; says in one line of JSON how many that were in what time.
 *
 *	flood INTERFACE COUNT PER_SECOND SECONDS FLOWS
 *
 * PER_SECOND 0: as fast as possible. FLOWS 0: the frames as they are; else each one's source (TCP or UDP over IPv4
 * without options) becomes that of one of so many flows from 198.18.0.0/15.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lab.h"

#define BATCH 64
#define FRAMES 64
#define FRAME_SIZE 2048
#define FIRST_SOURCE 0xc6120000u /* 198.18.0.0 */
#define SOURCES 0x20000u /* a /15 */
#define FIRST_PORT 1024

static volatile sig_atomic_t over;

static void end(int number)
{
	(void)number;
	over = 1;
}

/* RFC 1624, equation 3 */
static void adjust(unsigned char *checksum, const uint16_t *from, const uint16_t *to, int words)
{
	uint16_t sum;
	uint32_t total;

	memcpy(&sum, checksum, 2);
	total = (uint16_t)~sum;
	for (int i = 0; i < words; i++)
		total += (uint16_t)~from[i] + to[i];
	total = (total & 0xffff) + (total >> 16);
	sum = ~((total & 0xffff) + (total >> 16));
	memcpy(checksum, &sum, 2);
}

static void set_source(unsigned char *frame, uint64_t flow)
{
	uint32_t address = htonl(FIRST_SOURCE + flow % SOURCES);
	uint16_t from[3], to[3] = {[2] = htons(FIRST_PORT + flow / SOURCES)};

	memcpy(to, &address, 4);
	memcpy(from, frame + 26, 4);
	memcpy(from + 2, frame + 34, 2);
	memcpy(frame + 26, to, 4);
	memcpy(frame + 34, to + 2, 2);
	adjust(frame + 24, from, to, 2);
	adjust(frame + (frame[23] == IPPROTO_TCP ? 50 : 40), from, to, 3);
}

int main(int argc, char **argv)
{
	static unsigned char frames[FRAMES][FRAME_SIZE], copies[BATCH][FRAME_SIZE];
	static char line[2 * FRAME_SIZE + 2];
	static struct mmsghdr messages[BATCH];
	static struct iovec parts[BATCH];
	struct sockaddr_ll to = {.sll_family = AF_PACKET};
	size_t lengths[FRAMES], used = 0;
	uint64_t count, rate, limit_ns, flows, start, sent = 0;
	int fd;

	if (argc != 6)
		errx(1, "usage: flood INTERFACE COUNT PER_SECOND SECONDS FLOWS");
	count = strtoull(argv[2], NULL, 10);
	rate = strtoull(argv[3], NULL, 10);
	limit_ns = atof(argv[4]) * NS_PER_S;
	flows = strtoull(argv[5], NULL, 10);
	while (used < FRAMES && fgets(line, sizeof(line), stdin)) {
		unsigned int byte;

		for (lengths[used] = 0; sscanf(line + 2 * lengths[used], "%2x", &byte) == 1; lengths[used]++)
			frames[used][lengths[used]] = byte;
		used += lengths[used] > 0;
	}
	fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	to.sll_ifindex = if_nametoindex(argv[1]);
	if (fd < 0 || !used || !to.sll_ifindex || bind(fd, (struct sockaddr *)&to, sizeof(to)))
		err(1, "%s", argv[1]);
	if (setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &(int){1}, sizeof(int)))
		err(1, "PACKET_QDISC_BYPASS");
	signal(SIGTERM, end);
	start = now_ns();
	while (!over && (!count || sent < count) && (!limit_ns || now_ns() - start < limit_ns)) {
		unsigned int n = !count || count - sent > BATCH ? BATCH : count - sent;
		int done;

		if (rate) {
			uint64_t due = start + sent * NS_PER_S / rate;
			struct timespec at = {.tv_sec = due / NS_PER_S, .tv_nsec = due % NS_PER_S};

			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
		}
		for (unsigned int i = 0; i < n; i++) {
			size_t frame = (sent + i) % used;

			memcpy(copies[i], frames[frame], lengths[frame]);
			if (flows)
				set_source(copies[i], (sent + i) % flows);
			parts[i] = (struct iovec){copies[i], lengths[frame]};
			messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
		}
		done = sendmmsg(fd, messages, n, 0);
		if (done > 0)
			sent += done;
		else if (errno == ENOBUFS || errno == EAGAIN)
			usleep(100); /* the peer's backlog is full: this frame goes again */
		else if (errno != EINTR)
			err(1, "sendmmsg");
	}
	printf("{\"sent\": %lu, \"seconds\": %.6f}\n", sent, (now_ns() - start) / (double)NS_PER_S);
	return 0;
}

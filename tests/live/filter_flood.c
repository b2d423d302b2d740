// SPDX-License-Identifier: MIT
/*
 * The same few frames again and again, at an even pace: many packets of few flows.
 *
 *	filter_flood INTERFACE COUNT PER_SECOND < FRAMES
 *
 * FRAMES is a line of hexadecimal digits for each. Says in a line of JSON how many went out, and in what time, when
 * COUNT have or at SIGTERM.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define BATCH 64
#define FRAMES 64
#define NS 1000000000ull

static volatile sig_atomic_t over;

static void end(int number)
{
	(void)number;
	over = 1;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * NS + now.tv_nsec;
}

int main(int argc, char **argv)
{
	static unsigned char frames[FRAMES][2048];
	static char line[4200];
	static struct mmsghdr messages[BATCH];
	static struct iovec parts[BATCH];
	struct sockaddr_ll to = {.sll_family = AF_PACKET};
	size_t lengths[FRAMES], used = 0;
	uint64_t count, rate, start, sent = 0;
	int fd, yes = 1;

	if (argc != 4)
		return 2;
	count = strtoull(argv[2], NULL, 10);
	rate = strtoull(argv[3], NULL, 10);
	to.sll_ifindex = if_nametoindex(argv[1]);
	while (used < FRAMES && fgets(line, sizeof(line), stdin)) {
		unsigned int byte;

		for (lengths[used] = 0; sscanf(line + 2 * lengths[used], "%2x", &byte) == 1; lengths[used]++)
			frames[used][lengths[used]] = byte;
		used += lengths[used] > 0;
	}
	fd = socket(AF_PACKET, SOCK_RAW, 0);
	if (fd < 0 || !used || bind(fd, (struct sockaddr *)&to, sizeof(to)) ||
	    setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &yes, sizeof(yes))) {
		perror("filter_flood");
		return 1;
	}
	signal(SIGTERM, end);
	start = now_ns();
	while (sent < count && !over) {
		unsigned int i, n = count - sent < BATCH ? count - sent : BATCH;
		uint64_t due = start + sent * NS / rate, now = now_ns();
		int done;

		if (now < due) {
			struct timespec wait = {.tv_nsec = due - now};

			nanosleep(&wait, NULL);
		}
		for (i = 0; i < n; i++) {
			size_t frame = (sent + i) % used;

			parts[i] = (struct iovec){frames[frame], lengths[frame]};
			messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
		}
		done = sendmmsg(fd, messages, n, 0);
		if (done > 0)
			sent += done;
		else if (errno != ENOBUFS && errno != EAGAIN && errno != EINTR) {
			perror("filter_flood");
			return 1;
		}
	}
	printf("{\"sent\": %llu, \"seconds\": %.3f}\n", (unsigned long long)sent, (now_ns() - start) / 1e9);
	return 0;
}

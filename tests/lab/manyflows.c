// SPDX-License-Identifier: MIT
/*
 * Many live flows within the lab: UDP datagrams of FLOWS different (address, port) pairs out of 198.18.0.0/15, in turn,
 * over an AF_PACKET socket. Runs for SECONDS (0: until each flow has had one), and says in one line of JSON how many
 * went out and how long that took.
 *
 *	manyflows INTERFACE SOURCE_MAC TARGET_MAC FLOWS PER_SECOND SECONDS
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000ull
#define BATCH 64
#define FIRST_SOURCE 0xc6120000u /* 198.18.0.0 */
#define SOURCES 0x10000u
#define FIRST_PORT 1024
#define TARGET 0xc6330001u /* 198.51.100.1, documentation's own: nobody answers */

struct frame {
	unsigned char target[6], source[6];
	uint16_t protocol;
	struct {
		uint8_t version_and_length, tos;
		uint16_t length, identity, fragment;
		uint8_t ttl, protocol;
		uint16_t checksum;
		uint32_t source, target;
	} __attribute__((packed)) ip;
	struct {
		uint16_t source, target, length, checksum;
	} __attribute__((packed)) udp;
	unsigned char payload[18];
} __attribute__((packed));

static void die(const char *what)
{
	fprintf(stderr, "manyflows: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static void parse_mac(const char *text, unsigned char *mac)
{
	if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5) !=
	    6)
		die(text);
}

static void fill(struct frame *frame, uint64_t flow)
{
	uint16_t words[10];
	uint32_t total = 0;

	frame->ip.source = htonl(FIRST_SOURCE + flow % SOURCES);
	frame->udp.source = htons(FIRST_PORT + flow / SOURCES);
	frame->ip.checksum = 0;
	memcpy(words, &frame->ip, sizeof(words));
	for (int i = 0; i < 10; i++)
		total += words[i];
	total = (total & 0xffff) + (total >> 16);
	frame->ip.checksum = ~((total & 0xffff) + (total >> 16));
}

int main(int argc, char **argv)
{
	struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP)};
	static struct frame frames[BATCH];
	static struct iovec parts[BATCH];
	static struct mmsghdr messages[BATCH];
	uint64_t flows, rate, sent = 0, next = 0, began, until;
	int fd;

	if (argc != 7)
		die("usage: manyflows INTERFACE SOURCE_MAC TARGET_MAC FLOWS PER_SECOND SECONDS");
	flows = strtoull(argv[4], NULL, 10);
	rate = strtoull(argv[5], NULL, 10);
	fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket");
	address.sll_ifindex = if_nametoindex(argv[1]);
	if (!address.sll_ifindex || bind(fd, (struct sockaddr *)&address, sizeof(address)))
		die(argv[1]);
	if (setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &(int){1}, sizeof(int)))
		die("PACKET_QDISC_BYPASS");
	for (int i = 0; i < BATCH; i++) {
		struct frame *frame = &frames[i];

		parse_mac(argv[2], frame->source);
		parse_mac(argv[3], frame->target);
		frame->protocol = htons(ETH_P_IP);
		frame->ip.version_and_length = 0x45;
		frame->ip.length = htons(sizeof(*frame) - 14);
		frame->ip.ttl = 64;
		frame->ip.protocol = IPPROTO_UDP;
		frame->ip.target = htonl(TARGET);
		frame->udp.target = htons(9);
		frame->udp.length = htons(sizeof(frame->udp) + sizeof(frame->payload));
		parts[i] = (struct iovec){.iov_base = frame, .iov_len = sizeof(*frame)};
		messages[i].msg_hdr.msg_iov = &parts[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	began = now_ns();
	until = began + (uint64_t)(atof(argv[6]) * NS_PER_S);
	while (until > began ? now_ns() < until : sent < flows) {
		unsigned int done = 0;

		if (rate) {
			uint64_t due = began + sent * NS_PER_S / rate;
			struct timespec at = {.tv_sec = due / NS_PER_S, .tv_nsec = due % NS_PER_S};

			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
		}
		for (int i = 0; i < BATCH; i++) {
			fill(&frames[i], next);
			next = next + 1 < flows ? next + 1 : 0;
		}
		while (done < BATCH) {
			int went = sendmmsg(fd, messages + done, BATCH - done, 0);

			if (went < 0) {
				if (errno != ENOBUFS && errno != EAGAIN)
					die("sendmmsg");
				usleep(100); /* the peer's backlog is full: this frame goes again */
				continue;
			}
			done += went;
		}
		sent += BATCH;
	}
	printf("{\"sent\": %lu, \"seconds\": %.6f}\n", sent, (now_ns() - began) / (double)NS_PER_S);
	return 0;
}

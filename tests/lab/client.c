// SPDX-License-Identifier: MIT
/*
 * Asks `server`, on FLOWS flows at once, and times each answer. Ends after COUNT transactions or SECONDS, whichever
 * comes first (0: no such limit), lets what is under way finish, and says in one line of JSON what it saw.
 *
 *	client tcp|churn|udp ADDRESS PORT PORTS FLOWS REQUEST RESPONSE INTERVAL_NS COUNT SECONDS
 *
 * tcp: each flow is one connection for good. churn: each transaction has a connection of its own and closes it.
 * udp: an answer that has not come in one second is counted as lost. INTERVAL_NS: from one question of a flow to its
 * next, 0: as soon as the answer is there.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lab.h"

#define MAX_FLOWS 20000
#define MAX_MESSAGE 65507
#define MAX_SAMPLES 4000000
#define PATIENCE_NS NS_PER_S

enum kind {
	TCP,
	CHURN,
	UDP
};
enum state {
	IDLE,
	CONNECTING,
	ASKED,
	DONE
};

struct flow {
	int fd;
	enum state state;
	uint32_t unsent, missing;
	uint64_t began_ns, next_ns, number;
};

static enum kind kind;
static struct sockaddr_storage peer;
static socklen_t peer_length;
static uint32_t flows_wanted, request, response, first_port, ports;
static uint64_t interval_ns, limit_count, limit_ns;

static struct flow flows[MAX_FLOWS];
static int poller;
static uint64_t started, finished, connected, errors, lost, sample_count;
static uint64_t *samples;
static unsigned char message[MAX_MESSAGE];

static void watch(struct flow *flow, uint32_t events, int operation)
{
	struct epoll_event event = {.events = events, .data.ptr = flow};

	if (epoll_ctl(poller, operation, flow->fd, &event))
		err(1, "epoll_ctl");
}

static bool may_start(uint64_t now)
{
	return (!limit_count || started < limit_count) && (!limit_ns || now < limit_ns);
}

static void finish(struct flow *flow, bool good)
{
	uint64_t now = now_ns();

	if (good) {
		if (sample_count < MAX_SAMPLES)
			samples[sample_count++] = now - flow->began_ns;
		finished++;
	} else {
		errors++;
	}
	if (kind == CHURN || !good) {
		close(flow->fd);
		flow->fd = -1;
	}
	flow->state = IDLE;
	flow->next_ns += interval_ns;
	if (flow->next_ns < now)
		flow->next_ns = now; /* behind its pace: go on from here instead of catching up in a burst */
}

static void ask(struct flow *flow)
{
	ssize_t sent;

	if (kind == UDP)
		memcpy(message, &flow->number, sizeof(flow->number));
	while (flow->unsent) {
		sent = send(flow->fd, message, flow->unsent, MSG_NOSIGNAL);
		if (sent < 0) {
			if (errno == EAGAIN) {
				watch(flow, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
				return;
			}
			finish(flow, false);
			return;
		}
		flow->unsent -= sent;
	}
}

static void open_flow(struct flow *flow)
{
	int type = (kind == UDP ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK | SOCK_CLOEXEC;

	/* Port numbers lie at the same place in both kinds of address. */
	((struct sockaddr_in *)&peer)->sin_port =
		htons(first_port + (kind == UDP ? 0 : flow->number % ports));
	flow->fd = socket(peer.ss_family, type, 0);
	if (flow->fd < 0)
		err(1, "socket");
	if (kind != UDP)
		setsockopt(flow->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	watch(flow, kind == UDP ? EPOLLIN : EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
	if (!connect(flow->fd, (struct sockaddr *)&peer, peer_length)) {
		/* Over veth the SYN-ACK can be here before connect() returns. */
		flow->state = ASKED;
		if (kind != UDP) {
			connected++;
			watch(flow, EPOLLIN, EPOLL_CTL_MOD);
		}
		return;
	}
	if (errno != EINPROGRESS) {
		finish(flow, false);
		return;
	}
	flow->state = CONNECTING;
}

static void begin(struct flow *flow, uint64_t now)
{
	started++;
	flow->number = started;
	flow->began_ns = now;
	flow->unsent = request;
	flow->missing = response;
	flow->state = ASKED;
	if (flow->fd < 0)
		open_flow(flow);
	if (flow->state == ASKED)
		ask(flow);
}

static void take(struct flow *flow)
{
	while (flow->state == ASKED) {
		ssize_t got = recv(flow->fd, message, sizeof(message), 0);
		uint64_t number;

		if (got < 0 && errno == EAGAIN)
			return;
		if (got <= 0) {
			finish(flow, false);
			return;
		}
		if (kind == UDP) {
			memcpy(&number, message, sizeof(number));
			if (number == flow->number) /* else an answer that comes too late */
				finish(flow, true);
			continue;
		}
		flow->missing -= (uint32_t)got < flow->missing ? (uint32_t)got : flow->missing;
		if (!flow->missing) {
			finish(flow, true);
			return;
		}
	}
}

static void handle(struct flow *flow, uint32_t events)
{
	if (flow->fd < 0)
		return;
	if (flow->state == CONNECTING) {
		int error = 0;
		socklen_t length = sizeof(error);

		getsockopt(flow->fd, SOL_SOCKET, SO_ERROR, &error, &length);
		if (error) {
			finish(flow, false);
			return;
		}
		connected++;
		flow->state = ASKED;
		watch(flow, EPOLLIN, EPOLL_CTL_MOD);
		ask(flow);
		return;
	}
	if (flow->state != ASKED) {
		/* Between two questions: a late datagram, or the server has closed the connection. */
		if (recv(flow->fd, message, sizeof(message), 0) <= 0 && kind != UDP) {
			close(flow->fd);
			flow->fd = -1;
		}
		return;
	}
	if (flow->unsent && (events & EPOLLOUT)) {
		ask(flow);
		if (flow->state == ASKED && !flow->unsent)
			watch(flow, EPOLLIN, EPOLL_CTL_MOD);
	}
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		take(flow);
}

static int by_size(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return a < b ? -1 : a > b;
}

static uint64_t percentile(double part)
{
	return sample_count ? samples[(uint64_t)(part * (sample_count - 1))] : 0;
}

int main(int argc, char **argv)
{
	struct rlimit limit = {65536, 65536};
	struct sockaddr_in *v4 = (struct sockaddr_in *)&peer;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&peer;
	uint64_t began_ns, ended_ns, patience_ns;

	if (argc != 11)
		errx(1, "usage: client tcp|churn|udp ADDRESS PORT PORTS FLOWS REQUEST RESPONSE INTERVAL_NS "
			"COUNT SECONDS");
	kind = !strcmp(argv[1], "udp") ? UDP : !strcmp(argv[1], "churn") ? CHURN : TCP;
	if (inet_pton(AF_INET, argv[2], &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		peer_length = sizeof(*v4);
	} else if (inet_pton(AF_INET6, argv[2], &v6->sin6_addr) == 1) {
		v6->sin6_family = AF_INET6;
		peer_length = sizeof(*v6);
	} else {
		err(1, "%s", argv[2]);
	}
	ports = atoi(argv[4]);
	first_port = atoi(argv[3]);
	flows_wanted = atoi(argv[5]);
	request = atoi(argv[6]);
	response = atoi(argv[7]);
	interval_ns = strtoull(argv[8], NULL, 10);
	limit_count = strtoull(argv[9], NULL, 10);
	if (!ports || !flows_wanted || flows_wanted > MAX_FLOWS || request > MAX_MESSAGE || !request ||
	    !response || (kind == UDP && (request < 8 || response < 8)))
		errx(1, "sizes");
	setrlimit(RLIMIT_NOFILE, &limit);
	samples = malloc(MAX_SAMPLES * sizeof(*samples));
	poller = epoll_create1(EPOLL_CLOEXEC);
	began_ns = now_ns();
	if (atof(argv[10]) > 0)
		limit_ns = began_ns + (uint64_t)(atof(argv[10]) * NS_PER_S);
	for (uint32_t i = 0; i < flows_wanted; i++) {
		flows[i].fd = -1;
		/* Spread the flows over one interval, so that a paced load is even. */
		flows[i].next_ns = began_ns + interval_ns * i / flows_wanted;
	}
	for (;;) {
		struct epoll_event events[256];
		uint64_t now = now_ns(), next_ns = UINT64_MAX;
		uint32_t under_way = 0, waiting = 0;
		struct timespec timeout;
		int count;

		for (uint32_t i = 0; i < flows_wanted; i++) {
			struct flow *flow = &flows[i];

			if (kind == UDP && flow->state == ASKED && now - flow->began_ns > PATIENCE_NS) {
				lost++;
				flow->state = IDLE;
				flow->next_ns = now;
			}
			if (flow->state == IDLE && may_start(now)) {
				if (flow->next_ns <= now)
					begin(flow, now);
				if (flow->state == IDLE) {
					waiting++;
					next_ns = flow->next_ns < next_ns ? flow->next_ns : next_ns;
				}
			}
			if (flow->state == CONNECTING || flow->state == ASKED)
				under_way++;
		}
		if (!under_way && !waiting)
			break;
		patience_ns = now + NS_PER_S / 10;
		next_ns = next_ns < patience_ns ? next_ns : patience_ns;
		next_ns = next_ns > now ? next_ns - now : 0;
		timeout = (struct timespec){.tv_sec = next_ns / NS_PER_S, .tv_nsec = next_ns % NS_PER_S};
		count = epoll_pwait2(poller, events, 256, &timeout, NULL);
		for (int i = 0; i < count; i++)
			handle(events[i].data.ptr, events[i].events);
		if (limit_ns && now_ns() > limit_ns + 5 * NS_PER_S)
			break; /* what is still under way will not end */
	}
	ended_ns = now_ns();
	qsort(samples, sample_count, sizeof(*samples), by_size);
	printf("{\"transactions\": %lu, \"connections\": %lu, \"errors\": %lu, \"lost\": %lu, "
	       "\"seconds\": %.6f, \"min_ns\": %lu, \"median_ns\": %lu, \"p99_ns\": %lu, "
	       "\"max_ns\": %lu}\n",
	       finished, connected, errors, lost, (ended_ns - began_ns) / (double)NS_PER_S, percentile(0),
	       percentile(0.5), percentile(0.99), percentile(1));
	return 0;
}

// SPDX-License-Identifier: MIT
/*
 * Answers requests: for every REQUEST bytes of a TCP connection, or every UDP datagram, RESPONSE bytes go back. Both
 * IP versions. Ends at the end of file on stdin and then says in one line of JSON what it did.
 *
 *	server PORT PORTS REQUEST RESPONSE
 *
 * TCP listens on PORTS ports from PORT on, UDP on the first of them.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lab.h"

#define MAX_FD 65536
#define MAX_MESSAGE 65507

static uint32_t pending[MAX_FD]; /* bytes of an unfinished request, by descriptor */
static uint32_t unsent[MAX_FD]; /* bytes of answers that did not fit into the socket, by descriptor */
static uint64_t connections, closed, requests, bytes;
static unsigned char message[MAX_MESSAGE];

static int listening(int type, int port)
{
	struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	int fd = socket(AF_INET6, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &(int){0}, sizeof(int));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)))
		err(1, "bind");
	if (type == SOCK_STREAM && listen(fd, 4096))
		err(1, "listen");
	return fd;
}

static void watch(int poller, int fd, uint32_t events, int operation)
{
	struct epoll_event event = {.events = events, .data.fd = fd};

	if (epoll_ctl(poller, operation, fd, &event))
		err(1, "epoll_ctl");
}

static void accept_all(int poller, int listener)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		if (fd >= MAX_FD) {
			close(fd);
			continue;
		}
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
		pending[fd] = unsent[fd] = 0;
		connections++;
		watch(poller, fd, EPOLLIN, EPOLL_CTL_ADD);
	}
}

static void answer_datagrams(int fd, uint32_t response)
{
	struct sockaddr_in6 peer;
	socklen_t length = sizeof(peer);
	ssize_t got;

	while ((got = recvfrom(fd, message, sizeof(message), 0, (struct sockaddr *)&peer, &length)) >= 0) {
		requests++;
		bytes += got;
		/* The head of the question comes back in the answer: the client tells late answers by it. */
		if (sendto(fd, message, response, 0, (struct sockaddr *)&peer, length) < 0 && errno != EAGAIN)
			err(1, "sendto");
		length = sizeof(peer);
	}
}

/* Returns -1 when the connection is to be closed. */
static int flush(int poller, int fd)
{
	while (unsent[fd]) {
		size_t part = unsent[fd] < MAX_MESSAGE ? unsent[fd] : MAX_MESSAGE;
		ssize_t sent = send(fd, message, part, MSG_NOSIGNAL);

		if (sent < 0) {
			if (errno != EAGAIN)
				return -1;
			watch(poller, fd, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
			return 0;
		}
		unsent[fd] -= sent;
		if (!unsent[fd])
			watch(poller, fd, EPOLLIN, EPOLL_CTL_MOD);
	}
	return 0;
}

static int serve(int poller, int fd, uint32_t request, uint32_t response)
{
	ssize_t got;

	while ((got = recv(fd, message, sizeof(message), 0)) > 0) {
		bytes += got;
		pending[fd] += got;
		for (; pending[fd] >= request; pending[fd] -= request) {
			requests++;
			unsent[fd] += response;
		}
		if (got < (ssize_t)sizeof(message))
			break;
	}
	if (!got || (got < 0 && errno != EAGAIN))
		return -1;
	return flush(poller, fd);
}

int main(int argc, char **argv)
{
	struct rlimit limit = {MAX_FD, MAX_FD};
	uint32_t request, response;
	int ports, first = 0, last = 0, udp, poller;

	if (argc != 5)
		errx(1, "usage: server PORT PORTS REQUEST RESPONSE");
	ports = atoi(argv[2]);
	request = atoi(argv[3]);
	response = atoi(argv[4]);
	if (ports < 1 || !request || response > MAX_MESSAGE)
		errx(1, "sizes");
	setrlimit(RLIMIT_NOFILE, &limit);
	poller = epoll_create1(EPOLL_CLOEXEC);
	/* Nothing is open but these: their descriptors follow one another. */
	for (int i = 0; i < ports; i++) {
		last = listening(SOCK_STREAM, atoi(argv[1]) + i);
		first = i ? first : last;
		watch(poller, last, EPOLLIN, EPOLL_CTL_ADD);
	}
	udp = listening(SOCK_DGRAM, atoi(argv[1]));
	watch(poller, udp, EPOLLIN, EPOLL_CTL_ADD);
	watch(poller, STDIN_FILENO, EPOLLIN, EPOLL_CTL_ADD);
	printf("{\"ready\": true}\n");
	fflush(stdout);
	for (;;) {
		struct epoll_event events[256];
		int count = epoll_wait(poller, events, 256, -1);

		for (int i = 0; i < count; i++) {
			int fd = events[i].data.fd;

			if (fd == STDIN_FILENO) {
				printf("{\"connections\": %lu, \"closed\": %lu, \"requests\": %lu, "
				       "\"bytes\": %lu}\n",
				       connections, closed, requests, bytes);
				return 0;
			}
			if (fd >= first && fd <= last) {
				accept_all(poller, fd);
			} else if (fd == udp) {
				answer_datagrams(udp, response);
			} else if (serve(poller, fd, request, response)) {
				close(fd);
				closed++;
			}
		}
	}
}

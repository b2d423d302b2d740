// SPDX-License-Identifier: MIT
/*
 * Short connections whose two ends close at the same moment, each on a CPU of its own: the two FINs pass an interface
 * between them at once. COUNT connections from here to ADDRESS, whose network namespace is NETNS (a file): one question,
 * its answer, then both ends spin until the other is as far, and close, one of them later by up to SKEW_NS. Says in one
 * line of JSON how many there were.
 *
 * BATCH of them are open at a time and take each step together, up to the last: what costs most in an emulated machine
 * is going from one CPU to another and back.
 *
 *	closeboth NETNS ADDRESS PORT PORTS COUNT NEAR_CPU FAR_CPU SKEW_NS
 *
 * PORTS: so many listen, in turn, since closed connections keep their ports for a minute.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lab.h"

#define MAX_PORTS 256
#define BATCH 32
#define FIRST_PORT 16384
#define QUESTION 7
#define ANSWER 11

static const char *netns;
static struct sockaddr_in peer;
static int ports, near_cpu, far_cpu;
static uint64_t count, skew_ns;
static atomic_uint_fast64_t near_ready, far_ready; /* connections that this end may close */
static atomic_bool listening;

static void relax(void)
{
#ifdef __x86_64__
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

static void stay_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		err(1, "sched_setaffinity");
}

/* The first byte. */
static int receive(int fd, int length)
{
	unsigned char bytes[ANSWER];

	for (int got = 0; got < length;) {
		ssize_t more = recv(fd, bytes, length - got, 0);

		if (more <= 0)
			err(1, "recv");
		got += more;
	}
	return bytes[0];
}

static void say(int fd, int length, int first)
{
	unsigned char bytes[ANSWER] = {first};

	if (send(fd, bytes, length, MSG_NOSIGNAL) != length)
		err(1, "send");
}

/* Both ends draw the same number: which of them waits, and how long. */
static int64_t skew(uint64_t number)
{
	uint64_t mixed = (number + 1) * 0x9e3779b97f4a7c15ull;

	return skew_ns ? (int64_t)((mixed >> 20) % (2 * skew_ns)) - (int64_t)skew_ns : 0;
}

static void meet(atomic_uint_fast64_t *own, atomic_uint_fast64_t *other, uint64_t number, int64_t wait_ns)
{
	atomic_store(own, number + 1);
	while (atomic_load(other) <= number)
		relax();
	for (uint64_t until = wait_ns > 0 ? now_ns() + wait_ns : 0; until && now_ns() < until;)
		relax();
}

static int batch(uint64_t done)
{
	return count - done < BATCH ? count - done : BATCH;
}

static int listen_on(int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 2 * BATCH))
		err(1, "listen");
	return fd;
}

static void *far_end(void *unused)
{
	int listeners[MAX_PORTS], space = open(netns, O_RDONLY | O_CLOEXEC);

	(void)unused;
	if (space < 0 || setns(space, CLONE_NEWNET))
		err(1, "%s", netns);
	stay_on(far_cpu);
	for (int i = 0; i < ports; i++)
		listeners[i] = listen_on(ntohs(peer.sin_port) + i);
	atomic_store(&listening, true);
	for (uint64_t done = 0; done < count;) {
		int fds[BATCH], size = batch(done);

		for (int i = 0; i < size; i++) {
			int fd = accept4(listeners[(done + i) % ports], NULL, NULL, SOCK_CLOEXEC);

			if (fd < 0)
				err(1, "accept");
			/* Of those that knock at one port any may come first: the question says which this is. */
			fds[receive(fd, QUESTION) % BATCH] = fd;
		}
		for (int i = 0; i < size; i++)
			say(fds[i], ANSWER, i);
		for (int i = 0; i < size; i++, done++) {
			meet(&far_ready, &near_ready, done, skew(done));
			close(fds[i]);
		}
	}
	return NULL;
}

/*
 * Connection NUMBER, on its way, from a port of our own choice: of those that the kernel chooses some come twice, and
 * no frame would have the first one's row.
 */
static int knock(uint64_t number)
{
	struct sockaddr_in from = {.sin_family = AF_INET, .sin_port = htons(FIRST_PORT + number / ports)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_in to = peer;

	to.sin_port = htons(ntohs(peer.sin_port) + number % ports);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
	if (bind(fd, (struct sockaddr *)&from, sizeof(from)))
		err(1, "bind");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) && errno != EINPROGRESS)
		err(1, "connect");
	if (fcntl(fd, F_SETFL, 0))
		err(1, "fcntl");
	return fd;
}

int main(int argc, char **argv)
{
	pthread_t far;
	uint64_t began;

	if (argc != 9)
		errx(1, "usage: closeboth NETNS ADDRESS PORT PORTS COUNT NEAR_CPU FAR_CPU SKEW_NS");
	netns = argv[1];
	peer.sin_family = AF_INET;
	if (inet_pton(AF_INET, argv[2], &peer.sin_addr) != 1)
		err(1, "%s", argv[2]);
	peer.sin_port = htons(atoi(argv[3]));
	ports = atoi(argv[4]);
	count = strtoull(argv[5], NULL, 10);
	near_cpu = atoi(argv[6]);
	far_cpu = atoi(argv[7]);
	skew_ns = strtoull(argv[8], NULL, 10);
	if (ports < 1 || ports > MAX_PORTS || FIRST_PORT + count / ports > UINT16_MAX)
		errx(1, "PORTS");
	if (pthread_create(&far, NULL, far_end, NULL))
		err(1, "pthread_create");
	stay_on(near_cpu);
	while (!atomic_load(&listening))
		usleep(1000);
	began = now_ns();
	for (uint64_t done = 0; done < count;) {
		int fds[BATCH], size = batch(done);

		for (int i = 0; i < size; i++)
			fds[i] = knock(done + i);
		for (int i = 0; i < size; i++)
			say(fds[i], QUESTION, i); /* waits until it is connected */
		for (int i = 0; i < size; i++)
			if (receive(fds[i], ANSWER) != i)
				errx(1, "the answer of another connection");
		for (int i = 0; i < size; i++, done++) {
			meet(&near_ready, &far_ready, done, -skew(done));
			close(fds[i]);
		}
	}
	pthread_join(far, NULL);
	printf("{\"connections\": %lu, \"seconds\": %.6f}\n", count, (now_ns() - began) / (double)NS_PER_S);
	return 0;
}

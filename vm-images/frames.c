/*
 * frames: sends and counts numbered, tagged Ethernet frames.
 *
 *   frames send  IF DST_MAC [-t TAG] [-r RATE] [-n COUNT] [-s SIZE] [-S SRC_MAC] [-w WAKES]
 *   frames count IF         [-t TAG] [-d SECONDS] [-n COUNT]
 *
 * One static program for both ends of a measurement: the test guest has no Python, and a sender and a
 * counter that share this file cannot disagree about the format. "send" prints one JSON line when it
 * ends. "count" prints "ready" once its socket is bound, so that a caller can start the sender without
 * a race, and one JSON line at the end: after -d seconds, after -n frames, or on SIGTERM or SIGINT.
 *
 * A sender wakes up at most WAKES times a second, 1000 by default: at a higher rate frames go in small
 * bursts, because an emulated guest has no time for more.
 *
 * A frame is the Ethernet header with ethertype 0x88b5 (IEEE 802, local experimental), then struct
 * payload, then zeros up to SIZE.
 */
#define _GNU_SOURCE /* sendmmsg, recvmmsg */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ether.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ETHERTYPE 0x88b5
#define MAGIC "lmfr"
#define MAX_TAGS 32
#define MAX_SEQ (1u << 24) /* one bit each, in memory that is only touched when used */
#define BATCH 64
#define NS 1000000000ull
#define TAG_CHARS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:-"

struct payload {
	char magic[4];
	char tag[24];
	uint32_t seq;
} __attribute__((packed));

struct frame {
	struct ether_header eth;
	struct payload body;
} __attribute__((packed));

struct stats {
	char tag[24];
	uint64_t frames, unique, reordered, last_ns, longest_gap_ns;
	uint32_t first, last, gap_after;
	uint8_t *seen;
};

static volatile sig_atomic_t stopped;

static void stop(int sig) { (void)sig; stopped = 1; }

static void die(const char *what)
{
	fprintf(stderr, "frames: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void usage(void)
{
	fprintf(stderr, "usage: frames send IF DST_MAC [-t TAG] [-r RATE] [-n COUNT] [-s SIZE] [-S SRC_MAC]\n"
			"                              [-w WAKES]\n"
			"       frames count IF [-t TAG] [-d SECONDS] [-n COUNT]\n");
	exit(2);
}

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * NS + t.tv_nsec;
}

static void sleep_until(uint64_t ns)
{
	struct timespec t = {.tv_sec = ns / NS, .tv_nsec = ns % NS};
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static int open_socket(const char *ifname, uint16_t ethertype, int buffer_option)
{
	int buffer = 16 << 20; /* a second of frames, so that a busy host loses none here */
	int fd = socket(AF_PACKET, SOCK_RAW, 0);
	struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(ethertype),
				 .sll_ifindex = if_nametoindex(ifname)};
	if (fd < 0)
		die("packet socket");
	if (!at.sll_ifindex)
		die(ifname);
	setsockopt(fd, SOL_SOCKET, buffer_option, &buffer, sizeof buffer);
	if (bind(fd, (struct sockaddr *)&at, sizeof at))
		die(ifname);
	return fd;
}

static void parse_mac(const char *text, uint8_t mac[ETH_ALEN])
{
	struct ether_addr parsed;
	if (!ether_aton_r(text, &parsed)) {
		fprintf(stderr, "frames: not a MAC address: %s\n", text);
		exit(2);
	}
	memcpy(mac, &parsed, ETH_ALEN);
}

static int send_frames(const char *ifname, const char *dst, const char *src, const char *tag,
		       uint64_t rate, uint32_t count, size_t size, uint64_t wakes)
{
	static uint8_t buffers[BATCH][ETH_FRAME_LEN];
	struct iovec parts[BATCH];
	struct mmsghdr batch[BATCH] = {0};
	int fd = open_socket(ifname, 0, SO_SNDBUFFORCE);
	struct frame head = {.eth.ether_type = htons(ETHERTYPE), .body.magic = MAGIC};
	struct ifreq request = {0};
	uint32_t seq = 0, failed = 0;

	if (!rate || !wakes || size < sizeof head || size > ETH_FRAME_LEN || !*tag ||
	    strlen(tag) >= sizeof head.body.tag || tag[strspn(tag, TAG_CHARS)])
		usage();
	strncpy(request.ifr_name, ifname, IFNAMSIZ - 1);
	if (ioctl(fd, SIOCGIFHWADDR, &request))
		die(ifname);
	parse_mac(dst, head.eth.ether_dhost);
	memcpy(head.eth.ether_shost, request.ifr_hwaddr.sa_data, ETH_ALEN);
	if (src)
		parse_mac(src, head.eth.ether_shost);
	strncpy(head.body.tag, tag, sizeof head.body.tag - 1);
	for (int i = 0; i < BATCH; i++) {
		memcpy(buffers[i], &head, sizeof head);
		parts[i] = (struct iovec){.iov_base = buffers[i], .iov_len = size};
		batch[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
	}

	uint64_t begin = now_ns(), epoch = begin, base = 0;
	/* One wake-up for each frame, but never more than that. */
	uint64_t tick = rate < wakes ? NS / rate : NS / wakes;
	prctl(PR_SET_TIMERSLACK, 1ul); /* ns */
	for (uint64_t wake = begin; !stopped && seq < count;) {
		uint64_t now = now_ns(), due = base + (now - epoch) * rate / NS + 1;
		if (due > seq + rate / 10 + BATCH) { /* after a long stall go on at the rate, do not make up for it */
			epoch = now, base = seq, due = (uint64_t)seq + 1;
		}
		while (seq < due && seq < count && !stopped) {
			uint64_t left = (due < count ? due : count) - seq;
			int n = left < BATCH ? (int)left : BATCH, sent;
			for (int i = 0; i < n; i++)
				((struct frame *)buffers[i])->body.seq = htonl(seq + i);
			sent = sendmmsg(fd, batch, n, MSG_DONTWAIT);
			if (sent < 1) { /* no carrier, or the queue is full: this frame is lost, the next one is tried */
				failed++;
				sent = 1;
			}
			seq += sent;
		}
		if (seq < count) {
			wake = now_ns() > wake + tick ? now_ns() : wake + tick;
			sleep_until(wake);
		}
	}
	printf("{\"sent\": %u, \"failed\": %u, \"seconds\": %.6f}\n", seq - failed, failed,
	       (double)(now_ns() - begin) / NS);
	return 0;
}

static struct stats *find_tag(struct stats *all, const char *tag)
{
	for (int i = 0; i < MAX_TAGS; i++) {
		if (!all[i].seen) {
			memcpy(all[i].tag, tag, sizeof all[i].tag);
			if (!(all[i].seen = calloc(MAX_SEQ / 8, 1)))
				die("memory");
		}
		if (!strcmp(all[i].tag, tag))
			return &all[i];
	}
	return NULL;
}

static void note(struct stats *s, uint32_t seq, uint64_t now)
{
	uint32_t slot = seq % MAX_SEQ;
	if (!s->frames++) {
		s->first = seq;
	} else {
		if (seq < s->last)
			s->reordered++;
		if (now - s->last_ns > s->longest_gap_ns) {
			s->longest_gap_ns = now - s->last_ns;
			s->gap_after = s->last;
		}
	}
	s->unique += !(s->seen[slot / 8] >> slot % 8 & 1);
	s->seen[slot / 8] |= 1 << slot % 8;
	s->last = seq;
	s->last_ns = now;
}

static int count_frames(const char *ifname, const char *only, double seconds, uint64_t wanted)
{
	static struct stats all[MAX_TAGS];
	static uint8_t buffers[BATCH][ETH_FRAME_LEN];
	struct iovec parts[BATCH];
	struct mmsghdr batch[BATCH] = {0};
	struct timeval tick = {.tv_usec = 20000}; /* how late a signal or the deadline may be noticed */
	struct tpacket_stats kernel = {0};
	socklen_t length = sizeof kernel;
	int fd = open_socket(ifname, ETHERTYPE, SO_RCVBUFFORCE);
	uint64_t foreign = 0, total = 0, begin = now_ns(), end = begin + (uint64_t)(seconds * NS);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tick, sizeof tick);
	for (int i = 0; i < BATCH; i++) {
		parts[i] = (struct iovec){.iov_base = buffers[i], .iov_len = ETH_FRAME_LEN};
		batch[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
	}
	printf("ready\n");
	fflush(stdout);
	while (!stopped && (!wanted || total < wanted) && (seconds <= 0 || now_ns() < end)) {
		int n = recvmmsg(fd, batch, BATCH, MSG_WAITFORONE, NULL);
		uint64_t now = now_ns();
		for (int i = 0; i < n; i++) {
			struct frame *f = (struct frame *)buffers[i];
			struct stats *s;
			f->body.tag[sizeof f->body.tag - 1] = 0;
			if (batch[i].msg_len < sizeof *f || memcmp(f->body.magic, MAGIC, 4) || !*f->body.tag ||
			    f->body.tag[strspn(f->body.tag, TAG_CHARS)] || (only && strcmp(only, f->body.tag)) ||
			    !(s = find_tag(all, f->body.tag))) {
				foreign++;
				continue;
			}
			note(s, ntohl(f->body.seq), now);
			total++;
		}
	}
	getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &kernel, &length);
	printf("{\"seconds\": %.6f, \"dropped\": %u, \"foreign\": %llu, \"tags\": {",
	       (double)(now_ns() - begin) / NS, kernel.tp_drops, (unsigned long long)foreign);
	for (struct stats *s = all; s < all + MAX_TAGS && s->seen; s++)
		printf("%s\"%s\": {\"frames\": %llu, \"unique\": %llu, \"reordered\": %llu, \"first\": %u, \"last\": %u, "
		       "\"longest_gap_ms\": %.3f, \"gap_after\": %u}", s == all ? "" : ", ", s->tag,
		       (unsigned long long)s->frames, (unsigned long long)s->unique,
		       (unsigned long long)s->reordered, s->first, s->last, s->longest_gap_ns / 1e6, s->gap_after);
	printf("}}\n");
	return 0;
}

int main(int argc, char **argv)
{
	const char *tag = NULL, *src = NULL;
	double seconds = 0;
	unsigned long long rate = 1000, count = 0, size = ETH_ZLEN, wakes = 1000;
	struct sigaction on_stop = {.sa_handler = stop};
	int option;

	sigaction(SIGTERM, &on_stop, NULL);
	sigaction(SIGINT, &on_stop, NULL);
	while ((option = getopt(argc, argv, "t:r:n:s:S:d:w:")) != -1)
		switch (option) {
		case 't': tag = optarg; break;
		case 'r': rate = strtoull(optarg, NULL, 10); break;
		case 'n': count = strtoull(optarg, NULL, 10); break;
		case 's': size = strtoull(optarg, NULL, 10); break;
		case 'S': src = optarg; break;
		case 'w': wakes = strtoull(optarg, NULL, 10); break;
		case 'd': seconds = strtod(optarg, NULL); break;
		default: usage();
		}
	argv += optind;
	argc -= optind;
	if (argc == 3 && !strcmp(argv[0], "send"))
		return send_frames(argv[1], argv[2], src, tag ? tag : "frames", rate,
				   count && count < UINT32_MAX ? count : UINT32_MAX, size, wakes);
	if (argc == 2 && !strcmp(argv[0], "count"))
		return count_frames(argv[1], tag, seconds, count);
	usage();
}

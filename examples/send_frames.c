/* Send a sensor's readings to a pipeline that listens: what a device without Python needs.
 *
 * Build:  cc -std=c11 -O2 -o send_frames send_frames.c
 * Run:    ./send_frames 127.0.0.1 9000 100        (100 frames, to: partime-async run tcp://127.0.0.1:9000 --model ...)
 *
 * The struct lies in memory as the message lies on the wire (docs/wire.md): little-endian machines, which nearly all
 * are, fill it in and write it. Over UDP the same bytes are one datagram.
 */
#define _POSIX_C_SOURCE 200809L
#include <arpa/inet.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHANNELS = 6 };

struct frame {
    uint32_t length; /* of all that follows */
    char magic[2];
    uint8_t version, kind;
    uint64_t sequence;
    double captured_at;
    uint8_t dtype, dimensions, clock, flags;
    uint32_t shape[1];
    float values[CHANNELS];
};
_Static_assert(sizeof(struct frame) == 32 + sizeof(float) * CHANNELS, "no padding");

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s ADDRESS PORT FRAMES\n", argv[0]);
        return 2;
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1) {
        fprintf(stderr, "%s is no IPv4 address\n", argv[1]);
        return 2;
    }
    int out = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(out, (struct sockaddr *)&address, sizeof address) != 0) {
        perror("connect");
        return 1;
    }
    for (uint64_t number = 0; number < strtoull(argv[3], NULL, 10); number++) {
        /* The lines that matter: kind 1 is a frame, dtype 1 is float32, clock 1 is monotonic. */
        struct frame frame = {sizeof frame - 4, {'p', 't'}, 1, 1, number, now(), 1, 1, 1, 0, {CHANNELS}, {0}};
        for (int i = 0; i < CHANNELS; i++)
            frame.values[i] = sinf((float)number * 0.1f + (float)i); /* read your sensor here */
        if (write(out, &frame, sizeof frame) != (ssize_t)sizeof frame) {
            perror("write");
            return 1;
        }
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    return close(out);
}

/* A calorimeter of ten layers in C: a payload need not be Python.
 *
 *     simulate SEED FIRST LAST OUTPUT
 *
 * writes one JSON object per event and line. Each event has random numbers of its own, made from the seed and its number, so
 * it comes out the same in whatever range it is asked for.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define LAYERS 10

static uint64_t state;

static uint64_t scramble(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static double uniform(void) { /* in (0, 1); SplitMix64 */
    state += 0x9e3779b97f4a7c15u;
    return ((scramble(state) >> 12) + 0.5) / 4503599627370496.0;
}

static void event(FILE *out) {
    double energy = -20.0 * log(uniform()), left = energy, layer[LAYERS];
    for (int i = 0; i < LAYERS; i++) {
        layer[i] = left * (0.1 + 0.4 * uniform());
        left -= layer[i];
    }
    fprintf(out, "{\"energy\": %.9e, \"leak\": %.9e, \"layers\": [", energy, left);
    for (int i = 0; i < LAYERS; i++)
        fprintf(out, "%s%.9e", i ? ", " : "", layer[i]);
    fprintf(out, "], \"hit\": [");
    const char *comma = "";
    for (int i = 0; i < LAYERS; i++)
        if (layer[i] > 1.0) { /* GeV */
            fprintf(out, "%s%d", comma, i);
            comma = ", ";
        }
    fprintf(out, "]}\n");
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: simulate SEED FIRST LAST OUTPUT\n");
        return 2;
    }
    uint64_t seed = strtoull(argv[1], NULL, 10), last = strtoull(argv[3], NULL, 10);
    FILE *out = fopen(argv[4], "w");
    if (!out) {
        perror(argv[4]);
        return 1;
    }
    for (uint64_t number = strtoull(argv[2], NULL, 10); number <= last; number++) {
        state = scramble(scramble(seed) + number); /* where this event's numbers begin */
        event(out);
    }
    return fclose(out) ? 1 : 0;
}

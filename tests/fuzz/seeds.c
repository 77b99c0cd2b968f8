/* seeds.c - TARGET --seeds=DIR writes the inputs to begin with, and does nothing else. */
#include "fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    if (*argc < 2 || strncmp((*argv)[1], "--seeds=", 8) != 0) {
        return 0;
    }
    uint8_t bytes[FUZZ_MAX];
    unsigned number = 0;
    for (size_t n; (n = fuzz_seed(number, bytes)) > 0; number++) {
        char path[500];
        snprintf(path, sizeof path, "%s/seed%u", (*argv)[1] + 8, number);
        FILE *f = fopen(path, "wb");
        if (!f || fwrite(bytes, 1, n, f) != n || fclose(f) != 0) {
            perror(path);
            exit(1);
        }
    }
    printf("%u seeds\n", number);
    exit(0);
}

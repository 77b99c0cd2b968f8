/* A claimed slot whose parts others write: it is one item for who acquires it, and nobody writes where nothing was reserved. */
#include "check.h"

#if SANITIZED
#define FAULTS_KEEP_HEAP
#endif
#include "faults.h"

#define STRIDE (4u << 20)

static shmt_segment *growing(uint32_t slots, const char *name) {
    return make_config(
        (shmt_config){.name = name, .slot_nbytes = 100, .slot_stride = STRIDE, .slots = slots, .flags = SHMT_GROW});
}

static uint64_t blocks(const shmt_segment *seg) {
    struct stat st;
    CHECK_EQ(fstat(seg->fd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* Every other part in its place, the others at once. */
static void fill(shmt_segment *seg, const shmt_slot *lent, uint64_t part, uint64_t nbytes, uint8_t mark) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_borrow(seg, lent->index, lent->word, &slot), 0);
    if (part % 2 == 0) {
        CHECK_EQ(shmt_slot_reserve_part(seg, &slot, part * nbytes, nbytes), 0);
        memset(slot.data + part * nbytes, mark, nbytes);
    } else {
        uint8_t *bytes = malloc(nbytes);
        memset(bytes, mark, nbytes);
        CHECK_EQ(shmt_slot_write_part(seg, &slot, part * nbytes, bytes, nbytes), 0);
        free(bytes);
    }
    shmt_slot_give_back(seg, &slot);
}

static void check_parts(const shmt_slot *slot, uint64_t parts, uint64_t nbytes, uint8_t first) {
    CHECK_EQ(slot->nbytes, parts * nbytes);
    for (uint64_t i = 0; i < parts; i++) {
        CHECK_EQ(slot->data[i * nbytes], (uint8_t)(first + i));
        CHECK_EQ(slot->data[i * nbytes + nbytes / 2], (uint8_t)(first + i));
        CHECK_EQ(slot->data[(i + 1) * nbytes - 1], (uint8_t)(first + i));
    }
}

/* Of any size, beginning anywhere in a page, in any order, by whoever comes; and again when the memory is there. */
static void what_others_wrote_is_one_item(void) {
    static const uint64_t sizes[] = {1, 30, 4096, 5000, 65536, 100001, 524288};
    static const uint64_t order[] = {6, 0, 7, 3, 1, 5, 2, 4};
    shmt_segment *seg = growing(1, NULL), *peers[] = {peer_of(seg), peer_of(seg)};
    for (uint8_t round = 0; round < 3; round++) {
        for (int k = 0; k < 7; k++) {
            const uint64_t n = sizes[k];
            shmt_slot lent, item;
            CHECK_EQ(shmt_slot_try_claim(seg, &lent), 0);
            for (int i = 0; i < 8; i++) {
                fill(peers[i % 2], &lent, order[i], n, (uint8_t)(round + order[i]));
            }
            CHECK_EQ(shmt_slot_reserve(seg, &lent, 8 * n), 0);
            CHECK_EQ(shmt_slot_publish(seg, &lent, 8 * n, 0), 0);
            CHECK_EQ(shmt_slot_try_acquire(peers[round % 2], &item), 0);
            check_parts(&item, 8, n, round);
            CHECK_EQ(shmt_slot_release(peers[round % 2], &item), 0);
        }
        uint64_t given;
        CHECK_EQ(shmt_trim(peers[0], &given), 0); /* the next round finds nothing that it knew */
    }
    shmt_segment_drop(peers[0]);
    shmt_segment_drop(peers[1]);
    shmt_segment_drop(seg);
}

/* The owner maps what is there: it takes no eighth more, as one does whose item grows by itself. */
static void the_owner_takes_no_more_than_was_written(void) {
    shmt_segment *seg = growing(1, NULL), *peer = peer_of(seg);
    shmt_slot lent;
    uint64_t before = blocks(seg);
    CHECK_EQ(shmt_slot_try_claim(seg, &lent), 0);
    for (uint64_t i = 0; i < 4; i++) {
        fill(peer, &lent, i, 256u << 10, 1);
    }
    CHECK_EQ(shmt_slot_reserve(seg, &lent, 1u << 20), 0);
    CHECK_EQ(lent.nbytes, 1u << 20);
    CHECK_EQ(blocks(seg) - before, (1u << 20) - SHMT_PAGE);
    CHECK_EQ(shmt_slot_reserve(seg, &lent, (1u << 20) + 1), 0); /* now it does */
    CHECK(lent.nbytes >= (1u << 20) + (1u << 17));
    CHECK_EQ(shmt_slot_reserve(seg, &lent, STRIDE), 0);
    CHECK_EQ(lent.nbytes, STRIDE);
    CHECK_EQ(shmt_slot_abort(seg, &lent), 0);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

static void another_claim_is_not_that_one(void) {
    shmt_segment *seg = growing(2, NULL), *peer = peer_of(seg);
    shmt_slot lent, item, slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &lent), 0);
    const uint64_t word = lent.word;
    CHECK_EQ(shmt_slot_borrow(peer, lent.index, word, &slot), 0);
    CHECK_EQ(shmt_slot_borrow(peer, lent.index ^ 1, word, &slot), -ESTALE);
    CHECK_EQ(shmt_slot_borrow(peer, 2, word, &slot), -ESTALE);
    CHECK_EQ(shmt_slot_borrow(peer, UINT32_MAX, word, &slot), -ESTALE);
    CHECK_EQ(shmt_slot_borrow(peer, lent.index, word + 1, &slot), -ESTALE);
    CHECK_EQ(shmt_slot_abort(seg, &lent), 0);
    CHECK_EQ(shmt_slot_borrow(peer, lent.index, word, &slot), -ESTALE);
    CHECK_EQ(shmt_slot_borrow(peer, lent.index, word_of(peer, lent.index), &slot),
             -ESTALE); /* a free one is no claim */
    CHECK_EQ(shmt_slot_try_claim(seg, &lent), 0);
    CHECK_EQ(shmt_slot_publish(seg, &lent, 8, 0), 0);
    CHECK_EQ(shmt_slot_borrow(peer, lent.index, word_of(peer, lent.index), &slot), -ESTALE); /* nor is an item */
    CHECK_EQ(shmt_slot_try_acquire(seg, &item), 0);
    CHECK_EQ(shmt_slot_borrow(peer, item.index, item.word, &slot), -ESTALE); /* whoever has it */
    CHECK_EQ(shmt_slot_release(seg, &item), 0);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

static void a_part_lies_within_the_slot(void) {
    shmt_segment *seg = growing(2, NULL), *peer = peer_of(seg);
    shmt_slot lent, slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &lent), 0);
    CHECK_EQ(shmt_slot_borrow(peer, lent.index, lent.word, &slot), 0);
    const uint64_t before = blocks(seg);
    CHECK_EQ(shmt_slot_reserve_part(peer, &slot, 0, STRIDE + 1), -EMSGSIZE);
    CHECK_EQ(shmt_slot_write_part(peer, &slot, STRIDE - 1, "ab", 2), -EMSGSIZE);
    CHECK_EQ(shmt_slot_write_part(peer, &slot, 100, NULL, 0), 0);
    CHECK_EQ(shmt_slot_reserve_part(peer, &slot, STRIDE, 1), -EMSGSIZE);
    CHECK_EQ(shmt_slot_reserve_part(peer, &slot, STRIDE + 1, 0), -EMSGSIZE);
    CHECK_EQ(shmt_slot_reserve_part(peer, &slot, UINT64_MAX, 2), -EMSGSIZE);
    CHECK_EQ(shmt_slot_reserve_part(peer, &slot, 2, UINT64_MAX), -EMSGSIZE);
    CHECK_EQ(shmt_slot_reserve_part(peer, &slot, STRIDE, 0), 0);
    CHECK_EQ(shmt_slot_reserve_part(peer, &slot, 100, 0), 0);
    CHECK_EQ(shmt_slot_reserve_part(peer, &slot, 0, 100), 0); /* every slot has that */
    CHECK_EQ(blocks(seg), before);
    CHECK_EQ(shmt_slot_reserve_part(peer, &slot, STRIDE - 1, 1), 0);
    slot.data[STRIDE - 1] = 1;
    CHECK_EQ(blocks(seg), before + SHMT_PAGE);
    slot.generation++; /* as in a child of a fork */
    CHECK_EQ(shmt_slot_reserve_part(peer, &slot, 0, 1), -ESTALE);
    CHECK_EQ(shmt_slot_write_part(peer, &slot, 0, "a", 1), -ESTALE);
    CHECK_EQ(shmt_slot_abort(seg, &lent), 0);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

static void full_memory_is_an_error(void) {
    pid_t pid = start_child();
    if (pid == 0) {
        if (!private_shm("size=16m")) {
            _exit(77);
        }
        shmt_segment *seg = growing(2, "borrow"), *peer = peer_of(seg);
        shmt_slot lent, slot;
        CHECK_EQ(shmt_slot_try_claim(seg, &lent), 0);
        CHECK_EQ(shmt_slot_borrow(peer, lent.index, lent.word, &slot), 0);
        int fd = open(SHMT_DIR "filler", O_CREAT | O_WRONLY, 0600);
        static char page[SHMT_PAGE];
        while (write(fd, page, sizeof page) == (ssize_t)sizeof page) {
        }
        CHECK_EQ(shmt_slot_reserve_part(peer, &slot, 1 << 20, 1 << 20), -ENOSPC);
        static uint8_t bytes[1 << 20];
        CHECK_EQ(shmt_slot_write_part(peer, &slot, 2 << 20, bytes, 1 << 20), -ENOSPC);
        CHECK_EQ(ftruncate(fd, 0), 0);
        CHECK_EQ(shmt_slot_reserve_part(peer, &slot, 1 << 20, 1 << 20), 0);
        memset(slot.data + (1 << 20), 1, 1 << 20);
        CHECK_EQ(shmt_slot_write_part(peer, &slot, 2 << 20, bytes, 1 << 20), 0);
        CHECK_EQ(shmt_slot_abort(seg, &lent), 0);
        shmt_segment_drop(peer);
        shmt_segment_drop(seg);
        _exit(0);
    }
    int status = child_status(pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
        SKIP("no mount namespace of one's own here");
    }
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 0);
}

/* Bytes that end in the middle are written as far as they go, and a signal ends nothing. */
static void writes_that_come_to_nothing(void) {
    shmt_segment *seg = growing(1, NULL), *peer = peer_of(seg);
    shmt_slot lent, slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &lent), 0);
    CHECK_EQ(shmt_slot_borrow(peer, lent.index, lent.word, &slot), 0);
    uint8_t *bytes = mmap(NULL, 4 * SHMT_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(bytes, 5, 2 * SHMT_PAGE);
    CHECK_EQ(mprotect(bytes + 2 * SHMT_PAGE, 2 * SHMT_PAGE, PROT_NONE), 0);
    CHECK_EQ(shmt_slot_write_part(peer, &slot, SHMT_PAGE, bytes, 4 * SHMT_PAGE), -EFAULT);
    CHECK_EQ(shmt_slot_reserve(seg, &lent, 3 * SHMT_PAGE), 0);
    CHECK_EQ(lent.data[3 * SHMT_PAGE - 1], 5);
    CHECK_EQ(munmap(bytes, 4 * SHMT_PAGE), 0);

    static uint8_t more[4 * SHMT_PAGE]; /* so few that nobody asks how much memory is left */
    static const struct {
        unsigned call;
        const char *what;
        int error, rc;
    } fails[] = {{1, "lseek", EIO, 0},
                 {2, "fallocate", ENOSPC, -ENOSPC},
                 {2, "fallocate", EINTR, 0},
                 {3, "pwrite", EIO, -EIO},
                 {3, "pwrite", EINTR, 0}};
    memset(more, 6, sizeof more);
    for (uint64_t i = 0; i < sizeof fails / sizeof *fails; i++) {
        faults_arm(fails[i].call, fails[i].error, false);
        int rc = shmt_slot_write_part(peer, &slot, (1 + i) << 18, more, sizeof more);
        faults_disarm();
        CHECK_EQ(strcmp(faults_what(), fails[i].what), 0);
        CHECK_EQ(rc, fails[i].rc);
        CHECK_EQ(shmt_slot_write_part(peer, &slot, (1 + i) << 18, more, sizeof more), 0);
        faults_arm(2, ENOMEM, false); /* now that it is there */
        CHECK_EQ(shmt_slot_write_part(peer, &slot, (1 + i) << 18, more, sizeof more), -ENOMEM);
        faults_disarm();
        CHECK_EQ(strcmp(faults_what(), "populate"), 0);
        CHECK_EQ(shmt_slot_reserve_part(peer, &slot, (1 + i) << 18, sizeof more), 0);
        CHECK(memcmp(slot.data + ((1 + i) << 18), more, sizeof more) == 0);
    }
    shmt_slot_give_back(peer, &slot);
    CHECK_EQ(shmt_slot_abort(seg, &lent), 0);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

/* Who borrows may touch the slot until it gives it back, and the owner all the time. */
static void in_debug_mode(void) {
    setenv("SHMTENSOR_DEBUG", "1", 1);
    shmt_segment *seg = growing(1, NULL), *peer = peer_of(seg);
    unsetenv("SHMTENSOR_DEBUG");
    CHECK(peer->debug);
    shmt_slot lent, slot;
    for (int touches_late = 0; touches_late < 2; touches_late++) {
        CHECK_EQ(shmt_slot_try_claim(seg, &lent), 0);
        pid_t pid = start_child();
        if (pid == 0) {
            CHECK_EQ(shmt_slot_borrow(peer, lent.index, lent.word, &slot), 0);
            CHECK_EQ(shmt_slot_reserve_part(peer, &slot, 8192, 4096), 0);
            memset(slot.data + 8192, 7, 4096);
            shmt_slot_give_back(peer, &slot);
            if (touches_late) {
                signal(SIGSEGV, SIG_DFL);
                ((volatile uint8_t *)slot.data)[8192] = 8;
            }
            _exit(0);
        }
        int status = child_status(pid);
        CHECK(touches_late ? !WIFEXITED(status) || WEXITSTATUS(status) != 0 : status == 0);
        CHECK_EQ(shmt_slot_reserve(seg, &lent, 12288), 0);
        CHECK_EQ(lent.data[8192], 7);
        CHECK_EQ(shmt_slot_abort(seg, &lent), 0);
    }
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

/* ---- all at once --------------------------------------------------------------------------------------------------------- */

#define WRITERS 3
#define PARTS 12

typedef struct writer {
    shmt_segment *seg, *tasks, *answers;
} writer;

/* Each task is the slot and the word of a claim; its tag, which part. */
static void *writes(void *arg) {
    writer *w = arg;
    for (;;) {
        shmt_slot task, lent = {0}, answer;
        CHECK_EQ(shmt_slot_acquire(w->tasks, after_ms(20000), &task), 0);
        memcpy(&lent.word, task.data, 8);
        memcpy(&lent.index, task.data + 8, 4);
        uint64_t part = task.tag;
        CHECK_EQ(shmt_slot_release(w->tasks, &task), 0);
        if (lent.word == 0) {
            return NULL;
        }
        fill(w->seg, &lent, part, 5001, (uint8_t)(lent.word + part));
        CHECK_EQ(shmt_slot_claim(w->answers, after_ms(20000), &answer), 0);
        CHECK_EQ(shmt_slot_publish(w->answers, &answer, 0, part), 0);
    }
}

static void task(shmt_segment *tasks, uint64_t word, uint32_t index, uint64_t part) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_claim(tasks, after_ms(20000), &slot), 0);
    memcpy(slot.data, &word, 8);
    memcpy(slot.data + 8, &index, 4);
    CHECK_EQ(shmt_slot_publish(tasks, &slot, 12, part), 0);
}

static void writers_of_many_slots_one_after_the_other(void) {
    shmt_segment *seg = growing(2, NULL), *tasks = make(PARTS, 0, 0), *answers = make(PARTS, 0, 0);
    writer writers[WRITERS];
    pthread_t threads[WRITERS];
    for (int i = 0; i < WRITERS; i++) {
        writers[i] = (writer){.seg = same(seg), .tasks = same(tasks), .answers = same(answers)};
        CHECK_EQ(pthread_create(&threads[i], NULL, writes, &writers[i]), 0);
    }
    for (int round = 0; round < TIMES(400); round++) {
        shmt_slot lent, item;
        CHECK_EQ(shmt_slot_try_claim(seg, &lent), 0);
        for (uint64_t part = 0; part < PARTS; part++) {
            task(tasks, lent.word, lent.index, part);
        }
        uint64_t seen = 0;
        for (int part = 0; part < PARTS; part++) {
            CHECK_EQ(shmt_slot_acquire(answers, after_ms(20000), &item), 0);
            seen |= UINT64_C(1) << item.tag;
            CHECK_EQ(shmt_slot_release(answers, &item), 0);
        }
        CHECK_EQ(seen, (UINT64_C(1) << PARTS) - 1);
        CHECK_EQ(shmt_slot_reserve(seg, &lent, PARTS * 5001), 0);
        CHECK_EQ(shmt_slot_publish(seg, &lent, PARTS * 5001, 0), 0);
        CHECK_EQ(shmt_slot_try_acquire(seg, &item), 0);
        check_parts(&item, PARTS, 5001, (uint8_t)lent.word);
        CHECK_EQ(shmt_slot_release(seg, &item), 0);
    }
    for (int i = 0; i < WRITERS; i++) {
        task(tasks, 0, 0, 0);
    }
    for (int i = 0; i < WRITERS; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
        shmt_segment_drop(writers[i].seg);
        shmt_segment_drop(writers[i].tasks);
        shmt_segment_drop(writers[i].answers);
    }
    shmt_segment_drop(seg);
    shmt_segment_drop(tasks);
    shmt_segment_drop(answers);
}

TESTS(TEST(what_others_wrote_is_one_item), TEST(the_owner_takes_no_more_than_was_written),
      TEST(another_claim_is_not_that_one), TEST(a_part_lies_within_the_slot), TEST(full_memory_is_an_error),
      TEST(in_debug_mode), TEST(writes_that_come_to_nothing), TEST(writers_of_many_slots_one_after_the_other))

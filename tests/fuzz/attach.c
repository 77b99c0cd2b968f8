/* attach.c - attaching to a file in which anything may stand: refused with a typed error, or used without harm.
 *
 *   byte 0    which template; what is put right again after the edits (see the enum)
 *   then      edits: region and length, offset in it, bytes */
#include "fuzz.h"

enum {
    PLACED = 4,    /* the offsets are computed anew from the counts that the edits left */
    SIZED = 8,     /* the file is given the size that its header claims */
    RESERVED = 16, /* and its memory */
    DEBUG = 32,
    UNCHECKED = 64, /* the magic stays as the edits left it */
};
#define TEMPLATES 4
#define RESERVED_MAX (UINT64_C(1) << 20)
#define SIZED_MAX (UINT64_C(1) << 40)

static uint8_t *templates[TEMPLATES];
static uint64_t sizes[TEMPLATES];

static void make_templates(void) {
    static const char meta[] = "{\"what\":\"a spec\"}";
    static const shmt_config configs[TEMPLATES] = {
        {.slots = 3, .slot_nbytes = 200},
        {.slots = 2, .slot_nbytes = 100, .slot_stride = 4 * SHMT_PAGE, .flags = SHMT_GROW | SHMT_PREFAULT},
        {.slots = 0, .slot_nbytes = 5000},
        {.slots = 4, .slot_nbytes = 64, .flags = SHMT_DROP, .seq_first = UINT64_MAX - 4, .producers = 1},
    };
    for (int i = 0; i < TEMPLATES; i++) {
        shmt_config config = configs[i];
        shmt_segment *seg;
        shmt_slot slot;
        config.members = 5;
        config.meta = meta;
        config.meta_nbytes = sizeof meta;
        MUST(shmt_segment_create(&config, &seg) == 0);
        if (config.slots > 0) { /* as its owner left it when it died: an item to read, one being written */
            MUST(shmt_slot_try_claim(seg, &slot) == 0 && shmt_slot_publish(seg, &slot, 64, 7) == 0);
            MUST(shmt_slot_try_claim(seg, &slot) == 0);
        }
        sizes[i] = seg->geo.total_nbytes;
        templates[i] = malloc(sizes[i]);
        MUST(templates[i] != NULL);
        memcpy(templates[i], seg->base, sizes[i]);
        shmt_segment_drop(seg);
    }
}

/* One edit of the bytes before the payload. */
static void edit(input *in, uint8_t *base, const shmt_geometry *geo) {
    uint32_t what = take8(in);
    const uint64_t begins[] = {offsetof(shmt_header, geometry),
                               0,
                               geo->members_offset,
                               geo->slots_offset,
                               geo->ring_offset,
                               geo->deaths_offset,
                               geo->meta_offset,
                               0,
                               geo->data_offset};
    const uint32_t region = what & 7, n = 1 + (what >> 3 & 7);
    uint64_t begin = begins[region];
    uint64_t end = region == 0   ? begin + sizeof(shmt_geometry)
                   : region == 1 ? SHMT_PAGE
                   : region == 7 ? geo->data_offset
                                 : begins[region + 1];
    if (end <= begin) {
        return;
    }
    uint64_t at = begin + take16(in) * (region == 0 ? 4 : 1) % (end - begin);
    uint64_t bytes = take_bytes(in, n);
    for (uint32_t i = 0; i < n && at + i < end; i++) {
        base[at + i] = (uint8_t)(bytes >> 8 * i);
    }
}

static void use(shmt_segment *seg, input *in) {
    uint64_t words[4];
    shmt_slot slot;
    shmt_stats stats;
    shmt_death death;
    shmt_death_cursor cursor = {0};
    shmt_member_info member;
    shmt_slot_info info;
    const shmt_info *about = shmt_segment_info(seg);
    read_all(about->meta, about->meta_nbytes);
    shmt_spin_set(seg, 0);
    for (int turn = 0; turn < 6; turn++) {
        uint32_t id = take8(in);
        int rc = shmt_slot_acquire_many(seg, 1 + id % 4, id & 64 ? shmt_now_ns() + 2000 : 0, words, &slot);
        lawful("acquire", rc, 4, id & 64 ? ETIMEDOUT : EAGAIN, about->slots ? ESHUTDOWN : EINVAL);
        if (rc > 0) {
            check_slot(seg, &slot, (uint32_t)rc);
            read_all(slot.data, slot.nbytes);
            lawful("release", shmt_slot_release_many(seg, &slot, words, (uint32_t)rc), 0, ESTALE, 0);
        }
        rc = shmt_slot_try_claim(seg, &slot);
        lawful("claim", rc, 0, EAGAIN, about->slots ? ESHUTDOWN : EINVAL);
        if (rc == 0) {
            check_slot(seg, &slot, 1);
            memset(slot.data, 1, slot.nbytes < 65536 ? slot.nbytes : 65536);
            uint64_t nbytes = slot.nbytes;
            lawful("reserve", shmt_slot_reserve(seg, &slot, nbytes + id), 0, EMSGSIZE, ENOSPC);
            lawful("publish", shmt_slot_publish(seg, &slot, nbytes, id), 0, EMSGSIZE, ESTALE);
        }
        lawful("reclaim", shmt_reclaim(seg), (int)about->members, 0, 0);
        lawful("stats", shmt_stats_get(seg, &stats), 0, 0, 0);
        lawful("death_next", shmt_death_next(seg, &cursor, &death), 0, EAGAIN, EINVAL);
        lawful("member_info", shmt_member_info_get(seg, id, &member), 0, ENOENT, EINVAL);
        lawful("slot_info", shmt_slot_info_get(seg, id, &info), 0, EINVAL, 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    if (!templates[0]) {
        unsetenv("SHMTENSOR_DEBUG");
        make_templates();
    }
    int64_t begin = cpu_now();
    input in = {bytes, bytes + n};
    const uint32_t how = take8(&in), which = how % TEMPLATES;
    uint8_t *base = malloc(sizes[which]);
    MUST(base != NULL);
    memcpy(base, templates[which], sizes[which]);
    shmt_header *header = (shmt_header *)(void *)base;
    const shmt_geometry original = header->geometry;
    uint32_t edits = take8(&in) % 16;
    for (uint32_t i = 0; i < edits; i++) {
        edit(&in, base, &original);
    }
    if (how & PLACED) {
        (void)shmt_geometry_place(&header->geometry);
        header->geometry.abi = SHMT_ABI;
    }
    if (!(how & UNCHECKED)) {
        shmt_store_relaxed(&header->magic, SHMT_MAGIC); /* nobody else knows of these bytes */
    }
    int fd = memfd_create("shmtensor-fuzz", MFD_CLOEXEC);
    MUST(fd >= 0 && write(fd, base, sizes[which]) == (ssize_t)sizes[which]);
    const uint64_t total = header->geometry.total_nbytes;
    if ((how & SIZED) && total < SIZED_MAX) {
        MUST(ftruncate(fd, (off_t)total) == 0);
        if ((how & RESERVED) && total > 0 && total <= RESERVED_MAX) {
            MUST(fallocate(fd, 0, 0, (off_t)total) == 0);
        }
    }
    free(base);
    if (how & DEBUG) {
        setenv("SHMTENSOR_DEBUG", "1", 1);
    }
    shmt_segment *seg = NULL;
    int rc = shmt_segment_attach_fd(fd, &seg);
    lawful("attach_fd", rc, 0, EBADMSG, EPROTONOSUPPORT);
    if (rc == 0) {
        use(seg, &in);
        shmt_segment_drop(seg);
    }
    unsetenv("SHMTENSOR_DEBUG");
    close(fd);
    check_time(begin);
    return 0;
}

size_t fuzz_seed(unsigned number, uint8_t *out) {
    /* The counts of the geometry, by their places in units of 4 bytes: 16 and 18 stride and size, 24 slots to 31 */
    static const uint8_t fields[] = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 25, 26, 27, 28, 29, 30, 31};
    if (number >= TEMPLATES * 8) {
        return 0;
    }
    size_t n = 0;
    out[n++] = (uint8_t)(number % TEMPLATES | (number / TEMPLATES & 1 ? PLACED | SIZED | RESERVED : 0) |
                         (number / TEMPLATES & 2 ? DEBUG : 0));
    out[n++] =
        (uint8_t)(number / (TEMPLATES * 4) * 3); /* edits: none, or one of the geometry and two of other regions */
    for (unsigned e = 0; e < out[1]; e++) {
        out[n++] = (uint8_t)(e == 0 ? 0 : (e + number) % 8 | 7 << 3);
        out[n++] = fields[(number * 5 + e) % sizeof fields];
        out[n++] = 0;
        size_t length = e == 0 ? 1 : 8;
        memset(out + n, (int)(number + 1), length);
        n += length;
    }
    memset(out + n, 0x42, 8); /* arguments of the verbs */
    return n + 8;
}

/* From counts to offsets: everything in its place, nothing on top of another, and no number that overflows. */
#include "check.h"

static shmt_geometry plan(shmt_config config) {
    shmt_geometry geo = {0};
    config.members = config.members ? config.members : 3;
    CHECK_EQ(shmt_geometry_plan(&config, &geo), 0);
    return geo;
}

static void in_order_and_apart(const shmt_geometry *geo) {
    CHECK(geo->members_offset >= sizeof(shmt_header));
    CHECK(geo->members_offset % SHMT_PAIR == 0 && geo->slots_offset % SHMT_PAIR == 0 && geo->ring_offset % 8 == 0);
    CHECK(geo->slots_offset >= geo->members_offset + (geo->members + UINT64_C(1)) * sizeof(shmt_member_record));
    CHECK(geo->ring_offset >= geo->slots_offset + geo->slots * sizeof(shmt_slot_header));
    CHECK(geo->meta_offset >= geo->ring_offset + geo->ring * sizeof(shmt_atomic64));
    CHECK(geo->data_offset >= geo->meta_offset + geo->meta_nbytes);
    CHECK_EQ(geo->data_offset % (geo->flags & SHMT_HUGE_PAGES ? 2u << 20 : SHMT_PAGE), 0);
    CHECK_EQ(geo->total_nbytes % SHMT_PAGE, 0);
    CHECK(geo->total_nbytes >= geo->data_offset + (geo->slots ? geo->slots * geo->slot_stride : geo->slot_nbytes));
    CHECK(geo->total_nbytes <= SHMT_NBYTES_MAX);
    if (geo->slots > 0) {
        CHECK(geo->ring >= 2 * geo->slots && geo->ring < 4 * geo->slots + 2);
        CHECK_EQ(geo->ring & (geo->ring - 1), 0);
        CHECK(geo->slot_stride >= geo->slot_nbytes && geo->slot_stride % SHMT_LINE == 0 && geo->slot_stride > 0);
    }
}

static void random_wishes(void) {
    uint64_t random = 5;
    int planned = 0;
    for (int i = 0; i < 20000; i++) {
        shmt_geometry geo = {0}, again;
        shmt_config config = {
            .slot_nbytes = next_random(&random) >> next_random(&random) % 64,
            .slot_stride = next_random(&random) >> next_random(&random) % 64,
            .slots = (uint32_t)(next_random(&random) >> 32) >> next_random(&random) % 32,
            .members = (uint32_t)(next_random(&random) >> 32) >> next_random(&random) % 32,
            .slot_least = next_random(&random) % 2 ? 0 : next_random(&random) >> next_random(&random) % 64,
            .share = (uint32_t)next_random(&random) % 2,
            .flags = (uint32_t)(next_random(&random) % 17),
            .alignment = next_random(&random) % 4 ? 0 : 1u << next_random(&random) % 14,
            .meta_nbytes = (uint32_t)(next_random(&random) >> 32) >> next_random(&random) % 32,
        };
        int rc = shmt_geometry_plan(&config, &geo);
        CHECK(rc == 0 || rc == -EINVAL || rc == -EOVERFLOW);
        if (rc == 0) {
            planned++;
            in_order_and_apart(&geo);
            CHECK(geo.slots == config.slots && geo.members == config.members && geo.slot_nbytes == config.slot_nbytes);
            again = geo; /* who attaches comes to the same */
            again.members_offset = again.slots_offset = again.ring_offset = again.meta_offset = 1;
            again.data_offset = again.total_nbytes = 1;
            again.ring = 1;
            CHECK_EQ(shmt_geometry_place(&again), 0);
            CHECK_EQ(memcmp(&geo, &again, sizeof geo), 0);
        }
    }
    CHECK(planned > 500);
}

static void the_ring_is_a_power_of_two(void) {
    for (uint32_t slots = 1; slots < 70; slots++) {
        shmt_geometry geo = plan((shmt_config){.slots = slots, .slot_nbytes = 8});
        uint32_t ring = 2;
        while (ring < 2 * slots) {
            ring *= 2;
        }
        CHECK_EQ(geo.ring, ring);
        in_order_and_apart(&geo);
    }
    CHECK_EQ(plan((shmt_config){.slots = 0, .slot_nbytes = 8}).ring, 0);
    CHECK_EQ(plan((shmt_config){.slots = SHMT_SLOTS_MAX, .slot_nbytes = 1}).ring, 131072);
}

static void how_far_apart_slots_are(void) {
    static const struct {
        uint64_t nbytes, stride;
        uint32_t flags, alignment;
        uint64_t becomes;
    } table[] = {
        {0, 0, 0, 0, 128},
        {1, 0, 0, 0, 128},
        {128, 0, 0, 0, 128},
        {129, 0, 0, 0, 256},
        {2047, 0, 0, 0, 2048},
        {2048, 0, 0, 0, 4096},
        {4096, 0, 0, 0, 4096},
        {4097, 0, 0, 0, 8192},
        {1, 0, 0, 64, 128},
        {1, 0, 0, 1024, 1024},
        {200, 0, 0, 256, 256},
        {1, 0, 0, 4096, 4096},
        {1, 99999, 0, 0, 128},
        {1, 0, SHMT_GROW, 0, 4096},
        {1, 5000, SHMT_GROW, 0, 8192},
        {9000, 5000, SHMT_GROW, 0, 12288},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        shmt_geometry geo = plan((shmt_config){.slots = 3,
                                               .slot_nbytes = table[i].nbytes,
                                               .slot_stride = table[i].stride,
                                               .flags = table[i].flags,
                                               .alignment = table[i].alignment});
        CHECK_EQ(geo.slot_stride, table[i].becomes);
    }
}

static void shrinking(void) {
    const uint64_t far = UINT64_C(1) << 36;
    shmt_geometry geo = plan((shmt_config){.slots = 4, .slot_nbytes = 10000, .slot_stride = far, .flags = SHMT_GROW});
    int times = 0;
    for (uint64_t before = geo.total_nbytes; shmt_geometry_fit(&geo, 0, before / 2);
         before = geo.total_nbytes, times++) {
        CHECK(geo.slot_stride >= 10000 && geo.slot_stride % SHMT_PAGE == 0);
        CHECK_EQ(shmt_geometry_place(&geo), 0);
        in_order_and_apart(&geo);
        CHECK(geo.total_nbytes <= before / 2 || geo.slot_stride == 12288);
        CHECK(geo.total_nbytes + 6 * SHMT_PAGE > before / 2); /* no further than it has to */
    }
    CHECK(times >= 20);
    CHECK_EQ(geo.slot_stride, 12288);
    geo = plan((shmt_config){.slots = 4, .slot_stride = far, .flags = SHMT_GROW | SHMT_HUGE_PAGES});
    CHECK(shmt_geometry_fit(&geo, 0, far) && shmt_geometry_place(&geo) == 0 && geo.total_nbytes <= far);
    geo = plan((shmt_config){.slots = 4, .slot_nbytes = 10000});
    CHECK(!shmt_geometry_fit(&geo, 0, 0)); /* these do not grow */
    geo = plan((shmt_config){.slots = 4, .slot_stride = 16384, .flags = SHMT_GROW});
    CHECK(!shmt_geometry_fit(&geo, 0, geo.total_nbytes + SHMT_PAGE) && geo.slot_stride == 16384);
    CHECK(shmt_geometry_fit(&geo, 5000, 0) && geo.slot_stride == 8192 && !shmt_geometry_fit(&geo, 5000, 0));
    CHECK(shmt_geometry_fit(&geo, 0, 0) && !shmt_geometry_fit(&geo, 0, 0));
    CHECK_EQ(geo.slot_stride, SHMT_PAGE); /* and not to nothing at all */
    geo = plan((shmt_config){.slots = 0, .slot_nbytes = 10000, .flags = SHMT_GROW});
    CHECK(!shmt_geometry_fit(&geo, 0, 0));
    geo = plan((shmt_config){.slots = 4, .slot_least = 9000, .slot_stride = 5000, .flags = SHMT_GROW});
    CHECK_EQ(geo.slot_stride, 12288);
    /* More than any address space holds: as far as it can be counted, unless just that was asked for. */
    shmt_config config = {
        .slots = SHMT_SLOTS_MAX, .members = 1, .slot_nbytes = 4096, .slot_stride = SHMT_NBYTES_MAX, .flags = SHMT_GROW};
    CHECK_EQ(shmt_geometry_plan(&config, &geo), -EOVERFLOW);
    config.share = 1;
    geo = plan(config);
    in_order_and_apart(&geo);
    CHECK(geo.total_nbytes > SHMT_NBYTES_MAX / 4);
}

/* As a header may claim it: the page that two slots share would be proved for one and be taken for the other's. */
static void growing_slots_begin_on_pages(void) {
    shmt_geometry geo = plan((shmt_config){.slots = 3, .slot_nbytes = 100, .slot_stride = 8192, .flags = SHMT_GROW});
    geo.slot_stride += SHMT_LINE;
    CHECK_EQ(shmt_geometry_place(&geo), -EINVAL);
    geo.flags = 0;
    CHECK_EQ(shmt_geometry_place(&geo), 0);
}

TESTS(TEST(random_wishes), TEST(the_ring_is_a_power_of_two), TEST(how_far_apart_slots_are), TEST(shrinking),
      TEST(growing_slots_begin_on_pages))

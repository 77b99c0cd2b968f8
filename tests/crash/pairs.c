/* pairs.c - two processes, each stopped at every point that matters, in each order, and then killed or let go on.
 *
 *   pairs [--full] [--every] [--cpu=N] [--part=I/N] [--only=A/B,A/B...] [--wrap=N]
 *
 * A runs to its point i and stands still; B, which finds what A left half done, runs to its point j and stands still as well;
 * then one of five ends, in turn. Points: before each atomic operation and each system call, and after each of them and after
 * each change of shared bytes. The laws are those of crash.h, and one more: however A stands, B comes to its end.
 *
 * --full: all pairs of verbs, and all five ends at each pair of points. --every: A stops at every instruction. */
#include "scenarios.h"

typedef struct part_of {
    const char *name;
    void (*prepare)(void);
    void (*body)(void);
    bool producer, reclaimer, grown;
} part_of;

static const part_of bodies[] = {
    {"produce", as_member, produce, true, false, false},
    {"produce_many", as_member, produce_many, true, false, false},
    {"consume", as_member, consume, false, false, false},
    {"consume_many", as_member, consume_many, false, false, false},
    {"lease", as_member, lease_one, false, false, false},
    {"abort", as_member, abort_one, true, false, false},
    {"reclaim", as_member, reclaims, false, true, false},
    {"join", NULL, joins, false, true, false},
    {"close", as_producer, closes, true, false, false},
    {"close_leased", as_lessee, closes_leased, false, false, false},
    {"trim", as_member, trims, false, false, true},
};
#define N_BODIES (sizeof bodies / sizeof *bodies)

enum { KILL_BOTH, KILL_A_GO_B, KILL_B_GO_A, GO_A_GO_B, GO_B_GO_A, N_ENDS };

static bool full, every;

static bool stops(const trace *t, uint32_t k) {
    if (every) {
        return !(t->at[k].flags & REPEATED) || distinct(t, k);
    }
    return distinct(t, k);
}

static void start_both(world *w, const part_of *of, child *c) {
    world_restore(w);
    child_start(&c[0], w->seg, BY_A, of[0].prepare, of[0].body);
    child_start(&c[1], w->seg, BY_B, of[1].prepare, of[1].body);
}

static void kill_one(world *w, child *c) {
    child_kill(c);
    resolve(w, c->j);
}

static void go_on(world *w, child *c) {
    child_finish(c);
    resolve(w, c->j);
}

static void one_pair(world *w, const part_of *of, child *c, int end) {
    switch (end) {
    case KILL_BOTH:
        kill_one(w, &c[0]);
        kill_one(w, &c[1]);
        break;
    case KILL_A_GO_B:
        kill_one(w, &c[0]);
        go_on(w, &c[1]);
        break;
    case KILL_B_GO_A:
        kill_one(w, &c[1]);
        go_on(w, &c[0]);
        break;
    case GO_A_GO_B:
        go_on(w, &c[0]);
        go_on(w, &c[1]);
        break;
    default:
        go_on(w, &c[1]);
        go_on(w, &c[0]);
    }
    uint32_t reclaimers = of[0].reclaimer + of[1].reclaimer;
    ending e = {.in_between = reclaimers};
    e.killed_reclaimers = (of[0].reclaimer && !c[0].alive) + (of[1].reclaimer && !c[1].alive);
    check_all(w, (child *[]){&c[0], &c[1]}, 2, e);
    if (c[0].alive || c[1].alive) {
        child_kill(&c[0]);
        child_kill(&c[1]);
        int rc = shmt_reclaim(w->seg);
        LAW(rc >= 0 && rc <= 2, "reclaim after the end: %d", rc);
        check_owners(w, (child *[]){&c[0], &c[1]}, 2);
        check_capacity(w);
    }
}

static void run_pair(const part_of *of, const wrap_of *wrap) {
    const bool dead = of[0].reclaimer || of[1].reclaimer;
    const bool grown = of[0].grown || of[1].grown; /* fewer slots where that will do: each is trimmed */
    const scenario s = {.name = "pair",
                        .slots = grown && !dead ? 4 : 6,
                        .members = 8,
                        .flags = grown ? SHMT_GROW : 0,
                        .prior = 2,
                        .dead = dead ? X_ALL : 0,
                        .memory = grown ? GROWN : AS_MADE};
    world w;
    trace ta, tb;
    child c[2] = {{.j = new_journal()}, {.j = new_journal()}};
    char name[64];
    trace_begin(&ta);
    trace_begin(&tb);
    snprintf(name, sizeof name, "%s/%s", of[0].name, of[1].name);
    world_begin(&w, &s, wrap, of[0].producer + of[1].producer);
    report_begin(name, wrap->name, full ? "five ends" : "ends in turn");
    for (int round = 0; round < 2; round++) { /* twice: our heap, which children inherit, must have come to rest */
        start_both(&w, of, c);
        NEED(trace_record(&ta, &c[0], w.seg));
        one_pair(&w, of, c, KILL_BOTH);
    }
    for (uint32_t i = 0; i < ta.n; i++) {
        if (!stops(&ta, i)) {
            continue;
        }
        start_both(&w, of, c);
        bool traced = child_goto(&c[0], &ta, i, false) && trace_record(&tb, &c[1], w.seg);
        now.point = i;
        one_pair(&w, of, c, KILL_BOTH);
        for (uint32_t j = 0; traced && j < tb.n; j++) {
            for (int end = 0; end < N_ENDS && distinct(&tb, j); end++) {
                if (!full && (i + j) % N_ENDS != (uint32_t)end) {
                    continue;
                }
                start_both(&w, of, c);
                now.point = j << 16 | i;
                now.points++;
                if (child_goto(&c[0], &ta, i, false)) {
                    child_goto(&c[1], &tb, j, false);
                }
                one_pair(&w, of, c, end);
            }
        }
    }
    report_end();
    trace_end(&ta);
    trace_end(&tb);
    munmap(c[0].j, SHMT_PAGE);
    munmap(c[1].j, SHMT_PAGE);
    world_end(&w);
}

/* Without --full: each verb against each of the others that can meet it in the same words. */
static const char *const usual[] = {"produce/produce",
                                    "produce/consume",
                                    "consume/produce",
                                    "consume/consume",
                                    "produce/reclaim",
                                    "reclaim/produce",
                                    "consume/reclaim",
                                    "reclaim/consume",
                                    "reclaim/reclaim",
                                    "reclaim/join",
                                    "join/join",
                                    "close/consume",
                                    "consume_many/produce_many",
                                    "trim/produce",
                                    "produce/trim",
                                    "trim/consume",
                                    "trim/reclaim",
                                    "trim/trim"};

int main(int argc, char **argv) {
    const char *only = NULL;
    uint32_t part = 0, parts = 1, job = 0, one_wrap = 0, n_wraps = 1;
    int cpu = 0;
    for (int a = 1; a < argc; a++) {
        if (strcmp(argv[a], "--full") == 0) {
            full = true;
        } else if (strcmp(argv[a], "--every") == 0) {
            every = true;
        } else if (strncmp(argv[a], "--only=", sizeof "--only=" - 1) == 0) {
            only = strchr(argv[a], '=') + 1;
        } else if (strncmp(argv[a], "--wrap=", sizeof "--wrap=" - 1) == 0) {
            one_wrap = (uint32_t)atoi(strchr(argv[a], '=') + 1);
            NEED(one_wrap < N_WRAPS);
        } else if (strncmp(argv[a], "--cpu=", sizeof "--cpu=" - 1) == 0) {
            cpu = atoi(strchr(argv[a], '=') + 1);
        } else if (strncmp(argv[a], "--part=", sizeof "--part=" - 1) == 0) {
            NEED(sscanf(strchr(argv[a], '=') + 1, "%u/%u", &part, &parts) == 2 && part < parts);
        } else {
            fprintf(stderr, "%s: what is %s?\n", argv[0], argv[a]);
            return 3;
        }
    }
    start_up(cpu);
    for (uint32_t wrap = one_wrap; wrap < one_wrap + n_wraps; wrap++) {
        for (uint32_t k = 0; k < N_BODIES * N_BODIES; k++) {
            const part_of of[2] = {bodies[k / N_BODIES], bodies[k % N_BODIES]};
            char name[64];
            snprintf(name, sizeof name, "%s/%s", of[0].name, of[1].name);
            bool wanted = full && !only;
            for (size_t u = 0; u < sizeof usual / sizeof *usual; u++) {
                wanted |= !only && strcmp(usual[u], name) == 0;
            }
            const char *at = only ? strstr(only, name) : NULL;
            wanted |= at && (at == only || at[-1] == ',') && (at[strlen(name)] == ',' || at[strlen(name)] == '\0');
            if (wanted && job++ % parts == part) {
                run_pair(of, &wraps[wrap]);
            }
        }
    }
    return finish_up();
}

/* step_kill.c - SIGKILL after every machine instruction of every verb, and the laws of crash.h after each.
 *
 *   step_kill [--full] [--sparse] [--cpu=N] [--part=I/N] [--only=NAME,NAME...] [--wraps=N]
 *
 * For each scenario and each wrap-around the child is run once step by step; then, for each point of that trace, the world is
 * put back, a new child is brought to that point and killed, and the observer reclaims and counts. In the other modes the
 * observer does something while the child stands still (drains, publishes, reclaims), and the child is killed or goes on.
 *
 * --sparse: only the points between which shared bytes change or an atomic operation or a system call lies.
 * --full: every instruction in every mode. Exit status: 0 all laws held, 1 not, 2 hung, 3 the test itself failed, 77 skipped. */
#include "scenarios.h"

static bool full, sparse;
static uint32_t n_wraps = N_WRAPS;

/* ---- kills, with and without somebody acting in between ------------------------------------------------------------------ */

typedef struct mode {
    const char *name;
    void (*between)(world *w);
    bool resume;
} mode;

static void reclaim_between(world *w) {
    int rc = shmt_reclaim(w->seg);
    LAW(rc == 0 || (rc == 1 && w->dead_member), "a reclaim beside a stopped member: %d", rc);
}

static const mode modes[] = {
    {"kill", NULL, false},
    {"resume", NULL, true},
    {"drain, kill", drain, false},
    {"drain, resume", drain, true},
    {"put, kill", put_between, false},
    {"put, resume", put_between, true},
    {"reclaim, kill", reclaim_between, false},
    {"reclaim, resume", reclaim_between, true},
};
#define N_MODES (sizeof modes / sizeof *modes)

static ending foretell(world *w, const scenario *s, const mode *m, child *c, uint32_t closed_before) {
    shmt_header *header = w->seg->header;
    uint32_t closed = shmt_load_seq_cst(&header->producers_closed), member = id_of_pid(w, c->pid);
    bool role = member != 0 && (shmt_load_seq_cst(&w->seg->records[member].roles) & SHMT_PRODUCER);
    c->produced = role;
    bool shut = shmt_load_seq_cst(&header->shut) != 0;
    bool was_producer = role || c->j->claims > 0; /* that it claimed is known for sure */
    bool gone = closed > closed_before ? !c->alive || !role : !c->alive && was_producer;
    ending end = {
        .exact = !m->between, .killed_reclaimers = s->reclaimer && !c->alive, .in_between = s->reclaimer && m->between};
    end.ended = shut || !s->producer || gone;
    end.by_death = !shut && closed < w->seg->geo.producers;
    return end;
}

/* Starts the child and brings it to point k. If it went another way than the trace (a clock was read, say), once more, and
 * by nothing but steps, which are counted. */
static bool bring(world *w, const scenario *s, child *c, const trace *t, uint32_t k) {
    world_restore(w);
    now.point = k;
    now.points++;
    child_start(c, w->seg, BY_A, s->prepare, s->body);
    bool there = child_goto(c, t, k, false);
    if (there && now.rip != t->at[k].rip && s->depth != SPARSE) {
        child_kill(c);
        world_restore(w);
        now.drifted++;
        child_start(c, w->seg, BY_A, s->prepare, s->body);
        there = child_goto(c, t, k, true);
    }
    return there;
}

static void one_point(world *w, const scenario *s, const mode *m, child *c, const trace *t, uint32_t k) {
    const uint32_t closed = w->closed;
    if (bring(w, s, c, t, k)) {
        if (m->between) {
            m->between(w);
        }
        if (m->resume) {
            child_finish(c);
        } else {
            child_kill(c);
        }
    }
    resolve(w, c->j);
    check_all(w, (child *[]){c}, 1, foretell(w, s, m, c, closed));
    if (c->alive) {
        child_kill(c);
        int rc = shmt_reclaim(w->seg);
        LAW(rc == 0 || rc == 1, "reclaim after the end: %d", rc);
        check_owners(w, (child *[]){c}, 1);
        check_capacity(w);
    }
}

static void run_mode(world *w, const scenario *s, const wrap_of *wrap, const mode *m, bool every, child *c,
                     const trace *t) {
    char name[64];
    snprintf(name, sizeof name, "%s%s", m->name, every ? "" : " (distinct)");
    report_begin(s->name, wrap->name, name);
    for (uint32_t k = 0; k < t->n; k++) {
        if (every ? !(t->at[k].flags & REPEATED) || distinct(t, k) : distinct(t, k)) {
            one_point(w, s, m, c, t, k);
        }
    }
    report_end();
}

static void run_scenario(const scenario *s, uint32_t wrap) {
    world w;
    trace t;
    trace_begin(&t);
    child c = {.j = new_journal()};
    world_begin(&w, s, &wraps[wrap], 0);
    report_begin(s->name, wraps[wrap].name, "trace");
    now.point = 0;
    child_start(&c, w.seg, BY_A, s->prepare, s->body);
    child_kill(&c);
    resolve(&w, c.j);
    check_all(&w, (child *[]){&c}, 1, (ending){0}); /* so that our heap, which children inherit, has come to rest */
    world_restore(&w);
    child_start(&c, w.seg, BY_A, s->prepare, s->body);
    if (trace_record(&t, &c, w.seg)) {
        child_kill(&c);
        const bool every = !sparse && s->depth > (full ? SPARSE : wrap == 0 ? SPARSE : wrap < 3 ? VARIANT : CORE);
        run_mode(&w, s, &wraps[wrap], &modes[0], every, &c, &t);
        for (uint32_t m = 1; m < N_MODES && (full || wrap == 0); m++) {
            bool more = full || (s->depth == CORE && (modes[m].between == drain || modes[m].between == put_between));
            run_mode(&w, s, &wraps[wrap], &modes[m], every && more && (full || modes[m].resume), &c, &t);
        }
    } else {
        report_end();
    }
    trace_end(&t);
    munmap(c.j, SHMT_PAGE);
    world_end(&w);
}

/* ---- a member that is taken for dead while it lives ---------------------------------------------------------------------------- */

/* Its lock was closed under it (os.closerange, say). Whatever it does then, it does to nobody else's slot. */
static void loses_lock(void) {
    close(SEG->lock_fd);
    SEG->lock_fd = -1;
}

static void writer_without_lock(void) {
    as_writer();
    fill(slot.data, ITEM(WHO, 1), item_nbytes(ITEM(WHO, 1)));
    loses_lock();
}

static void reader_without_lock(void) {
    as_reader();
    loses_lock();
}

static void lessee_without_lock(void) {
    as_lessee();
    loses_lock();
}

static void late_publish(void) { J->bad = shmt_slot_publish(SEG, &slot, item_nbytes(ITEM(WHO, 1)), ITEM(WHO, 1)); }
static void late_abort(void) { J->bad = shmt_slot_abort(SEG, &slot); }
static void late_release(void) { J->bad = shmt_slot_release(SEG, &slot); }
static void late_drop(void) {
    shmt_lease_drop(lease);
    J->bad = 1; /* says nothing */
}

static const scenario lost[] = {
    {"late_publish", writer_without_lock, late_publish, 3, 6, 0, 0, 0, true, false, PLAIN, AS_MADE},
    {"late_abort", writer_without_lock, late_abort, 3, 6, 0, 0, 0, true, false, PLAIN, AS_MADE},
    {"late_release", reader_without_lock, late_release, 3, 6, 0, 1, 0, true, false, PLAIN, AS_MADE},
    {"late_drop", lessee_without_lock, late_drop, 3, 6, 0, 1, 0, true, false, PLAIN, AS_MADE},
};
#define N_LOST (sizeof lost / sizeof *lost)

static void lost_point(world *w, const scenario *s, child *c, const trace *t, uint32_t k) {
    shmt_slot held[8], written[8];
    uint32_t n_held = 0, n_written = 0, seen = 0;
    if (!bring(w, s, c, t, k)) {
        return;
    }
    int rc = shmt_reclaim(w->seg);
    LAW(rc == 1, "a member without its lock is reclaimed: %d", rc);
    uint64_t id = s->prior ? ITEM(BY_MAKER, 1) : ITEM(BY_A, 1);
    while (n_held < 8 && shmt_slot_try_acquire(w->seg, &held[n_held]) == 0) {
        LAW(item_of(held[n_held].data) == id && whole(held[n_held].data, held[n_held].nbytes), "another item came");
        seen++;
        n_held++;
    }
    while (n_written < 8 && shmt_slot_try_claim(w->seg, &written[n_written]) == 0) {
        n_written++;
    }
    child_finish(c);
    LAW(n_held + n_written == w->seg->geo.slots, "%u + %u slots were to be had", n_held, n_written);
    for (uint32_t i = 0; i < n_held; i++) {
        rc = shmt_slot_release(w->seg, &held[i]);
        LAW(rc == 0, "the observer lost what it had acquired: %s", strerror(-rc));
    }
    for (uint32_t i = 0; i < n_written; i++) {
        uint64_t filler = ITEM(BY_FILLER, i + 1);
        fill(written[i].data, filler, item_nbytes(filler));
        rc = shmt_slot_publish(w->seg, &written[i], item_nbytes(filler), filler);
        LAW(rc == 0, "the observer lost what it had claimed: %s", strerror(-rc));
    }
    drain(w);
    LAW(w->n_seen == n_written, "%u published, %u seen", n_written, w->n_seen);
    rc = c->j->bad;
    bool publish = s->body == late_publish, reader = s->prior > 0;
    LAW(rc == 0 || rc == -ESTALE || s->body == late_drop, "the one without lock was told %d", rc);
    uint32_t expected = rc == 0 ? publish : reader; /* done in time, or lost */
    LAW(seen == expected || s->body == late_drop, "it was told %d and the item came %u times", rc, seen);
    child_kill(c);
    check_capacity(w);
}

static void run_lost(const scenario *s, uint32_t wrap) {
    world w;
    trace t;
    trace_begin(&t);
    child c = {.j = new_journal()};
    world_begin(&w, s, &wraps[wrap], 0);
    report_begin(s->name, wraps[wrap].name, "taken for dead, resume");
    world_restore(&w);
    child_start(&c, w.seg, BY_A, s->prepare, s->body);
    if (trace_record(&t, &c, w.seg)) {
        child_kill(&c);
        for (uint32_t k = 0; k < t.n; k++) {
            if (sparse ? distinct(&t, k) : !(t.at[k].flags & REPEATED)) {
                lost_point(&w, s, &c, &t, k);
            }
        }
    }
    report_end();
    trace_end(&t);
    munmap(c.j, SHMT_PAGE);
    world_end(&w);
}

/* ---- sleepers: nobody who waits for the dead one's item or slot waits longer than a slice ------------------------------------- */

static void sleeps_for_item(world *w, journal *j) {
    shmt_spin_set(w->seg, 0);
    j->bad = shmt_slot_acquire(w->seg, shmt_now_ns() + 10 * PATIENCE, &slot);
    j->at_ns = shmt_now_ns();
}

static void sleeps_for_slot(world *w, journal *j) {
    shmt_spin_set(w->seg, 0);
    j->bad = shmt_slot_claim(w->seg, shmt_now_ns() + 10 * PATIENCE, &slot);
    j->at_ns = shmt_now_ns();
}

static bool asleep(pid_t pid) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "r");
    NEED(f != NULL);
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    const char *state = strrchr(text, ')');
    return state && state[2] == 'S';
}

static void sleeper_point(world *w, const scenario *s, void (*sleep)(world *, journal *), journal *j, child *c,
                          const trace *t, uint32_t k) {
    world_restore(w);
    now.point = k;
    now.points++;
    memset(j, 0, sizeof *j);
    pid_t pid = fork();
    NEED(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        sleep(w, j);
        _exit(0);
    }
    while (!asleep(pid)) {
        sched_yield();
    }
    child_start(c, w->seg, BY_A, s->prepare, s->body);
    if (child_goto(c, t, k, false)) {
        child_kill(c);
    }
    const int64_t killed = shmt_now_ns();
    int status;
    bool item = sleep == sleeps_for_item;
    resolve(w, c->j);
    const bool done = item ? c->j->n_pub > 0 && c->j->pub[0].rc == 0 : c->j->con[0].done && c->j->con[0].rc == 0;
    if (!done && item) { /* then another publishes; or the slot is the dead one's, and nobody is left who could */
        shmt_word_state(word_of(w, 0)) == SHMT_FREE ? put_between(w) : (void)0;
    } else if (!done) { /* then another consumes what the dead one held */
        shmt_reclaim(w->seg);
        drain(w);
    }
    stepping = pid;
    alarm(10);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    stepping = 0;
    LAW(watchdog_bit == 0 && WIFEXITED(status) && (j->bad == 0 || (item && !done && j->bad == -EOWNERDEAD)),
        "a sleeper said %d (%s)", j->bad, strerror(abs(j->bad)));
    watchdog_bit = 0;
    LAW(j->at_ns - killed < PATIENCE, "a sleeper slept for %" PRId64 " ms", (j->at_ns - killed) / MS);
}

static void run_sleepers(const scenario *s, const char *name, void (*sleep)(world *, journal *)) {
    world w;
    trace t;
    trace_begin(&t);
    child c = {.j = new_journal()};
    journal *j = new_journal();
    world_begin(&w, s, &wraps[3], 0);
    report_begin(name, wraps[3].name, "kill beside a sleeper");
    world_restore(&w);
    shmt_or_seq_cst(&w.seg->header->ready_event.word, SHMT_EVENT_W);
    shmt_or_seq_cst(&w.seg->header->free_event.word, SHMT_EVENT_W);
    child_start(&c, w.seg, BY_A, s->prepare, s->body);
    if (trace_record(&t, &c, w.seg)) {
        child_kill(&c);
        for (uint32_t k = 0; k < t.n; k++) {
            if (k + 1 == t.n || (t.at[k].flags & (CHANGED | CALLED))) {
                sleeper_point(&w, s, sleep, j, &c, &t, k);
            }
        }
    }
    report_end();
    trace_end(&t);
    munmap(c.j, SHMT_PAGE);
    munmap(j, SHMT_PAGE);
    world_end(&w);
}

/* ---- names: nothing stays in /dev/shm once the last member is dead ---------------------------------------------------------------- */

static char name[64], other_name[64];

static shmt_config named(const char *n) {
    return (shmt_config){.name = n, .slot_nbytes = PAYLOAD, .slots = 2, .members = 4};
}

static void creates(void) {
    const shmt_config config = named(name);
    expect_rc(shmt_segment_create(&config, &SEG), 0, 0, 0, 0);
}

static void as_creator(void) {
    creates();
    shmt_slot s;
    NEED(shmt_slot_try_claim(SEG, &s) == 0);
    fill(s.data, ITEM(WHO, 1), item_nbytes(ITEM(WHO, 1)));
    NEED(shmt_slot_publish(SEG, &s, item_nbytes(ITEM(WHO, 1)), ITEM(WHO, 1)) == 0);
}

static void attaches(void) { expect_rc(shmt_segment_attach(name, &SEG), 0, 0, 0, 0); }

static bool named_exists(const char *n) {
    char path[128];
    NEED(shmt_name_path(n, path, sizeof path) == 0);
    return access(path, F_OK) == 0;
}

typedef struct naming {
    const char *name;
    void (*prepare)(void);
    void (*body)(void);
    bool shared; /* the observer is a member, too */
    bool every;
} naming;
static const naming namings[] = {
    {"close_last_named", as_creator, closes, false, true},
    {"close_named", attaches, closes, true, false},
    {"create_named", NULL, creates, false, false},
    {"attach_named", NULL, attaches, true, false},
};
#define N_NAMINGS (sizeof namings / sizeof *namings)

static void check_named(const naming *nm, shmt_segment *ours, child *c) {
    if (c->alive) {
        LAW(c->j->bad == 0, "a verb of the child said %d (%s)", c->j->bad, strerror(abs(c->j->bad)));
        LAW(nm->body != creates || named_exists(name), "what was created has no name");
        child_kill(c);
    }
    if (nm->shared) {
        LAW(named_exists(name), "the name of a living member is gone");
        int rc = shmt_reclaim(ours);
        LAW(rc >= 0, "reclaim: %s", strerror(-rc));
        rc = shmt_sweep(false, NULL, NULL);
        LAW(rc == 0 && named_exists(name), "a sweep took the name of a living member");
        shmt_segment_drop(ours);
        LAW(!named_exists(name), "the last one out left the name");
        return;
    }
    /* The next one who creates anything sweeps. */
    const shmt_config config = named(other_name);
    shmt_segment *seg;
    int rc = shmt_segment_create(&config, &seg);
    LAW(rc == 0, "create beside what was left: %s", strerror(-rc));
    LAW(!named_exists(name), "a name stayed after the next sweep");
    if (rc == 0) {
        shmt_segment_drop(seg);
    }
    const shmt_config again = named(name);
    rc = shmt_segment_create(&again, &seg);
    LAW(rc == 0, "create anew: %s", strerror(-rc));
    if (rc == 0) {
        shmt_segment_drop(seg);
    }
    LAW(!named_exists(name) && !named_exists(other_name), "a name stayed after an orderly end");
}

static shmt_segment *begin_named(const naming *nm) {
    shmt_segment *seg = NULL;
    if (nm->shared) {
        const shmt_config config = named(name);
        NEED(shmt_segment_create(&config, &seg) == 0);
    }
    now.failed = false;
    return seg;
}

static void run_named(const naming *nm, bool sweep) {
    trace t;
    trace_begin(&t);
    child c = {.j = new_journal()};
    snprintf(name, sizeof name, "test-crash-%d", (int)getpid());
    snprintf(other_name, sizeof other_name, "test-crash-other-%d", (int)getpid());
    bool every = !sparse && ((nm->every && !sweep) || full);
    char mode_name[64];
    snprintf(mode_name, sizeof mode_name, "%s%s", sweep ? "sweep, resume" : "kill", every ? "" : " (distinct)");
    report_begin(nm->name, "0", mode_name);
    shmt_segment *ours = begin_named(nm);
    child_start(&c, NULL, BY_A, nm->prepare, nm->body);
    bool traced = trace_record(&t, &c, NULL);
    check_named(nm, ours, &c);
    for (uint32_t k = 0; traced && k < t.n; k++) {
        if (every ? !(t.at[k].flags & REPEATED) || distinct(&t, k) : distinct(&t, k)) {
            now.point = k;
            now.points++;
            ours = begin_named(nm);
            child_start(&c, NULL, BY_A, nm->prepare, nm->body);
            bool there = child_goto(&c, &t, k, false);
            if (there && sweep) { /* whoever lives, or is about to, keeps its name */
                shmt_sweep(false, NULL, NULL);
                child_finish(&c);
            } else if (there && k + 1 < t.n) {
                child_kill(&c);
            }
            check_named(nm, ours, &c);
        }
    }
    report_end();
    trace_end(&t);
    munmap(c.j, SHMT_PAGE);
}

/* ---- what to run -------------------------------------------------------------------------------------------------------------------- */

static const char *only;
static uint32_t part, parts = 1, job;

static bool wanted(const char *n) {
    if (only) {
        size_t length = strlen(n);
        const char *at = only;
        while ((at = strstr(at, n)) != NULL) {
            if ((at == only || at[-1] == ',') && (at[length] == ',' || at[length] == '\0')) {
                break;
            }
            at += length;
        }
        if (!at) {
            return false;
        }
    }
    return job++ % parts == part;
}

int main(int argc, char **argv) {
    int cpu = 0;
    for (int a = 1; a < argc; a++) {
        if (strcmp(argv[a], "--full") == 0) {
            full = true;
        } else if (strcmp(argv[a], "--sparse") == 0) {
            sparse = true;
        } else if (strncmp(argv[a], "--only=", sizeof "--only=" - 1) == 0) {
            only = strchr(argv[a], '=') + 1;
        } else if (strncmp(argv[a], "--wraps=", sizeof "--wraps=" - 1) == 0) {
            n_wraps = (uint32_t)atoi(strchr(argv[a], '=') + 1);
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
    for (uint32_t wrap = 0; wrap < N_WRAPS && wrap < n_wraps; wrap++) {
        for (uint32_t i = 0; i < N_SCENARIOS; i++) {
            if (wanted(scenarios[i].name)) {
                run_scenario(&scenarios[i], wrap);
            }
        }
        for (uint32_t i = 0; i < N_LOST; i++) {
            if (wanted(lost[i].name)) {
                run_lost(&lost[i], wrap);
            }
        }
    }
    if (wanted("sleeping_consumer")) {
        run_sleepers(&scenarios[1], "sleeping_consumer", sleeps_for_item);
    }
    if (wanted("sleeping_producer")) {
        static const scenario s = {"release", as_reader, consume_held, 1, 6, 0, 1, 0, false, false, PLAIN, AS_MADE};
        run_sleepers(&s, "sleeping_producer", sleeps_for_slot);
    }
    for (uint32_t i = 0; i < N_NAMINGS; i++) {
        if (wanted(namings[i].name)) {
            run_named(&namings[i], false);
            run_named(&namings[i], true);
        }
    }
    return finish_up();
}

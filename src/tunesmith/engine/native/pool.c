/* Threads that share the pieces of a call. Who calls takes pieces too and returns when all are done: a thread that wakes late is
 * not waited for, which is what a team of OpenMP does, hundreds of times a step. After a call a thread looks for the next one for
 * some microseconds, then sleeps. A second caller at the same time does its pieces alone.
 */

#include <pthread.h>
#include <sched.h>

#include "common.h"

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif

enum { MOST_THREADS = 64, SPINS = 2000 };

static struct {
    pthread_mutex_t caller, sleep;
    pthread_cond_t bell;
    uint64_t ticket; /* number of the call in the upper half, next piece in the lower: a claim is for the call that was read */
    piece run;
    void *of;
    i64 pieces, done, helpers, made, sleepers;
} pool = {.caller = PTHREAD_MUTEX_INITIALIZER, .sleep = PTHREAD_MUTEX_INITIALIZER, .bell = PTHREAD_COND_INITIALIZER};

#define READ(x) __atomic_load_n(&(x), __ATOMIC_SEQ_CST)
#define WRITE(x, y) __atomic_store_n(&(x), y, __ATOMIC_SEQ_CST)

/* Take pieces of the call of `ticket` until there are none. */
static void take_pieces(i64 helper) {
    for (;;) {
        uint64_t ticket = READ(pool.ticket);
        piece run = READ(pool.run);
        void *of = READ(pool.of);
        i64 number = ticket & 0xffffffff;
        if (number >= READ(pool.pieces) || helper >= READ(pool.helpers)) {
            if (READ(pool.ticket) == ticket) return;
            continue;
        }
        if (!__atomic_compare_exchange_n(&pool.ticket, &ticket, ticket + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) continue;
        run(of, number);
        __atomic_fetch_add(&pool.done, 1, __ATOMIC_SEQ_CST);
    }
}

static void *helper_of(void *number) {
    for (uint64_t seen = 0;;) {
        int spins = 0;
        while (READ(pool.ticket) >> 32 == seen && spins++ < SPINS) PAUSE();
        if (spins >= SPINS) {
            pthread_mutex_lock(&pool.sleep);
            __atomic_fetch_add(&pool.sleepers, 1, __ATOMIC_SEQ_CST);
            while (READ(pool.ticket) >> 32 == seen) pthread_cond_wait(&pool.bell, &pool.sleep);
            __atomic_fetch_sub(&pool.sleepers, 1, __ATOMIC_SEQ_CST);
            pthread_mutex_unlock(&pool.sleep);
        }
        seen = READ(pool.ticket) >> 32;
        take_pieces((i64)(intptr_t)number);
    }
    return NULL;
}

/* A child of fork has no threads but its own. */
static void after_fork(void) {
    pthread_mutex_init(&pool.caller, NULL);
    pthread_mutex_init(&pool.sleep, NULL);
    pthread_cond_init(&pool.bell, NULL);
    pool.made = pool.sleepers = 0;
}

void in_pieces(piece run, void *of, i64 pieces, i64 threads) {
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads < 2 || pieces < 2 || pthread_mutex_trylock(&pool.caller)) {
        for (i64 n = 0; n < pieces; n++) run(of, n);
        return;
    }
    static int registered;
    if (!registered) registered = !pthread_atfork(NULL, NULL, after_fork);
    for (pthread_t thread; pool.made < threads - 1; pool.made++) {
        if (pthread_create(&thread, NULL, helper_of, (void *)(intptr_t)pool.made)) break;
        pthread_detach(thread);
    }
    uint64_t call = READ(pool.ticket) >> 32;
    WRITE(pool.ticket, call << 32 | 0xffffffff); /* nobody claims while the call is described */
    WRITE(pool.run, run);
    WRITE(pool.of, of);
    WRITE(pool.done, 0);
    WRITE(pool.helpers, threads - 1);
    WRITE(pool.pieces, pieces);
    WRITE(pool.ticket, (call + 1) << 32);
    if (READ(pool.sleepers)) {
        pthread_mutex_lock(&pool.sleep);
        pthread_cond_broadcast(&pool.bell);
        pthread_mutex_unlock(&pool.sleep);
    }
    take_pieces(-1);
    for (i64 spins = 0; READ(pool.done) < pieces; spins++)
        if (spins < SPINS)
            PAUSE();
        else
            sched_yield();
    pthread_mutex_unlock(&pool.caller);
}

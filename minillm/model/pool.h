// Threads of our own, on pthreads alone: OpenMP's make a busy laptop wait, and clang often has none.
//
// Each item of a job is run once, by whoever comes. A thread begins with its own run of items (one stream of memory a
// thread), then takes from the end of another's. The caller works too and never waits for a worker that did not come:
// a rival for a core costs its share of the core, and not a time slice at each barrier. An item knows nothing of the
// thread that runs it, so a worker that comes late may take part in whatever is under way by then.
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

enum { THREADS = 64 };
#define SPIN 300e-6 // seconds that a worker looks out before it sleeps

#define FRESH {.busy = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER}
static struct Pool {
  pthread_mutex_t busy; // held by the one caller whose job is under way: of any engine, from any thread
  pthread_mutex_t lock; // of those that sleep
  pthread_cond_t wake;
  atomic_int threads, asleep;
  _Alignas(64) atomic_int round, done; // done: items of this round
  struct { _Alignas(64) _Atomic uint64_t v; } left[THREADS]; // of each thread's run of items: first << 32 | stop
  void (*run)(void *job, int item);
  void *job;
  int workers;
} pool = FRESH;

static double now(void) { // to read a clock is also the pause between two looks
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void take(int t) {
  int N = atomic_load(&pool.threads), done = 0; // until it tells what it did, this round goes on
  for (int k = 0; k < N; k++) {
    _Atomic uint64_t *left = &pool.left[(t + k) % N].v;
    for (uint64_t v = atomic_load(left); v >> 32 < (v & 0xffffffff);) {
      if (!atomic_compare_exchange_weak(left, &v, k ? v - 1 : v + (1L << 32))) continue;
      pool.run(pool.job, (int)(k ? v - 1 : v >> 32)); // another's last; of its own the first
      done++, v = atomic_load(left);
    }
  }
  if (done) atomic_fetch_add(&pool.done, done);
}

static int idle(int t, int seen) { return atomic_load(&pool.round) == seen || t >= atomic_load(&pool.threads); }
static void *worker(void *number) {
  int t = (int)(intptr_t)number;
  for (int seen = 0;;) {
    for (double until = now() + SPIN; idle(t, seen) && now() < until;) {}
    if (idle(t, seen)) {
      pthread_mutex_lock(&pool.lock);
      atomic_fetch_add(&pool.asleep, 1);
      while (idle(t, seen)) pthread_cond_wait(&pool.wake, &pool.lock);
      atomic_fetch_sub(&pool.asleep, 1);
      pthread_mutex_unlock(&pool.lock);
    }
    seen = atomic_load(&pool.round);
    take(t);
  }
  return 0;
}

static int start_worker(int t) {
  pthread_t id;
  return !pthread_create(&id, 0, worker, (void *)(intptr_t)t) && !pthread_detach(id);
}

// Run items 0 … items - 1 of the job on at most `threads` threads; when it returns, all of them were run.
static void parallel(void (*run)(void *job, int item), int items, void *job, int threads) {
  pthread_mutex_lock(&pool.busy);
  while (pool.workers + 1 < threads && pool.workers + 1 < THREADS && start_worker(pool.workers + 1)) pool.workers++;
  if (threads > pool.workers + 1) threads = pool.workers + 1;
  pool.run = run, pool.job = job; // seen by whoever takes an item
  atomic_store_explicit(&pool.done, 0, memory_order_relaxed);
  atomic_store_explicit(&pool.threads, threads, memory_order_relaxed);
  for (uint64_t t = 0, n = items; t < (uint64_t)threads; t++)
    atomic_store_explicit(&pool.left[t].v, n * t / threads << 32 | n * (t + 1) / threads, memory_order_release);
  atomic_fetch_add(&pool.round, 1);
  if (threads > 1 && atomic_load(&pool.asleep)) {
    pthread_mutex_lock(&pool.lock);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
  }
  take(0);
  for (double until = now() + SPIN; atomic_load(&pool.done) < items;) if (now() > until) sched_yield();
  pthread_mutex_unlock(&pool.busy);
}

// In the child only the thread that forked lives on, and a lock may be held by another.
static void forked(void) { pool = (struct Pool)FRESH; }
__attribute__((constructor)) static void loaded(void) { pthread_atfork(0, 0, forked); }

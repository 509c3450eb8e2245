// Threads of our own, on pthreads alone: OpenMP's make a busy laptop wait, and clang often has none.
//
// A job is up to PHASES phases, one after the other; each item of a phase is run once, by whoever comes. A thread
// begins with its own run of items (one stream of memory a thread), then takes from the end of another's. The
// caller works too and never waits for a worker that did not come: a rival for a core costs its share of the
// core, and not a time slice at each barrier.
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

enum { PHASES = 4, THREADS = 64 };
#define SPIN 100e-6 // seconds that a worker looks out before it sleeps
typedef struct {
  void (*run)(void *job, int item, int thread);
  int items; // below 2^16
} Phase;
typedef struct { _Alignas(64) _Atomic uint64_t v; } Range; // round << 32 | first << 16 | stop

static struct {
  pthread_mutex_t busy; // held by the one caller whose call is under way: of any engine, from any thread
  pthread_mutex_t lock; // of those that sleep
  pthread_cond_t wake;
  atomic_int round, called, threads, asleep[THREADS], items[PHASES], done[PHASES];
  Range left[PHASES][THREADS]; // a late worker finds another round in it, and takes nothing
  void (*run[PHASES])(void *job, int item, int thread);
  void *job;
  int workers;
  float *shared, *own; // scratch of a call: one for all, and `own_each` floats a thread
  size_t shared_size, own_size, own_each;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static double now(void) { // the clock of Python's perf_counter
  struct timespec t;
#ifdef __APPLE__
  clock_gettime(CLOCK_UPTIME_RAW, &t);
#else
  clock_gettime(CLOCK_MONOTONIC, &t);
#endif
  return t.tv_sec + 1e-9 * t.tv_nsec;
}
// One pause more of a wait that began with i = 0; 1 once it has lasted SPIN. How long a pause is, no processor agrees.
static int waited(int i, double *since) {
  PAUSE();
  if (i % 64) return 0;
  double t = now();
  if (i == 0) *since = t;
  return t - *since > SPIN;
}

static void take(int round, int t) {
  int N = atomic_load(&pool.threads);
  if (t >= N) return; // this round is for fewer
  for (int p = 0; p < PHASES; p++) {
    for (int k = 0; k < N; k++) {
      _Atomic uint64_t *left = &pool.left[p][(t + k) % N].v;
      for (uint64_t v = atomic_load(left);;) {
        int first = v >> 16 & 0xffff, stop = v & 0xffff;
        if ((int)(v >> 32) != round) return;
        if (first >= stop) break;
        if (!atomic_compare_exchange_weak(left, &v, k ? v - 1 : v + 0x10000)) continue; // own: the first; else: the last
        pool.run[p](pool.job, k ? stop - 1 : first, t);
        atomic_fetch_add(&pool.done[p], 1);
        v = atomic_load(left);
      }
    }
    double since = 0;
    for (int i = 0, late = 0; atomic_load(&pool.done[p]) < atomic_load(&pool.items[p]); i++) {
      if (atomic_load(&pool.round) != round) return;
      if (late) sched_yield(); else late = waited(i, &since);
    }
  }
}

static void *worker(void *number) {
  int t = (int)(intptr_t)number, round = 0, called = 0;
  for (double since = 0;;) {
    for (int i = 0; atomic_load(&pool.round) == round && !waited(i, &since);) i++;
    if (atomic_load(&pool.round) == round || t >= atomic_load(&pool.threads)) { // nothing to do, or not for so many
      pthread_mutex_lock(&pool.lock);
      atomic_store(&pool.asleep[t], 1);
      while (t >= atomic_load(&pool.threads) || (atomic_load(&pool.round) == round && atomic_load(&pool.called) == called))
        pthread_cond_wait(&pool.wake, &pool.lock);
      atomic_store(&pool.asleep[t], 0);
      pthread_mutex_unlock(&pool.lock);
    }
    called = atomic_load(&pool.called);
    if (atomic_load(&pool.round) != round) take(round = atomic_load(&pool.round), t);
  }
  return 0;
}
// Those who sleep of the first `threads`.
static void wake(int threads) {
  int asleep = 0;
  for (int t = 1; t < threads; t++) asleep |= atomic_load(&pool.asleep[t]);
  if (!asleep) return;
  pthread_mutex_lock(&pool.lock);
  pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.lock);
}
// Work comes in a moment: look out for it. To wake takes as long as a layer.
static void call_workers(void) {
  atomic_fetch_add(&pool.called, 1);
  wake(atomic_load(&pool.threads));
}

static void start_workers(int number) { // they leave signals to Python's threads
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (pthread_t id; pool.workers < number; pool.workers++) {
    if (pthread_create(&id, 0, worker, (void *)(intptr_t)(pool.workers + 1))) break; // then with those that are there
    pthread_detach(id);
  }
  pthread_sigmask(SIG_SETMASK, &before, 0);
}

// Run the phases, on at most `threads` threads. Between pool_enter and pool_leave.
static void in_phases(const Phase *phases, int n, void *job, int threads) {
  if (pool.workers < threads - 1) start_workers(threads - 1);
  if (threads > pool.workers + 1) threads = pool.workers + 1;
  if (threads == 1) {
    for (int p = 0; p < n; p++) for (int i = 0; i < phases[p].items; i++) phases[p].run(job, i, 0);
    return;
  }
  uint32_t round = (uint32_t)atomic_load(&pool.round) + 1;
  pool.job = job;
  atomic_store(&pool.threads, threads);
  for (int p = 0; p < PHASES; p++) {
    uint64_t items = p < n ? phases[p].items : 0;
    pool.run[p] = p < n ? phases[p].run : 0;
    atomic_store(&pool.items[p], (int)items);
    atomic_store(&pool.done[p], 0);
    for (int t = 0; t < threads; t++)
      atomic_store(&pool.left[p][t].v, (uint64_t)round << 32 | items * t / threads << 16 | items * (t + 1) / threads);
  }
  atomic_store(&pool.round, (int)round);
  wake(threads);
  take((int)round, 0);
}

static int grow(float **memory, size_t *size, size_t floats) {
  if (floats <= *size) return 1;
  void *fresh;
  if (posix_memalign(&fresh, 64, floats * sizeof(float))) return 0;
  free(*memory);
  *memory = fresh;
  *size = floats;
  return 1;
}
// Wait for the pool, with scratch of so many floats for all, and for each thread. 0: no memory, and not entered.
static int pool_enter(int threads, size_t shared, size_t own) {
  own = (own + 15) / 16 * 16;
  pthread_mutex_lock(&pool.busy);
  pool.own_each = own;
  if (grow(&pool.shared, &pool.shared_size, shared) && grow(&pool.own, &pool.own_size, own * threads)) return 1;
  pthread_mutex_unlock(&pool.busy);
  return 0;
}
static void pool_leave(void) { pthread_mutex_unlock(&pool.busy); }

static void forked(void) { // in the child only the thread that forked lives on, and a lock may be held by another
  pthread_mutex_init(&pool.busy, 0);
  pthread_mutex_init(&pool.lock, 0);
  pthread_cond_init(&pool.wake, 0);
  for (int t = 0; t < THREADS; t++) atomic_store(&pool.asleep[t], 0);
  pool.workers = 0;
  pool.shared = pool.own = 0;
  pool.shared_size = pool.own_size = 0;
}
__attribute__((constructor)) static void loaded(void) { pthread_atfork(0, 0, forked); }

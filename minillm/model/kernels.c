// Half a decoder layer for a few packed tokens of any sequences, whose keys and values lie in pages. C11, GNU vectors.
//
// Compiled for one type T of weights and pages: bf16, or float with -DF32. All arithmetic is float, and in an order that
// depends neither on the other tokens nor on the threads: a token gets the same bits in any company.
// M tokens, D width, H query and K kv heads of size E, I width inside the FFN, P page size. D, I and E: multiples of 16.
#include <math.h>
#include <string.h>
#include "pool.h"
typedef float v8 __attribute__((vector_size(32)));
typedef uint32_t u8 __attribute__((vector_size(32)));
#define INLINE static inline __attribute__((always_inline))
enum { MAX = 8, UNIT = 4, ROWS = 32, PART = 256, PARTS = 32, AHEAD = 2048 };
#if defined(__AVX512VL__) || defined(__aarch64__)
enum { MOST = 4 }; // vectors that share a read of four rows: as many sums as there are registers for
#else
enum { MOST = 3 };
#endif

INLINE v8 load(const float *p) { v8 v; memcpy(&v, p, 32); return v; }
INLINE void store(float *p, v8 v) { memcpy(p, &v, 32); }
INLINE v8 all(float f) { return (v8){0} + f; }
INLINE v8 pick(u8 where, v8 a, v8 b) { return (v8)(((u8)a & where) | ((u8)b & ~where)); }
INLINE v8 larger(v8 a, v8 b) { return pick((u8)(a > b), a, b); }
INLINE float sum(v8 t) { return ((t[0] + t[4]) + (t[1] + t[5])) + ((t[2] + t[6]) + (t[3] + t[7])); }
static int smaller(int a, int b) { return a < b ? a : b; }

// 16 numbers of a row are read as two vectors. A pair of bf16 in 32 bits takes one shift and one mask: the vectors hold
// the even and the odd columns. What meets them is put in that order before: "in lanes".
#ifdef F32
typedef float T;
INLINE float get(T w) { return w; }
INLINE T put(float f) { return f; }
INLINE v8 first(const T *p) { return load(p); }
INLINE v8 second(const T *p) { return load(p + 8); }
enum { STEP = 1, HALF = 8 };
#else
typedef uint16_t T;
INLINE float get(T w) { uint32_t u = (uint32_t)w << 16; float f; memcpy(&f, &u, 4); return f; }
INLINE T put(float f) { // to the nearest, ties to even; a NaN stays one
  uint32_t u; memcpy(&u, &f, 4);
  return f == f ? (u + 0x7fff + ((u >> 16) & 1)) >> 16 : 0x7fc0;
}
INLINE v8 first(const T *p) { u8 v; memcpy(&v, p, 32); return (v8)(v << 16); }
INLINE v8 second(const T *p) { u8 v; memcpy(&v, p, 32); return (v8)(v & 0xffff0000u); }
enum { STEP = 2, HALF = 1 };
#endif
static void to_lanes(const float *x, float *y, long n) { // y may be x
  for (long i = 0; i < n; i += 16) {
    float t[16];
    for (int j = 0; j < 8; j++) { t[j] = x[i + STEP * j]; t[8 + j] = x[i + STEP * j + HALF]; }
    memcpy(y + i, t, 64);
  }
}

INLINE v8 exp8(v8 x) { // e^x, x held to -87 … 88: 2^n times a polynomial; a NaN stays one
  x = pick((u8)(x < -87.f), all(-87), pick((u8)(x > 88.f), all(88), x));
  v8 n = x * 1.44269504f + 12582912.f; // rounded: the low bits are n
  u8 bits = (u8)n << 23;
  n -= 12582912.f;
  v8 r = x - n * 0.693359375f + n * 2.12194440e-4f;
  v8 y = ((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f;
  y = (y * r + 1.6666665459e-1f) * r + 5.0000001201e-1f;
  return (v8)((u8)(y * r * r + r + 1.f) + bits);
}

// W (n, k), as a `Linear` of layers.py has it: plain rows, or packed: the 16-column pieces of four rows in turn.
typedef struct { const T *w, *bias; int n, k, packed; } Linear;
INLINE const T *row_of(const Linear *l, long r) { return l->w + (l->packed ? r / 4 * 4 * l->k + r % 4 * 16 : r * l->k); }
INLINE long piece_of(const Linear *l) { return l->packed ? 64 : 16; }

// y[c * ldy + j] = row j · x[c], for UNIT rows and C vectors x (k each, in lanes). C is written out, or the sums would lie
// in memory. Each sum is taken in one order, whatever C. Four rows, not more: with eight, two streams would be read.
#define TILE(C)                                                                                                 \
  INLINE void tile##C(const T *const *row, long piece, long ahead, const float *x, long k, float *y, long ldy) { \
    v8 s[UNIT][C] = {{{0}}};                                                                                    \
    for (long i = 0, at = 0; i < k; i += 16, at += piece) {                                                     \
      v8 a[C], b[C];                                                                                            \
      for (int c = 0; c < C; c++) { a[c] = load(x + c * k + i); b[c] = load(x + c * k + i + 8); }               \
      for (int n = 0; n < 16 * UNIT * (int)sizeof(T); n += 64) __builtin_prefetch((const char *)(row[0] + UNIT * i) + ahead + n); \
      _Pragma("GCC unroll 4") for (int j = 0; j < UNIT; j++) {                                                  \
        v8 e = first(row[j] + at), o = second(row[j] + at);                                                     \
        _Pragma("GCC unroll 4") for (int c = 0; c < C; c++) { s[j][c] += e * a[c]; s[j][c] += o * b[c]; }       \
      }                                                                                                         \
    }                                                                                                           \
    for (int c = 0; c < C; c++) for (int j = 0; j < UNIT; j++) y[c * ldy + j] = sum(s[j][c]);                   \
  }
TILE(1) TILE(2) TILE(3) TILE(4)
// UNIT rows and M vectors, with what lies `ahead` bytes on sent for: these in groups as equal as can be, so that few are alone.
static void unit(const T *const *row, long piece, long ahead, const float *x, long k, float *y, long ldy, int M) {
  for (int c; M; M -= c, x += c * k, y += c * ldy) {
    int groups = (M + MOST - 1) / MOST;
    c = (M + groups - 1) / groups;
    if (c == 4) tile4(row, piece, ahead, x, k, y, ldy); else if (c == 3) tile3(row, piece, ahead, x, k, y, ldy);
    else if (c == 2) tile2(row, piece, ahead, x, k, y, ldy); else tile1(row, piece, ahead, x, k, y, ldy);
  }
}
// Rows r … r + UNIT of x (M, k) Wᵀ + b, to columns 0 … of y; x in lanes. n need not be a multiple of anything.
static void product(const Linear *l, int r, const float *x, float *y, long ldy, int M) {
  int n = smaller(UNIT, l->n - r);
  const T *row[UNIT]; float s[MAX * UNIT];
  for (int j = 0; j < UNIT; j++) row[j] = row_of(l, r + smaller(j, n - 1));
  unit(row, piece_of(l), AHEAD, x, l->k, s, UNIT, M);
  for (int m = 0; m < M; m++)
    for (int j = 0; j < n; j++) y[m * ldy + j] = s[m * UNIT + j] + (l->bias ? get(l->bias[r + j]) : 0);
}
static void rows(const Linear *l, int item, const float *x, float *y, long ldy, int M) { // ROWS of them
  for (int r = item * ROWS; r < smaller(l->n, (item + 1) * ROWS); r += UNIT) product(l, r, x, y + r, ldy, M);
}
static int items(int n) { return (n + ROWS - 1) / ROWS; }

static void norm(const float *x, const T *w, float eps, float *y, int d) {
  v8 t = {0};
  for (int i = 0; i < d; i += 8) t += load(x + i) * load(x + i);
  float s = 1 / sqrtf(sum(t) / d + eps);
  for (int i = 0; i < d; i++) y[i] = x[i] * s * get(w[i]);
}
static void turn(float *q, const float *angle, int E) { // angle: a row (2, E) of the table: cos, cos; -sin, sin
  for (int i = 0, h = E / 2; i < h; i++) {
    float a = q[i], b = q[i + h], c = angle[i], s = angle[E + h + i];
    q[i] = a * c - b * s; q[i + h] = b * c + a * s;
  }
}

typedef struct { Linear q, k, v, o; const T *norm, *qnorm, *knorm; float eps; int D, H, K, E; } Attention;
typedef struct { Linear gate, up, down; const T *norm; float eps; int D, I; } Ffn;
// One pass: token m stands at place[m] of the sequence whose pages row m of `tables` names.
typedef struct { const int *tables, *place; int M, width, P, threads; const float *angles; } Step;
typedef struct {
  const void *w; const Step *s; T *pages; const float *x; float *out;
  int M, parts, ready[THREADS];
} Job;
static float *own(int t) { return pool.own + t * pool.own_each; }
// Each thread norms for itself, when it first takes an item: that needs no barrier.
static float *normed(Job *j, int t, const T *w, float eps, int d) {
  float *mine = own(t);
  for (int m = 0; !j->ready[t] && m < j->M; m++) { norm(j->x + m * d, w, eps, mine + m * d, d); to_lanes(mine + m * d, mine + m * d, d); }
  j->ready[t] = 1;
  return mine;
}

// The attention half: q, k, v; turned and written to their pages; looked up; multiplied with o.
static long width_of(const Attention *a) { return (a->H + 2 * a->K) * a->E; }
static void project(void *job, int item, int t) {
  Job *j = job; const Attention *a = j->w;
  int q = a->H * a->E, k = a->K * a->E, nq = items(q), nk = items(k);
  float *x = normed(j, t, a->norm, a->eps, a->D), *y = pool.shared;
  if (item < nq) rows(&a->q, item, x, y, width_of(a), j->M);
  else if (item < nq + nk) rows(&a->k, item - nq, x, y + q, width_of(a), j->M);
  else rows(&a->v, item - nq - nk, x, y + q + k, width_of(a), j->M);
}
static T *page_of(const Job *j, int m, int page) {
  const Attention *a = j->w;
  return j->pages + 2L * a->K * j->s->P * a->E * j->s->tables[(long)m * j->s->width + page];
}
static void place(void *job, int item, int t) {
  Job *j = job; const Attention *a = j->w; const Step *s = j->s;
  int K = a->K, E = a->E, G = a->H / K, m = item / K, k = item % K, at = s->place[m];
  float *q = pool.shared + m * width_of(a) + k * G * E, *key = pool.shared + m * width_of(a) + (a->H + k) * E, *value = key + K * E;
  const float *angle = s->angles + 2L * at * E;
  for (int g = 0; g < G; g++, q += E) {
    if (a->qnorm) norm(q, a->qnorm, a->eps, q, E);
    turn(q, angle, E);
    for (int e = 0; e < E; e++) q[e] *= 1 / sqrtf(E);
    to_lanes(q, q, E);
  }
  if (a->knorm) norm(key, a->knorm, a->eps, key, E);
  turn(key, angle, E);
  T *to = page_of(j, m, at / s->P) + ((long)k * s->P + at % s->P) * E;
  for (int e = 0; e < E; e++) { to[e] = put(key[e]); to[(long)K * s->P * E + e] = put(value[e]); }
}
// A sequence is looked through in parts, which the threads share out: how long they are, its length alone decides.
static int part_of(int S) { int n = (S + PARTS - 1) / PARTS; return n < PART ? PART : n; }
static int parts_of(int S) { return (S + part_of(S) - 1) / part_of(S); }
static float softmax(float *p, int n, float *top) { // in place, up to the next 8; not yet divided by the sum it returns
  v8 most = all(-INFINITY), s = {0};
  int end = (n + 7) / 8 * 8;
  for (int t = n; t < end; t++) p[t] = -INFINITY;
  for (int t = 0; t < end; t += 8) most = larger(load(p + t), most);
  *top = most[0];
  for (int j = 1; j < 8; j++) if (most[j] > *top) *top = most[j];
  for (int t = 0; t < end; t += 8) { v8 e = exp8(load(p + t) - *top); store(p + t, e); s += e; }
  for (int t = n; t < end; t++) p[t] = 0; // they added less than e^-86 to a sum of 1 or more
  return sum(s);
}
#define VALUES(C)                                                                                               \
  INLINE void values##C(const T *const *row, long half, int n, const float *p, long ldp, int E, float *out) {   \
    for (int i = 0; i < E; i += 16) {                                                                           \
      v8 e[C][2] = {{{0}}}, o[C][2] = {{{0}}}; /* even and odd tokens apart: more sums under way */             \
      for (int t = 0; t < n; t += 2)                                                                            \
        _Pragma("GCC unroll 2") for (int z = 0; z < 2; z++) {                                                   \
          const T *v = row[t + z] + half + i;                                                                   \
          v8 a = first(v), b = second(v);                                                                       \
          _Pragma("GCC unroll 4") for (int c = 0; c < C; c++) { float w = p[c * ldp + t + z]; e[c][z] += a * w; o[c][z] += b * w; } \
        }                                                                                                       \
      for (int c = 0; c < C; c++) { store(out + c * E + i, e[c][0] + e[c][1]); store(out + c * E + i + 8, o[c][0] + o[c][1]); } \
    }                                                                                                           \
  }
VALUES(1) VALUES(2) VALUES(3) VALUES(4)
// What part i of row m gave to head h lies at seen: (M, parts, H, E), in lanes; its largest score and sum at marks (…, 2).
static float *seen(const Job *j) { return pool.shared + MAX * width_of(j->w); }
static float *marks(const Job *j) { const Attention *a = j->w; return seen(j) + (long)j->M * j->parts * a->H * a->E; }
static void look(void *job, int item, int t) {
  Job *j = job; const Attention *a = j->w; const Step *s = j->s;
  int K = a->K, E = a->E, P = s->P, G = a->H / K, i = item % j->parts, k = item / j->parts % K, m = item / j->parts / K;
  int S = s->place[m] + 1, from = i * part_of(S), n = smaller(part_of(S), S - from), most = part_of(S) + 8;
  if (n <= 0) return;
  const T **row = (const T **)own(t); float *p = own(t) + 2 * most;
  int page = from / P, in = from % P; const T *key = page_of(j, m, page) + (long)k * P * E;
  for (int n_ = 0; n_ < n; n_++) {
    row[n_] = key + (long)in * E;
    if (++in == P && n_ + 1 < n) { in = 0; key = page_of(j, m, ++page) + (long)k * P * E; }
  }
  for (int pad = n; pad % UNIT; pad++) row[pad] = row[n - 1];
  for (int g = 0, c; g < G; g += c) {
    int head = k * G + g; c = smaller(MOST, G - g);
    const float *q = pool.shared + m * width_of(a) + head * E;
    long at = ((long)m * j->parts + i) * a->H + head, half = (long)K * P * E; float *to = seen(j) + at * E, *mark = marks(j) + at * 2;
    for (int u = 0; u < n; u += UNIT) { // the keys after next may lie in another page; values come when all scores are there
      long ahead = (const char *)row[smaller(u + 16, n - 1)] - (const char *)row[u];
      for (long b = 0; g == 0 && b < UNIT * E * (long)sizeof(T); b += 64) __builtin_prefetch((const char *)(row[u] + half) + b);
      unit(row + u, 16, ahead, q, E, p + u, most, c);
    }
    for (int h = 0; h < c; h++) mark[2 * h + 1] = softmax(p + h * most, n, mark + 2 * h);
    if (c == 4) values4(row, half, n, p, most, E, to); else if (c == 3) values3(row, half, n, p, most, E, to);
    else if (c == 2) values2(row, half, n, p, most, E, to); else values1(row, half, n, p, most, E, to);
  }
}
static void join(const Job *j, int m, float *to) { // the parts of a row: (H, E)
  const Attention *a = j->w;
  int H = a->H, E = a->E, parts = parts_of(j->s->place[m] + 1);
  const float *part = seen(j) + (long)m * j->parts * H * E, *mark = marks(j) + (long)m * j->parts * H * 2;
  for (int h = 0; h < H; h++, to += E) {
    float top = -INFINITY, total = 0, w[PARTS];
    for (int i = 0; i < parts; i++) if (mark[2 * (i * H + h)] > top) top = mark[2 * (i * H + h)];
    for (int i = 0; i < parts; i++) { w[i] = expf(mark[2 * (i * H + h)] - top); total += w[i] * mark[2 * (i * H + h) + 1]; }
    memset(to, 0, sizeof(float) * E);
    for (int i = 0; i < parts; i++) for (int e = 0; e < E; e++) to[e] += w[i] / total * part[(i * H + h) * E + e];
  }
}
static void gather(void *job, int item, int t) {
  Job *j = job; const Attention *a = j->w; float *mine = own(t);
  for (int m = 0; j->ready[t] < 2 && m < j->M; m++) join(j, m, mine + m * a->H * a->E);
  j->ready[t] = 2;
  rows(&a->o, item, mine, j->out, a->D, j->M);
}
static int attend(const Attention *a, const Step *s, T *pages, const float *x, float *out) { // at most MAX tokens
  int parts = 1, longest = 0, M = s->M;
  for (int m = 0; m < M; m++) { int S = s->place[m] + 1; if (S > longest) longest = S; if (parts_of(S) > parts) parts = parts_of(S); }
  Job j = {a, s, pages, x, out, M, parts, {0}};
  long wide = (long)MAX * (a->D > a->H * a->E ? a->D : a->H * a->E), far = (2L + MOST) * (part_of(longest) + 8);
  if (!pool_enter(s->threads, MAX * width_of(a) + (long)M * parts * a->H * (a->E + 2), wide > far ? wide : far)) return 0;
  Phase phases[] = {{project, items(a->H * a->E) + 2 * items(a->K * a->E)}, {place, M * a->K}, {look, M * a->K * parts}, {gather, items(a->D)}};
  in_phases(phases, 4, &j, s->threads);
  pool_leave();
  return 1;
}

// The FFN half: the same rows of gate and up in one item, so that silu needs no barrier.
static void gate_up(void *job, int item, int t) {
  Job *j = job; const Ffn *f = j->w;
  float *x = normed(j, t, f->norm, f->eps, f->D), g[MAX * 16], u[MAX * 16];
  for (int r = 0; r < 16; r += UNIT) {
    product(&f->gate, item * 16 + r, x, g + r, 16, j->M);
    product(&f->up, item * 16 + r, x, u + r, 16, j->M);
  }
  for (int m = 0; m < j->M; m++) {
    for (int i = 16 * m; i < 16 * m + 16; i += 8) store(u + i, load(u + i) * load(g + i) / (1.f + exp8(-load(g + i))));
    to_lanes(u + 16 * m, pool.shared + (long)m * f->I + item * 16, 16);
  }
}
static void down(void *job, int item, int t) {
  Job *j = job; const Ffn *f = j->w;
  rows(&f->down, item, pool.shared, j->out, f->D, j->M);
}
static int feed(const Ffn *f, const Step *s, const float *x, float *out) {
  Job j = {f, s, 0, x, out, s->M, 0, {0}};
  if (!pool_enter(s->threads, (size_t)MAX * f->I, (size_t)MAX * f->D)) return 0;
  Phase phases[] = {{gate_up, f->I / 16}, {down, items(f->D)}};
  in_phases(phases, 2, &j, s->threads);
  pool_leave();
  return 1;
}

// What Python calls. 0: there was no memory. More than MAX tokens go in groups, in their order: what a token wrote, those after it see.
static Step group(const Step *s, int m) {
  Step g = *s;
  g.tables += (long)m * s->width; g.place += m; g.M = smaller(MAX, s->M - m);
  return g;
}
int attention(const Attention *a, const Step *s, T *pages, const float *x, float *out) {
  for (int m = 0; m < s->M; m += MAX) { Step g = group(s, m); if (!attend(a, &g, pages, x + (long)m * a->D, out + (long)m * a->D)) return 0; }
  return 1;
}
int ffn(const Ffn *f, const Step *s, const float *x, float *out) {
  for (int m = 0; m < s->M; m += MAX) { Step g = group(s, m); if (!feed(f, &g, x + (long)m * f->D, out + (long)m * f->D)) return 0; }
  return 1;
}
static void add(float *x, const float *part, const T *bias, int M, int D) {
  for (int m = 0; m < M; m++) for (int d = 0; d < D; d++) x[(long)m * D + d] += part[(long)m * D + d] + (bias ? get(bias[d]) : 0);
}
// Layers between which nothing has to happen outside: no sum over ranks, no pages to fetch. x is added to in place;
// stamps: when each half began, and the end (2 n + 1 seconds), so that a trace still sees the halves.
typedef struct { Attention a; Ffn f; const T *o_bias, *down_bias; T *pages; } Layer;
int layers(const Layer *l, int n, const Step *s, float *x, float *part, double *stamps) {
  for (int i = 0; i < n; i++, l++) {
    *stamps++ = now();
    if (!attention(&l->a, s, l->pages, x, part)) return 0;
    add(x, part, l->o_bias, s->M, l->a.D);
    *stamps++ = now();
    if (!ffn(&l->f, s, x, part)) return 0;
    add(x, part, l->down_bias, s->M, l->a.D);
  }
  *stamps = now();
  return 1;
}

// Logits (M, n), and of each row the first of its largest, that one's value, and log Σ e^logit: not finite if one is not.
typedef struct { Linear l; const T *norm; float eps; } Output;
static void vocabulary(void *job, int item, int t) {
  Job *j = job; const Output *o = j->w; int n = o->l.n, N = items(n), from = item * ROWS;
  rows(&o->l, item, normed(j, t, o->norm, o->eps, o->l.k), j->out, n, j->M);
  for (int m = 0; m < j->M; m++) {
    float p[ROWS], *mark = pool.shared + 2L * m * N + item; int count = smaller(ROWS, n - from);
    memcpy(p, j->out + (long)m * n + from, sizeof(float) * count);
    mark[N] = softmax(p, count, mark);
  }
}
static void best(const float *logits, const float *tops, int n, int64_t *id, float *top, float *lse) {
  int N = items(n), at = 0; double total = 0;
  for (int i = 1; i < N; i++) if (tops[i] > tops[at]) at = i;
  *top = tops[at];
  for (int i = 0; i < N; i += 8) {
    float p[8];
    for (int k = 0; k < 8; k++) p[k] = i + k < N ? tops[i + k] - *top : -INFINITY;
    v8 e = exp8(load(p));
    for (int k = 0; k < 8 && i + k < N; k++) total += e[k] * tops[N + i + k];
  }
  *lse = *top + log(total);
  for (*id = at * ROWS; *id + 1 < n && logits[*id] != *top;) ++*id;
}
static int vocabularies(const Output *o, int threads, int M, const float *x, float *logits, int64_t *ids, float *tops, float *lse) {
  Step s = {.M = M, .threads = threads};
  Job j = {o, &s, 0, x, logits, M, 0, {0}};
  int N = items(o->l.n);
  if (!pool_enter(threads, 2UL * M * N, (size_t)M * o->l.k)) return 0;
  Phase phases[] = {{vocabulary, N}};
  in_phases(phases, 1, &j, threads);
  for (int m = 0; m < M; m++) best(logits + (long)m * o->l.n, pool.shared + 2L * m * N, o->l.n, ids + m, tops + m, lse + m);
  pool_leave();
  return 1;
}
int head(const Output *o, int threads, int M, const float *x, float *logits, int64_t *ids, float *tops, float *lse) {
  for (int m = 0; m < M; m += MAX)
    if (!vocabularies(o, threads, smaller(MAX, M - m), x + (long)m * o->l.k, logits + (long)m * o->l.n, ids + m, tops + m, lse + m)) return 0;
  return 1;
}
// Rows ids[m] of a weight, as an embedding takes them. 0: there is no such row. Layers come next: workers wake meanwhile.
int embed(const Linear *l, const int64_t *ids, int M, float *out) {
  if (M <= 4 * MAX) call_workers();
  for (int m = 0; m < M; m++, out += l->k) {
    if (ids[m] < 0 || ids[m] >= l->n) return 0;
    const T *a = row_of(l, ids[m]);
    for (long i = 0; i < l->k; i += 16, a += piece_of(l)) for (int c = 0; c < 16; c++) out[i + c] = get(a[c]);
  }
  return 1;
}

// Plain rows into packed ones, where they lie. n is a multiple of 4.
static void pack_rows(void *job, int item, int t) {
  const Linear *l = job; long k = l->k; T *rows4 = (T *)l->w + item * ROWS * k, *copy = (T *)own(t);
  for (int r = item * ROWS; r < smaller(l->n, (item + 1) * ROWS); r += 4, rows4 += 4 * k) {
    memcpy(copy, rows4, 4 * k * sizeof(T));
    for (long i = 0; i < k; i += 16) for (int q = 0; q < 4; q++) memcpy(rows4 + 4 * i + 16 * q, copy + q * k + i, 16 * sizeof(T));
  }
}
int pack(const Linear *l, int threads) {
  Phase phases[] = {{pack_rows, items(l->n)}};
  if (!pool_enter(threads, 0, 4UL * l->k)) return 0;
  in_phases(phases, 1, (void *)l, threads);
  pool_leave();
  return 1;
}

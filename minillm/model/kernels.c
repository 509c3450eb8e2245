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
typedef float v4 __attribute__((vector_size(16)));
enum { UNIT = 4, ROWS = 32, PART = 256, CHUNK = 32, AHEAD = 4096 };
#ifdef __AVX512VL__
enum { MOST = 3, SUMS = 2 }; // vectors that share a read of four rows; sums of each under way: as registers allow
#else
enum { MOST = 3, SUMS = 1 };
#endif

INLINE v8 load(const float *p) { v8 v; memcpy(&v, p, 32); return v; }
INLINE void store(float *p, v8 v) { memcpy(p, &v, 32); }
INLINE v8 all(float f) { return (v8){0} + f; }
INLINE v8 pick(u8 where, v8 a, v8 b) { return (v8)(((u8)a & where) | ((u8)b & ~where)); }
INLINE v8 larger(v8 a, v8 b) { return pick((u8)(a > b), a, b); }
INLINE v4 halves(v8 t) { v4 a, b; memcpy(&a, &t, 16); memcpy(&b, (char *)&t + 16, 16); return a + b; }
INLINE v4 pairs(v4 a, v4 b) { return (v4){a[0], b[0], a[1], b[1]} + (v4){a[2], b[2], a[3], b[3]}; }
INLINE v4 totals(v8 p, v8 q, v8 r, v8 s) { return pairs(pairs(halves(p), halves(r)), pairs(halves(q), halves(s))); }
INLINE float total(v8 t) { return totals(t, t, t, t)[0]; }
static long smaller(long a, long b) { return a < b ? a : b; }

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

// What Python fills in: every field has 8 bytes.
typedef struct { const T *w, *bias; long n, k; } Linear; // W (n, k), row by row
typedef struct {
  Linear q, k, v, o, gate, up, down;
  const T *norm, *ffn_norm, *q_norm, *k_norm, *o_bias, *down_bias;
  T *pages;
} Layer;
// One pass: token m stands at place[m] of the sequence whose pages row m of `tables` names. Sequences are looked through
// in parts of PART tokens, `parts` of them at most. scratch: of M rows, as long as the largest half needs.
typedef struct {
  float *scratch; long M, threads; const double *eps;
  const int *tables, *place; const float *angles; long width, P, E, parts;
} Step;
_Static_assert(sizeof(Layer) == 8 * 35 && sizeof(Step) == 8 * 11, "");

static long items(long n) { return (n + ROWS - 1) / ROWS; }

// To L2, not to L1: few lines at once can be on their way to that (some 20, which from DRAM makes 10 GB/s).
INLINE void send_for(const void *p) { __builtin_prefetch(p, 0, 2); }
// y[c * ldy + j] = row j · x[c], for UNIT rows and C vectors x (k each, in lanes). C is a constant where this is inlined, or
// the sums would lie in memory. Each sum is taken in one order, whatever C. Rows that lie one after the other are sent for in
// one stream, as memory likes it best, `ahead` bytes before they come; from L2 they are read as four.
INLINE void tile(const int C, const T *const *row, long ahead, const float *x, long k, float *y, long ldy) {
  v8 s[UNIT][MOST][SUMS] = {{{{0}}}};
  for (long i = 0; i < k; i += 16) {
    v8 a[MOST], b[MOST];
    for (int c = 0; c < C; c++) { a[c] = load(x + c * k + i); b[c] = load(x + c * k + i + 8); }
    for (int n = 0; n < 16 * UNIT * (int)sizeof(T); n += 64) send_for((const char *)(row[0] + UNIT * i) + ahead + n);
    _Pragma("GCC unroll 4") for (int j = 0; j < UNIT; j++) {
      v8 e = first(row[j] + i), o = second(row[j] + i);
      _Pragma("GCC unroll 4") for (int c = 0; c < C; c++) { s[j][c][0] += e * a[c]; s[j][c][SUMS - 1] += o * b[c]; }
    }
  }
  for (int c = 0; c < C; c++) {
    for (int j = 0; SUMS > 1 && j < UNIT; j++) s[j][c][0] += s[j][c][SUMS - 1];
    v4 t = totals(s[0][c][0], s[1][c][0], s[2][c][0], s[3][c][0]);
    memcpy(y + c * ldy, &t, 16);
  }
}
#define CONSTANT(C, f, ...) ((C) == 1 ? f(1, __VA_ARGS__) : (C) == 2 ? f(2, __VA_ARGS__) : f(3, __VA_ARGS__))

// y (M, Σn) = x (M, k) Wᵀ + b, x in lanes, of `count` weights that take the same x: one beside the other.
typedef struct { const Linear *l; const float *x; float *y; long ldy, M; } Product;
static long rounded(long n) { return (n + UNIT - 1) / UNIT * UNIT; }
static void rows(void *job, int item) { // ROWS of one weight; past its last row that one again, so that y has room for `rounded`
  const Product *p = job; const Linear *l = p->l; float *y = p->y;
  for (; item >= items(l->n); l++) { item -= items(l->n); y += l->n; }
  for (long r = item * ROWS; r < smaller(l->n, (item + 1) * ROWS); r += UNIT) {
    const T *row[UNIT];
    for (int j = 0; j < UNIT; j++) row[j] = l->w + smaller(r + j, l->n - 1) * l->k;
    for (long m = 0, c; m < p->M; m += c) {
      c = smaller(MOST, p->M - m);
      CONSTANT(c, tile, row, UNIT * l->k * sizeof(T) + AHEAD, p->x + m * l->k, l->k, y + m * p->ldy + r, p->ldy);
    }
    for (long m = 0; l->bias && m < p->M; m++) for (int j = 0; j < UNIT; j++) y[m * p->ldy + r + j] += get(l->bias[r + j]);
  }
}
static void multiply(const Linear *l, int count, const Step *s, const float *x, float *y) {
  Product p = {l, x, y, 0, s->M}; int n = 0;
  for (int i = 0; i < count; i++) { p.ldy += rounded(l[i].n); n += items(l[i].n); }
  parallel(rows, n, &p, s->threads);
}

static void norm(const float *x, const T *w, float eps, float *y, long d) {
  v8 t = {0};
  for (long i = 0; i < d; i += 8) t += load(x + i) * load(x + i);
  float s = 1 / sqrtf(total(t) / d + eps);
  for (long i = 0; i < d; i++) y[i] = x[i] * s * get(w[i]);
}
static float *normed(const float *x, const T *w, const Step *s, long d) { // in lanes, at the beginning of the scratch
  for (long m = 0; m < s->M; m++) { norm(x + m * d, w, *s->eps, s->scratch + m * d, d); to_lanes(s->scratch + m * d, s->scratch + m * d, d); }
  return s->scratch + s->M * d;
}
// Norm a head, if there is a norm, and turn it. angle: a row (2, E) of the table: cos, cos; -sin, sin.
static void turn(float *q, const T *w, float eps, const float *angle, long E) {
  if (w) norm(q, w, eps, q, E);
  for (long i = 0, h = E / 2; i < h; i++) {
    float a = q[i], b = q[i + h], c = angle[i], s = angle[E + h + i];
    q[i] = a * c - b * s; q[i + h] = b * c + a * s;
  }
}

// The attention half: q, k, v; turned and written to their pages; looked up, in parts; multiplied with o.
// seen (M, parts, H, E + 2): of a part, what a head saw, in lanes; its largest score; its sum of e^(score - largest).
typedef struct { const Layer *l; const Step *s; long H, K, E; float *qkv, *seen; } Look;
static T *key_of(const Look *j, long m, long at) { // of kv head 0; head k's lies k * P * E further, its value K * P * E beyond
  const Step *s = j->s;
  return j->l->pages + (2L * j->K * s->P * s->tables[m * s->width + at / s->P] + at % s->P) * j->E;
}
static void place(const Look *j, long m) { // turned queries are scaled and in lanes; keys and values go to their page
  const Layer *l = j->l; const Step *s = j->s; long H = j->H, K = j->K, E = j->E, at = s->place[m];
  const float *angle = s->angles + 2 * at * E; float *q = j->qkv + m * (H + 2 * K) * E;
  for (long h = 0; h < H + K; h++, q += E) {
    T *key = key_of(j, m, at) + (h - H) * s->P * E;
    turn(q, h < H ? l->q_norm : l->k_norm, *s->eps, angle, E);
    for (long e = 0; h < H && e < E; e++) q[e] *= 1 / sqrtf(E);
    if (h < H) to_lanes(q, q, E);
    else for (long e = 0; e < E; e++) { key[e] = put(q[e]); key[K * s->P * E + e] = put(q[K * E + e]); }
  }
}
// n scores, up to the next 8, become e^(score - largest): the largest so far, of which seen tells. What was seen before is put
// on the same scale. seen: E sums, the largest, the sum of all.
static void soften(float *p, int n, float *seen, long E) {
  v8 most = all(seen[E]), s = {0}; float before = seen[E];
  int end = (n + 7) / 8 * 8;
  for (int t = n; t < end; t++) p[t] = -INFINITY; // they will add less than e^-86 to a sum of 1 or more
  for (int t = 0; t < end; t += 8) most = larger(load(p + t), most);
  for (int j = 0; j < 8; j++) if (most[j] > seen[E]) seen[E] = most[j];
  if (seen[E] > before) {
    float w = expf(before - seen[E]);
    seen[E + 1] *= w;
    for (long e = 0; e < E; e++) seen[e] *= w;
  }
  for (int t = 0; t < end; t += 8) { v8 e = exp8(load(p + t) - seen[E]); store(p + t, e); s += e; }
  seen[E + 1] += total(s);
}
// seen[c] (E, in lanes) += Σ p[c][t] · the value of token t, for C heads of a group; those of the next chunk are sent for.
INLINE void values(const int C, const T *const *row, const T *const *next, long off, int n, const float *p, long E, float *seen) {
  for (long i = 0; i < E; i += 16, seen += 16) {
    v8 e[MOST][2], o[MOST][2]; // even and odd tokens apart: more sums under way
    for (int c = 0; c < C; c++) { e[c][0] = load(seen + c * (E + 2)); o[c][0] = load(seen + c * (E + 2) + 8); e[c][1] = o[c][1] = all(0); }
    for (int t = 0; t < n; t += 2)
      _Pragma("GCC unroll 2") for (int z = 0; z < 2; z++) {
        if (i * sizeof(T) % 64 == 0) send_for(next[t + z] + off + i);
        v8 a = first(row[t + z] + off + i), b = second(row[t + z] + off + i);
        _Pragma("GCC unroll 4") for (int c = 0; c < C; c++) { float w = p[c * CHUNK + t + z]; e[c][z] += a * w; o[c][z] += b * w; }
      }
    for (int c = 0; c < C; c++) { store(seen + c * (E + 2), e[c][0] + e[c][1]); store(seen + c * (E + 2) + 8, o[c][0] + o[c][1]); }
  }
}
static void find(const Look *j, long m, long at, const T **row) { // the keys of CHUNK tokens; past the end the last one's again
  long n = j->s->place[m] + 1 - at, P = j->s->P;
  for (long t = 0, page = 0; n > 0 && t < CHUNK; t++) {
    if (t == page && t < n) { row[t] = key_of(j, m, at + t); page += P - (at + t) % P; }
    else row[t] = row[t - 1] + (t < n ? j->E : 0);
  }
}
// A part, all heads at once: a page is read from its keys' first to its values' last, and the next chunk's are sent for.
static void look(void *job, int item) {
  const Look *j = job; const Step *s = j->s;
  long H = j->H, K = j->K, E = j->E, G = H / K, m = item / s->parts, from = item % s->parts * PART, stop = smaller(s->place[m] + 1, from + PART);
  const float *q = j->qkv + m * (H + 2 * K) * E; float *seen = j->seen + item * H * (E + 2), p[H * CHUNK];
  const T *row[CHUNK], *next[CHUNK], *key[CHUNK];
  for (long h = 0; h < H; h++) { memset(seen + h * (E + 2), 0, sizeof(float) * (E + 2)); seen[h * (E + 2) + E] = -INFINITY; }
  if (from < stop) find(j, m, from, next);
  for (long at = from, c; at < stop; at += CHUNK) {
    long n = smaller(CHUNK, stop - at);
    memcpy(row, next, sizeof row);
    find(j, m, at + CHUNK, next);
    for (long h = 0; h < H; h += c) {
      c = smaller(MOST, G - h % G);
      for (int t = 0; t < CHUNK; t++) key[t] = row[t] + h / G * s->P * E;
      for (long u = 0; u < n; u += UNIT)
        CONSTANT(c, tile, key + u, (const char *)next[u] - (const char *)row[u], q + h * E, E, p + h * CHUNK + u, CHUNK);
    }
    for (long h = 0; h < H; h++) soften(p + h * CHUNK, n, seen + h * (E + 2), E);
    for (long h = 0; h < H; h += c) {
      c = smaller(MOST, G - h % G);
      CONSTANT(c, values, row, next, (K + h / G) * s->P * E, n, p + h * CHUNK, E, seen + h * (E + 2));
    }
  }
}
static void join(const Look *j, long m, float *to) { // the parts of a row, into the first and then to (H, E)
  long E = j->E, step = j->H * (E + 2); float *a = j->seen + m * j->s->parts * step;
  for (long h = 0; h < j->H; h++, a += E + 2, to += E) {
    for (float *b = a + step; b < a + (j->s->place[m] / PART + 1) * step; b += step) {
      float top = a[E] > b[E] ? a[E] : b[E], v = expf(a[E] - top), w = expf(b[E] - top);
      for (long e = 0; e < E + 2; e++) a[e] = v * a[e] + w * b[e];
      a[E] = top;
    }
    for (long e = 0; e < E; e++) to[e] = a[e] / a[E + 1];
  }
}
void attention(const Layer *l, const Step *s, const float *x, float *out) {
  long E = s->E, H = l->q.n / E, K = l->k.n / E; float *qkv = normed(x, l->norm, s, l->q.k);
  Look j = {l, s, H, K, E, qkv, qkv + s->M * (H + 2 * K) * E};
  multiply(&l->q, 3, s, s->scratch, qkv);
  for (long m = 0; m < s->M; m++) place(&j, m);
  parallel(look, s->M * s->parts, &j, s->threads);
  for (long m = 0; m < s->M; m++) join(&j, m, s->scratch + m * H * E); // neither the norms nor q are needed any more
  multiply(&l->o, 1, s, s->scratch, out);
}

// The FFN half: down(silu(gate) · up). The same rows of gate and up in one item, so that silu needs no turn of its own.
static void inner(void *job, int item) {
  const Product *p = job; long I = p->l->n, at = item * ROWS, n = smaller(ROWS, I - at);
  rows(job, item); rows(job, item + items(I));
  for (long m = 0; m < p->M; m++) {
    float *g = p->y + m * p->ldy + at;
    for (long i = 0; i < n; i += 8) store(g + i, load(g + I + i) * load(g + i) / (1.f + exp8(-load(g + i))));
    to_lanes(g, p->y + p->M * p->ldy + m * I + at, n);
  }
}
void ffn(const Layer *l, const Step *s, const float *x, float *out) {
  long I = l->gate.n;
  Product p = {&l->gate, s->scratch, normed(x, l->ffn_norm, s, l->gate.k), 2 * I, s->M};
  parallel(inner, items(I), &p, s->threads);
  multiply(&l->down, 1, s, p.y + s->M * 2 * I, out);
}

// Layers between which nothing has to happen outside: no sum over ranks, no pages to fetch. x is added to in place;
// stamps (2 n + 1): the first says what time it is, in seconds; when each half began, and the end, so that a trace sees them.
void layers(const Layer *l, long n, const Step *s, float *x, float *part, double *stamps) {
  double zero = now() - *stamps;
  for (long i = 0, D = l->q.k; i < 2 * n; i++) {
    const Layer *at = l + i / 2; const T *bias = i % 2 ? at->down_bias : at->o_bias;
    *stamps++ = now() - zero;
    (i % 2 ? ffn : attention)(at, s, x, part);
    for (long m = 0; m < s->M; m++)
      for (long d = 0; d < D; d++) x[m * D + d] += part[m * D + d] + (bias ? get(bias[d]) : 0);
  }
  *stamps = now() - zero;
}

// Logits (M, n rounded up), and of each row the first of its largest, that one's value, and log Σ e^logit: not finite if one is not.
typedef struct { const float *logits; long n; int64_t *ids; float *tops, *sums; } Tops;
static void top(void *job, int m) {
  const Tops *t = job; const float *logits = t->logits + m * rounded(t->n);
  float seen[2] = {-INFINITY, 0}, p[PART]; long at = 0;
  for (long i = 0; i < t->n; i += PART) {
    int n = smaller(PART, t->n - i); float before = seen[0];
    memcpy(p, logits + i, sizeof(float) * n);
    soften(p, n, seen, 0);
    if (seen[0] > before) at = i;
  }
  while (at + 1 < t->n && logits[at] != seen[0]) at++;
  t->ids[m] = at; t->tops[m] = seen[0]; t->sums[m] = seen[0] + logf(seen[1]);
}
void head(const Linear *l, const T *w, const Step *s, const float *x, float *logits, int64_t *ids, float *tops, float *sums) {
  Tops t = {logits, l->n, ids, tops, sums};
  normed(x, w, s, l->k);
  multiply(l, 1, s, s->scratch, logits);
  parallel(top, s->M, &t, s->threads);
}

// Rows ids[m] of a weight, as an embedding takes them. 0: there is no such row.
int embed(const Linear *l, const int64_t *ids, long M, float *out, long threads) {
  parallel(0, 0, 0, threads); // no job yet: workers wake meanwhile, for the layers
  for (long m = 0; m < M; m++) {
    if (ids[m] < 0 || ids[m] >= l->n) return 0;
    for (long i = 0; i < l->k; i++) *out++ = get(l->w[ids[m] * l->k + i]);
  }
  return 1;
}

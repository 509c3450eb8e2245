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
enum { UNIT = 4, ROWS = 32, PART = 256, AHEAD = 2048 };
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
// W (n, k), as a `Linear` of layers.py has it: plain rows, or packed: the 16-column pieces of four rows in turn.
typedef struct { const T *w, *bias; long n, k, packed; } Linear;
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
_Static_assert(sizeof(Layer) == 8 * 42 && sizeof(Step) == 8 * 11, "");

static long items(long n) { return (n + ROWS - 1) / ROWS; }
INLINE const T *row_of(const Linear *l, long r) { return l->w + (l->packed ? r / 4 * 4 * l->k + r % 4 * 16 : r * l->k); }
INLINE long piece_of(const Linear *l) { return l->packed ? 64 : 16; }

// y[c * ldy + j] = row j · x[c], for UNIT rows and C vectors x (k each, in lanes). C is a constant where this is inlined,
// or the sums would lie in memory. Each sum is taken in one order, whatever C. Four rows, not more: with eight, two streams
// would be read. What lies `ahead` bytes on is sent for.
INLINE void tile(const int C, const T *const *row, long piece, long ahead, const float *x, long k, float *y, long ldy) {
  v8 s[UNIT][4] = {{{0}}};
  for (long i = 0, at = 0; i < k; i += 16, at += piece) {
    v8 a[4], b[4];
    for (int c = 0; c < C; c++) { a[c] = load(x + c * k + i); b[c] = load(x + c * k + i + 8); }
    for (int n = 0; n < 16 * UNIT * (int)sizeof(T); n += 64) __builtin_prefetch((const char *)(row[0] + UNIT * i) + ahead + n);
    _Pragma("GCC unroll 4") for (int j = 0; j < UNIT; j++) {
      v8 e = first(row[j] + at), o = second(row[j] + at);
      _Pragma("GCC unroll 4") for (int c = 0; c < C; c++) { s[j][c] += e * a[c]; s[j][c] += o * b[c]; }
    }
  }
  for (int c = 0; c < C; c++) for (int j = 0; j < UNIT; j++) y[c * ldy + j] = sum(s[j][c]);
}
#define CONSTANT(C, f, ...) ((C) == 1 ? f(1, __VA_ARGS__) : (C) == 2 ? f(2, __VA_ARGS__) : (C) == 3 ? f(3, __VA_ARGS__) : f(4, __VA_ARGS__))
// The same for M vectors.
static void unit(const T *const *row, long piece, long ahead, const float *x, long k, float *y, long ldy, long M) {
  for (long c; M; M -= c, x += c * k, y += c * ldy) {
    c = smaller(MOST, M);
    CONSTANT(c, tile, row, piece, ahead, x, k, y, ldy);
  }
}

// y (M, Σn) = x (M, k) Wᵀ + b, x in lanes, of `count` weights that take the same x: one beside the other.
typedef struct { const Linear *l; const float *x; float *y; long ldy, M; } Product;
static void rows(void *job, int item) { // ROWS of one weight; n need not be a multiple of anything
  const Product *p = job; const Linear *l = p->l; float *y = p->y, s[p->M * UNIT];
  for (; item >= items(l->n); l++) { item -= items(l->n); y += l->n; }
  for (long r = item * ROWS; r < smaller(l->n, (item + 1) * ROWS); r += UNIT) {
    const T *row[UNIT]; long n = smaller(UNIT, l->n - r);
    for (int j = 0; j < UNIT; j++) row[j] = row_of(l, r + smaller(j, n - 1));
    unit(row, piece_of(l), AHEAD, p->x, l->k, s, UNIT, p->M);
    for (long m = 0; m < p->M; m++)
      for (int j = 0; j < n; j++) y[m * p->ldy + r + j] = s[m * UNIT + j] + (l->bias ? get(l->bias[r + j]) : 0);
  }
}
static void multiply(const Linear *l, int count, const Step *s, const float *x, float *y) {
  Product p = {l, x, y, 0, s->M}; int n = 0;
  for (int i = 0; i < count; i++) { p.ldy += l[i].n; n += items(l[i].n); }
  parallel(rows, n, &p, s->threads);
}

static void norm(const float *x, const T *w, float eps, float *y, long d) {
  v8 t = {0};
  for (long i = 0; i < d; i += 8) t += load(x + i) * load(x + i);
  float s = 1 / sqrtf(sum(t) / d + eps);
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
// seen (M, parts, H, E + 2): what a part gave to a head, in lanes; its largest score and its sum.
typedef struct { const Layer *l; const Step *s; long H, K, E, W, parts; float *qkv, *seen; } Look;
static T *key_of(const Look *j, long m, long k, long at) { // of kv head k; its value lies K * P * E further
  const Step *s = j->s;
  return j->l->pages + ((2L * j->K * s->tables[m * s->width + at / s->P] + k) * s->P + at % s->P) * j->E;
}
static void place(void *job, int item) {
  const Look *j = job; const Step *s = j->s;
  long E = j->E, G = j->H / j->K, m = item / j->K, k = item % j->K, at = s->place[m];
  float *q = j->qkv + m * j->W + k * G * E, *key = j->qkv + m * j->W + (j->H + k) * E, *value = key + j->K * E;
  const float *angle = s->angles + 2 * at * E;
  for (long g = 0; g < G; g++, q += E) {
    turn(q, j->l->q_norm, *s->eps, angle, E);
    for (long e = 0; e < E; e++) q[e] *= 1 / sqrtf(E);
    to_lanes(q, q, E);
  }
  turn(key, j->l->k_norm, *s->eps, angle, E);
  T *to = key_of(j, m, k, at);
  for (long e = 0; e < E; e++) { to[e] = put(key[e]); to[j->K * s->P * E + e] = put(value[e]); }
}
static float softmax(float *p, int n, float *top) { // in place, up to the next 8; not yet divided by the sum it returns
  v8 most = all(-INFINITY), s = {0};
  int end = (n + 7) / 8 * 8;
  for (int t = n; t < end; t++) p[t] = -INFINITY; // they will add less than e^-86 to a sum of 1 or more
  for (int t = 0; t < end; t += 8) most = larger(load(p + t), most);
  *top = most[0];
  for (int j = 1; j < 8; j++) if (most[j] > *top) *top = most[j];
  for (int t = 0; t < end; t += 8) { v8 e = exp8(load(p + t) - *top); store(p + t, e); s += e; }
  return sum(s);
}
// out[c] (E, in lanes) = Σ p[c][t] · the value of token t, for C heads of a group.
INLINE void values(const int C, const T *const *row, long half, int n, const float *p, long E, float *out, long ldo) {
  for (long i = 0; i < E; i += 16) {
    v8 e[4][2] = {{{0}}}, o[4][2] = {{{0}}}; // even and odd tokens apart: more sums under way
    for (int t = 0; t < n; t += 2)
      _Pragma("GCC unroll 2") for (int z = 0; z < 2; z++) {
        const T *v = row[t + z] + half + i;
        v8 a = first(v), b = second(v);
        _Pragma("GCC unroll 4") for (int c = 0; c < C; c++) { float w = p[c * PART + t + z]; e[c][z] += a * w; o[c][z] += b * w; }
      }
    for (int c = 0; c < C; c++) { store(out + c * ldo + i, e[c][0] + e[c][1]); store(out + c * ldo + i + 8, o[c][0] + o[c][1]); }
  }
}
static void look(void *job, int item) {
  const Look *j = job; const Step *s = j->s;
  long K = j->K, E = j->E, G = j->H / K, half = K * s->P * E, i = item % j->parts, k = item / j->parts % K, m = item / j->parts / K;
  long from = i * PART, n = smaller(PART, s->place[m] + 1 - from);
  if (n <= 0) return;
  const T *row[PART], *key = 0; float p[MOST * PART];
  for (long t = 0, until = 0; t < n; t++, key += E) {
    if (t == until) { key = key_of(j, m, k, from + t); until += s->P - (from + t) % s->P; }
    row[t] = key;
  }
  for (long pad = n; pad % UNIT; pad++) row[pad] = row[n - 1];
  for (long g = 0, c; g < G; g += c) {
    c = smaller(MOST, G - g);
    float *to = j->seen + ((m * j->parts + i) * j->H + k * G + g) * (E + 2);
    for (long u = 0; u < n; u += UNIT) { // the keys after next may lie in another page; values come when all scores are there
      long ahead = (const char *)row[smaller(u + 16, n - 1)] - (const char *)row[u];
      for (long b = 0; g == 0 && b < UNIT * E * (long)sizeof(T); b += 64) __builtin_prefetch((const char *)(row[u] + half) + b);
      unit(row + u, 16, ahead, j->qkv + m * j->W + (k * G + g) * E, E, p + u, PART, c);
    }
    for (long h = 0; h < c; h++) to[h * (E + 2) + E + 1] = softmax(p + h * PART, n, to + h * (E + 2) + E);
    CONSTANT(c, values, row, half, n, p, E, to, E + 2);
  }
}
static void join(const Look *j, long m, float *to) { // the parts of a row: (H, E)
  long E = j->E, step = j->H * (E + 2), end = (j->s->place[m] / PART + 1) * step;
  for (long h = 0; h < j->H; h++, to += E) {
    const float *part = j->seen + m * j->parts * step + h * (E + 2);
    float top = -INFINITY, total = 0;
    for (long i = 0; i < end; i += step) if (part[i + E] > top) top = part[i + E];
    memset(to, 0, sizeof(float) * E);
    for (long i = 0; i < end; i += step) {
      float w = expf(part[i + E] - top);
      total += w * part[i + E + 1];
      for (long e = 0; e < E; e++) to[e] += w * part[i + e];
    }
    for (long e = 0; e < E; e++) to[e] /= total;
  }
}
void attention(const Layer *l, const Step *s, const float *x, float *out) {
  long E = s->E, H = l->q.n / E, K = l->k.n / E, W = (H + 2 * K) * E, parts = s->parts;
  float *qkv = normed(x, l->norm, s, l->q.k), *seen = qkv + s->M * W, *joined = seen + s->M * parts * H * (E + 2);
  Look j = {l, s, H, K, E, W, parts, qkv, seen};
  multiply(&l->q, 3, s, s->scratch, qkv);
  parallel(place, s->M * K, &j, s->threads);
  parallel(look, s->M * K * parts, &j, s->threads);
  for (long m = 0; m < s->M; m++) join(&j, m, joined + m * H * E);
  multiply(&l->o, 1, s, joined, out);
}

// The FFN half: down(silu(gate) · up). The same rows of gate and up in one item, so that silu needs no turn of its own.
static void inner(void *job, int item) {
  const Product *p = job; long n = smaller(ROWS, p->l->n - item * ROWS); float both[2 * ROWS * p->M];
  for (long i = 0; i < 2; i++) {
    Product one = {p->l + i, p->x, both + (i - item) * ROWS, 2 * ROWS, p->M};
    rows(&one, item);
  }
  for (float *g = both, *to = p->y + item * ROWS; g < both + 2 * ROWS * p->M; g += 2 * ROWS, to += p->ldy) {
    for (long i = 0; i < n; i += 8) store(g + i, load(g + ROWS + i) * load(g + i) / (1.f + exp8(-load(g + i))));
    to_lanes(g, to, n);
  }
}
void ffn(const Layer *l, const Step *s, const float *x, float *out) {
  Product p = {&l->gate, s->scratch, normed(x, l->ffn_norm, s, l->gate.k), l->gate.n, s->M};
  parallel(inner, items(l->gate.n), &p, s->threads);
  multiply(&l->down, 1, s, p.y, out);
}

// Layers between which nothing has to happen outside: no sum over ranks, no pages to fetch. x is added to in place;
// stamps: when each half began, and the end (2 n + 1), in seconds since the call, so that a trace still sees the halves.
void layers(const Layer *l, long n, const Step *s, float *x, float *part, double *stamps) {
  double began = now();
  for (long i = 0, D = l->q.k; i < 2 * n; i++) {
    const Layer *at = l + i / 2; const T *bias = i % 2 ? at->down_bias : at->o_bias;
    *stamps++ = now() - began;
    (i % 2 ? ffn : attention)(at, s, x, part);
    for (long m = 0; m < s->M; m++)
      for (long d = 0; d < D; d++) x[m * D + d] += part[m * D + d] + (bias ? get(bias[d]) : 0);
  }
  *stamps = now() - began;
}

// Logits (M, n), and of each row the first of its largest, that one's value, and log Σ e^logit: not finite if one is not.
typedef struct { const float *logits; long n; int64_t *ids; float *tops, *sums; } Tops;
static void top(void *job, int m) {
  const Tops *t = job; const float *logits = t->logits + m * t->n;
  float best = -INFINITY, most, p[PART]; double total = 0; long at = 0;
  for (long i = 0; i < t->n; i += PART) {
    int n = smaller(PART, t->n - i);
    memcpy(p, logits + i, sizeof(float) * n);
    double part = softmax(p, n, &most);
    if (most > best) { total *= exp(best - most); best = most; at = i; }
    total += part * exp(most - best);
  }
  while (at + 1 < t->n && logits[at] != best) at++;
  t->ids[m] = at; t->tops[m] = best; t->sums[m] = best + log(total);
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
    const T *a = row_of(l, ids[m]);
    for (long i = 0; i < l->k; i++) *out++ = get(a[i / 16 * piece_of(l) + i % 16]);
  }
  return 1;
}

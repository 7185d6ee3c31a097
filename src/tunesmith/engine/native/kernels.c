/* What a training step does between its matrix products, on a CPU: attention inside packed rows, norms, rotary positions,
 * the gate of an MLP, and the loss. Compiled at first use by engine/native/build.py, once for float32 and once for bfloat16
 * (-DBFLOAT16); engine/native/functions.py has the autograd functions, and says of each what it computes.
 *
 * Storage is `real`, arithmetic is float32 everywhere. Every output element is computed by one thread in a fixed order, so
 * results do not depend on the number of threads, nor on what else is in the pack.
 *
 * Names: T tokens, H query heads, K key/value heads, D head size, L length of a row, V words. Strides are in elements.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t i64;
typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));

#ifdef BFLOAT16
typedef uint16_t real;
static inline float load(real h) {
    union { uint32_t u; float f; } x = {(uint32_t)h << 16};
    return x.f;
}
static inline real store(float f) { /* to nearest, ties to even; a NaN stays one */
    union { float f; uint32_t u; } x = {f};
    uint32_t rounded = (x.u + 0x7fff + ((x.u >> 16) & 1)) >> 16;
    return (real)(f != f ? 0x7fc0 : rounded);
}
#else
typedef float real;
static inline float load(real f) { return f; }
static inline real store(float f) { return f; }
#endif

/* e**x within 2 ulp; 0 below -87.3, infinity above 88.7 (Cody and Waite's reduction, Cephes' polynomial). */
static inline float exponential(float x) {
    float bounded = x < -87.3f ? -87.3f : x > 88.7f ? 88.7f : x;
    float n = __builtin_rintf(bounded * 1.44269504f);
    float r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t i; float f; } half = {((int32_t)n / 2 + 127) << 23}, rest = {((int32_t)n - (int32_t)n / 2 + 127) << 23};
    float value = p * half.f * rest.f;
    value = x < -87.3f ? 0.0f : x > 88.7f ? INFINITY : value;
    return x != x ? x : value;
}

/* ---- norm over rows of `dim` -------------------------------------------------------------------------------------- */

/* y = w n, or (1 + w) n where `offset` is 1; n = x / sqrt(mean(x^2) + eps). Llama rounds n to `real` before, Gemma does not. */
void rms_norm(const real *x, const real *weight, real *y, float *scale, i64 rows, i64 dim, float eps, int offset) {
#pragma omp parallel for schedule(static)
    for (i64 row = 0; row < rows; row++) {
        const real *from = x + row * dim;
        real *to = y + row * dim;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (i64 i = 0; i < dim; i++) sum += load(from[i]) * load(from[i]);
        float by = 1.0f / sqrtf(sum / dim + eps);
        scale[row] = by;
        if (offset) {
#pragma omp simd
            for (i64 i = 0; i < dim; i++) to[i] = store(load(from[i]) * by * (1.0f + load(weight[i])));
        } else {
#pragma omp simd
            for (i64 i = 0; i < dim; i++) to[i] = store(load(store(load(from[i]) * by)) * load(weight[i]));
        }
    }
}

void rms_norm_backward(const real *dy, const real *x, const real *weight, const float *scale, real *dx, i64 rows, i64 dim,
                       int offset) {
    float add = offset ? 1.0f : 0.0f;
#pragma omp parallel for schedule(static)
    for (i64 row = 0; row < rows; row++) {
        const real *from = x + row * dim, *up = dy + row * dim;
        real *to = dx + row * dim;
        float by = scale[row], dot = 0;
#pragma omp simd reduction(+ : dot)
        for (i64 i = 0; i < dim; i++) dot += load(up[i]) * (add + load(weight[i])) * load(from[i]);
        float back = dot * by * by * by / dim;
#pragma omp simd
        for (i64 i = 0; i < dim; i++) to[i] = store(load(up[i]) * (add + load(weight[i])) * by - load(from[i]) * back);
    }
}

/* ---- rotary positions ---------------------------------------------------------------------------------------------- */

/* x: [T, H, D] with strides, y: [T, H, D]; cos and sin: [T, R], R <= D even. The halves of the first R columns turn, the
 * rest passes. back: the transposed rotation, which is the gradient. */
void rotary(const real *x, i64 token_stride, i64 head_stride, const real *cos, const real *sin, real *y, i64 tokens, i64 heads,
            i64 size, i64 turned, int back) {
    i64 half = turned / 2;
#pragma omp parallel for schedule(static)
    for (i64 t = 0; t < tokens; t++) {
        const real *c = cos + t * turned, *s = sin + t * turned;
        for (i64 h = 0; h < heads; h++) {
            const real *a = x + t * token_stride + h * head_stride, *b = a + half;
            real *to = y + (t * heads + h) * size;
            if (back) {
#pragma omp simd
                for (i64 i = 0; i < half; i++) {
                    float one = load(a[i]), two = load(b[i]);
                    to[i] = store(one * load(c[i]) + two * load(s[half + i]));
                    to[half + i] = store(two * load(c[half + i]) - one * load(s[i]));
                }
            } else {
#pragma omp simd
                for (i64 i = 0; i < half; i++) {
                    float one = load(a[i]), two = load(b[i]);
                    to[i] = store(one * load(c[i]) - two * load(s[i]));
                    to[half + i] = store(two * load(c[half + i]) + one * load(s[half + i]));
                }
            }
            for (i64 i = turned; i < size; i++) to[i] = a[i];
        }
    }
}

/* ---- the gate of an MLP --------------------------------------------------------------------------------------------- */

enum { SILU = 0, GELU_TANH = 1 };

static inline float logistic(float x) { return 1.0f / (1.0f + exponential(-x)); }

/* gelu(x) = x s(2u), u = sqrt(2/pi) (x + 0.044715 x^3): the tanh form, since (1 + tanh u) / 2 = s(2u). */
static inline float twice_u(float x) { return 1.5957691216f * (x + 0.044715f * x * x * x); }

/* y = act(gate) * up; gate and up are [rows, width] with row strides. */
void gated(const real *gate, i64 gate_stride, const real *up, i64 up_stride, real *y, i64 rows, i64 width, int act) {
#pragma omp parallel for schedule(static)
    for (i64 row = 0; row < rows; row++) {
        const real *g = gate + row * gate_stride, *u = up + row * up_stride;
        real *to = y + row * width;
        if (act == SILU) {
#pragma omp simd
            for (i64 i = 0; i < width; i++) to[i] = store(load(g[i]) * logistic(load(g[i])) * load(u[i]));
        } else {
#pragma omp simd
            for (i64 i = 0; i < width; i++) to[i] = store(load(g[i]) * logistic(twice_u(load(g[i]))) * load(u[i]));
        }
    }
}

void gated_backward(const real *dy, const real *gate, i64 gate_stride, const real *up, i64 up_stride, real *dgate, real *dup,
                    i64 rows, i64 width, int act) {
#pragma omp parallel for schedule(static)
    for (i64 row = 0; row < rows; row++) {
        const real *g = gate + row * gate_stride, *u = up + row * up_stride, *d = dy + row * width;
        real *to_gate = dgate + row * width, *to_up = dup + row * width;
        if (act == SILU) {
#pragma omp simd
            for (i64 i = 0; i < width; i++) {
                float x = load(g[i]), s = logistic(x), grad = load(d[i]);
                to_up[i] = store(grad * x * s);
                to_gate[i] = store(grad * load(u[i]) * s * (1.0f + x * (1.0f - s)));
            }
        } else {
#pragma omp simd
            for (i64 i = 0; i < width; i++) {
                float x = load(g[i]), s = logistic(twice_u(x)), grad = load(d[i]);
                to_up[i] = store(grad * x * s);
                to_gate[i] = store(grad * load(u[i]) * (s + x * s * (1.0f - s) * 1.5957691216f * (1.0f + 0.134145f * x * x)));
            }
        }
    }
}

/* ---- cross-entropy over rows of logits ------------------------------------------------------------------------------ */

/* loss[i] = -log softmax(logits[i])[label]; hit[i]: the label is the largest. Both 0 where the label is negative.
 * with_gradient: logits become softmax - onehot, or 0 where there is no label. */
void cross_entropy(real *logits, const i64 *labels, float *loss, uint8_t *hit, i64 rows, i64 words, int with_gradient) {
#pragma omp parallel for schedule(static)
    for (i64 row = 0; row < rows; row++) {
        real *x = logits + row * words;
        i64 label = labels[row];
        loss[row] = 0;
        hit[row] = 0;
        if (label < 0) {
            if (with_gradient) memset(x, 0, words * sizeof(real));
            continue;
        }
        float largest = load(x[0]), sum = 0;
#pragma omp simd reduction(max : largest)
        for (i64 i = 1; i < words; i++) largest = load(x[i]) > largest ? load(x[i]) : largest;
#pragma omp simd reduction(+ : sum)
        for (i64 i = 0; i < words; i++) sum += exponential(load(x[i]) - largest);
        float chosen = load(x[label]);
        loss[row] = logf(sum) + largest - chosen;
        hit[row] = chosen >= largest;
        if (with_gradient) {
            float by = 1.0f / sum, gradient = exponential(chosen - largest) * by - 1.0f;
#pragma omp simd
            for (i64 i = 0; i < words; i++) x[i] = store(exponential(load(x[i]) - largest) * by);
            x[label] = store(gradient);
        }
    }
}

/* ---- attention inside the rows of a pack ----------------------------------------------------------------------------- */

/* Queries are taken QUERIES at a time, keys two vectors at a time: 16 sums stay in registers. */
enum { LANES = 16, QUERIES = 8, KEYS = 2 * LANES };

static inline i64 upto(i64 n, i64 step) { return (n + step - 1) / step * step; }

/* [L, D] float32 from strided rows, zeros up to `padded` rows; or transposed, [D, padded]. */
static void rows_of(const real *x, i64 stride, i64 length, i64 padded, i64 size, float by, float *out) {
    for (i64 t = 0; t < length; t++)
#pragma omp simd
        for (i64 d = 0; d < size; d++) out[t * size + d] = load(x[t * stride + d]) * by;
    memset(out + length * size, 0, (padded - length) * size * sizeof(float));
}

static void columns_of(const float *rows, i64 padded, i64 size, float *out) {
    for (i64 d = 0; d < size; d++)
        for (i64 t = 0; t < padded; t++) out[d * padded + t] = rows[t * size + d];
}

/* s[q][j] = sum over d of a[q][d] b[d][j], for QUERIES rows of a and keys j < keys (rounded up to KEYS). */
static void products(const float *a, i64 size, const float *columns, i64 padded, i64 keys, float *s) {
    for (i64 j = 0; j < keys; j += KEYS) {
        v16 sum[QUERIES][2];
        memset(sum, 0, sizeof sum);
        for (i64 d = 0; d < size; d++) {
            v16 one = *(const v16 *)(columns + d * padded + j), two = *(const v16 *)(columns + d * padded + j + LANES);
            for (int q = 0; q < QUERIES; q++) {
                float x = a[q * size + d];
                sum[q][0] += x * one;
                sum[q][1] += x * two;
            }
        }
        for (int q = 0; q < QUERIES; q++) {
            *(v16 *)(s + q * padded + j) = sum[q][0];
            *(v16 *)(s + q * padded + j + LANES) = sum[q][1];
        }
    }
}

/* out[q] = sum over j in [from, to) of p[q][j] rows[j], for QUERIES rows of p. */
static void mixture(const float *p, i64 padded, const float *rows, i64 size, i64 from, i64 to, float *out) {
    i64 d = 0;
    for (; d + 2 * LANES <= size; d += 2 * LANES) {
        v16 sum[QUERIES][2];
        memset(sum, 0, sizeof sum);
        for (i64 j = from; j < to; j++) {
            v16 one = *(const v16 *)(rows + j * size + d), two = *(const v16 *)(rows + j * size + d + LANES);
            for (int q = 0; q < QUERIES; q++) {
                float x = p[q * padded + j];
                sum[q][0] += x * one;
                sum[q][1] += x * two;
            }
        }
        for (int q = 0; q < QUERIES; q++) {
            *(v16 *)(out + q * size + d) = sum[q][0];
            *(v16 *)(out + q * size + d + LANES) = sum[q][1];
        }
    }
    for (; d < size; d += LANES)
        for (int q = 0; q < QUERIES; q++) {
            v16 sum = {0};
            for (i64 j = from; j < to; j++) sum += p[q * padded + j] * *(const v16 *)(rows + j * size + d);
            *(v16 *)(out + q * size + d) = sum;
        }
}

/* into[j] += sum over q of p[q][j] rows[q], for keys j in [from, to) and QUERIES rows. */
static void spread(const float *p, i64 padded, const float *rows, i64 size, i64 from, i64 to, float *into) {
    for (i64 d = 0; d < size; d += LANES) {
        v16 row[QUERIES];
        for (int q = 0; q < QUERIES; q++) row[q] = *(const v16 *)(rows + q * size + d);
        for (i64 j = from; j < to; j++) {
            v16 sum = *(v16 *)(into + j * size + d);
            for (int q = 0; q < QUERIES; q++) sum += p[q * padded + j] * row[q];
            *(v16 *)(into + j * size + d) = sum;
        }
    }
}

static inline void rescaled(const float *x, float by, i64 size, real *out) {
#pragma omp simd
    for (i64 d = 0; d < size; d++) out[d] = store(x[d] * by);
}

/* First and one past the last key that any of the queries from `first` sees. */
static inline i64 oldest(i64 first, i64 window) { return window && first >= window ? first - window + 1 : 0; }
static inline i64 newest(i64 first, i64 length) { return first + QUERIES < length ? first + QUERIES : length; }

typedef struct {
    i64 heads, kv_heads, size, window; /* window 0: none */
    float scale;
    i64 q_token, q_head, k_token, k_head, v_token, v_head; /* strides */
} shape;

/* Longest that a row sees, rounded up: the first row of its family and itself. */
static i64 widest(const i64 *starts, const i64 *families, i64 count) {
    i64 most = 0;
    for (i64 f = 0; f < count; f++)
        for (i64 r = families[f]; r < families[f + 1]; r++) {
            i64 own = starts[r + 1] - starts[r], before = r > families[f] ? starts[families[f] + 1] - starts[families[f]] : 0;
            most = own + before > most ? own + before : most;
        }
    return upto(most, KEYS);
}

/* q, k, v: strided [T, heads, D]; out: [T, H, D]; lse: [T, H], log of the sum of exponentials, for the backward pass.
 * Row r is tokens starts[r] to starts[r + 1]; family f is rows families[f] to families[f + 1], all of which see the first. A
 * family and KV head is one thread's: the first row's keys stay in the scratch, and each other row's are laid behind them. */
int attention(const shape *s, const real *q, const real *k, const real *v, real *out, float *lse, const i64 *starts,
              const i64 *families, i64 count_families) {
    i64 size = s->size, group = s->heads / s->kv_heads, most = widest(starts, families, count_families);
    int failed = 0;
#pragma omp parallel
    {
        float *scratch = aligned_alloc(64, upto((3 * most * size + QUERIES * (most + 2 * size)) * sizeof(float), 64));
        if (!scratch) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
#pragma omp for schedule(dynamic) collapse(2)
        for (i64 f = 0; f < count_families; f++)
            for (i64 kv = 0; kv < s->kv_heads; kv++)
                for (i64 r = families[f]; r < families[f + 1] && !failed; r++) {
                    i64 begin = starts[r], before = r > families[f] ? starts[families[f] + 1] - starts[families[f]] : 0;
                    i64 own = starts[r + 1] - begin, length = before + own, padded = upto(length, KEYS), rest = padded - before;
                    float *keys = scratch, *columns = keys + most * size, *values = columns + most * size;
                    float *tile = values + most * size, *p = tile + QUERIES * size, *mixed = p + QUERIES * most;
                    rows_of(k + begin * s->k_token + kv * s->k_head, s->k_token, own, rest, size, 1.0f, keys + before * size);
                    rows_of(v + begin * s->v_token + kv * s->v_head, s->v_token, own, rest, size, 1.0f, values + before * size);
                    columns_of(keys, padded, size, columns);
                    for (i64 h = kv * group; h < (kv + 1) * group; h++)
                        for (i64 first = before; first < length; first += QUERIES) {
                            i64 count = length - first < QUERIES ? length - first : QUERIES, token = begin + first - before;
                            i64 to = newest(first, length), from = oldest(first, s->window);
                            rows_of(q + token * s->q_token + h * s->q_head, s->q_token, count, QUERIES, size, s->scale, tile);
                            products(tile, size, columns, padded, to, p);
                            float by[QUERIES];
                            for (i64 i = 0; i < QUERIES; i++) {
                                i64 last = i < count ? first + i : first, low = oldest(last, s->window);
                                float *row = p + i * padded, largest = row[low], sum = 0;
#pragma omp simd reduction(max : largest)
                                for (i64 j = low; j <= last; j++) largest = row[j] > largest ? row[j] : largest;
#pragma omp simd reduction(+ : sum)
                                for (i64 j = low; j <= last; j++) sum += row[j] = exponential(row[j] - largest);
                                for (i64 j = from; j < low; j++) row[j] = 0;
                                for (i64 j = last + 1; j < to; j++) row[j] = 0;
                                by[i] = 1.0f / sum;
                                if (i < count) lse[(token + i) * s->heads + h] = logf(sum) + largest;
                            }
                            mixture(p, padded, values, size, from, to, mixed);
                            for (i64 i = 0; i < count; i++)
                                rescaled(mixed + i * size, by[i], size, out + ((token + i) * s->heads + h) * size);
                        }
                }
        free(scratch);
    }
    return failed;
}

/* float32 sums of `length` tokens to [T, K, D]. */
static void gradient_of(const float *sums, i64 length, i64 size, i64 stride, real *out) {
    for (i64 t = 0; t < length; t++) rescaled(sums + t * size, 1.0f, size, out + t * stride);
}

/* dq: [T, H, D], dk and dv: [T, K, D]; dout and out: [T, H, D]. A first row's sums wait for the other rows of its family. */
int attention_backward(const shape *s, const real *q, const real *k, const real *v, const real *out, const float *lse,
                       const real *dout, real *dq, real *dk, real *dv, const i64 *starts, const i64 *families,
                       i64 count_families) {
    i64 size = s->size, group = s->heads / s->kv_heads, most = widest(starts, families, count_families);
    int failed = 0;
#pragma omp parallel
    {
        float *scratch = aligned_alloc(64, upto((6 * most * size + QUERIES * (2 * most + 3 * size)) * sizeof(float), 64));
        if (!scratch) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
#pragma omp for schedule(dynamic) collapse(2)
        for (i64 f = 0; f < count_families; f++)
            for (i64 kv = 0; kv < s->kv_heads; kv++) {
                float *keys = scratch, *key_columns = keys + most * size, *values = key_columns + most * size;
                float *value_columns = values + most * size, *key_sums = value_columns + most * size;
                float *value_sums = key_sums + most * size, *tile = value_sums + most * size, *up = tile + QUERIES * size;
                float *mixed = up + QUERIES * size, *p = mixed + QUERIES * size, *ds = p + QUERIES * most;
                i64 stride = s->kv_heads * size, root = starts[families[f]], shared = starts[families[f] + 1] - root;
                for (i64 r = families[f]; r < families[f + 1] && !failed; r++) {
                    i64 begin = starts[r], before = r > families[f] ? shared : 0;
                    i64 own = starts[r + 1] - begin, length = before + own, padded = upto(length, KEYS), rest = padded - before;
                    rows_of(k + begin * s->k_token + kv * s->k_head, s->k_token, own, rest, size, 1.0f, keys + before * size);
                    rows_of(v + begin * s->v_token + kv * s->v_head, s->v_token, own, rest, size, 1.0f, values + before * size);
                    columns_of(keys, padded, size, key_columns);
                    columns_of(values, padded, size, value_columns);
                    memset(key_sums + before * size, 0, own * size * sizeof(float));
                    memset(value_sums + before * size, 0, own * size * sizeof(float));
                    for (i64 h = kv * group; h < (kv + 1) * group; h++)
                        for (i64 first = before; first < length; first += QUERIES) {
                            i64 count = length - first < QUERIES ? length - first : QUERIES, token = begin + first - before;
                            i64 at = token * s->heads + h, to = newest(first, length), from = oldest(first, s->window);
                            rows_of(q + token * s->q_token + h * s->q_head, s->q_token, count, QUERIES, size, s->scale, tile);
                            rows_of(dout + at * size, s->heads * size, count, QUERIES, size, 1.0f, up);
                            products(tile, size, key_columns, padded, to, p);
                            products(up, size, value_columns, padded, to, ds);
                            for (i64 i = 0; i < QUERIES; i++) {
                                float *weights = p + i * padded, *scores = ds + i * padded;
                                if (i >= count) {
                                    memset(weights + from, 0, (to - from) * sizeof(float));
                                    memset(scores + from, 0, (to - from) * sizeof(float));
                                    continue;
                                }
                                const real *o = out + (at + i * s->heads) * size;
                                i64 last = first + i, low = oldest(last, s->window);
                                float total = lse[at + i * s->heads], dot = 0;
#pragma omp simd reduction(+ : dot)
                                for (i64 d = 0; d < size; d++) dot += load(o[d]) * up[i * size + d];
#pragma omp simd
                                for (i64 j = low; j <= last; j++) {
                                    weights[j] = exponential(weights[j] - total);
                                    scores[j] = weights[j] * (scores[j] - dot);
                                }
                                for (i64 j = from; j < low; j++) weights[j] = scores[j] = 0;
                                for (i64 j = last + 1; j < to; j++) weights[j] = scores[j] = 0;
                            }
                            mixture(ds, padded, keys, size, from, to, mixed);
                            spread(ds, padded, tile, size, from, to, key_sums); /* the tile is scaled already */
                            spread(p, padded, up, size, from, to, value_sums);
                            for (i64 i = 0; i < count; i++)
                                rescaled(mixed + i * size, s->scale, size, dq + (at + i * s->heads) * size);
                        }
                    if (r > families[f]) {
                        gradient_of(key_sums + before * size, own, size, stride, dk + begin * stride + kv * size);
                        gradient_of(value_sums + before * size, own, size, stride, dv + begin * stride + kv * size);
                    }
                }
                if (failed) continue;
                gradient_of(key_sums, shared, size, stride, dk + root * stride + kv * size);
                gradient_of(value_sums, shared, size, stride, dv + root * stride + kv * size);
            }
        free(scratch);
    }
    return failed;
}

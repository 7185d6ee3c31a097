/* Attention inside the rows of a pack, forward and backward, tile by tile; functions.py says what it computes.
 *
 * One task is one row and one key/value head, with all query heads that share it. Queries are taken QUERIES at a time, keys two
 * vectors at a time: 16 sums stay in registers. Products of what is stored in bfloat16 (queries with keys, gradients with
 * values) use the processor's own bfloat16 dot product where it has one: its sums are float32, so nothing is rounded more.
 */

#include "common.h"

enum { QUERIES = 8, KEYS = 2 * LANES };

/* A word is what `dot` multiplies at once: one float, or two neighbours in bfloat16. */
#if defined(BFLOAT16) && defined(__AVX512BF16__)
#include <immintrin.h>
typedef uint32_t word;
enum { PER_WORD = 2 };
static inline v16 dot(v16 sum, word a, const word *b) {
    return (v16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)_mm512_loadu_si512(b));
}
static inline word word_at(const real *x) {
    word both;
    memcpy(&both, x, sizeof both);
    return both;
}
#else
typedef float word;
enum { PER_WORD = 1 };
static inline v16 dot(v16 sum, word a, const word *b) { return sum + a * *(const v16 *)b; }
static inline word word_at(const real *x) { return load(*x); }
#endif

/* [L, D] float32 from strided rows, zeros up to `padded` rows. */
static void floats_of(const real *x, i64 stride, i64 length, i64 padded, i64 size, float by, float *out) {
    for (i64 t = 0; t < length; t++)
#pragma omp simd
        for (i64 d = 0; d < size; d++) out[t * size + d] = load(x[t * stride + d]) * by;
    memset(out + length * size, 0, (padded - length) * size * sizeof(float));
}

/* [L, words] from strided rows, zeros up to `padded` rows; and transposed, [words, padded]. */
static void words_of(const real *x, i64 stride, i64 length, i64 padded, i64 words, word *out) {
    for (i64 t = 0; t < length; t++)
        for (i64 w = 0; w < words; w++) out[t * words + w] = word_at(x + t * stride + w * PER_WORD);
    memset(out + length * words, 0, (padded - length) * words * sizeof(word));
}

static void columns_of(const real *x, i64 stride, i64 length, i64 padded, i64 words, word *out) {
    for (i64 begin = 0; begin < length; begin += LANES) {
        i64 end = begin + LANES < length ? begin + LANES : length;
        for (i64 w = 0; w < words; w++)
            for (i64 t = begin; t < end; t++) out[w * padded + t] = word_at(x + t * stride + w * PER_WORD);
    }
    for (i64 w = 0; w < words; w++) memset(out + w * padded + length, 0, (padded - length) * sizeof(word));
}

/* s[q][j] = a[q] . column j, for QUERIES rows of a and keys j < keys (rounded up to KEYS). */
static void products(const word *a, i64 words, const word *columns, i64 padded, i64 keys, float *s) {
    for (i64 j = 0; j < keys; j += KEYS) {
        v16 sum[QUERIES][2];
        memset(sum, 0, sizeof sum);
        for (i64 w = 0; w < words; w++)
            for (int q = 0; q < QUERIES; q++) {
                sum[q][0] = dot(sum[q][0], a[q * words + w], columns + w * padded + j);
                sum[q][1] = dot(sum[q][1], a[q * words + w], columns + w * padded + j + LANES);
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
    i64 d = 0;
    for (; d + 2 * LANES <= size; d += 2 * LANES) {
        v16 one[QUERIES], two[QUERIES];
        for (int q = 0; q < QUERIES; q++) {
            one[q] = *(const v16 *)(rows + q * size + d);
            two[q] = *(const v16 *)(rows + q * size + d + LANES);
        }
        for (i64 j = from; j < to; j++) {
            v16 *at = (v16 *)(into + j * size + d), first = at[0], second = at[1];
            for (int q = 0; q < QUERIES; q++) {
                first += p[q * padded + j] * one[q];
                second += p[q * padded + j] * two[q];
            }
            at[0] = first;
            at[1] = second;
        }
    }
    for (; d < size; d += LANES)
        for (i64 j = from; j < to; j++) {
            v16 sum = *(v16 *)(into + j * size + d);
            for (int q = 0; q < QUERIES; q++) sum += p[q * padded + j] * *(const v16 *)(rows + q * size + d);
            *(v16 *)(into + j * size + d) = sum;
        }
}

/* First and one past the last key that any of the queries from `first` sees. */
static inline i64 oldest(i64 first, i64 window) { return window && first >= window ? first - window + 1 : 0; }
static inline i64 newest(i64 first, i64 length) { return first + QUERIES < length ? first + QUERIES : length; }

typedef struct {
    i64 heads, kv_heads, size, window; /* window 0: none */
    float scale;
    i64 q_token, q_head, k_token, k_head, v_token, v_head; /* strides */
} shape;

typedef struct {
    i64 begin, length;
} row;

static int longer(const void *a, const void *b) {
    i64 one = ((const row *)a)->length, two = ((const row *)b)->length;
    return (one < two) - (one > two);
}

/* The rows, longest first, so that no thread is left with a long one at the end. NULL: no memory. */
static row *sorted(const i64 *starts, i64 rows) {
    row *found = malloc((rows + 1) * sizeof(row));
    for (i64 r = 0; found && r < rows; r++) found[r] = (row){starts[r], starts[r + 1] - starts[r]};
    if (found) qsort(found, rows, sizeof(row), longer);
    return found;
}

/* A thread's scratch of so many floats; *failed is set where there is no memory, and no thread goes on. */
static float *scratch_of(i64 floats, int *failed) {
    float *scratch = aligned_alloc(64, upto(floats * sizeof(float), 64));
    if (!scratch) {
#pragma omp atomic write
        *failed = 1;
    }
#pragma omp barrier
    return scratch;
}

/* q, k, v: strided [T, heads, D]; out: [T, H, D]; lse: [T, H], log of the sum of exponentials, for the backward pass.
 * Row r is tokens starts[r] to starts[r + 1]. */
int attention(const shape *s, const real *q, const real *k, const real *v, real *out, float *lse, const i64 *starts, i64 rows) {
    i64 size = s->size, words = size / PER_WORD, group = s->heads / s->kv_heads;
    row *order = sorted(starts, rows);
    if (!order) return 1;
    i64 most = upto(rows ? order[0].length : 0, KEYS);
    int failed = 0;
#pragma omp parallel
    {
        float *scratch = scratch_of(2 * most * size + QUERIES * (most + 2 * size), &failed);
#pragma omp for schedule(dynamic) collapse(2)
        for (i64 r = 0; r < rows; r++)
            for (i64 kv = 0; kv < s->kv_heads; kv++) {
                if (failed) continue;
                i64 begin = order[r].begin, length = order[r].length, padded = upto(length, KEYS);
                float *values = scratch, *p = values + most * size, *mixed = p + QUERIES * most;
                word *columns = (word *)(mixed + QUERIES * size), *tile = columns + most * words;
                columns_of(k + begin * s->k_token + kv * s->k_head, s->k_token, length, padded, words, columns);
                floats_of(v + begin * s->v_token + kv * s->v_head, s->v_token, length, padded, size, 1.0f, values);
                for (i64 h = kv * group; h < (kv + 1) * group; h++)
                    for (i64 first = 0; first < length; first += QUERIES) {
                        i64 count = length - first < QUERIES ? length - first : QUERIES;
                        i64 to = newest(first, length), from = oldest(first, s->window);
                        words_of(q + (begin + first) * s->q_token + h * s->q_head, s->q_token, count, QUERIES, words, tile);
                        products(tile, words, columns, padded, to, p);
                        float by[QUERIES];
                        for (i64 i = 0; i < QUERIES; i++) {
                            i64 last = i < count ? first + i : first, low = oldest(last, s->window);
                            float *weights = p + i * padded, largest = weights[low] * s->scale, sum = 0;
#pragma omp simd reduction(max : largest)
                            for (i64 j = low; j <= last; j++) {
                                weights[j] *= s->scale;
                                largest = weights[j] > largest ? weights[j] : largest;
                            }
#pragma omp simd reduction(+ : sum)
                            for (i64 j = low; j <= last; j++) sum += weights[j] = exponential(weights[j] - largest);
                            for (i64 j = from; j < low; j++) weights[j] = 0;
                            for (i64 j = last + 1; j < to; j++) weights[j] = 0;
                            by[i] = 1.0f / sum;
                            if (i < count) lse[(begin + last) * s->heads + h] = logf(sum) + largest;
                        }
                        mixture(p, padded, values, size, from, to, mixed);
                        for (i64 i = 0; i < count; i++) {
                            real *o = out + ((begin + first + i) * s->heads + h) * size;
#pragma omp simd
                            for (i64 d = 0; d < size; d++) o[d] = store(mixed[i * size + d] * by[i]);
                        }
                    }
            }
        free(scratch);
    }
    free(order);
    return failed;
}

/* dq: [T, H, D], dk and dv: [T, K, D]; dout and out: [T, H, D]. */
int attention_backward(const shape *s, const real *q, const real *k, const real *v, const real *out, const float *lse,
                       const real *dout, real *dq, real *dk, real *dv, const i64 *starts, i64 rows) {
    i64 size = s->size, words = size / PER_WORD, group = s->heads / s->kv_heads;
    row *order = sorted(starts, rows);
    if (!order) return 1;
    i64 most = upto(rows ? order[0].length : 0, KEYS);
    int failed = 0;
#pragma omp parallel
    {
        float *scratch = scratch_of(5 * most * size + QUERIES * (2 * most + 5 * size), &failed);
#pragma omp for schedule(dynamic) collapse(2)
        for (i64 r = 0; r < rows; r++)
            for (i64 kv = 0; kv < s->kv_heads; kv++) {
                if (failed) continue;
                i64 begin = order[r].begin, length = order[r].length, padded = upto(length, KEYS);
                float *keys = scratch, *key_sums = keys + most * size, *value_sums = key_sums + most * size;
                float *p = value_sums + most * size, *ds = p + QUERIES * most, *mixed = ds + QUERIES * most;
                float *queries = mixed + QUERIES * size, *up = queries + QUERIES * size;
                word *key_columns = (word *)(up + QUERIES * size), *value_columns = key_columns + most * words;
                word *tile = value_columns + most * words, *up_tile = tile + QUERIES * words;
                const real *key = k + begin * s->k_token + kv * s->k_head, *value = v + begin * s->v_token + kv * s->v_head;
                floats_of(key, s->k_token, length, padded, size, 1.0f, keys);
                columns_of(key, s->k_token, length, padded, words, key_columns);
                columns_of(value, s->v_token, length, padded, words, value_columns);
                memset(key_sums, 0, 2 * most * size * sizeof(float));
                for (i64 h = kv * group; h < (kv + 1) * group; h++)
                    for (i64 first = 0; first < length; first += QUERIES) {
                        i64 count = length - first < QUERIES ? length - first : QUERIES, at = (begin + first) * s->heads + h;
                        i64 to = newest(first, length), from = oldest(first, s->window);
                        const real *query = q + (begin + first) * s->q_token + h * s->q_head, *above = dout + at * size;
                        floats_of(query, s->q_token, count, QUERIES, size, s->scale, queries);
                        floats_of(above, s->heads * size, count, QUERIES, size, 1.0f, up);
                        words_of(query, s->q_token, count, QUERIES, words, tile);
                        words_of(above, s->heads * size, count, QUERIES, words, up_tile);
                        products(tile, words, key_columns, padded, to, p);
                        products(up_tile, words, value_columns, padded, to, ds);
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
                                weights[j] = exponential(weights[j] * s->scale - total);
                                scores[j] = weights[j] * (scores[j] - dot);
                            }
                            for (i64 j = from; j < low; j++) weights[j] = scores[j] = 0;
                            for (i64 j = last + 1; j < to; j++) weights[j] = scores[j] = 0;
                        }
                        mixture(ds, padded, keys, size, from, to, mixed);
                        spread(ds, padded, queries, size, from, to, key_sums); /* the queries are scaled already */
                        spread(p, padded, up, size, from, to, value_sums);
                        for (i64 i = 0; i < count; i++)
#pragma omp simd
                            for (i64 d = 0; d < size; d++) dq[(at + i * s->heads) * size + d] = store(mixed[i * size + d] * s->scale);
                    }
                for (i64 t = 0; t < length; t++)
#pragma omp simd
                    for (i64 d = 0; d < size; d++) {
                        dk[((begin + t) * s->kv_heads + kv) * size + d] = store(key_sums[t * size + d]);
                        dv[((begin + t) * s->kv_heads + kv) * size + d] = store(value_sums[t * size + d]);
                    }
            }
        free(scratch);
    }
    free(order);
    return failed;
}

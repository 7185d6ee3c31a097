/* Attention inside the rows of a pack, forward and backward, tile by tile; functions.py says what it computes.
 *
 * One task is one family of rows and one key/value head, with all query heads that share it. Queries are taken QUERIES at a time, keys two
 * vectors at a time: 16 sums stay in registers. Products of what is stored in bfloat16 (queries with keys, gradients with
 * values) use the processor's own bfloat16 dot product where it has one: its sums are float32, so nothing is rounded more.
 */

#include "common.h"

enum { QUERIES = 8, KEYS = 2 * LANES };

/* [L, D] float32 from strided rows, zeros up to `padded` rows. */
static void floats_of(const real *x, i64 stride, i64 length, i64 padded, i64 size, float by, float *out) {
    for (i64 t = 0; t < length; t++)
#pragma omp simd
        for (i64 d = 0; d < size; d++) out[t * size + d] = load(x[t * stride + d]) * by;
    memset(out + length * size, 0, (padded - length) * size * sizeof(float));
}

/* [L, words] from strided rows, zeros up to `padded` rows; and transposed, [words, padded], without the zeros. */
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
}

/* The columns of the `before` tokens from `first` and of the `own` from `x`, and zeros. */
static void family_columns(const real *first, i64 before, const real *x, i64 own, i64 stride, i64 padded, i64 words, word *out) {
    columns_of(first, stride, before, padded, words, out);
    columns_of(x, stride, own, padded, words, out + before);
    for (i64 w = 0; w < words; w++) memset(out + w * padded + before + own, 0, (padded - before - own) * sizeof(word));
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

/* A family is rows families[f] to families[f + 1], all of which see the first, as if it stood before each of them. */
typedef struct {
    i64 first, end, work;
} family;

static int heavier(const void *a, const void *b) {
    i64 one = ((const family *)a)->work, two = ((const family *)b)->work;
    return (one < two) - (one > two);
}

/* The families, most work first, so that no thread is left with a long one at the end; and the longest that a row sees, rounded
 * up. NULL: no memory. */
static family *sorted(const i64 *starts, const i64 *families, i64 count, i64 *most) {
    family *found = malloc((count + 1) * sizeof(family));
    *most = 0;
    for (i64 f = 0; found && f < count; f++) {
        found[f] = (family){families[f], families[f + 1], 0};
        for (i64 r = families[f]; r < families[f + 1]; r++) {
            i64 own = starts[r + 1] - starts[r], before = r > families[f] ? starts[families[f] + 1] - starts[families[f]] : 0;
            *most = own + before > *most ? own + before : *most;
            found[f].work += own * (2 * before + own);
        }
    }
    if (found) qsort(found, count, sizeof(family), heavier);
    *most = upto(*most, KEYS);
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

static inline void rescaled(const float *x, float by, i64 size, real *out) {
#pragma omp simd
    for (i64 d = 0; d < size; d++) out[d] = store(x[d] * by);
}

/* q, k, v: strided [T, heads, D]; out: [T, H, D]; lse: [T, H], log of the sum of exponentials, for the backward pass.
 * Row r is tokens starts[r] to starts[r + 1]. A family and KV head is one thread's: the first row's values stay in the scratch,
 * and each other row's are laid behind them. */
int attention(const shape *s, const real *q, const real *k, const real *v, real *out, float *lse, const i64 *starts,
              const i64 *families, i64 count_families) {
    i64 size = s->size, words = size / PER_WORD, group = s->heads / s->kv_heads, most;
    family *order = sorted(starts, families, count_families, &most);
    if (!order) return 1;
    int failed = 0;
#pragma omp parallel
    {
        float *scratch = scratch_of(2 * most * size + QUERIES * (most + 2 * size), &failed);
#pragma omp for schedule(dynamic) collapse(2)
        for (i64 f = 0; f < count_families; f++)
            for (i64 kv = 0; kv < s->kv_heads; kv++) {
                if (failed) continue;
                float *values = scratch, *p = values + most * size, *mixed = p + QUERIES * most;
                word *columns = (word *)(mixed + QUERIES * size), *tile = columns + most * words;
                const real *key = k + kv * s->k_head, *value = v + kv * s->v_head;
                i64 root = starts[order[f].first], shared = starts[order[f].first + 1] - root;
                for (i64 r = order[f].first; r < order[f].end; r++) {
                    i64 begin = starts[r], before = r > order[f].first ? shared : 0;
                    i64 own = starts[r + 1] - begin, length = before + own, padded = upto(length, KEYS);
                    family_columns(key + root * s->k_token, before, key + begin * s->k_token, own, s->k_token, padded, words,
                                   columns);
                    floats_of(value + begin * s->v_token, s->v_token, own, padded - before, size, 1.0f, values + before * size);
                    for (i64 h = kv * group; h < (kv + 1) * group; h++)
                        for (i64 first = before; first < length; first += QUERIES) {
                            i64 count = length - first < QUERIES ? length - first : QUERIES, token = begin + first - before;
                            i64 to = newest(first, length), from = oldest(first, s->window);
                            words_of(q + token * s->q_token + h * s->q_head, s->q_token, count, QUERIES, words, tile);
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
                                if (i < count) lse[(token + i) * s->heads + h] = logf(sum) + largest;
                            }
                            mixture(p, padded, values, size, from, to, mixed);
                            for (i64 i = 0; i < count; i++)
                                rescaled(mixed + i * size, by[i], size, out + ((token + i) * s->heads + h) * size);
                        }
                }
            }
        free(scratch);
    }
    free(order);
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
    i64 size = s->size, words = size / PER_WORD, group = s->heads / s->kv_heads, stride = s->kv_heads * size, most;
    family *order = sorted(starts, families, count_families, &most);
    if (!order) return 1;
    int failed = 0;
#pragma omp parallel
    {
        float *scratch = scratch_of(5 * most * size + QUERIES * (2 * most + 5 * size), &failed);
#pragma omp for schedule(dynamic) collapse(2)
        for (i64 f = 0; f < count_families; f++)
            for (i64 kv = 0; kv < s->kv_heads; kv++) {
                if (failed) continue;
                float *keys = scratch, *key_sums = keys + most * size, *value_sums = key_sums + most * size;
                float *p = value_sums + most * size, *ds = p + QUERIES * most, *mixed = ds + QUERIES * most;
                float *queries = mixed + QUERIES * size, *up = queries + QUERIES * size;
                word *key_columns = (word *)(up + QUERIES * size), *value_columns = key_columns + most * words;
                word *tile = value_columns + most * words, *up_tile = tile + QUERIES * words;
                const real *key = k + kv * s->k_head, *value = v + kv * s->v_head;
                i64 root = starts[order[f].first], shared = starts[order[f].first + 1] - root;
                for (i64 r = order[f].first; r < order[f].end; r++) {
                    i64 begin = starts[r], before = r > order[f].first ? shared : 0;
                    i64 own = starts[r + 1] - begin, length = before + own, padded = upto(length, KEYS);
                    floats_of(key + begin * s->k_token, s->k_token, own, padded - before, size, 1.0f, keys + before * size);
                    family_columns(key + root * s->k_token, before, key + begin * s->k_token, own, s->k_token, padded, words,
                                   key_columns);
                    family_columns(value + root * s->v_token, before, value + begin * s->v_token, own, s->v_token, padded, words,
                                   value_columns);
                    memset(key_sums + before * size, 0, own * size * sizeof(float));
                    memset(value_sums + before * size, 0, own * size * sizeof(float));
                    for (i64 h = kv * group; h < (kv + 1) * group; h++)
                        for (i64 first = before; first < length; first += QUERIES) {
                            i64 count = length - first < QUERIES ? length - first : QUERIES, token = begin + first - before;
                            i64 at = token * s->heads + h, to = newest(first, length), from = oldest(first, s->window);
                            const real *query = q + token * s->q_token + h * s->q_head, *above = dout + at * size;
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
                                rescaled(mixed + i * size, s->scale, size, dq + (at + i * s->heads) * size);
                        }
                    if (r > order[f].first) {
                        gradient_of(key_sums + before * size, own, size, stride, dk + begin * stride + kv * size);
                        gradient_of(value_sums + before * size, own, size, stride, dv + begin * stride + kv * size);
                    }
                }
                gradient_of(key_sums, shared, size, stride, dk + root * stride + kv * size);
                gradient_of(value_sums, shared, size, stride, dv + root * stride + kv * size);
            }
        free(scratch);
    }
    free(order);
    return failed;
}

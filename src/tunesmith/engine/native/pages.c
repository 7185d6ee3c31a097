/* Attention of a server's step over pages of keys and values, on a CPU; decode.py says what it computes.
 *
 * Keys are weighed 256 at a time, counted from the beginning of a row, so that a token's sums are the same in any piece of its
 * prompt and in any step. What a query does not see has weight 0, which changes no sum.
 */

#include "common.h"

enum { PAGE = 32, CHUNK = 8 * PAGE, QUERIES = 96 };

/* keys: [block, K, words, PAGE], values: [block, K, PAGE, D]; k, v: strided [T, K, D]; slot: block PAGE + place. */
void pages_write(const real *k, i64 k_token, i64 k_head, const real *v, i64 v_token, i64 v_head, const i64 *slots, i64 tokens,
                 i64 heads, i64 size, real *keys, real *values, i64 threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (tokens * heads > 256 && threads > 1)
    for (i64 t = 0; t < tokens; t++)
        for (i64 h = 0; h < heads; h++) {
            i64 page = (slots[t] / PAGE * heads + h) * PAGE * size, place = slots[t] % PAGE;
            const real *key = k + t * k_token + h * k_head;
            for (i64 d = 0; d < size; d++) keys[page + (d / PER_WORD * PAGE + place) * PER_WORD + d % PER_WORD] = key[d];
            memcpy(values + page + place * size, v + t * v_token + h * v_head, size * sizeof(real));
        }
}

typedef struct {
    i64 heads, kv_heads, size, window; /* window 0: none */
    float scale;
    i64 q_token, q_head; /* strides */
} paged;

/* Query tokens `first` to `end` of the step, of a row whose pages are in `table`; the first stands at `position`. */
typedef struct {
    i64 first, end, position, kv;
    const i64 *table;
} task;

/* What one query head of one token knows after the chunks so far: largest score, sums of weights, weighted sums of values. */
typedef struct {
    float *largest, *sums, *mixed; /* [n], [n, 16], [n, D] */
    real *q;                       /* [n, D] */
    float *p;                      /* [ROWS, CHUNK] */
} state;

/* p[i] = scores of `rows` queries with the keys of a page. The `next` page is fetched meanwhile. */
INLINE void scores(const int rows, const real *q, i64 size, const packed *keys, const packed *next, float *p) {
    v16 sum[ROWS][2];
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = (v16){0};
    for (i64 w = 0; w < size / PER_WORD; w++) {
        __builtin_prefetch(next + w * PAGE);
        __builtin_prefetch(next + w * PAGE + LANES);
        for (int i = 0; i < rows; i++) {
            word a = word_at(q + i * size + w * PER_WORD);
            sum[i][0] = dot_packed(sum[i][0], a, keys + w * PAGE);
            sum[i][1] = dot_packed(sum[i][1], a, keys + w * PAGE + LANES);
        }
    }
    for (int i = 0; i < rows; i++) {
        *(v16 *)(p + i * CHUNK) = sum[i][0];
        *(v16 *)(p + i * CHUNK + LANES) = sum[i][1];
    }
}

/* mixed[i] += sum over `count` tokens of a page of p[i][j] values[j], for 16 `vectors` columns. */
INLINE void mixture(const int rows, const int vectors, const float *p, const real *values, const real *next, i64 size, i64 count,
                    float *mixed) {
    v16 sum[ROWS][4];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) sum[i][v] = *(v16 *)(mixed + i * size + v * LANES);
    for (i64 j = 0; j < count; j++) {
        v16 value[4];
        for (int v = 0; v < vectors; v++) value[v] = load_16(values + j * size + v * LANES);
        for (int v = 0; v < vectors; v += LINE / sizeof(real) / LANES) __builtin_prefetch(next + j * size + v * LANES);
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < vectors; v++) sum[i][v] += p[i * CHUNK + j] * value[v];
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) *(v16 *)(mixed + i * size + v * LANES) = sum[i][v];
}

static void mixture_of(i64 rows, const float *p, const real *values, const real *next, i64 size, i64 count, float *mixed) {
    i64 d = 0;
    if (rows <= 4) {
        for (; d + 4 * LANES <= size; d += 4 * LANES)
            WITH_ROWS(rows, mixture(N < 5 ? N : 4, 4, p, values + d, next + d, size, count, mixed + d))
    }
    for (; d + 2 * LANES <= size; d += 2 * LANES)
        WITH_ROWS(rows, mixture(N, 2, p, values + d, next + d, size, count, mixed + d))
    if (d < size) WITH_ROWS(rows, mixture(N, 1, p, values + d, next + d, size, count, mixed + d))
}

static inline float largest_of(v16 x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* Weights of the scores p[from..to) (whole pages), of which [low, high) are seen; what was summed so far is scaled to the new
 * largest. */
static void weigh(float *p, i64 from, i64 to, i64 low, i64 high, float scale, float *largest, float *sums, float *mixed, i64 size) {
    for (i64 j = from; j < low && j < to; j++) p[j] = -INFINITY;
    for (i64 j = high > from ? high : from; j < to; j++) p[j] = -INFINITY;
    v16 most;
    for (int i = 0; i < LANES; i++) most[i] = *largest;
    for (i64 j = from; j < to; j += LANES) {
        v16 x = *(v16 *)(p + j) * scale;
        *(v16 *)(p + j) = x;
        for (int i = 0; i < LANES; i++) most[i] = x[i] > most[i] ? x[i] : most[i];
    }
    float before = *largest, now = largest_of(most);
    if (now == -INFINITY && low >= to) { /* nothing of this chunk is seen */
        memset(p + from, 0, (to - from) * sizeof(float));
        return;
    }
    float by = before == -INFINITY ? 0.0f : exponential(before - now);
    *largest = now;
    v16 sum = *(v16 *)sums * by;
    for (i64 j = from; j < to; j += LANES) {
#pragma omp simd
        for (int i = 0; i < LANES; i++) p[j + i] = exponential(p[j + i] - now);
        sum += *(v16 *)(p + j);
    }
    *(v16 *)sums = sum;
    for (i64 d = 0; d < size; d += LANES) *(v16 *)(mixed + d) = *(v16 *)(mixed + d) * by;
}

static void attend_rows(i64 rows, const paged *s, const task *t, i64 n, i64 begin, i64 chunk, const packed *keys,
                        const real *values, const state *z) {
    i64 size = s->size, group = s->heads / s->kv_heads, page_words = size / PER_WORD * PAGE;
    i64 first = t->position + n / group, last = t->position + (n + rows - 1) / group;
    i64 low = s->window && first >= s->window ? first - s->window + 1 : 0;
    i64 from = low > begin ? low / PAGE * PAGE : begin, to = last + 1 < begin + chunk ? last + 1 : begin + chunk;
    if (from >= to) return;
    const packed *first_keys = keys + t->kv * page_words;
    const real *first_values = values + t->kv * PAGE * size;
    i64 pages = s->kv_heads * page_words, step = s->kv_heads * PAGE * size;
    const i64 *table = t->table;
    for (i64 j = from / PAGE; j * PAGE < to; j++) {
        i64 next = (j + 1) * PAGE < to ? table[j + 1] : table[j];
        WITH_ROWS(rows, scores(N, z->q + n * size, size, first_keys + table[j] * pages, first_keys + next * pages,
                               z->p + j * PAGE - begin))
    }
    for (i64 i = 0; i < rows; i++) {
        i64 here = t->position + (n + i) / group, oldest = s->window && here >= s->window ? here - s->window + 1 : 0;
        weigh(z->p + i * CHUNK, from - begin, upto(to, PAGE) - begin, oldest - begin, here + 1 - begin, s->scale,
              z->largest + n + i, z->sums + (n + i) * LANES, z->mixed + (n + i) * size, size);
    }
    for (i64 j = from / PAGE; j * PAGE < to; j++) {
        i64 count = to - j * PAGE < PAGE ? to - j * PAGE : PAGE, next = (j + 1) * PAGE < to ? table[j + 1] : table[j];
        mixture_of(rows, z->p + j * PAGE - begin, first_values + table[j] * step, first_values + next * step, size, count,
                   z->mixed + n * size);
    }
}

static void attend(const paged *s, const task *t, const packed *keys, const real *values, const real *q, real *out,
                   const state *z) {
    i64 size = s->size, group = s->heads / s->kv_heads, count = (t->end - t->first) * group;
    for (i64 n = 0; n < count; n++) {
        memcpy(z->q + n * size, q + (t->first + n / group) * s->q_token + (t->kv * group + n % group) * s->q_head,
               size * sizeof(real));
        z->largest[n] = -INFINITY;
    }
    memset(z->sums, 0, count * LANES * sizeof(float));
    memset(z->mixed, 0, count * size * sizeof(float));
    i64 length = t->position + t->end - t->first;
    i64 oldest = s->window && t->position >= s->window ? t->position - s->window + 1 : 0;
    for (i64 begin = oldest / CHUNK * CHUNK; begin < length; begin += CHUNK)
        for (i64 n = 0; n < count; n += ROWS)
            attend_rows(count - n < ROWS ? count - n : ROWS, s, t, n, begin, CHUNK, keys, values, z);
    for (i64 n = 0; n < count; n++) {
        float sum = 0;
        for (int i = 0; i < LANES; i++) sum += z->sums[n * LANES + i];
        real *to = out + ((t->first + n / group) * s->heads + t->kv * group + n % group) * size;
        for (i64 d = 0; d < size; d += LANES) store_16(*(v16 *)(z->mixed + n * size + d) * (1.0f / sum), to + d);
    }
}

/* One call of `pages_attend`; a task has at most so many queries. */
typedef struct {
    const paged *s;
    const packed *keys;
    const real *values, *q;
    real *out;
    const task *tasks;
    i64 queries;
    int failed;
} call;

static void piece_of_attention(void *of, i64 number) {
    call *c = of;
    i64 size = c->s->size, floats = c->queries * (size * 2 + LANES + 1) + ROWS * CHUNK;
    float *scratch = aligned_alloc(64, upto(floats * sizeof(float), 64));
    if (!scratch) {
        __atomic_store_n(&c->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    state z = {.p = scratch, .sums = scratch + ROWS * CHUNK};
    z.mixed = z.sums + c->queries * LANES;
    z.largest = z.mixed + c->queries * size;
    z.q = (real *)(z.largest + c->queries);
    attend(c->s, c->tasks + number, c->keys, c->values, c->q, c->out, &z);
    free(scratch);
}

/* q: strided [T, H, D], out: [T, H, D]. Row r is query tokens starts[r] to starts[r + 1], the last of the lengths[r] tokens of
 * its pages, tables[r, ...]. A task is some tokens of one row and one key/value head; prompts come first, the latest first. */
int pages_attend(const paged *s, const packed *keys, const real *values, const real *q, real *out, const i64 *starts,
                 const i64 *lengths, const i64 *tables, i64 width, i64 rows, i64 threads) {
    i64 group = s->heads / s->kv_heads, tokens = QUERIES / group ? QUERIES / group : 1, count = 0, most = 1, work = 0;
    for (i64 r = 0; r < rows; r++) {
        i64 own = starts[r + 1] - starts[r];
        most = own > most ? own : most;
        count += (own + tokens - 1) / tokens * s->kv_heads;
        work += own * lengths[r] * s->heads;
    }
    tokens = most < tokens ? most : tokens;
    task *tasks = malloc((count + 1) * sizeof(task));
    if (!tasks) return 1;
    i64 at = 0;
    for (int answering = 0; answering < 2; answering++)
        for (i64 r = 0; r < rows; r++)
            if ((starts[r + 1] - starts[r] == 1) == answering)
                for (i64 end = starts[r + 1]; end > starts[r]; end -= tokens)
                    for (i64 kv = 0; kv < s->kv_heads; kv++) {
                        i64 first = end - tokens > starts[r] ? end - tokens : starts[r];
                        tasks[at++] = (task){first, end, lengths[r] - (starts[r + 1] - first), kv, tables + r * width};
                    }
    call c = {s, keys, values, q, out, tasks, tokens * group, 0};
    in_pieces(piece_of_attention, &c, at, work * s->size > (1 << 16) ? threads : 1);
    free(tasks);
    return c.failed;
}

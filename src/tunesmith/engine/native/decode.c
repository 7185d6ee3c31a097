/* Linear layers of a server's step on a CPU, with the low-rank parts of each token's adapters; decode.py says what it computes.
 *
 * Weights lie in blocks of 32 outputs, [words][32], so that a tile of rows and 32 columns is summed in registers and each
 * weight is read once for all rows of the tile. Every output is one chain of sums, over the ranks of its parts and then over the
 * inputs from the first to the last: neither the tile that it is in nor the thread that has it changes a bit.
 */

#include "common.h"

i64 per_word(void) { return PER_WORD; }
i64 bytes_of_real(void) { return sizeof(real); }

/* w: strided [N, C]; out: blocks of 32 outputs, the last of 16 where `padded` (N rounded up) is odd in 16s, each [words][32]. */
void pack(const real *w, i64 output_stride, i64 input_stride, i64 outputs, i64 inputs, i64 padded, real *out) {
    i64 words = (inputs + PER_WORD - 1) / PER_WORD;
#pragma omp parallel for schedule(static)
    for (i64 first = 0; first < padded; first += COLUMNS) {
        i64 width = padded - first < COLUMNS ? padded - first : COLUMNS;
        real *block = out + first * words * PER_WORD;
        for (i64 n = 0; n < width; n++)
            for (i64 c = 0; c < words * PER_WORD; c++)
                block[(c / PER_WORD * width + n) * PER_WORD + c % PER_WORD] =
                    first + n < outputs && c < inputs ? w[(first + n) * output_stride + c * input_stride] : (real)0;
    }
}

/* sums[i][j] += x[i] . column j, for `rows` rows of x and 16 `vectors` columns. Meanwhile `step` bytes a word are fetched from
 * `ahead`: what is needed next comes from memory while the sums are computed. */
INLINE void tile(const int rows, const int vectors, const real *x, i64 stride, i64 inputs, const packed *w, float *sums,
                 const char *ahead, i64 step) {
    v16 sum[ROWS][2];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) sum[i][v] = *(v16 *)(sums + i * COLUMNS + v * LANES);
    const packed *end = w + inputs / PER_WORD * vectors * LANES;
    for (; w < end; w += vectors * LANES, x += PER_WORD, ahead += step) {
        __builtin_prefetch(ahead, 0, 2);
        __builtin_prefetch(ahead + LINE, 0, 2);
        for (int i = 0; i < rows; i++) {
            word a = word_at(x + i * stride);
            for (int v = 0; v < vectors; v++) sum[i][v] = dot_packed(sum[i][v], a, w + v * LANES);
        }
    }
    if (inputs % PER_WORD)
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < vectors; v++) sum[i][v] = dot_packed(sum[i][v], half_word_at(x + i * stride), w + v * LANES);
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) *(v16 *)(sums + i * COLUMNS + v * LANES) = sum[i][v];
}

static void two_vectors(i64 rows, const real *x, i64 stride, i64 inputs, const packed *w, float *sums, const void *ahead,
                        i64 step) {
    WITH_ROWS(rows, tile(N, 2, x, stride, inputs, w, sums, ahead, step))
}

/* For 16 columns: even words in one sum and odd ones in another, since eight sums would wait for each other. */
INLINE void narrow_tile(const int rows, const real *x, i64 stride, i64 inputs, const packed *w, float *sums, const char *ahead) {
    v16 sum[ROWS][2];
    memset(sum, 0, sizeof sum);
    i64 c = 0;
    for (; c + 2 * PER_WORD <= inputs; c += 2 * PER_WORD, w += 2 * LANES, ahead += 2 * LINE) {
        __builtin_prefetch(ahead, 0, 2);
        __builtin_prefetch(ahead + LINE, 0, 2);
        for (int i = 0; i < rows; i++) {
            sum[i][0] = dot_packed(sum[i][0], word_at(x + i * stride + c), w);
            sum[i][1] = dot_packed(sum[i][1], word_at(x + i * stride + c + PER_WORD), w + LANES);
        }
    }
    for (; c < inputs; c += PER_WORD, w += LANES)
        for (int i = 0; i < rows; i++) {
            const real *at = x + i * stride + c;
            sum[i][0] = dot_packed(sum[i][0], c + PER_WORD <= inputs ? word_at(at) : half_word_at(at), w);
        }
    for (int i = 0; i < rows; i++) *(v16 *)(sums + i * COLUMNS) = sum[i][0] + sum[i][1];
}

static void one_vector(i64 rows, const real *x, i64 stride, i64 inputs, const packed *w, float *sums, const void *ahead) {
    WITH_ROWS(rows, narrow_tile(N, x, stride, inputs, w, sums, ahead))
}

typedef struct {
    const packed *weight;
    i64 outputs, inputs;
} matrix;

/* One adapter's factors for a segment: A is packed with `rank` (a multiple of 16) outputs, B with `rank` inputs. */
typedef struct {
    i64 segment, rank;
    const packed *a, *b;
    float scale;
} part;

/* Where the tokens of a part are, and its h = scale x A^T, [tokens, rank], as `b` multiplies it. */
typedef struct {
    i64 begin, end, rank;
    const packed *a, *b;
    float scale;
    i64 at;
} use;

static inline void rounded(const float *sums, const real *bias, i64 width, real *out) {
    if (width == COLUMNS) {
        v16 one = *(const v16 *)sums, two = *(const v16 *)(sums + LANES);
        if (bias) one += load_16(bias), two += load_16(bias + LANES);
        store_16(one, out);
        store_16(two, out + LANES);
        return;
    }
    for (i64 j = 0; j < width; j++) {
        v16 one = {sums[j] + (bias ? load(bias[j]) : 0.0f)};
        real sixteen[LANES];
        store_16(one, sixteen);
        out[j] = sixteen[0];
    }
}

/* One call of `linear`. */
typedef struct {
    const matrix *m;
    const use *uses;
    const real *x, *bias;
    real *y;
    i64 count, size, words, stride, tokens; /* parts; elements of h; words of a row of x */
    i64 blocks, chunk, chunks, across;      /* blocks of outputs; of a chunk; chunks; blocks of rows */
    real *h;
} job;

enum {
    BLOCK_ROWS = 256,     /* rows of x that stay in the second cache while the weights pass */
    GROUP = 4 * ROWS,     /* rows whose sums are kept at once */
    PART = 32,            /* tokens of a part that a thread takes at once */
    PARALLEL = 3 << 15,   /* fewer products of words than this, in vectors, are one thread's: it costs more to wake another */
    PARALLEL_WORDS = 3 << 15, /* or fewer words of the weight */
    SHARED = 1 << 14      /* and up to this many of h are the caller's, before the others are asked */
};

/* h of the tokens from `begin` to `end` of a part; `next` is what will be read then. */
static void factors_of(const job *j, const use *u, i64 begin, i64 end, real *h, const packed *next) {
    for (i64 t = begin; t < end; t += ROWS) {
        i64 rows = end - t < ROWS ? end - t : ROWS;
        for (i64 first = 0; first < u->rank; first += COLUMNS) {
            float sums[ROWS * COLUMNS] __attribute__((aligned(64)));
            const packed *a = u->a + first * j->words, *ahead = first + COLUMNS < u->rank ? a + COLUMNS * j->words : next;
            i64 vectors = u->rank - first > LANES ? 2 : 1;
            if (vectors == 2) {
                memset(sums, 0, sizeof sums);
                two_vectors(rows, j->x + t * j->stride, j->stride, j->m->inputs, a, sums, ahead, 2 * LINE);
            } else
                one_vector(rows, j->x + t * j->stride, j->stride, j->m->inputs, a, sums, ahead);
            for (i64 i = 0; i < rows; i++)
                for (i64 v = 0; v < vectors; v++)
                    store_16(*(v16 *)(sums + i * COLUMNS + v * LANES) * u->scale,
                             h + u->at + (t + i - u->begin) * u->rank + first + v * LANES);
        }
    }
}

/* Outputs from `first` on, at most 32 of them, of the tokens from `begin` to `end`: first the parts, then the weight. */
static void block_of(const job *j, i64 first, i64 begin, i64 end, const real *h) {
    i64 width = j->m->outputs - first < COLUMNS ? j->m->outputs - first : COLUMNS, tiles = (end - begin + ROWS - 1) / ROWS;
    i64 bytes = COLUMNS * j->words * sizeof(packed);
    const packed *w = j->m->weight + first * j->words;
    const char *ahead = (const char *)w + bytes;
    const use *u = j->uses, *last = j->uses + j->count;
    for (i64 group = begin; group < end; group += GROUP) {
        i64 to = group + GROUP < end ? group + GROUP : end;
        float sums[GROUP * COLUMNS] __attribute__((aligned(64)));
        memset(sums, 0, (to - group) * COLUMNS * sizeof(float));
        for (; u < last && u->end <= group; u++) {}
        for (const use *p = u; p < last && p->begin < to; p++) {
            i64 words = p->rank / PER_WORD, low = group > p->begin ? group : p->begin, high = to < p->end ? to : p->end;
            for (i64 t = low; t < high; t += ROWS)
                two_vectors(high - t < ROWS ? high - t : ROWS, h + p->at + (t - p->begin) * p->rank, p->rank, p->rank,
                            p->b + first * words, sums + (t - group) * COLUMNS, p->b + (first + COLUMNS) * words, 2 * LINE);
        }
        for (i64 t = group, rows; t < to; t += rows, ahead += bytes / tiles) {
            rows = (to - t) / ((to - t + ROWS - 1) / ROWS);
            two_vectors(rows, j->x + t * j->stride, j->stride, j->m->inputs, w, sums + (t - group) * COLUMNS, ahead,
                        COLUMNS * sizeof(packed) / tiles);
            for (i64 i = t; i < t + rows; i++)
                rounded(sums + (i - group) * COLUMNS, j->bias ? j->bias + first : NULL, width, j->y + i * j->m->outputs + first);
        }
    }
}

/* h of up to PART tokens of a part. */
static void piece_of_factors(void *of, i64 number) {
    const job *j = of;
    const use *u = j->uses;
    for (i64 pieces; number >= (pieces = (u->end - u->begin + PART - 1) / PART); u++) number -= pieces;
    i64 begin = u->begin + number * PART, end = begin + PART < u->end ? begin + PART : u->end;
    factors_of(j, u, begin, end, j->h, u + 1 < j->uses + j->count ? u[1].a : j->m->weight);
}

/* A chunk of the outputs of up to BLOCK_ROWS tokens. */
static void piece_of_outputs(void *of, i64 number) {
    const job *j = of;
    i64 begin = number / j->chunks * BLOCK_ROWS, end = begin + BLOCK_ROWS < j->tokens ? begin + BLOCK_ROWS : j->tokens;
    i64 first = number % j->chunks * j->chunk, last = first + j->chunk < j->blocks ? first + j->chunk : j->blocks;
    for (i64 b = first; b < last; b++) block_of(j, b * COLUMNS, begin, end, j->h);
}

/* x: [T, C] with a row stride, y: [T, N]. `parts` are in the order of their segments; segment s is tokens bounds[s] to
 * bounds[s + 1]. Returns 1 where there is no memory. */
int linear(const matrix *m, const part *parts, i64 count, const real *x, i64 stride, const real *bias, const i64 *bounds, real *y,
           i64 tokens, i64 threads) {
    job j = {.m = m, .x = x, .bias = bias, .y = y, .stride = stride, .tokens = tokens};
    use *uses = count ? malloc(count * sizeof(use)) : NULL;
    if (count && !uses) return 1;
    j.words = (m->inputs + PER_WORD - 1) / PER_WORD;
    i64 work = 0, pieces = 0;
    for (i64 p = 0; p < count; p++) {
        i64 begin = bounds[parts[p].segment], end = bounds[parts[p].segment + 1], rank = parts[p].rank;
        if (begin >= end) continue;
        uses[j.count++] = (use){begin, end, rank, parts[p].a, parts[p].b, parts[p].scale, j.size};
        j.size += (end - begin) * rank;
        pieces += (end - begin + PART - 1) / PART;
        work += (end - begin) * rank / LANES * j.words;
    }
    j.uses = uses;
    j.blocks = (m->outputs + COLUMNS - 1) / COLUMNS;
    if (tokens * j.blocks * 2 * j.words < PARALLEL && j.blocks * COLUMNS * j.words < PARALLEL_WORDS) threads = 1;
    j.chunk = upto(j.blocks, 4 * threads) / (4 * threads);
    j.chunks = j.chunk ? (j.blocks + j.chunk - 1) / j.chunk : 0;
    j.across = (tokens + BLOCK_ROWS - 1) / BLOCK_ROWS;
    j.h = j.size ? malloc(j.size * sizeof(real)) : NULL;
    int failed = j.size && !j.h;
    if (!failed) {
        in_pieces(piece_of_factors, &j, pieces, work > SHARED ? threads : 1);
        in_pieces(piece_of_outputs, &j, j.across * j.chunks, threads);
    }
    free(j.h);
    free(uses);
    return failed;
}

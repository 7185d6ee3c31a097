/* What all kernels share. Storage is `real`, bfloat16 with -DBFLOAT16 and float32 without; arithmetic is float32 everywhere.
 *
 * Every output element is computed by one thread in a fixed order, so results do not depend on the number of threads, nor on
 * what else is in the pack.
 *
 * Names: T tokens, H query heads, K key/value heads, D head size, L length of a row, V words. Strides are in elements.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t i64;
typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));
enum { LANES = 16 };

static inline i64 upto(i64 n, i64 step) { return (n + step - 1) / step * step; }

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

/* A word is what `dot` multiplies at once: one float, or two neighbours in bfloat16. `packed` is how weights and keys keep a
 * word: as it is, or, where the processor cannot multiply bfloat16, as one bfloat16 that is widened when it is read. */
#if defined(BFLOAT16) && defined(__AVX512BF16__)
#include <immintrin.h>
typedef uint32_t word;
typedef word packed;
enum { PER_WORD = 2 };
static inline v16 dot(v16 sum, word a, const word *b) {
    return (v16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)_mm512_loadu_si512(b));
}
static inline v16 dot_packed(v16 sum, word a, const packed *b) { return dot(sum, a, b); }
static inline word word_at(const real *x) {
    word both;
    memcpy(&both, x, sizeof both);
    return both;
}
static inline word half_word_at(const real *x) { return *x; }
#else
typedef float word;
typedef real packed;
enum { PER_WORD = 1 };
static inline v16 dot(v16 sum, word a, const word *b) { return sum + a * *(const v16 *)b; }
static inline word word_at(const real *x) { return load(*x); }
static inline word half_word_at(const real *x) { return load(*x); }
#endif

/* Sixteen neighbours as float32, and back. */
#ifdef BFLOAT16
static inline v16 load_16(const real *x) {
    typedef uint16_t h16 __attribute__((vector_size(32), aligned(2), may_alias));
    typedef uint32_t u16 __attribute__((vector_size(64)));
    return (v16)(__builtin_convertvector(*(const h16 *)x, u16) << 16);
}
#else
static inline v16 load_16(const real *x) { return *(const v16 *)x; }
#endif
#if defined(BFLOAT16) && defined(__AVX512BF16__)
static inline void store_16(v16 x, real *out) { _mm256_storeu_si256((void *)out, (__m256i)_mm512_cvtneps_pbh((__m512)x)); }
#else
static inline void store_16(v16 x, real *out) {
    for (int i = 0; i < LANES; i++) out[i] = store(x[i]);
}
static inline v16 dot_packed(v16 sum, word a, const packed *b) { return sum + a * load_16(b); }
#endif

/* A tile of sums in registers; a line is what the processor fetches at once, in bytes. */
enum { ROWS = 8, COLUMNS = 2 * LANES, LINE = 64 };

#define INLINE static inline __attribute__((always_inline))
/* A call with `rows` as a constant, so that its sums are registers. */
#define WITH_ROWS(rows, call)                                                                                                   \
    switch (rows) {                                                                                                             \
    case 1: { enum { N = 1 }; call; break; }                                                                                    \
    case 2: { enum { N = 2 }; call; break; }                                                                                    \
    case 3: { enum { N = 3 }; call; break; }                                                                                    \
    case 4: { enum { N = 4 }; call; break; }                                                                                    \
    case 5: { enum { N = 5 }; call; break; }                                                                                    \
    case 6: { enum { N = 6 }; call; break; }                                                                                    \
    case 7: { enum { N = 7 }; call; break; }                                                                                    \
    default: { enum { N = 8 }; call; break; }                                                                                   \
    }

/* pool.c: run(of, n) for each n < pieces, by at most so many threads, in any order. */
typedef void (*piece)(void *of, i64 number);
__attribute__((visibility("hidden"))) void in_pieces(piece run, void *of, i64 pieces, i64 threads);

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

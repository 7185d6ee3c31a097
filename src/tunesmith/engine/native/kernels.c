/* What a training step does between its matrix products, on a CPU: norms, rotary positions, the gate of an MLP, and the loss.
 * Compiled at first use with attention.c by engine/native/build.py, once for float32 and once for bfloat16;
 * engine/native/functions.py has the autograd functions, and says of each what it computes.
 */

#include "common.h"

enum { ALONE = 1 << 15 }; /* numbers that one thread is done with before another has woken */

/* ---- norm over rows of `dim` -------------------------------------------------------------------------------------- */

/* y = w n, or (1 + w) n where `offset` is 1; n = x / sqrt(mean(x^2) + eps). Llama rounds n to `real` before, Gemma does not. */
void rms_norm(const real *x, const real *weight, real *y, float *scale, i64 rows, i64 dim, float eps, int offset) {
#pragma omp parallel for schedule(static) if (rows * dim > ALONE)
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
#pragma omp parallel for schedule(static) if (rows * dim > ALONE)
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
#pragma omp parallel for schedule(static) if (tokens * heads * size > ALONE)
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
#pragma omp parallel for schedule(static) if (rows * width > ALONE)
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
#pragma omp parallel for schedule(static) if (rows * width > ALONE)
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
#pragma omp parallel for schedule(static) if (rows * words > ALONE)
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

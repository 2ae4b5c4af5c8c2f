/* What the fused decoder does between its matrix products, on the CPU. kernels.py compiles it for one model's shapes:
   WIDTH of a head, QUERIES to each head of keys and values, and BFLOAT16 if that is the compute dtype.
   Sums are float32; what goes into a matrix product is rounded to the compute dtype, as kernels.py's torch twin does it. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef union { float value; uint32_t bits; } word;

static inline int is_nan(float x) { /* by its bits: the compiler is told that there is none */
    return ((word){.value = x}.bits & 0x7fffffff) > 0x7f800000;
}

#ifdef BFLOAT16
typedef uint16_t number;
static inline float wide(number x) { return (word){.bits = (uint32_t)x << 16}.value; }
static inline number rounded(float x) { /* to the nearest, ties to even; NaN stays NaN */
    uint32_t bits = (word){.value = x}.bits;
    number nearest = (number)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    return is_nan(x) ? 0x7fc0 : nearest;
}
#else
typedef float number;
static inline float wide(number x) { return x; }
static inline number rounded(float x) { return x; }
#endif

/* x − n · ln 2. The compiler may add up in another order, and does: without one operation that multiplies and adds,
   n · ln 2 would be rounded as a number near 88 is. */
static inline float less_multiples(float x, float n) {
#if defined(__FMA__) || defined(__aarch64__)
    return x - n * 0.693359375f + n * 2.12194440e-4f;
#else
    return (float)(x - n * 0.69314718055994531);
#endif
}

/* e^x for x ≤ 88, to a millionth: 2^n times a polynomial of what is left (libm's stays scalar here). */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = floorf(x * 1.44269504f + 0.5f);
    float r = less_multiples(x, n);
    float series = 1.9875691500e-4f;
    series = series * r + 1.3981999507e-3f;
    series = series * r + 8.3334519073e-3f;
    series = series * r + 4.1665795894e-2f;
    series = series * r + 1.6666665459e-1f;
    series = series * r + 5.0000001201e-1f;
    return (series * r * r + r + 1.0f) * (word){.bits = (uint32_t)((int32_t)n + 127) << 23}.value;
}

/* stream [tokens, width] += added, where there is one; normed [tokens, width] = its RMS norm times weight [width]. */
void add_normed(int tokens, int width, float epsilon, float *restrict stream, const number *restrict added,
                const number *restrict weight, number *restrict normed) {
    #pragma omp parallel for schedule(static)
    for (int token = 0; token < tokens; token++) {
        float *x = stream + (size_t)token * width, squares = 0;
        const number *a = added + (size_t)token * width;
        number *out = normed + (size_t)token * width;
        if (added) for (int i = 0; i < width; i++) x[i] += wide(a[i]);
        for (int i = 0; i < width; i++) squares += x[i] * x[i];
        float scale = 1 / sqrtf(squares / width + epsilon);
        for (int i = 0; i < width; i++) out[i] = rounded(x[i] * scale * wide(weight[i]));
    }
}

/* out [tokens, width] = silu(gate) · up, of gates [tokens, 2 · width] that hold gate and up side by side. */
void gated(int tokens, int width, const number *restrict gates, number *restrict out) {
    #pragma omp parallel for schedule(static)
    for (int token = 0; token < tokens; token++) {
        const number *gate = gates + (size_t)token * 2 * width, *up = gate + width;
        number *o = out + (size_t)token * width;
        for (int i = 0; i < width; i++) {
            float x = wide(gate[i]), negative = -x > 88.0f ? 88.0f : -x;
            o[i] = rounded(wide(rounded(x / (1 + exponential(negative)))) * wide(up[i]));
        }
    }
}

/* Back through add_normed: grad_stream [tokens, width], the stream's gradient, and grad_weight [threads, width], what each
   thread adds to the weight's, from that of the normed stream. */
void norm_gradients(int tokens, int width, int threads, float epsilon, const float *restrict stream,
                    const number *restrict weight, const number *restrict grad_normed, float *restrict grad_stream,
                    float *restrict grad_weight) {
    #pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int thread = 0; thread < threads; thread++) {
        float *sums = grad_weight + (size_t)thread * width;
        memset(sums, 0, sizeof(float) * width);
        int first = (int)((int64_t)tokens * thread / threads), end = (int)((int64_t)tokens * (thread + 1) / threads);
        for (int token = first; token < end; token++) {
            const float *x = stream + (size_t)token * width;
            const number *of = grad_normed + (size_t)token * width;
            float *out = grad_stream + (size_t)token * width, squares = 0, along = 0;
            for (int i = 0; i < width; i++) squares += x[i] * x[i];
            for (int i = 0; i < width; i++) along += wide(of[i]) * wide(weight[i]) * x[i];
            float scale = 1 / sqrtf(squares / width + epsilon), shrink = along * scale * scale / width;
            for (int i = 0; i < width; i++) sums[i] += wide(of[i]) * x[i] * scale;
            for (int i = 0; i < width; i++) out[i] = (wide(of[i]) * wide(weight[i]) - x[i] * shrink) * scale;
        }
    }
}

/* Back through gated: grad_gates [tokens, 2 · width] from that of its output and the gates. */
void gated_gradients(int tokens, int width, const number *restrict gates, const number *restrict grad_gated,
                     number *restrict grad_gates) {
    #pragma omp parallel for schedule(static)
    for (int token = 0; token < tokens; token++) {
        const number *gate = gates + (size_t)token * 2 * width, *up = gate + width;
        const number *of = grad_gated + (size_t)token * width;
        number *grad_gate = grad_gates + (size_t)token * 2 * width, *grad_up = grad_gate + width;
        for (int i = 0; i < width; i++) {
            float x = wide(gate[i]), negative = -x > 88.0f ? 88.0f : -x;
            float sigmoid = 1 / (1 + exponential(negative));
            grad_up[i] = rounded(wide(of[i]) * wide(rounded(x * sigmoid)));
            grad_gate[i] = rounded(wide(rounded(wide(of[i]) * wide(up[i]))) * sigmoid * (1 + x * (1 - sigmoid)));
        }
    }
}

/* out: states [tokens, heads, WIDTH] with rotary positions for the first `rotated` heads; one token's cosines
   and sines [WIDTH / 2] lie `cosine_stride` and `sine_stride` from the next one's. */
void rotate(int tokens, int heads, int rotated, int cosine_stride, int sine_stride, const float *restrict cosines,
            const float *restrict sines, const number *restrict states, number *restrict out) {
    #pragma omp parallel for schedule(static)
    for (int token = 0; token < tokens; token++) {
        const float *cosine = cosines + (size_t)token * cosine_stride, *sine = sines + (size_t)token * sine_stride;
        size_t at = (size_t)token * heads * WIDTH, values = (size_t)rotated * WIDTH;
        for (int head = 0; head < rotated; head++) {
            const number *first = states + at + (size_t)head * WIDTH, *second = first + WIDTH / 2;
            number *o = out + at + (size_t)head * WIDTH;
            for (int i = 0; i < WIDTH / 2; i++) {
                float x = wide(first[i]), y = wide(second[i]);
                o[i] = rounded(x * cosine[i] - y * sine[i]);
                o[WIDTH / 2 + i] = rounded(y * cosine[i] + x * sine[i]);
            }
        }
        memcpy(out + at + values, states + at + values, sizeof(number) * ((size_t)heads * WIDTH - values));
    }
}

/* Asks for a key or a value that is read AHEAD from now: answers lie too far apart for the processor to see it come. */
#define AHEAD 32
static inline void fetch(const number *vector) {
    for (size_t i = 0; i < WIDTH; i += 64 / sizeof(number)) __builtin_prefetch(vector + i);
}

/* scores[q · stride + i] of QUERIES queries by `count` keys [count, WIDTH]. */
static inline void score(const float *restrict queries, const number *restrict keys, int count, float *restrict scores,
                         int stride) {
    for (int i = 0; i < count; i++) {
        fetch(keys + (size_t)(i + AHEAD) * WIDTH);
        for (int q = 0; q < QUERIES; q++) {
            float sum = 0;
            for (int w = 0; w < WIDTH; w++) sum += queries[q * WIDTH + w] * wide(keys[(size_t)i * WIDTH + w]);
            scores[(size_t)q * stride + i] = sum;
        }
    }
}

static inline void softmax(float *restrict scores, int count) {
    float top = scores[0], sum = 0, all = 0;
    for (int i = 0; i < count; i++) top = scores[i] > top ? scores[i] : top;
    for (int i = 0; i < count; i++) all += scores[i]; /* NaN if one is, which a maximum may hide */
    if (is_nan(all)) {
        for (int i = 0; i < count; i++) scores[i] = all;
        return;
    }
    for (int i = 0; i < count; i++) sum += scores[i] = exponential(scores[i] - top);
    for (int i = 0; i < count; i++) scores[i] /= sum;
}

/* out [QUERIES, WIDTH] += values [count, WIDTH] weighted by each query's probabilities, laid out as scores are. */
static inline void add_values(const float *restrict probabilities, int stride, const number *restrict values, int count,
                              float out[QUERIES][WIDTH]) {
    float sums[QUERIES][WIDTH]; /* in registers, where they fit */
    memcpy(sums, out, sizeof sums);
    for (int i = 0; i < count; i++) {
        fetch(values + (size_t)(i + AHEAD) * WIDTH);
        for (int q = 0; q < QUERIES; q++) {
            float probability = probabilities[(size_t)q * stride + i];
            for (int w = 0; w < WIDTH; w++) sums[q][w] += probability * wide(values[(size_t)i * WIDTH + w]);
        }
    }
    memcpy(out, sums, sizeof sums);
}

/* A decode step's attention. rows [3, tokens]: each token's prompt, that prompt's length, and how many tokens its own
   answer has so far. states [tokens, (QUERIES + 2) · key_heads, WIDTH]: queries, keys, values. The prompts' keys and
   values are [·, key_heads, prompt_columns, WIDTH]; the answers' own lie in blocks [·, key_heads, block, WIDTH] from
   `offset` on, the first holding each answer's first `block` tokens, and the token's are added there.
   out [tokens, QUERIES · key_heads, WIDTH]. Returns whether there was memory for the scores. */
int attend(int tokens, int key_heads, float scale, const int *restrict rows, const number *restrict states,
           const number *restrict prompt_keys, const number *restrict prompt_values, int prompt_columns, int num_blocks,
           int block, size_t offset, number *const *restrict keys, number *const *restrict values, number *restrict out) {
    int failed = 0;
    #pragma omp parallel reduction(| : failed)
    {
        float *scores = malloc(sizeof(float) * QUERIES * ((size_t)prompt_columns + (size_t)num_blocks * block));
        failed = scores == NULL;
        #pragma omp for collapse(2) schedule(dynamic, 12) /* answers differ in length; a few rows at a time lie together */
        for (int token = 0; token < tokens; token++)
            for (int head = 0; head < key_heads; head++) {
                if (failed) continue;
                int before = rows[tokens + token], own = rows[2 * tokens + token] + 1, seen = before + own;
                const number *state = states + (size_t)token * (QUERIES + 2) * key_heads * WIDTH;
                const number *key = state + ((size_t)QUERIES * key_heads + head) * WIDTH;
                const number *value = key + (size_t)key_heads * WIDTH;
                size_t prompt_at = ((size_t)rows[token] * key_heads + head) * prompt_columns * WIDTH;
                size_t answer_at = offset + ((size_t)token * key_heads + head) * block * WIDTH;
                size_t newest = answer_at + (size_t)((own - 1) % block) * WIDTH;
                float queries[QUERIES * WIDTH], attended[QUERIES][WIDTH];
                memset(attended, 0, sizeof attended);
                for (int i = 0; i < QUERIES * WIDTH; i++)
                    queries[i] = wide(state[(size_t)head * QUERIES * WIDTH + i]) * scale;
                memcpy(keys[(own - 1) / block] + newest, key, sizeof(number) * WIDTH);
                memcpy(values[(own - 1) / block] + newest, value, sizeof(number) * WIDTH);
                score(queries, prompt_keys + prompt_at, before, scores, seen);
                for (int first = 0; first < own; first += block)
                    score(queries, keys[first / block] + answer_at, own - first < block ? own - first : block,
                          scores + before + first, seen);
                for (int q = 0; q < QUERIES; q++) softmax(scores + (size_t)q * seen, seen);
                add_values(scores, seen, prompt_values + prompt_at, before, attended);
                for (int first = 0; first < own; first += block)
                    add_values(scores + before + first, seen, values[first / block] + answer_at,
                               own - first < block ? own - first : block, attended);
                number *o = out + ((size_t)token * key_heads + head) * QUERIES * WIDTH;
                for (int i = 0; i < QUERIES * WIDTH; i++) o[i] = rounded(attended[i / WIDTH][i % WIDTH]);
            }
        free(scores);
    }
    return !failed;
}

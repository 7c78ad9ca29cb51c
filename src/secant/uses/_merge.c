/* Blocks of merges in one journey: stored values of the models in, those of the result out.
 *
 * A block is worked through in tiles whose rows stay in the first-level cache, by plain loops that
 * the compiler makes vectors of. Arithmetic is IEEE with one rounding an operation
 * (-ffp-contract=off), in the order of merge_methods.py: every processor and vector width gives
 * the bits that numpy gives. What is not finite never becomes finite, so that one look at the
 * result finds it.
 */
#include "native.h"

#define INLINE static inline __attribute__((always_inline))

/* A model beside its base. `keep` (a byte for each value, or null) is what DARE keeps, divided by
 * the share that it keeps. `is_trimmed`: magnitudes below `limit` go, and those equal to it once
 * `left`, which counts down, are kept. */
typedef struct {
    const void *stored;
    const uint8_t *keep;
    double weight, rescale;
    uint64_t limit;
    int64_t is_trimmed, left;
} change;

/* `rows` is room for three tiles and one for each change. `is_elected`: the sign of most weight
 * wins; then `is_mean` divides by the weights that agree with it. Otherwise `divisor` divides. */
typedef struct {
    const void *base;
    change *changes;
    void *out, *rows;
    int64_t count, models, tile, is_elected, is_mean;
    double divisor, scale;
} join_job;

typedef struct {
    const void *const *stored;
    const double *weights;
    void *out, *rows;
    int64_t count, models, tile;
    double divisor;
} mix_job;

/* Counts of the 16-bit digit at `shift` of the magnitudes of changes that begin with `prefix`. */
typedef struct {
    const void *base, *stored;
    uint32_t *counts;
    void *rows;
    int64_t count, tile, shift;
    uint64_t prefix;
} count_job;

/* The number of this layout of jobs; the caller refuses another. */
EXPORT int64_t secant_merge_layout(void) { return 1; }

typedef union {
    float value;
    uint32_t bits;
} single;

typedef union {
    double value;
    uint64_t bits;
} twice;

/* bfloat16: the upper half of a float32. To nearest, ties to even, by what carries into it. */
INLINE float widen_bf16(uint16_t stored) { return (single){.bits = (uint32_t)stored << 16}.value; }
INLINE uint32_t carried(float value) {
    uint32_t bits = (single){.value = value}.bits;
    return bits + 0x7FFF + ((bits >> 16) & 1);
}
INLINE uint16_t narrow_bf16(float value) { return (uint16_t)(carried(value) >> 16); }
INLINE float round_bf16(float value) { return (single){.bits = carried(value) & 0xFFFF0000}.value; }

/* float16: an exponent that is 112 less, and below 2^-14 steps of 2^-24. All cases are worked out and
 * one is taken, for the compiler makes no vectors of a branch around arithmetic. */
INLINE uint32_t either(int is_first, uint32_t first, uint32_t second) {
    uint32_t mask = -(uint32_t)is_first;
    return (first & mask) | (second & ~mask);
}
INLINE float widen_f16(uint16_t stored) {
    uint32_t size = stored & 0x7FFF, sign = (uint32_t)(stored & 0x8000) << 16;
    uint32_t small = (single){.value = (float)(int32_t)size * 0x1p-24f}.bits;
    uint32_t normal = (size << 13) + (112u << 23);
    uint32_t huge = (size << 13) | 0x7F800000;
    uint32_t wide = either(size < 0x400, small, either(size < 0x7C00, normal, huge));
    return (single){.bits = wide | sign}.value;
}
INLINE uint16_t narrow_f16(float value) {
    uint32_t bits = (single){.value = value}.bits, size = bits & 0x7FFFFFFF;
    float magnitude = (single){.bits = size}.value;
    /* The step of float32 at 0.5 is 2^-24: the sum rounds as a small float16 does. */
    uint32_t small = (single){.value = magnitude + 0.5f}.bits - 0x3F000000;
    uint32_t normal = (size - (112u << 23) + 0xFFF + ((size >> 13) & 1)) >> 13;
    uint32_t huge = either(size > 0x7F800000, 0x7E00, 0x7C00);
    uint32_t narrow = either(size < 113u << 23, small, either(size < 143u << 23, normal, huge));
    return (uint16_t)(narrow | ((bits >> 16) & 0x8000));
}
INLINE float round_f16(float value) { return widen_f16(narrow_f16(value)); }

INLINE float same_f32(float value) { return value; }
INLINE uint32_t bits_f32(float value) { return (single){.value = value}.bits; }
INLINE double same_f64(double value) { return value; }
INLINE uint64_t bits_f64(double value) { return (twice){.value = value}.bits; }

#define KIND(name) name##_bf16
#define STORED uint16_t
#define REAL float
#define BITS int32_t
#define WIDEN widen_bf16
#define NARROW narrow_bf16
#define ROUND round_bf16
#define RAW narrow_bf16
#define INFINITE 0x7F80
#include "_merge_kind.h"

#define KIND(name) name##_f16
#define STORED uint16_t
#define REAL float
#define BITS int32_t
#define WIDEN widen_f16
#define NARROW narrow_f16
#define ROUND round_f16
#define RAW narrow_f16
#define INFINITE 0x7C00
#include "_merge_kind.h"

#define KIND(name) name##_f32
#define STORED float
#define REAL float
#define BITS int32_t
#define WIDEN same_f32
#define NARROW same_f32
#define ROUND same_f32
#define RAW bits_f32
#define INFINITE 0x7F800000
#include "_merge_kind.h"

#define KIND(name) name##_f64
#define STORED double
#define REAL double
#define BITS int64_t
#define WIDEN same_f64
#define NARROW same_f64
#define ROUND same_f64
#define RAW bits_f64
#define INFINITE 0x7FF0000000000000
#include "_merge_kind.h"

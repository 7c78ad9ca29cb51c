/* Linear recurrences in one pass over time: h_t = a_t h_{t-1} + b_t, and the pass back.
 *
 * One job is a share of the batch and of the lanes (all dimensions after time, as one); threads
 * take shares, nothing is shared between them.
 * A negative time stride runs a sequence backwards, a stride of 0 repeats what is there, so neither
 * reversing nor broadcasting copies anything. Strides count elements; lanes lie side by side or,
 * with stride 0, are one number.
 *
 * Arithmetic is IEEE with one rounding an operation (-ffp-contract=off), so that every processor
 * and every vector width gives the same bits, and the plain loop in torch the same as this one.
 */
#include <string.h>

#include "native.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

/* Real numbers in one block of lanes: state and coefficients of a block stay in the first-level
 * cache while its time runs. */
#define BLOCK 4096
/* Steps whose terms are summed in the working type before they join the float64 sum. */
#define FLUSH 16
/* Bytes taken at once where time runs down through memory: some lines of the caches. */
#define PIECE 128
/* Sums that a product of a row is made in. */
#define LANES 8

typedef struct {
    const void *a, *b, *initial;
    void *out;
    int64_t batch_from, batch_to, lane_from, lane_to, length;
    int64_t a_batch, a_time, a_lane;
    int64_t b_batch, b_time, b_lane;
    int64_t initial_batch, initial_lane;
    int64_t out_batch, out_time;
    int64_t streams;
} forward_job;

typedef struct {
    const void *a, *upstream, *before, *initial;
    void *grad_b, *grad_a, *carry;
    double *sums;
    int64_t batch_from, batch_to, lane_from, lane_to, length, lanes;
    int64_t a_batch, a_time, a_lane;
    int64_t upstream_batch, upstream_time, upstream_lane;
    int64_t before_batch, before_time;
    int64_t initial_batch, initial_lane;
    int64_t grad_b_batch, grad_b_time;
    int64_t grad_a_batch, grad_a_time;
    int64_t streams;
} backward_job;

/* Matrices (n, n) lie row by row; blocks, whose vectors lie one after the other, have their own or
 * share one. `is_back` takes the conjugate transpose of the matrix of the step that was taken
 * before, which is what the pass back asks for. */
typedef struct {
    const void *a, *b, *initial;
    void *out;
    int64_t batch_from, batch_to, block_from, block_to, length, places;
    int64_t a_batch, a_time, a_block;
    int64_t b_batch, b_time;
    int64_t initial_batch;
    int64_t out_batch, out_time;
    int64_t is_back;
} matrix_job;

/* The number of this layout of jobs; the caller refuses another. */
EXPORT int64_t secant_scan_layout(void) { return 4; }

/* Outputs past this do not stay in the caches; smaller ones come from memory that is in use. */
#define LARGE (32 << 20)

/* Get an output ready that will be written once; gives whether to write it past the caches.
 *
 * Memory that the operating system has yet to find is asked for in large pages, 2 MB at a time in
 * place of 4 KB, which takes a third of the time also where memory lies in fragments. It comes with
 * zeroes that are in the caches when they are overwritten, so it is written through them. Memory that
 * is there already, as with an allocator that keeps it, is written past them. */
EXPORT int64_t secant_scan_prepare(void *start, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes < LARGE) return 0;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t low = ((uintptr_t)start + page - 1) / page * page;
    uintptr_t high = ((uintptr_t)start + (uintptr_t)bytes) / page * page;
    unsigned char there = 0;
    if (mincore((void *)(low + (high - low) / 2 / page * page), page, &there)) return 0;
    if (there & 1) return 1;
    /* A kernel that has no large pages refuses; then they are small. */
    (void)madvise((void *)low, high - low, MADV_HUGEPAGE);
#else
    (void)start;
    (void)bytes;
#endif
    return 0;
}

/* A row from the first-level cache to an output larger than the caches. Past them: an ordinary store
 * would first read the line that it overwrites, which makes three journeys of two. */
static inline __attribute__((always_inline)) void stream(void *to, const void *from, size_t bytes) {
#if defined(__SSE2__)
    if (((uintptr_t)to & 15) == 0) {
        size_t whole = bytes / 16;
        for (size_t k = 0; k < whole; k++)
            _mm_stream_si128((__m128i *)to + k, _mm_loadu_si128((const __m128i *)from + k));
        memcpy((char *)to + 16 * whole, (const char *)from + 16 * whole, bytes - 16 * whole);
        return;
    }
#endif
    memcpy(to, from, bytes);
}

/* Streamed rows are in order only past this. */
static inline void settle(void) {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

#define REAL float
#define PARTS 1
#define NAMED(name) name##_f32
#include "_scan_rows.h"
#undef REAL
#undef PARTS
#undef NAMED

#define REAL double
#define PARTS 1
#define NAMED(name) name##_f64
#include "_scan_rows.h"
#undef REAL
#undef PARTS
#undef NAMED

#define REAL float
#define PARTS 2
#define NAMED(name) name##_c64
#include "_scan_rows.h"
#undef REAL
#undef PARTS
#undef NAMED

#define REAL double
#define PARTS 2
#define NAMED(name) name##_c128
#include "_scan_rows.h"

/* The two passes for one type of number; _scan.c includes this once a type.
 *
 * REAL: the real type; PARTS: 1 for real numbers, 2 for complex ones (real part, imaginary part).
 */

/* `count` numbers into `to`: from a row, or one number again and again. */
static inline void NAMED(row)(REAL *restrict to, const REAL *from, int64_t lane, int64_t count) {
    if (lane)
        memcpy(to, from, (size_t)count * PARTS * sizeof(REAL));
    else
        for (int64_t j = 0; j < count; j++)
            for (int k = 0; k < PARTS; k++) to[PARTS * j + k] = from[k];
}

/* The state one step on, and written out. */
static inline __attribute__((always_inline)) void NAMED(step)(
    REAL *restrict state, const REAL *restrict a, const REAL *restrict b, REAL *restrict out,
    int64_t count) {
#if PARTS == 1
    for (int64_t j = 0; j < count; j++) out[j] = state[j] = a[j] * state[j] + b[j];
#else
    for (int64_t j = 0; j < count; j++) {
        REAL x = state[2 * j], y = state[2 * j + 1];
        REAL real = a[2 * j] * x - a[2 * j + 1] * y + b[2 * j];
        REAL imag = a[2 * j] * y + a[2 * j + 1] * x + b[2 * j + 1];
        out[2 * j] = state[2 * j] = real;
        out[2 * j + 1] = state[2 * j + 1] = imag;
    }
#endif
}

/* A whole row of it. `is_down`: time runs down through memory, and so do the pieces of a row, for
 * processors fetch ahead of a reader who keeps one direction. */
static inline __attribute__((always_inline)) void NAMED(step_row)(
    REAL *restrict state, const REAL *restrict a, const REAL *restrict b, REAL *restrict out,
    int64_t count, int is_down) {
    if (!is_down) {
        NAMED(step)(state, a, b, out, count);
        return;
    }
    const int64_t piece = PIECE / (PARTS * (int64_t)sizeof(REAL)), whole = count / piece * piece;
    int64_t at = PARTS * whole;
    NAMED(step)(state + at, a + at, b + at, out + at, count - whole);
    for (at -= PARTS * piece; at >= 0; at -= PARTS * piece)
        NAMED(step)(state + at, a + at, b + at, out + at, piece);
}

CLONES EXPORT void NAMED(secant_scan_forward)(const forward_job *job) {
    REAL state[BLOCK], held[BLOCK], filled[BLOCK], row[BLOCK];
    const int64_t width = BLOCK / PARTS;
    for (int64_t batch = job->batch_from; batch < job->batch_to; batch++)
        for (int64_t lane = job->lane_from; lane < job->lane_to; lane += width) {
            int64_t count = job->lane_to - lane < width ? job->lane_to - lane : width;
            const REAL *a = (const REAL *)job->a +
                            PARTS * (batch * job->a_batch + lane * job->a_lane);
            const REAL *b = (const REAL *)job->b +
                            PARTS * (batch * job->b_batch + lane * job->b_lane);
            REAL *out = (REAL *)job->out + PARTS * (batch * job->out_batch + lane);
            if (job->initial)
                NAMED(row)(state, (const REAL *)job->initial +
                                  PARTS * (batch * job->initial_batch + lane * job->initial_lane),
                           job->initial_lane, count);
            else
                memset(state, 0, (size_t)count * PARTS * sizeof(REAL));
            int copies_a = !job->a_time || !job->a_lane, is_down = job->out_time < 0;
            if (copies_a) NAMED(row)(held, a, job->a_lane, count);
            for (int64_t time = 0; time < job->length; time++) {
                const REAL *now_a = a, *now_b = b;
                if (copies_a) {
                    if (job->a_time && time) NAMED(row)(held, a, 0, count);
                    now_a = held;
                }
                if (!job->b_lane) {
                    NAMED(row)(filled, b, 0, count);
                    now_b = filled;
                }
                NAMED(step_row)(state, now_a, now_b, job->streams ? row : out, count, is_down);
                if (job->streams) stream(out, row, (size_t)count * PARTS * sizeof(REAL));
                a += PARTS * job->a_time;
                b += PARTS * job->b_time;
                out += PARTS * job->out_time;
            }
        }
    if (job->streams) settle();
}

/* One step back. `carry` is what later steps ask of this state; on return, of the one before.
 * With `terms` the gradient of a is written there, with `sums` it is added there. */
static inline __attribute__((always_inline)) void NAMED(back)(
    REAL *restrict carry, const REAL *restrict a, const REAL *restrict upstream,
    const REAL *restrict before, REAL *restrict grad_b, REAL *restrict terms,
    REAL *restrict sums, int64_t count) {
#if PARTS == 1
#define GRADIENT(WRITE)                         \
    for (int64_t j = 0; j < count; j++) {       \
        REAL g = upstream[j] + carry[j];        \
        grad_b[j] = g;                          \
        REAL term = before ? before[j] * g : 0; \
        WRITE;                                  \
        carry[j] = a[j] * g;                    \
    }
    if (terms && before) {
        GRADIENT(terms[j] = term)
    } else if (sums && before) {
        GRADIENT(sums[j] += term)
    } else {
        GRADIENT((void)term)
    }
#else
#define GRADIENT(WRITE)                                                        \
    for (int64_t j = 0; j < count; j++) {                                      \
        REAL x = upstream[2 * j] + carry[2 * j];                               \
        REAL y = upstream[2 * j + 1] + carry[2 * j + 1];                       \
        grad_b[2 * j] = x;                                                     \
        grad_b[2 * j + 1] = y;                                                 \
        REAL real = before ? before[2 * j] * x + before[2 * j + 1] * y : 0;    \
        REAL imag = before ? before[2 * j] * y - before[2 * j + 1] * x : 0;    \
        WRITE;                                                                 \
        carry[2 * j] = a[2 * j] * x + a[2 * j + 1] * y;                        \
        carry[2 * j + 1] = a[2 * j] * y - a[2 * j + 1] * x;                    \
    }
    if (terms && before) {
        GRADIENT(terms[2 * j] = real; terms[2 * j + 1] = imag)
    } else if (sums && before) {
        GRADIENT(sums[2 * j] += real; sums[2 * j + 1] += imag)
    } else {
        GRADIENT((void)real; (void)imag)
    }
#endif
#undef GRADIENT
}

/* A whole row of it, in the order of `step_row`. */
static inline __attribute__((always_inline)) void NAMED(back_row)(
    REAL *restrict carry, const REAL *restrict a, const REAL *restrict upstream,
    const REAL *restrict before, REAL *restrict grad_b, REAL *restrict terms,
    REAL *restrict sums, int64_t count, int is_down) {
    if (!is_down) {
        NAMED(back)(carry, a, upstream, before, grad_b, terms, sums, count);
        return;
    }
    const int64_t piece = PIECE / (PARTS * (int64_t)sizeof(REAL)), whole = count / piece * piece;
    int64_t at = PARTS * whole;
#define BACK(NUMBERS)                                                                      \
    NAMED(back)(carry + at, a + at, upstream + at, before ? before + at : NULL,            \
                grad_b + at, terms ? terms + at : NULL, sums ? sums + at : NULL, NUMBERS)
    BACK(count - whole);
    for (at -= PARTS * piece; at >= 0; at -= PARTS * piece) BACK(piece);
#undef BACK
}

CLONES EXPORT void NAMED(secant_scan_backward)(const backward_job *job) {
    REAL carry[BLOCK], held[BLOCK], filled[BLOCK], first[BLOCK], part[BLOCK];
    REAL row_b[BLOCK], row_a[BLOCK];
    const int64_t width = BLOCK / PARTS;
    for (int64_t batch = job->batch_from; batch < job->batch_to; batch++)
        for (int64_t lane = job->lane_from; lane < job->lane_to; lane += width) {
            int64_t count = job->lane_to - lane < width ? job->lane_to - lane : width;
            size_t bytes = (size_t)count * PARTS * sizeof(REAL);
            const REAL *a = (const REAL *)job->a +
                            PARTS * (batch * job->a_batch + lane * job->a_lane);
            const REAL *upstream = (const REAL *)job->upstream +
                PARTS * (batch * job->upstream_batch + lane * job->upstream_lane);
            const REAL *before =
                (const REAL *)job->before + PARTS * (batch * job->before_batch + lane);
            REAL *grad_b = (REAL *)job->grad_b + PARTS * (batch * job->grad_b_batch + lane);
            REAL *grad_a = job->grad_a ? (REAL *)job->grad_a +
                                             PARTS * (batch * job->grad_a_batch + lane)
                                       : NULL;
            REAL *kept = (REAL *)job->carry + PARTS * (batch * job->lanes + lane);
            double *sums = job->sums ? job->sums + PARTS * (batch * job->lanes + lane) : NULL;
            memcpy(carry, kept, bytes);
            memset(part, 0, bytes);
            if (job->initial)
                NAMED(row)(first, (const REAL *)job->initial +
                                  PARTS * (batch * job->initial_batch + lane * job->initial_lane),
                           job->initial_lane, count);
            else
                memset(first, 0, bytes);
            int copies_a = !job->a_time || !job->a_lane, is_down = job->grad_b_time < 0;
            if (copies_a) NAMED(row)(held, a, job->a_lane, count);
            for (int64_t time = 0; time < job->length; time++) {
                const REAL *now_a = a, *now_up = upstream;
                const REAL *now_before = time + 1 < job->length ? before : first;
                if (copies_a) {
                    if (job->a_time && time) NAMED(row)(held, a, 0, count);
                    now_a = held;
                }
                if (!job->upstream_lane) {
                    NAMED(row)(filled, upstream, 0, count);
                    now_up = filled;
                }
                if (!grad_a && !sums) now_before = NULL;
                REAL *to_b = job->streams ? row_b : grad_b;
                REAL *to_a = grad_a && job->streams ? row_a : grad_a;
                NAMED(back_row)(carry, now_a, now_up, now_before, to_b, to_a, part, count, is_down);
                if (job->streams) {
                    stream(grad_b, row_b, bytes);
                    if (grad_a) stream(grad_a, row_a, bytes);
                }
                if (sums && (time % FLUSH == FLUSH - 1 || time + 1 == job->length))
                    for (int64_t j = 0; j < count * PARTS; j++) {
                        sums[j] += part[j];
                        part[j] = 0;
                    }
                a += PARTS * job->a_time;
                upstream += PARTS * job->upstream_time;
                before += PARTS * job->before_time;
                grad_b += PARTS * job->grad_b_time;
                if (grad_a) grad_a += PARTS * job->grad_a_time;
            }
            memcpy(kept, carry, bytes);
        }
    if (job->streams) settle();
}

/* `to` + matrix (n, n) times `from`; rows are summed in LANES parts, the same on every processor. */
static inline __attribute__((always_inline)) void NAMED(rows_on)(
    REAL *restrict to, const REAL *restrict matrix, const REAL *restrict from, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const REAL *line = matrix + PARTS * n * i;
        REAL part[LANES * PARTS] = {0};
        int64_t whole = n / LANES * LANES;
        for (int64_t j = 0; j < n; j += LANES) {
            int64_t some = j < whole ? LANES : n - whole;
            for (int64_t k = 0; k < some; k++) {
                const REAL *x = line + PARTS * (j + k), *y = from + PARTS * (j + k);
#if PARTS == 1
                part[k] += x[0] * y[0];
#else
                part[2 * k] += x[0] * y[0] - x[1] * y[1];
                part[2 * k + 1] += x[0] * y[1] + x[1] * y[0];
#endif
            }
        }
        for (int64_t half = LANES / 2; half; half /= 2)
            for (int64_t k = 0; k < half * PARTS; k++) part[k] += part[half * PARTS + k];
        for (int k = 0; k < PARTS; k++) to[PARTS * i + k] += part[k];
    }
}

/* `to` + the conjugate transpose of the matrix times `from`. */
static inline __attribute__((always_inline)) void NAMED(columns_on)(
    REAL *restrict to, const REAL *restrict matrix, const REAL *restrict from, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const REAL *line = matrix + PARTS * n * i;
#if PARTS == 1
        const REAL x = from[i];
        for (int64_t j = 0; j < n; j++) to[j] += line[j] * x;
#else
        const REAL x = from[2 * i], y = from[2 * i + 1];
        for (int64_t j = 0; j < n; j++) {
            to[2 * j] += line[2 * j] * x + line[2 * j + 1] * y;
            to[2 * j + 1] += line[2 * j] * y - line[2 * j + 1] * x;
        }
#endif
    }
}

/* The state before a step is the row of `out` that was written last. */
CLONES EXPORT void NAMED(secant_scan_matrix)(const matrix_job *job) {
    const int64_t n = job->places;
    for (int64_t batch = job->batch_from; batch < job->batch_to; batch++)
        for (int64_t block = job->block_from; block < job->block_to; block++) {
            const REAL *a = (const REAL *)job->a +
                            PARTS * (batch * job->a_batch + block * job->a_block);
            const REAL *b = (const REAL *)job->b + PARTS * (batch * job->b_batch + block * n);
            REAL *out = (REAL *)job->out + PARTS * (batch * job->out_batch + block * n);
            const REAL *state = (const REAL *)job->initial +
                                PARTS * (batch * job->initial_batch + block * n);
            for (int64_t time = 0; time < job->length; time++) {
                memcpy(out, b, (size_t)n * PARTS * sizeof(REAL));
                if (!job->is_back)
                    NAMED(rows_on)(out, a, state, n);
                else if (time)
                    NAMED(columns_on)(out, a - PARTS * job->a_time, state, n);
                state = out;
                a += PARTS * job->a_time;
                b += PARTS * job->b_time;
                out += PARTS * job->out_time;
            }
        }
}

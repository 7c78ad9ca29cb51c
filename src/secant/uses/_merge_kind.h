/* The blocks of _merge.c for one kind of values, which KIND, STORED, REAL, BITS, WIDEN, NARROW, ROUND,
 * RAW (the stored bits) and INFINITE (those of infinity) name; they are free again at the end. */

#define MAGNITUDE(value) ((BITS)RAW(value) & (BITS)((1ull << (8 * sizeof(STORED) - 1)) - 1))

/* Stores a finished row; gives whether all of it is finite. */
INLINE int64_t KIND(stored)(const REAL *restrict row, STORED *restrict out, int64_t count) {
    BITS largest = 0;
    for (int64_t i = 0; i < count; i++) {
        STORED value = NARROW(row[i]);
        BITS size = MAGNITUDE(row[i]);
        out[i] = value;
        largest = size > largest ? size : largest;
    }
    return largest < INFINITE;
}

/* The sum of weighted models, divided by `divisor`; gives whether all of it is finite. */
CLONES EXPORT int64_t KIND(secant_merge_mix)(const mix_job *job) {
    REAL *restrict total = job->rows, divisor = (REAL)job->divisor;
    int64_t is_finite = 1;
    for (int64_t at = 0; at < job->count; at += job->tile) {
        int64_t count = job->count - at < job->tile ? job->count - at : job->tile;
        for (int64_t model = 0; model < job->models; model++) {
            const STORED *restrict in = (const STORED *)job->stored[model] + at;
            REAL weight = (REAL)job->weights[model];
            if (!model)
                for (int64_t i = 0; i < count; i++) total[i] = WIDEN(in[i]) * weight;
            else
                for (int64_t i = 0; i < count; i++) total[i] += WIDEN(in[i]) * weight;
        }
        if (divisor != 1)
            for (int64_t i = 0; i < count; i++) total[i] /= divisor;
        is_finite &= KIND(stored)(total, (STORED *)job->out + at, count);
    }
    return is_finite;
}

INLINE void KIND(changed)(
    const REAL *restrict base, const STORED *restrict in, REAL *restrict row, int64_t count) {
    for (int64_t i = 0; i < count; i++) row[i] = ROUND(WIDEN(in[i]) - base[i]);
}

/* Only the tile in which `left` runs out goes value by value. */
INLINE void KIND(trimmed)(change *one, REAL *restrict row, int64_t count) {
    BITS limit = (BITS)one->limit, equal = 0;
    if (one->left)
        for (int64_t i = 0; i < count; i++) equal += MAGNITUDE(row[i]) == limit;
    if (equal > one->left) {
        for (int64_t i = 0; i < count; i++) {
            BITS size = MAGNITUDE(row[i]);
            int64_t is_last = size == limit && one->left;
            one->left -= is_last;
            row[i] *= (REAL)(size > limit || is_last);
        }
        return;
    }
    one->left -= equal;
    BITS largest = equal ? limit - 1 : limit; /* of those that go */
    /* By its sign, as compilers make a branch of a comparison here; a NaN times 0 stays one. */
    for (int64_t i = 0; i < count; i++)
        row[i] *= (REAL) - (int32_t)((largest - MAGNITUDE(row[i])) >> (8 * sizeof(BITS) - 1));
}

/* The rows as they take part: all alike where no sign is elected. */
INLINE void KIND(elected)(
    const join_job *job, REAL *restrict rows, REAL *restrict sum, REAL *restrict divisor,
    int64_t count) {
    for (int64_t i = 0; i < count; i++) sum[i] = rows[i];
    for (int64_t model = 1; model < job->models; model++) {
        const REAL *restrict row = rows + model * job->tile;
        for (int64_t i = 0; i < count; i++) sum[i] += row[i];
    }
    for (int64_t i = 0; i < count; i++) divisor[i] = 0;
    for (int64_t model = 0; model < job->models; model++) {
        REAL *restrict row = rows + model * job->tile;
        REAL weight = (REAL)job->changes[model].weight;
        for (int64_t i = 0; i < count; i++) {
            REAL agrees = (REAL)(((row[i] > 0) == (sum[i] >= 0)) & (row[i] != 0));
            row[i] *= agrees;
            divisor[i] += weight * agrees;
        }
    }
    for (int64_t i = 0; i < count; i++) {
        divisor[i] = ROUND(divisor[i]);
        divisor[i] += (REAL)(divisor[i] == 0);
    }
}

/* The base and its changes; gives whether all of the result is finite. */
CLONES EXPORT int64_t KIND(secant_merge_join)(const join_job *job) {
    REAL *restrict base = job->rows, *restrict total = base + job->tile;
    REAL *restrict divisor = total + job->tile, *restrict rows = divisor + job->tile;
    REAL scale = (REAL)job->scale, common = (REAL)job->divisor;
    int64_t is_finite = 1;
    for (int64_t at = 0; at < job->count; at += job->tile) {
        int64_t count = job->count - at < job->tile ? job->count - at : job->tile;
        const STORED *restrict from = (const STORED *)job->base + at;
        for (int64_t i = 0; i < count; i++) base[i] = WIDEN(from[i]);
        for (int64_t model = 0; model < job->models; model++) {
            change *one = job->changes + model;
            REAL *restrict row = rows + model * job->tile;
            REAL weight = (REAL)one->weight, rescale = (REAL)one->rescale;
            KIND(changed)(base, (const STORED *)one->stored + at, row, count);
            if (one->is_trimmed) KIND(trimmed)(one, row, count);
            if (one->keep) {
                const uint8_t *restrict keep = one->keep + at;
                for (int64_t i = 0; i < count; i++)
                    row[i] = ROUND(row[i] * rescale) * (REAL)keep[i];
            }
            for (int64_t i = 0; i < count; i++) row[i] = ROUND(row[i] * weight);
        }
        if (job->is_elected) KIND(elected)(job, rows, total, divisor, count);
        for (int64_t i = 0; i < count; i++) total[i] = rows[i] + 0; /* a sum is never -0 */
        for (int64_t model = 1; model < job->models; model++) {
            const REAL *restrict row = rows + model * job->tile;
            for (int64_t i = 0; i < count; i++) total[i] += row[i];
        }
        for (int64_t i = 0; i < count; i++) total[i] = ROUND(total[i]);
        if (job->is_elected && job->is_mean)
            for (int64_t i = 0; i < count; i++) total[i] = ROUND(total[i] / divisor[i]);
        else if (common != 1)
            for (int64_t i = 0; i < count; i++) total[i] = ROUND(total[i] / common);
        if (scale != 1)
            for (int64_t i = 0; i < count; i++) total[i] = ROUND(total[i] * scale);
        for (int64_t i = 0; i < count; i++) total[i] = base[i] + total[i];
        is_finite &= KIND(stored)(total, (STORED *)job->out + at, count);
    }
    return is_finite;
}

CLONES EXPORT void KIND(secant_merge_count)(const count_job *job) {
    REAL *restrict base = job->rows, *restrict row = base + job->tile;
    BITS *restrict sizes = (BITS *)(row + job->tile);
    int64_t above = job->shift + 16;
    for (int64_t at = 0; at < job->count; at += job->tile) {
        int64_t count = job->count - at < job->tile ? job->count - at : job->tile;
        const STORED *restrict from = (const STORED *)job->base + at;
        for (int64_t i = 0; i < count; i++) base[i] = WIDEN(from[i]);
        KIND(changed)(base, (const STORED *)job->stored + at, row, count);
        for (int64_t i = 0; i < count; i++) sizes[i] = MAGNITUDE(row[i]);
        if (above == 8 * (int64_t)sizeof(STORED))
            for (int64_t i = 0; i < count; i++) job->counts[sizes[i] >> job->shift]++;
        else
            for (int64_t i = 0; i < count; i++)
                if (sizes[i] >> above == (BITS)job->prefix)
                    job->counts[(sizes[i] >> job->shift) & 0xFFFF]++;
    }
}

#undef KIND
#undef STORED
#undef REAL
#undef BITS
#undef WIDEN
#undef NARROW
#undef ROUND
#undef RAW
#undef INFINITE
#undef MAGNITUDE

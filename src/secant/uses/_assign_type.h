/* The assignment for one type of gains, by the widest vectors that the processor has; _assign.c
 * includes this once a type: REAL, KIND and ROOM as in _assign_rows.h.
 *
 * CLONES will not do: the compiler takes vectors wider than the processor's apart into numbers.
 */
#define LANES 2
#define WIDE
#include "_assign_rows.h"
#undef LANES
#undef WIDE

#if HAS_WIDTHS
#define LANES 4
#define WIDE __attribute__((target("avx2")))
#include "_assign_rows.h"
#undef LANES
#undef WIDE

#define LANES 8
#define WIDE __attribute__((target("avx512f")))
#include "_assign_rows.h"
#undef LANES
#undef WIDE
#endif

#define EXPORTED(kind) EXPORTED_AS(kind)
#define EXPORTED_AS(kind) secant_assign_##kind
#define OF_WIDTH(kind, lanes) OF_WIDTH_AS(kind, lanes)
#define OF_WIDTH_AS(kind, lanes) assign_##kind##_##lanes

/* Columns (size) for each row of gains (size, padded), of which those past `size` are not read
 * but as numbers. `prices` (size) and `columns` (size; -1 for none) come in as where to begin and
 * go out as found. Gives the rows scanned in searching, or -1 where a gain is not finite or too
 * large. */
EXPORT int64_t EXPORTED(KIND)(const REAL *gain, int64_t size, int64_t padded, double *prices,
                              int64_t *columns, double *memory) {
#if HAS_WIDTHS
    if (__builtin_cpu_supports("avx512f"))
        return OF_WIDTH(KIND, 8)(gain, size, padded, prices, columns, memory);
    if (__builtin_cpu_supports("avx2"))
        return OF_WIDTH(KIND, 4)(gain, size, padded, prices, columns, memory);
#endif
    return OF_WIDTH(KIND, 2)(gain, size, padded, prices, columns, memory);
}

#undef EXPORTED
#undef EXPORTED_AS
#undef OF_WIDTH
#undef OF_WIDTH_AS

/* The linear assignment of the largest sum, exactly: shortest augmenting paths over dense rows.
 *
 * Jonker & Volgenant 1987 (doi:10.1007/BF02278710) and Crouse 2016 (doi:10.1109/TAES.2016.140952),
 * with every scan over all columns in their order, so that it runs in vectors: a column whose
 * distance is settled stays in the row with a price of minus infinity instead of leaving a list.
 *
 * With prices v of the columns, row i has the price u_i, the largest gain_ij - v_j. Pairs that
 * reach it are tight; where tight pairs match all rows their sum is that of all prices, and no
 * assignment has more. Any prices will do to begin with; good ones leave few rows to match.
 *
 * Arithmetic is float64 with one rounding an operation, ties go to the lowest column, and lanes
 * are as many on every processor: all find the same assignment.
 */
#include <math.h>
#include <string.h>

#include "native.h"

#define LANES 8
/* Columns in a step: two vectors, whose minima do not wait for each other. */
#define STEP (2 * LANES)

typedef double reals __attribute__((vector_size(8 * LANES)));
typedef int64_t wholes __attribute__((vector_size(8 * LANES)));

/* Arrays of the padded length, one after the other in the caller's memory. `prices` is v with the
 * sign turned, as of costs; `open` is that too, and minus infinity where settled. */
typedef struct {
    double *prices, *open, *distance, *settled_at, *row_price;
    int64_t *from, *row_of, *settled, *unmatched, *wish;
} tables;

/* The number of this layout of arguments; the caller refuses another. */
EXPORT int64_t secant_assign_layout(void) { return 1; }

/* Numbers of eight bytes that the caller's memory must hold for `padded` columns. */
EXPORT int64_t secant_assign_room(int64_t padded) { return 10 * padded; }

static tables laid_out(double *memory, int64_t padded) {
    tables t;
    double **reals_of[] = {&t.prices, &t.open, &t.distance, &t.settled_at, &t.row_price};
    int64_t **wholes_of[] = {&t.from, &t.row_of, &t.settled, &t.unmatched, &t.wish};
    for (int k = 0; k < 5; k++) {
        *reals_of[k] = memory + k * padded;
        *wholes_of[k] = (int64_t *)(memory + (5 + k) * padded);
    }
    return t;
}

#define INLINE static inline __attribute__((always_inline))

/* Least value and, of the columns that have it, the lowest. */
typedef struct {
    double value;
    int64_t column;
} least;

INLINE least least_of(const reals *low, const wholes *where) {
    double values[STEP];
    int64_t columns[STEP];
    memcpy(values, low, sizeof values);
    memcpy(columns, where, sizeof columns);
    least found = {INFINITY, -1};
    for (int k = 0; k < STEP; k++)
        if (values[k] < found.value || (values[k] == found.value && columns[k] < found.column)) {
            found.value = values[k];
            found.column = columns[k];
        }
    return found;
}

#define PICK(mask, yes, no) (((yes) & (mask)) | ((no) & ~(mask)))
#define LOAD(vector, from) memcpy(&(vector), (from), sizeof(vector))
#define STORE(to, vector) memcpy((to), &(vector), sizeof(vector))

/* The lowest column at this distance that no row has, or -1. */
CLONES static int64_t unmatched_at(double value, const double *distance, const int64_t *row_of,
                                   int64_t padded) {
    for (int64_t j = 0; j < padded; j += STEP) {
        int64_t some = 0;
        for (int64_t k = j; k < j + STEP; k++) some |= -(distance[k] == value) & row_of[k];
        /* Rows are not negative, and of those that there are none gives the sign. */
        if (some < 0)
            for (int64_t k = j; k < j + STEP; k++)
                if (distance[k] == value && row_of[k] < 0) return k;
    }
    return -1;
}

/* ROOM: sums of so many of the gains are in the range of float64. */
#define REAL float
#define ROOM 1
#define NAMED(name) name##_f32
#include "_assign_rows.h"
#undef REAL
#undef NAMED
#undef ROOM

#define REAL double
#define ROOM 0x1p64
#define NAMED(name) name##_f64
#include "_assign_rows.h"

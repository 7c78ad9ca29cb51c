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
 * Arithmetic is float64 with one rounding an operation and ties go to the lowest column, so that
 * every processor finds the same assignment.
 */
#include <math.h>
#include <string.h>

#include "native.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_WIDTHS 1
#else
#define HAS_WIDTHS 0
#endif

/* Columns that the caller pads to a multiple of: two of the widest vectors. */
#define PADDING 16

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

typedef struct {
    double value;
    int64_t column;
} least;

#define PICK(mask, yes, no) (((yes) & (mask)) | ((no) & ~(mask)))
#define LOAD(vector, from) memcpy(&(vector), (from), sizeof(vector))
#define STORE(to, vector) memcpy((to), &(vector), sizeof(vector))

/* The lowest column at this distance that no row has, or -1. */
CLONES static int64_t unmatched_at(double value, const double *distance, const int64_t *row_of,
                                   int64_t padded) {
    for (int64_t j = 0; j < padded; j += PADDING) {
        int64_t some = 0;
        for (int64_t k = j; k < j + PADDING; k++) some |= -(distance[k] == value) & row_of[k];
        /* Rows are not negative, and of those that there are none gives the sign. */
        if (some < 0)
            for (int64_t k = j; k < j + PADDING; k++)
                if (distance[k] == value && row_of[k] < 0) return k;
    }
    return -1;
}

#define REAL float
#define KIND f32
#define ROOM 1
#include "_assign_type.h"
#undef REAL
#undef KIND
#undef ROOM

#define REAL double
#define KIND f64
#define ROOM 0x1p64
#include "_assign_type.h"

/* The assignment for one type of gains and one width of vectors; _assign_type.h includes this.
 *
 * REAL: the type, KIND: its name, ROOM: sums of so many gains are in the range of float64;
 * LANES: numbers of eight bytes in a vector, WIDE: the attribute of functions that have them.
 */
#define JOIN(name, kind, lanes) name##_##kind##_##lanes
#define JOINED(name, kind, lanes) JOIN(name, kind, lanes)
#define NAMED(name) JOINED(name, KIND, LANES)
/* Columns in a step: two vectors, whose minima do not wait for each other. */
#define STEP (2 * LANES)

typedef REAL NAMED(several) __attribute__((vector_size(sizeof(REAL) * LANES)));
typedef double NAMED(reals) __attribute__((vector_size(8 * LANES)));
typedef int64_t NAMED(wholes) __attribute__((vector_size(8 * LANES)));
#define several NAMED(several)
#define reals NAMED(reals)
#define wholes NAMED(wholes)

/* The columns of a first vector. */
static const int64_t NAMED(first)[8] = {0, 1, 2, 3, 4, 5, 6, 7};

/* Least value and, of the columns that have it, the lowest: the same for every width. */
WIDE static least NAMED(least_of)(const reals *low, const wholes *where) {
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

/* A row's costs less the prices, from `lead`; the cost of a pair is its gain with the sign turned. */
#define COSTS(into, column)                                         \
    do {                                                            \
        several some;                                               \
        reals price;                                                \
        LOAD(some, gain + (column));                                \
        LOAD(price, prices + (column));                             \
        into = lead - __builtin_convertvector(some, reals) - price; \
    } while (0)

/* Whether all are finite, and times ROOM too: of no others the product with 0 is 0. `count` is
 * whole steps. */
WIDE static int NAMED(is_finite)(const REAL *gain, int64_t count) {
    several one, sum[2] = {{0}, {0}};
    for (int64_t j = 0; j < count; j += STEP)
        for (int k = 0; k < 2; k++) {
            LOAD(one, gain + j + k * LANES);
            sum[k] += one * (REAL)ROOM * (REAL)0;
        }
    sum[0] += sum[1];
    for (int k = 0; k < LANES; k++)
        if (sum[0][k] != 0) return 0;
    return 1;
}

/* The best column of a row. */
WIDE static least NAMED(best)(const REAL *gain, const double *prices, int64_t padded) {
    reals lead = {0}, low[2];
    wholes at, where[2];
    LOAD(at, NAMED(first));
    where[0] = where[1] = at;
    low[0] = low[1] = lead + (double)INFINITY;
    for (int64_t j = 0; j < padded; j += STEP)
        for (int k = 0; k < 2; k++) {
            reals cost;
            COSTS(cost, j + k * LANES);
            wholes is_less = cost < low[k];
            low[k] = (reals)PICK(is_less, (wholes)cost, (wholes)low[k]);
            where[k] = PICK(is_less, at, where[k]);
            at += LANES;
        }
    return NAMED(least_of)(low, where);
}

/* For each column the least of what is left of its costs, and the row that has it. */
WIDE static void NAMED(lower)(const REAL *gain, const double *prices, double row_price,
                                int64_t row, double *slack, int64_t *from, int64_t padded) {
    reals lead = (reals){0} - row_price;
    wholes own = (wholes){0} + row;
    for (int64_t j = 0; j < padded; j += LANES) {
        reals cost, old;
        wholes was;
        COSTS(cost, j);
        LOAD(old, slack + j);
        LOAD(was, from + j);
        wholes is_less = cost < old;
        old = (reals)PICK(is_less, (wholes)cost, (wholes)old);
        was = PICK(is_less, own, was);
        STORE(slack + j, old);
        STORE(from + j, was);
    }
}

/* Distances by way of one more row, and the nearest column that is not settled. */
WIDE static least NAMED(reach)(const REAL *gain, const double *prices, double base, int64_t row,
                                 double *distance, int64_t *from, int64_t padded) {
    reals lead = (reals){0} + base, low[2];
    wholes own = (wholes){0} + row;
    wholes at, where[2];
    LOAD(at, NAMED(first));
    where[0] = where[1] = at;
    low[0] = low[1] = (reals){0} + (double)INFINITY;
    for (int64_t j = 0; j < padded; j += STEP)
        for (int k = 0; k < 2; k++) {
            int64_t column = j + k * LANES;
            reals cost, old;
            wholes was;
            COSTS(cost, column);
            LOAD(old, distance + column);
            LOAD(was, from + column);
            wholes is_less = cost < old;
            old = (reals)PICK(is_less, (wholes)cost, (wholes)old);
            was = PICK(is_less, own, was);
            STORE(distance + column, old);
            STORE(from + column, was);
            wholes is_least = old < low[k];
            low[k] = (reals)PICK(is_least, (wholes)old, (wholes)low[k]);
            where[k] = PICK(is_least, at, where[k]);
            at += LANES;
        }
    return NAMED(least_of)(low, where);
}

/* Rows take the columns that are best for them, those matched before theirs where it is one of
 * the best; then columns nobody wants come down in price until a row does. Gives how many rows
 * are unmatched. */
WIDE static int64_t NAMED(begin)(const REAL *gain, int64_t size, int64_t padded,
                                 int64_t *columns, tables t) {
    int64_t count = 0;
    for (int64_t i = 0; i < size; i++) {
        const REAL *row = gain + i * padded;
        least one = NAMED(best)(row, t.prices, padded);
        int64_t mine = columns[i];
        t.row_price[i] = one.value;
        t.wish[i] = one.column;
        columns[i] = -1;
        if (mine >= 0 && t.row_of[mine] < 0 &&
            0.0 - (double)row[mine] - t.prices[mine] <= one.value) {
            t.row_of[mine] = i;
            columns[i] = mine;
        }
    }
    for (int64_t i = 0; i < size; i++)
        if (columns[i] < 0) {
            if (t.row_of[t.wish[i]] < 0)
                t.row_of[columns[i] = t.wish[i]] = i;
            else
                count++;
        }
    if (!count) return 0;
    for (int64_t j = 0; j < padded; j++) {
        t.distance[j] = INFINITY;
        t.from[j] = -1;
    }
    for (int64_t i = 0; i < size; i++)
        NAMED(lower)(gain + i * padded, t.prices, t.row_price[i], i, t.distance, t.from, padded);
    for (int64_t j = 0; j < size; j++)
        if (t.row_of[j] < 0) {
            int64_t i = t.from[j];
            t.prices[j] += t.distance[j];
            if (columns[i] < 0) t.row_of[columns[i] = j] = i;
        }
    count = 0;
    for (int64_t i = 0; i < size; i++)
        if (columns[i] < 0) t.unmatched[count++] = i;
    return count;
}

/* Match one more row along the shortest path to a column without one; gives the rows scanned. */
WIDE static int64_t NAMED(augment)(const REAL *gain, int64_t padded, int64_t start,
                                   int64_t *columns, tables t) {
    int64_t count = 0, row = start, column;
    double base = 0.0, near = INFINITY;
    for (int64_t j = 0; j < padded; j++) t.distance[j] = INFINITY;
    for (;;) {
        least next =
            NAMED(reach)(gain + row * padded, t.open, base, row, t.distance, t.from, padded);
        column = next.column;
        if (t.row_of[column] >= 0 && next.value <= near) {
            /* Among columns as near, the first or as the last, there may be one without a row. */
            int64_t open = unmatched_at(next.value, t.distance, t.row_of, padded);
            if (open >= 0) column = open;
        }
        near = next.value;
        if (t.row_of[column] < 0) break;
        t.settled[count] = column;
        t.settled_at[count++] = near;
        t.distance[column] = INFINITY;
        t.open[column] = -INFINITY;
        row = t.row_of[column];
        base = near + ((double)gain[row * padded + column] + t.prices[column]);
    }
    for (int64_t k = 0; k < count; k++) {
        int64_t j = t.settled[k];
        t.open[j] = t.prices[j] += t.settled_at[k] - near;
    }
    for (row = -1; row != start;) {
        row = t.row_of[column] = t.from[column];
        int64_t before = columns[row];
        columns[row] = column;
        column = before;
    }
    return count + 1;
}

/* As `secant_assign` in _assign_type.h. */
WIDE static int64_t NAMED(assign)(const REAL *gain, int64_t size, int64_t padded,
                                  double *prices, int64_t *columns, double *memory) {
    tables t = laid_out(memory, padded);
    if (!NAMED(is_finite)(gain, size * padded)) return -1;
    for (int64_t j = 0; j < padded; j++) {
        t.prices[j] = j < size ? -prices[j] : -INFINITY;
        t.row_of[j] = -1;
    }
    int64_t count = NAMED(begin)(gain, size, padded, columns, t), scanned = 0;
    memcpy(t.open, t.prices, (size_t)padded * sizeof(double));
    for (int64_t k = 0; k < count; k++)
        scanned += NAMED(augment)(gain, padded, t.unmatched[k], columns, t);
    for (int64_t j = 0; j < size; j++) prices[j] = -t.prices[j];
    return scanned;
}

#undef COSTS
#undef several
#undef reals
#undef wholes
#undef STEP
#undef NAMED
#undef JOINED
#undef JOIN

// Attention of one SAM layer with its relative positions, on the processor, in bfloat16.
//
// The position bias of a score is the sum of a term for the key's row and one for its column. Both
// are added while the scores of a few dozen queries are in cache, so the bias is never built. Keys
// and values of one head are laid out once, as `vdpbf16ps` and the tiles of AMX want them: two
// neighbouring numbers in each of 16 lanes. Windows are read where they lie in the map, and the
// softmax runs over blocks of keys. Scores, probabilities before they are rounded, and sums are
// float32. Products go through AMX where the processor has it and the system allows it.
//
// compiled_attention.py fills `Call`, which must agree with it word for word.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <omp.h>
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>
#define CAN_RUN 1
#endif
#if defined(CAN_RUN) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_TILES 1
#endif

struct Call {
    int64_t batch, height, width;  // cells of the map
    int64_t side_y, side_x;        // cells of a window; the whole map's where there are none
    int64_t heads, dim, threads;
    const uint16_t* qkv;       // [batch, height, width, 3, heads, dim]
    const uint16_t* padding;   // [3, heads, dim]: what a cell beyond the map has
    const uint16_t* rows;      // [2 * side_y - 1, dim]: by how far the key lies below the query
    const uint16_t* columns;   // [2 * side_x - 1, dim]
    uint16_t* out;             // [batch, height, width, heads, dim]
};

#ifdef CAN_RUN
namespace {

constexpr int64_t QUERIES = 64, KEYS = 512, LANES = 16;
constexpr float NEVER = -std::numeric_limits<float>::infinity();
constexpr float LOG2E = 1.44269504f;

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct Buffer {  // aligned to a cache line, as wide loads want it
    float* data;
    explicit Buffer(int64_t floats, bool cleared = false)
        : data(static_cast<float*>(::operator new(floats * 4 + 64, std::align_val_t(64)))) {
        if (cleared) std::memset(data, 0, floats * 4);
    }
    ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
    Buffer(const Buffer&) = delete;
    uint32_t* words() { return reinterpret_cast<uint32_t*>(data); }
    uint16_t* halves() { return reinterpret_cast<uint16_t*>(data); }
};

// out[m][16 n] = a[m] . b over `pairs` pairs; b is laid out [n][pair][lane].
template <int M, int N>
void scores(const uint32_t* a, int64_t pairs, const uint32_t* b, float* out, int64_t stride) {
    __m512 sum[M][N];
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) sum[m][n] = _mm512_setzero_ps();
    for (int64_t p = 0; p < pairs; ++p) {
        __m512bh right[N];
        for (int n = 0; n < N; ++n)
            right[n] = (__m512bh)_mm512_load_si512(b + (n * pairs + p) * LANES);
        for (int m = 0; m < M; ++m) {
            __m512bh left = (__m512bh)_mm512_set1_epi32(a[m * pairs + p]);
            for (int n = 0; n < N; ++n) sum[m][n] = _mm512_dpbf16_ps(sum[m][n], left, right[n]);
        }
    }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) _mm512_store_ps(out + m * stride + n * LANES, sum[m][n]);
}

// out[m][16 n] += p[m] . v over `pairs` pairs of keys; v is laid out [pair][n][lane].
template <int M, int N>
void weigh(const uint32_t* p, int64_t p_stride, int64_t pairs, const uint32_t* v,
           int64_t v_stride, float* out, int64_t stride) {
    __m512 sum[M][N];
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) sum[m][n] = _mm512_load_ps(out + m * stride + n * LANES);
    for (int64_t k = 0; k < pairs; ++k) {
        __m512bh right[N];
        for (int n = 0; n < N; ++n)
            right[n] = (__m512bh)_mm512_load_si512(v + k * v_stride + n * LANES);
        for (int m = 0; m < M; ++m) {
            __m512bh left = (__m512bh)_mm512_set1_epi32(p[m * p_stride + k]);
            for (int n = 0; n < N; ++n) sum[m][n] = _mm512_dpbf16_ps(sum[m][n], left, right[n]);
        }
    }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) _mm512_store_ps(out + m * stride + n * LANES, sum[m][n]);
}

// Calls f<M, N> for 6 x 4 blocks and what is left over at the edges.
template <int M, class F> void by_columns(int64_t vectors, F&& f) {
    int64_t n = 0;
    for (; n + 4 <= vectors; n += 4) f.template operator()<M, 4>(n);
    if (vectors - n == 3) f.template operator()<M, 3>(n);
    if (vectors - n == 2) f.template operator()<M, 2>(n);
    if (vectors - n == 1) f.template operator()<M, 1>(n);
}

template <class F> void by_rows(int64_t rows, int64_t vectors, F&& f) {
    switch (std::min<int64_t>(6, rows)) {
        case 6: return by_columns<6>(vectors, f);
        case 5: return by_columns<5>(vectors, f);
        case 4: return by_columns<4>(vectors, f);
        case 3: return by_columns<3>(vectors, f);
        case 2: return by_columns<2>(vectors, f);
        default: return by_columns<1>(vectors, f);
    }
}

void all_scores(const uint32_t* a, int64_t count, int64_t pairs, const uint32_t* b,
                int64_t vectors, float* out, int64_t stride) {
    for (int64_t n = 0; n < vectors; n += 4) {  // four vectors of keys stay in the nearest cache
        int64_t some = std::min<int64_t>(4, vectors - n);
        int64_t m = 0;
        for (; m < count; m += std::min<int64_t>(6, count - m)) {
            auto run = [&]<int M, int N>(int64_t) {
                scores<M, N>(a + m * pairs, pairs, b + n * pairs * LANES,
                             out + m * stride + n * LANES, stride);
            };
            by_rows(count - m, some, run);
        }
    }
}

void all_weighed(const uint32_t* p, int64_t p_stride, int64_t count, int64_t pairs,
                 const uint32_t* v, int64_t vectors, float* out) {
    for (int64_t m = 0; m < count; m += std::min<int64_t>(6, count - m)) {
        auto run = [&]<int M, int N>(int64_t n) {
            weigh<M, N>(p + m * p_stride, p_stride, pairs, v + n * LANES, vectors * LANES,
                        out + m * vectors * LANES + n * LANES, vectors * LANES);
        };
        by_rows(count - m, vectors, run);
    }
}

#ifdef HAS_TILES
// True where the system lets this process use the tile registers; it has to be asked once.
bool tiles_allowed() {
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // <asm/prctl.h>, the state's number
    static const bool allowed = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    return allowed;
}

// Every tile 16 rows of 64 bytes, for this thread, as long as it lives.
struct Tiles {
    bool used;
    explicit Tiles(bool wanted) : used(wanted && tiles_allowed()) {
        if (!used) return;
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } shapes;
        _tile_loadconfig(&shapes);
    }
    ~Tiles() {
        if (used) _tile_release();
    }
    Tiles(const Tiles&) = delete;
};

// Sums of 16 M x 16 N numbers in tiles 0 to 3: from a [row][pair], b [pair][lane], `depth` pairs.
// The strides are those between rows of a, rows of b, and tiles of b that lie side by side.
template <int M, int N>
void tile_products(const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride,
                   int64_t beside, int64_t depth) {
    for (int64_t k = 0; k < depth; k += LANES) {
        _tile_loadd(4, a + k, a_stride * 4);
        if constexpr (M > 1) _tile_loadd(5, a + LANES * a_stride + k, a_stride * 4);
        _tile_loadd(6, b + k * b_stride, b_stride * 4);
        if constexpr (N > 1) _tile_loadd(7, b + beside + k * b_stride, b_stride * 4);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (N > 1) _tile_dpbf16ps(1, 4, 7);
        if constexpr (M > 1) _tile_dpbf16ps(2, 5, 6);
        if constexpr (M > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
    }
}

template <int M, int N> void store_tiles(float* out, int64_t stride) {
    _tile_stored(0, out, stride * 4);
    if constexpr (N > 1) _tile_stored(1, out + LANES, stride * 4);
    if constexpr (M > 1) _tile_stored(2, out + LANES * stride, stride * 4);
    if constexpr (M > 1 && N > 1) _tile_stored(3, out + LANES * stride + LANES, stride * 4);
}

template <int M, int N> void load_tiles(const float* from, int64_t stride) {
    _tile_loadd(0, from, stride * 4);
    if constexpr (N > 1) _tile_loadd(1, from + LANES, stride * 4);
    if constexpr (M > 1) _tile_loadd(2, from + LANES * stride, stride * 4);
    if constexpr (M > 1 && N > 1) _tile_loadd(3, from + LANES * stride + LANES, stride * 4);
}

// Calls f<M, N>(m, n) for two by two tiles and what is left over at the edges.
template <class F> void by_tiles(int64_t rows, int64_t columns, F&& f) {
    // The compiler does not know that tiles read and write memory.
    asm volatile("" ::: "memory");
    for (int64_t n = 0; n < columns; n += 2)
        for (int64_t m = 0; m < rows; m += 2) {
            if (m + 1 < rows && n + 1 < columns) f.template operator()<2, 2>(m, n);
            else if (m + 1 < rows) f.template operator()<2, 1>(m, n);
            else if (n + 1 < columns) f.template operator()<1, 2>(m, n);
            else f.template operator()<1, 1>(m, n);
        }
    asm volatile("" ::: "memory");
}

// As `all_scores`, for a count that is filled up to whole tiles.
void tile_scores(const uint32_t* a, int64_t count, int64_t pairs, const uint32_t* b,
                 int64_t vectors, float* out, int64_t stride) {
    by_tiles(up(count, LANES) / LANES, vectors, [&]<int M, int N>(int64_t m, int64_t n) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        tile_products<M, N>(a + m * LANES * pairs, pairs, b + n * pairs * LANES, LANES,
                            pairs * LANES, pairs);
        store_tiles<M, N>(out + m * LANES * stride + n * LANES, stride);
    });
}

// As `all_weighed`, for whole tiles of queries and of keys.
void tile_weighed(const uint32_t* p, int64_t p_stride, int64_t count, int64_t pairs,
                  const uint32_t* v, int64_t vectors, float* out) {
    int64_t stride = vectors * LANES;
    by_tiles(up(count, LANES) / LANES, vectors, [&]<int M, int N>(int64_t m, int64_t n) {
        float* to = out + m * LANES * stride + n * LANES;
        load_tiles<M, N>(to, stride);
        tile_products<M, N>(p + m * LANES * p_stride, p_stride, v + n * LANES, stride, LANES,
                            pairs);
        store_tiles<M, N>(to, stride);
    });
}
#else
struct Tiles {
    bool used = false;
    explicit Tiles(bool) {}
};
#endif

// Rows of numbers, `stride` apart, for `scores`: 16 rows to a vector, two numbers to a lane.
void lay_row(const uint16_t* row, int64_t at, int64_t pairs, uint32_t* to) {
    uint32_t* lane = to + at / LANES * pairs * LANES + at % LANES;
    for (int64_t p = 0; p < pairs; ++p) std::memcpy(lane + p * LANES, row + 2 * p, 4);
}

// 2 to the power of x, x <= 0, to 2e-6 of the value; 0 below 2 to the power of -125, because numbers
// too small to be normal take some processors a hundred times as long.
__m512 power_of_two(__m512 x) {
    const __m512 least = _mm512_set1_ps(-125.f);
    __mmask16 counts = _mm512_cmp_ps_mask(x, least, _CMP_GE_OQ);
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    whole = _mm512_max_ps(whole, least);
    __m512 rest = _mm512_max_ps(_mm512_sub_ps(x, whole), _mm512_set1_ps(-0.5f));
    __m512 y = _mm512_set1_ps(1.33390e-3f);
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(9.61845e-3f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(5.550327e-2f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(2.4022652e-1f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(6.9314718e-1f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.f));
    return _mm512_maskz_scalef_ps(counts, y, whole);
}

// One head of one window. Its keys are taken in groups of one or two rows of the window, each group
// filled up to whole vectors with keys that never count.
class Window {
  public:
    explicit Window(const Call& call)
        : c(call), tiles(call.dim % 32 == 0), pairs(c.dim / 2), vectors(c.dim / LANES),
          joined(c.side_x % LANES == 8 && c.side_x > LANES && c.side_y % 2 == 0 ? 2 : 1),
          group(up(joined * c.side_x, LANES)), groups(c.side_y / joined),
          block(std::max<int64_t>(1, KEYS / group)), row_terms(up(2 * c.side_y - 1, LANES)),
          column_terms(up(2 * c.side_x - 1, LANES)), keys(groups * group * pairs, true),
          values(groups * group * pairs, true), row_table(row_terms * pairs, true),
          column_table(column_terms * pairs, true), query(QUERIES * pairs, true),
          by_row(QUERIES * row_terms), by_column(QUERIES * column_terms),
          pattern(QUERIES * group), score(QUERIES * block * group),
          probability(QUERIES * block * group / 2), sums(QUERIES * c.dim) {
        // Cleared, since of a tile that is not full the other rows are computed too. The tables are
        // turned round, so that neighbouring keys have neighbouring terms.
        for (int64_t i = 0; i < 2 * c.side_y - 1; ++i)
            lay_row(c.rows + (2 * c.side_y - 2 - i) * c.dim, i, pairs, row_table.words());
        for (int64_t i = 0; i < 2 * c.side_x - 1; ++i)
            lay_row(c.columns + (2 * c.side_x - 2 - i) * c.dim, i, pairs, column_table.words());
    }

    // Part `part` of `parts` of the queries of the window whose first cell is (top, left).
    void run(int64_t image, int64_t top, int64_t left, int64_t head, int64_t part, int64_t parts) {
        lay_keys(image, top, left, head);
        int64_t wide = std::min(c.side_x, c.width - left);
        int64_t count = wide * std::min(c.side_y, c.height - top);
        int64_t each = up((count + parts - 1) / parts, LANES);
        int64_t stop = std::min(count, (part + 1) * each);
        for (int64_t first = part * each; first < stop; first += QUERIES) {
            int64_t some = std::min(QUERIES, stop - first);
            const uint16_t* from[QUERIES];
            for (int64_t q = 0; q < some; ++q) {
                y[q] = (first + q) / wide, x[q] = (first + q) % wide;
                cell[q] = (image * c.height + top + y[q]) * c.width + left + x[q];
                from[q] = c.qkv + (cell[q] * 3 * c.heads + head) * c.dim;
                std::memcpy(query.words() + q * pairs, from[q], c.dim * 2);
            }
            attend(some, head);
        }
    }

  private:
    void lay_keys(int64_t image, int64_t top, int64_t left, int64_t head) {
        int64_t step = c.heads * c.dim;
        for (int64_t row = 0; row < c.side_y; ++row)
            for (int64_t column = 0; column < c.side_x; ++column) {
                bool inside = top + row < c.height && left + column < c.width;
                int64_t at = (image * c.height + top + row) * c.width + left + column;
                const uint16_t* from = (inside ? c.qkv + at * 3 * step : c.padding) + head * c.dim;
                int64_t key = row / joined * group + row % joined * c.side_x + column;
                lay_row(from + step, key, pairs, keys.words());
                lay_value(from + 2 * step, key);
            }
    }

    // A value beside its neighbour; of the two the even one comes first.
    void lay_value(const uint16_t* from, int64_t key) {
        uint32_t* to = values.words() + key / 2 * c.dim;
        for (int64_t d = 0; d < c.dim; d += LANES) {
            __m512i value = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(from + d)));
            if (key % 2)
                value = _mm512_or_si512(_mm512_load_si512(to + d), _mm512_slli_epi32(value, 16));
            _mm512_store_si512(to + d, value);
        }
    }

    void multiply_keys(int64_t count, const uint32_t* with, int64_t some, float* out) {
#ifdef HAS_TILES
        if (tiles.used) return tile_scores(query.words(), count, pairs, with, some, out, some * LANES);
#endif
        all_scores(query.words(), count, pairs, with, some, out, some * LANES);
    }

    void multiply_values(int64_t count, int64_t wide, const uint32_t* with) {
        const uint32_t* shares = probability.words();
        int64_t done = 0, stride = wide / 2;
#ifdef HAS_TILES
        if (tiles.used) {
            done = stride / LANES * LANES;
            tile_weighed(shares, stride, count, done, with, vectors, sums.data);
        }
#endif
        if (done < stride)
            all_weighed(shares + done, stride, count, stride - done, with + done * c.dim, vectors,
                        sums.data);
    }

    void attend(int64_t count, int64_t head) {
        position_terms(count);
        std::fill(highest, highest + count, NEVER);
        std::fill(total, total + count, 0.f);
        std::fill(sums.data, sums.data + count * c.dim, 0.f);
        for (int64_t g = 0; g < groups; g += block) {
            int64_t some = std::min(block, groups - g), wide = some * group;
            multiply_keys(count, keys.words() + g * group * pairs, wide / LANES, score.data);
            for (int64_t q = 0; q < count; ++q) soften(q, g, some);
            multiply_values(count, wide, values.words() + g * group * pairs);
        }
        for (int64_t q = 0; q < count; ++q) {
            __m512 share = _mm512_set1_ps(1.f / total[q]);
            uint16_t* to = c.out + (cell[q] * c.heads + head) * c.dim;
            for (int64_t d = 0; d < c.dim; d += LANES) {
                __m512 sum = _mm512_mul_ps(_mm512_load_ps(sums.data + q * c.dim + d), share);
                _mm256_storeu_si256((__m256i*)(to + d), (__m256i)_mm512_cvtneps_pbh(sum));
            }
        }
    }

    // How much each row and each column of keys adds to the scores of each query, times log2(e).
    void position_terms(int64_t count) {
        multiply_keys(count, row_table.words(), row_terms / LANES, by_row.data);
        multiply_keys(count, column_table.words(), column_terms / LANES, by_column.data);
        for (int64_t q = 0; q < count; ++q) {
            float* row = by_row.data + q * row_terms + c.side_y - 1 - y[q];
            const float* column = by_column.data + q * column_terms + c.side_x - 1 - x[q];
            float* to = pattern.data + q * group;
            for (int64_t i = 0; i < c.side_y; ++i) row[i] *= LOG2E;
            for (int64_t j = 0; j < joined; ++j)
                for (int64_t i = 0; i < c.side_x; ++i) *to++ = column[i] * LOG2E;
            std::fill(to, pattern.data + (q + 1) * group, NEVER);
        }
    }

    // Scores of query q with `some` groups of keys from g on become probabilities.
    void soften(int64_t q, int64_t g, int64_t some) {
        float* score_of = score.data + q * some * group;
        const float* row = by_row.data + q * row_terms + c.side_y - 1 - y[q] + g * joined;
        const float* column = pattern.data + q * group;
        __m512 scale = _mm512_set1_ps(LOG2E / std::sqrt(float(c.dim)));
        __m512 most = _mm512_set1_ps(highest[q]);
        for (int64_t i = 0; i < some; ++i, row += joined) {
            __m512 first = _mm512_set1_ps(row[0]), second = _mm512_set1_ps(row[joined - 1]);
            for (int64_t k = 0; k < group; k += LANES) {
                __mmask16 below = second_row(k);
                __m512 terms = _mm512_add_ps(_mm512_load_ps(column + k),
                                             _mm512_mask_blend_ps(below, first, second));
                float* at = score_of + i * group + k;
                __m512 value = _mm512_fmadd_ps(_mm512_load_ps(at), scale, terms);
                _mm512_store_ps(at, value);
                most = _mm512_max_ps(most, value);
            }
        }
        float now = _mm512_reduce_max_ps(most);
        float before = highest[q] == NEVER ? 0.f : std::exp2(highest[q] - now);
        highest[q] = now;
        __m512 high = _mm512_set1_ps(now), sum = _mm512_setzero_ps();
        uint16_t* to = probability.halves() + q * some * group;
        for (int64_t k = 0; k < some * group; k += LANES) {
            __m512 value = power_of_two(_mm512_sub_ps(_mm512_load_ps(score_of + k), high));
            sum = _mm512_add_ps(sum, value);
            _mm256_store_si256((__m256i*)(to + k), (__m256i)_mm512_cvtneps_pbh(value));
        }
        total[q] = total[q] * before + _mm512_reduce_add_ps(sum);
        if (before != 1.f)
            for (int64_t d = 0; d < c.dim; ++d) sums.data[q * c.dim + d] *= before;
    }

    // Which lanes of the vector at k of a group lie in its second row.
    __mmask16 second_row(int64_t k) const {
        if (joined == 1 || k + LANES <= c.side_x) return 0;
        return k >= c.side_x ? 0xffff : __mmask16(0xffff << (c.side_x - k));
    }

    const Call& c;
    Tiles tiles;
    int64_t pairs, vectors, joined, group, groups, block, row_terms, column_terms;
    Buffer keys, values, row_table, column_table, query, by_row, by_column, pattern, score;
    Buffer probability, sums;
    float highest[QUERIES], total[QUERIES];
    int64_t cell[QUERIES], x[QUERIES], y[QUERIES];
};

}  // namespace
#endif

// 0 when done, 1 where this processor or shape is not for this code.
extern "C" int sam_attention(const Call* call) {
#ifdef CAN_RUN
    const Call& c = *call;
    if (c.dim % LANES) return 1;
    int64_t down = (c.height + c.side_y - 1) / c.side_y;
    int64_t across = (c.width + c.side_x - 1) / c.side_x;
    int64_t whole = c.batch * down * across * c.heads;
    int64_t parts = whole >= 4 * c.threads ? 1 : (4 * c.threads + whole - 1) / whole;
#pragma omp parallel num_threads(c.threads)
    {
        Window window(c);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < whole * parts; ++i) {
            int64_t part = i % parts, head = i / parts % c.heads, at = i / parts / c.heads;
            int64_t left = at % across, top = at / across % down, image = at / across / down;
            window.run(image, top * c.side_y, left * c.side_x, head, part, parts);
        }
    }
    return 0;
#else
    return 1;
#endif
}

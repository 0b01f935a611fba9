// Resizing of 8-bit RGB pictures, in one direction at a time, in whole numbers: the sums that Pillow
// forms, so the pixels are the same. Weights are whole numbers of 22 bits behind the point.
//
// resizing.py fills `Weights`, which must agree with it word for word.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <vector>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

struct Weights {           // of one direction
    int64_t before, after, taps;  // weights that each may have
    const int32_t* first;  // [after]: the first pixel that counts
    const int32_t* count;  // [after]: how many do
    const int32_t* weight; // [after, taps]
};

namespace {

constexpr int LANES = 16, POINT = 22, CHANNELS = 3;
constexpr int ROWS = 16, WIDE = ROWS * CHANNELS;  // rows whose columns are laid side by side
typedef int32_t words __attribute__((vector_size(4 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));

// Bytes to whole numbers and, cut to what a byte holds, back; compilers do it one by one.
words widen(const uint8_t* from) {
#if defined(__AVX512F__)
    return (words)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif defined(__AVX2__)
    __m256i halves[2] = {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)),
                         _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(from + 8)))};
    words all;
    std::memcpy(&all, halves, sizeof all);
    return all;
#else
    bytes some;
    std::memcpy(&some, from, LANES);
    return __builtin_convertvector(some, words);
#endif
}

void narrow(words all, uint8_t* to) {
#if defined(__AVX512F__)
    __m512i least = _mm512_max_epi32((__m512i)all, _mm512_setzero_si512());
    _mm_storeu_si128((__m128i*)to, _mm512_cvtusepi32_epi8(least));
#else
    for (int i = 0; i < LANES; ++i) to[i] = uint8_t(std::clamp(all[i], 0, 255));
#endif
}

// N vectors of sums over neighbours that lie `stride` bytes apart.
template <int N>
void mix(const uint8_t* from, int64_t stride, const int32_t* weight, int64_t count, uint8_t* to) {
    words sum[N];
    for (int n = 0; n < N; ++n) sum[n] = words{} + (1 << (POINT - 1));
    for (int64_t t = 0; t < count; ++t)
        for (int n = 0; n < N; ++n) sum[n] += widen(from + t * stride + n * LANES) * weight[t];
    for (int n = 0; n < N; ++n) narrow(sum[n] >> POINT, to + n * LANES);
}

}  // namespace

// Rows [rows, before, 3] to [rows, after, 3]. A few rows are turned so that a column of them lies together.
extern "C" void resize_rows(const Weights* weights, const uint8_t* from, int64_t rows, uint8_t* to,
                            int threads) {
    const Weights& w = *weights;
#pragma omp parallel num_threads(threads)
    {
        std::vector<uint8_t> turned(w.before * WIDE), mixed(w.after * WIDE);
#pragma omp for schedule(static)
        for (int64_t top = 0; top < rows; top += ROWS) {
            int64_t some = std::min<int64_t>(ROWS, rows - top);
            for (int64_t x = 0; x < w.before; ++x)
                for (int64_t r = 0; r < some; ++r)
                    std::memcpy(turned.data() + x * WIDE + r * CHANNELS,
                                from + ((top + r) * w.before + x) * CHANNELS, CHANNELS);
            for (int64_t x = 0; x < w.after; ++x)
                mix<WIDE / LANES>(turned.data() + w.first[x] * WIDE, WIDE,
                                  w.weight + x * w.taps, w.count[x], mixed.data() + x * WIDE);
            for (int64_t r = 0; r < some; ++r)
                for (int64_t x = 0; x < w.after; ++x)
                    std::memcpy(to + ((top + r) * w.after + x) * CHANNELS,
                                mixed.data() + x * WIDE + r * CHANNELS, CHANNELS);
        }
    }
}

// Columns: [before, row] to [after, row], `row` bytes each.
extern "C" void resize_columns(const Weights* weights, const uint8_t* from, int64_t row,
                               uint8_t* to, int threads) {
    const Weights& w = *weights;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t y = 0; y < w.after; ++y) {
        const uint8_t* start = from + w.first[y] * row;
        const int32_t* weight = w.weight + y * w.taps;
        int64_t x = 0;
        for (; x + 4 * LANES <= row; x += 4 * LANES)
            mix<4>(start + x, row, weight, w.count[y], to + y * row + x);
        for (; x < row; ++x) {
            int32_t sum = 1 << (POINT - 1);
            for (int64_t t = 0; t < w.count[y]; ++t) sum += start[t * row + x] * weight[t];
            to[y * row + x] = uint8_t(std::clamp(sum >> POINT, 0, 255));
        }
    }
}

// One decoding step of the whole decoder for a few pages at once, on the processor.
//
// Decoding one token reads every weight it needs once, so all that counts is that reading never
// waits: rows are dealt out to the threads once per product, everything small is computed by each
// thread for itself, and the threads meet five times a layer. Activations are float32 throughout.
// A row's sum is formed in the same order however many pages or threads there are, so a page's
// numbers do not depend on its company.
//
// compiled_steps.py compiles this file, and fills the structures, which must agree with it word for word.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <thread>
#if defined(__AVX512BW__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

// Numbers in one register. A longer vector would be held in several, and the sums of four pages
// would no longer fit into the registers there are.
#if defined(__AVX512BW__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
constexpr int PAIR = 2 * WIDTH;  // numbers of a row taken at a time
typedef float floats __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef uint32_t words __attribute__((vector_size(4 * WIDTH), aligned(4)));

float total(floats v) {
    float sum = 0;
    for (int i = 0; i < WIDTH; ++i) sum += v[i];
    return sum;
}

// Asks for weights before they are needed, first into the second cache and then into the nearest,
// across the ends of rows: what processors do for themselves stops where a page of memory ends.
// Asking for what lies beyond the last row does no harm.
inline void ahead(const void* from) {
    __builtin_prefetch((const char*)from + 4096, 0, 2);
    __builtin_prefetch((const char*)from + 1024, 0, 3);
}

template <class V> V load(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

// A kind of weight says what it is stored as, what an input is packed into before it is
// multiplied, and how a row is multiplied with N inputs.

struct Float32 {
    using Stored = float;
    using Packed = float;
    static float get(float v) { return v; }
    static float put(float v) { return v; }
    static float pack(const float* x, long k, Packed* out) {
        std::memcpy(out, x, k * sizeof *out);
        return 1;
    }
    template <int N> static void dot(const Stored* w, const Packed* const* x, long k, float* out) {
        floats even[N] = {}, odd[N] = {};
        long at = 0;
        for (; at + PAIR <= k; at += PAIR) {
            for (int line = 0; line < PAIR; line += 16) ahead(w + at + line);
            floats low = load<floats>(w + at), high = load<floats>(w + at + WIDTH);
            for (int i = 0; i < N; ++i) {
                even[i] += low * load<floats>(x[i] + at);
                odd[i] += high * load<floats>(x[i] + at + WIDTH);
            }
        }
        for (int i = 0; i < N; ++i) out[i] = total(even[i] + odd[i]);
        for (; at < k; ++at)
            for (int i = 0; i < N; ++i) out[i] += w[at] * x[i][at];
    }
};

struct Bfloat16 {
    using Stored = uint16_t;
    using Packed = float;
    static float get(uint16_t v) {
        uint32_t bits = uint32_t(v) << 16;
        return load<float>(&bits);
    }
    static uint16_t put(float v) {  // to the nearest, ties to even; what is no number stays none
        uint32_t bits = load<uint32_t>(&v);
        if (v != v) return 0x7fc0;
        return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
    // Two neighbours share a 32-bit word, so inputs are laid out as WIDTH even ones, then the odd.
    static float pack(const float* x, long k, Packed* out) {
        long at = 0;
        for (; at + PAIR <= k; at += PAIR)
            for (int i = 0; i < WIDTH; ++i) {
                out[at + i] = x[at + 2 * i];
                out[at + WIDTH + i] = x[at + 2 * i + 1];
            }
        for (; at < k; ++at) out[at] = x[at];
        return 1;
    }
    template <int N> static void dot(const Stored* w, const Packed* const* x, long k, float* out) {
        floats even[2][N] = {}, odd[2][N] = {};
        auto block = [&](long from, int at) {
            ahead(w + from);
            words both = load<words>(w + from);
            floats low = (floats)(both << 16), high = (floats)(both & 0xffff0000u);
            for (int i = 0; i < N; ++i) {
                even[at][i] += low * load<floats>(x[i] + from);
                odd[at][i] += high * load<floats>(x[i] + from + WIDTH);
            }
        };
        long at = 0;
        for (; at + 2 * PAIR <= k; at += 2 * PAIR) block(at, 0), block(at + PAIR, 1);
        if (at + PAIR <= k) block(at, 0), at += PAIR;
        for (int i = 0; i < N; ++i)
            out[i] = total(even[0][i] + odd[0][i] + (even[1][i] + odd[1][i]));
        for (; at < k; ++at)
            for (int i = 0; i < N; ++i) out[i] += get(w[at]) * x[i][at];
    }
};

constexpr int BLOCK = 32;  // numbers of 8 bits taken at a time

#if defined(__AVX512BW__)
typedef __m512i sums;
inline sums nothing() { return _mm512_setzero_si512(); }
inline sums add_products(sums sum, const int8_t* w, const int16_t* x) {
    __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)w));
#if defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(sum, wide, _mm512_loadu_si512(x));
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(wide, _mm512_loadu_si512(x)));
#endif
}
inline int64_t total(sums v) {
    return _mm512_reduce_add_epi64(
        _mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(v)),
                         _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(v, 1))));
}
#elif defined(__AVX2__)
typedef __m256i sums;
inline sums nothing() { return _mm256_setzero_si256(); }
inline sums add_products(sums sum, const int8_t* w, const int16_t* x) {
    for (int half = 0; half < BLOCK; half += 16) {
        __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(w + half)));
        __m256i in = _mm256_loadu_si256((const __m256i*)(x + half));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(wide, in));
    }
    return sum;
}
inline int64_t total(sums v) {
    int32_t lanes[8];
    int64_t sum = 0;
    std::memcpy(lanes, &v, sizeof v);
    for (int lane : lanes) sum += lane;
    return sum;
}
#else
typedef int32_t sums __attribute__((vector_size(32)));
typedef int8_t bytes __attribute__((vector_size(8)));
typedef int16_t shorts __attribute__((vector_size(16)));
inline sums nothing() { return sums{}; }
inline sums add_products(sums sum, const int8_t* w, const int16_t* x) {
    for (int part = 0; part < BLOCK; part += 8)
        sum += __builtin_convertvector(load<bytes>(w + part), sums) *
               __builtin_convertvector(load<shorts>(x + part), sums);
    return sum;
}
inline int64_t total(sums v) {
    int64_t sum = 0;
    for (int i = 0; i < 8; ++i) sum += v[i];
    return sum;
}
#endif

// Weights of 8 bits times inputs of 16 (a step of 1/32767 of the largest), summed exactly.
struct Int8 {
    using Stored = int8_t;
    using Packed = int16_t;
    static constexpr long SAFE = 4096;  // 127 * 32767 * 4096 / 8 lanes fits into 32 bits
    static float pack(const float* x, long k, Packed* out) {
        float most = 0;
        for (long i = 0; i < k; ++i) most = std::fmax(most, std::fabs(x[i]));
        if (!std::isfinite(most)) return NAN;
        float step = most / 32767, per = most > 0 ? 32767 / most : 0;
        for (long i = 0; i < k; ++i) out[i] = int16_t(std::lrintf(x[i] * per));
        return step;
    }
    template <int N> static void dot(const Stored* w, const Packed* const* x, long k, float* out) {
        for (int i = 0; i < N; ++i) out[i] = 0;
        long at = 0;
        while (at + BLOCK <= k) {
            sums sum[2][N];
            for (int i = 0; i < N; ++i) sum[0][i] = sum[1][i] = nothing();
            auto block = [&](long from, int at) {
                for (int i = 0; i < N; ++i)
                    sum[at][i] = add_products(sum[at][i], w + from, x[i] + from);
            };
            const long stop = std::min(k, at + SAFE);
            for (; at + 2 * BLOCK <= stop; at += 2 * BLOCK)
                ahead(w + at), block(at, 0), block(at + BLOCK, 1);
            if (at + BLOCK <= stop) block(at, 0), at += BLOCK;
            for (int i = 0; i < N; ++i) out[i] += float(total(sum[0][i]) + total(sum[1][i]));
        }
        for (; at < k; ++at)
            for (int i = 0; i < N; ++i) out[i] += float(int(w[at]) * x[i][at]);
    }
};

}  // namespace

extern "C" {

struct Matrix {         // [rows, columns], and a scale per row where it has 8 bits
    const void* data;
    const float* scale;
};

struct Layer {
    const float *first_norm, *second_norm;
    Matrix query, key, value, output;
    const float* router;          // [experts, hidden]; null in a dense layer
    Matrix expert_in, expert_out; // [experts * 2 * expert_width, hidden], [experts * hidden, …]
    Matrix gate, up, down;        // the shared experts, or the dense layer
    int64_t width;                // of these
    void *keys, *values;          // [slots, heads, capacity, dim]
};

struct Model {
    int64_t layers, hidden, heads, dim, vocabulary, experts, chosen, expert_width;
    float epsilon, scaling, routed_scale;
    const Layer* layer;
    const float* norm;
    Matrix head;
    const float *cosines, *sines;  // [positions, dim / 2]
};

struct Step {
    int64_t count, capacity, threads, scratch;  // scratch: floats for each thread
    const int64_t *slots, *lengths;             // lengths: tokens before this one
    float *states, *query, *key, *value, *mixed, *inner, *logits, *work;
};

}  // extern "C"

namespace {

constexpr int MOST = 64;  // pages in one step; compiled_steps.py deals out more

template <class W> struct Inputs {  // vectors packed for one product
    const typename W::Packed* packed[MOST];
    float scale[MOST];
};

template <class W>
void dots(const Matrix& m, long row, long k, const Inputs<W>& x, int count, float* out) {
    const auto* w = (const typename W::Stored*)m.data + row * k;
    int i = 0;
    for (; i + 4 <= count; i += 4) W::template dot<4>(w, x.packed + i, k, out + i);
    for (; i < count; ++i) W::template dot<1>(w, x.packed + i, k, out + i);
    if (m.scale)
        for (i = 0; i < count; ++i) out[i] *= m.scale[row] * x.scale[i];
}

void normalise(const float* x, const float* weight, long k, float epsilon, float* out) {
    float squares = 0;
    for (long i = 0; i < k; ++i) squares += x[i] * x[i];
    float by = 1 / std::sqrt(squares / k + epsilon);
    for (long i = 0; i < k; ++i) out[i] = x[i] * by * weight[i];
}

float silu(float v) { return v / (1 + std::exp(-v)); }

// The experts of one page: the most likely ones, earlier ones first among equals.
void choose(const Model& m, const float* router, const float* x, float* scores, int* ids,
            float* weights) {
    float most = -INFINITY, sum = 0;
    for (long e = 0; e < m.experts; ++e) {
        const float* in[1] = {x};
        Float32::dot<1>(router + e * m.hidden, in, m.hidden, scores + e);
        most = std::fmax(most, scores[e]);
    }
    for (long e = 0; e < m.experts; ++e) sum += scores[e] = std::exp(scores[e] - most);
    for (long c = 0; c < m.chosen; ++c) {
        int best = 0;
        while (scores[best] == -1) ++best;  // a different one each time, even among no numbers
        for (int e = best + 1; e < m.experts; ++e)
            if (scores[e] > scores[best]) best = e;
        ids[c] = best;
        weights[c] = scores[best] / sum * m.routed_scale;
        scores[best] = -1;
    }
}

// Where the threads of a step wait for each other. OpenMP's own barrier puts a thread to sleep at
// once if the program has more OpenMP threads than processors, as it has when several of its threads
// compute, and waking one takes longer than the work between two barriers.
class Barrier {
    static constexpr int PATIENCE = 2000;  // looks before others may have the processor
    std::atomic<long> arrived{0}, round{0};

  public:
    void wait(long threads) {
        const long now = round.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
            arrived.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        for (int looks = 0; round.load(std::memory_order_acquire) == now;) {
            if (looks == PATIENCE) {
                std::this_thread::yield();
                continue;
            }
            ++looks;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
    }
};

template <class W, class C> struct Worker {
    const Model& m;
    const Step& s;
    Barrier& barrier;
    const long thread;
    float* const work;
    const int n = int(s.count);

    long first(long rows) const { return rows * thread / s.threads; }
    long last(long rows) const { return rows * (thread + 1) / s.threads; }
    float* spare(long at) const { return work + at; }

    Inputs<W> pack(const float* from, long k, float* to) const {
        Inputs<W> x;
        for (int i = 0; i < n; ++i) {
            auto* out = (typename W::Packed*)(to + i * k);
            x.scale[i] = W::pack(from + i * k, k, out);
            x.packed[i] = out;
        }
        return x;
    }

    void project(const Matrix& matrix, long rows, long k, const Inputs<W>& x, float* out,
                 bool add) const {
        float values[MOST];
        for (long row = first(rows); row < last(rows); ++row) {
            dots<W>(matrix, row, k, x, n, values);
            for (int i = 0; i < n; ++i)
                out[i * rows + row] = values[i] + (add ? out[i * rows + row] : 0);
        }
    }

    Inputs<W> normed(const float* weight, float* plain, float* packed) const {
        for (int i = 0; i < n; ++i)
            normalise(s.states + i * m.hidden, weight, m.hidden, m.epsilon, plain + i * m.hidden);
        return pack(plain, m.hidden, packed);
    }

    void rotate(float* x, long position) const {
        const float* cosine = m.cosines + position * m.dim / 2;
        const float* sine = m.sines + position * m.dim / 2;
        for (long i = 0, half = m.dim / 2; i < half; ++i) {
            float low = x[i], high = x[i + half];
            x[i] = low * cosine[i] - high * sine[i];
            x[i + half] = high * cosine[i] + low * sine[i];
        }
    }

    void attend(const Layer& layer, long i, long head) const {
        using T = typename C::Stored;
        const long dim = m.dim, position = s.lengths[i], at = (i * m.heads + head) * dim;
        const long start = (s.slots[i] * m.heads + head) * s.capacity * dim;
        T *keys = (T*)layer.keys + start, *values = (T*)layer.values + start;
        float *query = s.query + at, *key = s.key + at, *out = s.mixed + at, *share = work;
        rotate(query, position);
        rotate(key, position);
        for (long d = 0; d < dim; ++d) {
            keys[position * dim + d] = C::put(key[d]);
            values[position * dim + d] = C::put(s.value[at + d]);
            query[d] *= m.scaling;
            out[d] = 0;
        }
        float* packed = share + s.capacity;
        C::pack(query, dim, packed);
        float most = -INFINITY, sum = 0;
        for (long p = 0; p <= position; ++p) {
            C::template dot<1>(keys + p * dim, &packed, dim, share + p);
            most = std::fmax(most, share[p]);
        }
        for (long p = 0; p <= position; ++p) sum += share[p] = std::exp(share[p] - most);
        for (long p = 0; p <= position; ++p)
            for (long d = 0; d < dim; ++d) out[d] += share[p] * C::get(values[p * dim + d]);
        for (long d = 0; d < dim; ++d) out[d] /= sum;
    }

    // Row r of a gate and of what it gates, to r of `inner`; `to[i]` is where input i's lie.
    void gated(const Matrix& gate, long gate_row, const Matrix& up, long up_row,
               const Inputs<W>& x, int count, float* const* to, long r) const {
        float gates[MOST], ups[MOST];
        dots<W>(gate, gate_row, m.hidden, x, count, gates);
        dots<W>(up, up_row, m.hidden, x, count, ups);
        for (int i = 0; i < count; ++i) to[i][r] = silu(gates[i]) * ups[i];
    }

    void mlp(const Layer& layer) const;
    void run() const;
};

template <class W, class C> void Worker<W, C>::mlp(const Layer& layer) const {
    const long hidden = m.hidden, width = m.expert_width, routed = layer.router ? m.chosen : 0;
    const long each = routed * width + layer.width;  // inner values of one page
    float *plain = work, *packed = spare(n * hidden), *scores = spare(2 * n * hidden);
    int* ids = (int*)(scores + m.experts);
    float* weights = (float*)(ids + n * routed);
    float* inner_packed = weights + n * routed;
    Inputs<W> x = normed(layer.second_norm, plain, packed);
    for (int i = 0; i < n && routed; ++i)
        choose(m, layer.router, plain + i * hidden, scores, ids + i * routed, weights + i * routed);

    float* to[MOST];
    for (int i = 0; i < n; ++i) to[i] = s.inner + i * each + routed * width;
    for (long r = first(layer.width); r < last(layer.width); ++r)
        gated(layer.gate, r, layer.up, r, x, n, to, r);
    for (long e = 0; e < (routed ? m.experts : 0); ++e) {
        Inputs<W> some;
        int count = 0;
        for (long j = 0; j < n * routed; ++j)
            if (ids[j] == e) {
                some.packed[count] = x.packed[j / routed];
                some.scale[count] = x.scale[j / routed];
                to[count++] = s.inner + (j / routed) * each + (j % routed) * width;
            }
        for (long r = first(width); count && r < last(width); ++r)
            gated(layer.expert_in, e * 2 * width + r, layer.expert_in, (e * 2 + 1) * width + r,
                  some, count, to, r);
    }
    barrier.wait(s.threads);
    Inputs<W> shared;
    float values[MOST];
    for (int i = 0; i < n; ++i) {
        auto* out = (typename W::Packed*)(inner_packed + i * each + routed * width);
        shared.scale[i] = W::pack(s.inner + i * each + routed * width, layer.width, out);
        shared.packed[i] = out;
    }
    for (long r = first(hidden); r < last(hidden); ++r) {
        dots<W>(layer.down, r, layer.width, shared, n, values);
        for (int i = 0; i < n; ++i) s.states[i * hidden + r] += values[i];
    }
    for (long e = 0; e < (routed ? m.experts : 0); ++e) {
        Inputs<W> some;
        long from[MOST];
        int count = 0;
        for (long j = 0; j < n * routed; ++j)
            if (ids[j] == e) {
                long at = (j / routed) * each + (j % routed) * width;
                auto* out = (typename W::Packed*)(inner_packed + at);
                some.scale[count] = W::pack(s.inner + at, width, out);
                some.packed[count] = out;
                from[count++] = j;
            }
        for (long r = first(hidden); count && r < last(hidden); ++r) {
            dots<W>(layer.expert_out, e * hidden + r, width, some, count, values);
            for (int i = 0; i < count; ++i)
                s.states[from[i] / routed * hidden + r] += weights[from[i]] * values[i];
        }
    }
    barrier.wait(s.threads);
}

template <class W, class C> void Worker<W, C>::run() const {
    const long hidden = m.hidden, wide = m.heads * m.dim;
    for (long l = 0; l < m.layers; ++l) {
        const Layer& layer = m.layer[l];
        Inputs<W> x = normed(layer.first_norm, work, spare(n * hidden));
        project(layer.query, wide, hidden, x, s.query, false);
        project(layer.key, wide, hidden, x, s.key, false);
        project(layer.value, wide, hidden, x, s.value, false);
        barrier.wait(s.threads);
        for (long task = first(n * m.heads); task < last(n * m.heads); ++task)
            attend(layer, task / m.heads, task % m.heads);
        barrier.wait(s.threads);
        project(layer.output, hidden, wide, pack(s.mixed, wide, work), s.states, true);
        barrier.wait(s.threads);
        mlp(layer);
    }
    Inputs<W> x = normed(m.norm, work, spare(n * hidden));
    project(m.head, m.vocabulary, hidden, x, s.logits, false);
}

template <class W, class C> void run(const Model& model, const Step& step) {
    Barrier barrier;
#pragma omp parallel num_threads(int(step.threads))
    {
        Step given = step;
        given.threads = omp_get_num_threads();  // may be fewer than were asked for
        long thread = omp_get_thread_num();
        Worker<W, C>{model, given, barrier, thread, step.work + thread * step.scratch}.run();
    }
}

}  // namespace

// `weights` and `cache` are 0 for float32, 1 for bfloat16; `weights` 2 for 8 bits.
extern "C" int decode_step(const Model* model, const Step* step, int weights, int cache) {
    if (step->count > MOST) return 1;
    if (weights == 0 && cache == 0) run<Float32, Float32>(*model, *step);
    else if (weights == 1 && cache == 1) run<Bfloat16, Bfloat16>(*model, *step);
    else if (weights == 2 && cache == 0) run<Int8, Float32>(*model, *step);
    else if (weights == 2 && cache == 1) run<Int8, Bfloat16>(*model, *step);
    else return 1;
    return 0;
}

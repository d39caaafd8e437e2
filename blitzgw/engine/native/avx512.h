// The unit of CPUs with AVX-512 BF16 but no tiles (unit.h): a lane is a pair of k.
//
// VDPBF16PS multiplies 16 pairs of two operands and adds each pair's products to a lane of sums. So
// rows of W meet rows of x as both lie in memory, four of each at a time, and each of their 16 sums
// is added up across its lanes at the end, always in the same order.
#pragma once

#include <type_traits>

#include "scratch.h"

inline int init_unit() { return 0; }
inline void begin_unit() {}
inline void end_unit() {}

// Where a row's 32 values of a step are: four rows together, so that what is used together lies
// together.
inline uint32_t* packed_row(uint32_t* group, int row, int step, int steps) {
    return group + (size_t(row / 4 * steps + step) * 4 + row % 4) * TILE;
}

// Rows stay rows.
inline void pack_tile(const bf16* const rows[16], uint32_t* group, int step, int steps) {
    for (int i = 0; i < TILE; i++)
        _mm512_store_si512(packed_row(group, i, step, steps),
                           rows[i] ? _mm512_loadu_si512(rows[i]) : _mm512_setzero_si512());
}

inline void store_row(__m512i values, uint32_t* group, int row, int step, int steps) {
    _mm512_store_si512(packed_row(group, row, step, steps), values);
}

inline void store_packed(const __m512 y[TILE], uint32_t* group, int step, int steps, int half) {
    __m512i r[TILE];
    for (int i = 0; i < TILE; i++) r[i] = _mm512_castps_si512(y[i]);
    transpose(r);
    for (int t = 0; t < TILE; t++)
        store_bf16(reinterpret_cast<bf16*>(packed_row(group, t, step, steps)) + half * TILE,
                   _mm512_castsi512_ps(r[t]));
}

inline __m256i load_16(const bf16* p) { return _mm256_loadu_si256((const __m256i*)p); }

inline __m512bh load_pairs(const void* p) { return (__m512bh)_mm512_loadu_si512(p); }

// Fold four registers by `op`: lane j of each 128 bits is what that of r[j] has in four lanes.
template <class Op>
inline __m512 fold_fours(const __m512 r[4], Op op) {
    const __m512 low = op(_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
    const __m512 high = op(_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
    const __m512d a = _mm512_castps_pd(low), b = _mm512_castps_pd(high);
    return op(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
              _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
}

// Fold a with b by `op`: neighbours of 128 bits with each other, those of a before those of b.
template <class Op>
inline __m512 fold_pair(__m512 a, __m512 b, Op op) {
    return op(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

// Fold 16 registers across their lanes; lane i is that of r[i].
template <class Op>
inline __m512 fold_lanes(const __m512 r[16], Op op) {
    const __m512 a = fold_pair(fold_fours(r, op), fold_fours(r + 4, op), op);
    const __m512 b = fold_pair(fold_fours(r + 8, op), fold_fours(r + 12, op), op);
    return fold_pair(a, b, op);
}

inline __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
inline __m512 larger(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }

// Sums that are yet to be added up to the end, and where they go: four to a row of `out`. They are
// finished beside the next products, so that these need not wait for them.
struct Unfinished {
    __m512 fours[4];
    float* out;

    void finish() const {
        const __m512 a = fold_pair(fours[0], fours[1], add), b = fold_pair(fours[2], fours[3], add);
        const __m512 all = fold_pair(a, b, add);
        _mm_store_ps(out, _mm512_castps512_ps128(all));
        _mm_store_ps(out + TILE, _mm512_extractf32x4_ps(all, 1));
        _mm_store_ps(out + 2 * TILE, _mm512_extractf32x4_ps(all, 2));
        _mm_store_ps(out + 3 * TILE, _mm512_extractf32x4_ps(all, 3));
    }
};

// Products of four rows at `a` with `count` of four packed rows, for a row of `out` each, are left
// unfinished, and what was before is finished. Asks ahead along the way, in equal parts: for rows of W,
// and a line of KV at each step.
template <int count>
inline void products(const bf16* a, size_t stride, const uint32_t* packed, int steps, Lines ahead,
                     Lines kv, float* out, Unfinished& rest) {
    __m512 sums[16];
    for (__m512& sum : sums) sum = _mm512_setzero_ps();
    for (int step = 0; step < steps; step++) {
        __m512bh rows[4];
        for (int i = 0; i < 4; i++) rows[i] = load_pairs(a + i * stride + step * TILE_K);
        for (int j = 0; j < count; j++) {
            const __m512bh other = load_pairs(packed + (step * 4 + j) * TILE);
            for (int i = 0; i < 4; i++)
                sums[4 * i + j] = _mm512_dpbf16_ps(sums[4 * i + j], rows[i], other);
        }
        // here, and in no function of its own: compilers drop a call that only prefetches
        for (int i = 0; i < ahead.each && ahead.next < ahead.end; i++, ahead.next += LINE)
            _mm_prefetch(ahead.next, _MM_HINT_T1);
        if (kv.next < kv.end) {
            _mm_prefetch(kv.next, _MM_HINT_T1);
            kv.next += LINE;
        }
    }
    rest.finish();
    for (int i = 0; i < 4; i++) rest.fours[i] = fold_fours(sums + 4 * i, add);
    rest.out = out;
}

// Call with a count of 1 to 4 that is known when this is compiled.
template <class Call>
inline void with_count(int count, Call call) {
    if (count >= 4) call(std::integral_constant<int, 4>());
    else if (count == 3) call(std::integral_constant<int, 3>());
    else if (count == 2) call(std::integral_constant<int, 2>());
    else call(std::integral_constant<int, 1>());
}

constexpr int DEPTH = 1 << 20;  // sums across lanes are for the end

// Memory gives about a line in the time of a step (16 cycles of products): what the weights leave of
// that is for KV. Up to 16 tokens they leave nothing.
inline int idle_lines(int steps, int weights) { return std::max(0, steps - weights); }

inline void multiply(const bf16* w0, const bf16* w1, int k, int, int steps, const uint32_t* packed,
                     int tokens, const bf16* next0, const bf16* next1, Sums sums, NextKv& kv) {
    Unfinished rest{{}, sums[0][0][0]};  // nothing yet: zeros, where sums come later
    const int fours = (tokens + 3) / 4, lines = 4 * steps;  // as many lines come as are used
    for (int four = 0; four < fours; four++)
        for (int row = 0; row < 2 * TILE; row += 4) {
            const int within = row % TILE, at = four % 4 * 4;
            const size_t offset = size_t(within) * k;
            Lines ahead{};
            if (next0) {
                const bf16* next = (row < TILE ? next0 : next1) + offset;
                const char* base = reinterpret_cast<const char*>(next);
                ahead = {base + lines * four / fours * LINE, base + lines * (four + 1) / fours * LINE,
                         (4 + fours - 1) / fours};
            }
            const Lines more = kv.take(idle_lines(steps, int(ahead.end - ahead.next) / LINE));
            float* out = sums[row / TILE][four / 4][within] + at;
            with_count(tokens - 4 * four, [&](auto count) {
                products<count>((row < TILE ? w0 : w1) + offset, k,
                                packed + size_t(four) * lines * TILE, steps, ahead, more, out, rest);
            });
        }
    rest.finish();
}

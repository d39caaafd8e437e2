// y = x · Wᵀ for bf16 x [M, K] and W [N, K], rows of W as they arrive in the blob.
//
// x is packed once (16 tokens × 32 values a tile), then each thread walks its own rows of W: two
// tiles of W against two tiles of x, four sums at a time. W is read once and streams from memory
// while the next rows are prefetched; packed x stays in the cache.
#pragma once

#include <algorithm>

#include "tiles.h"

struct Work {
    int thread, threads;

    // This thread's part [begin, end) of n units.
    void share(int n, int& begin, int& end) const {
        begin = int(int64_t(n) * thread / threads);
        end = int(int64_t(n) * (thread + 1) / threads);
    }
};

inline size_t packed_bytes(int m, int k) {
    return size_t((m + TILE - 1) / TILE) * (k / TILE_K) * 1024;
}

// Pack x, row stride `stride`, this thread's share of token groups × tiles of k.
inline void pack(const bf16* x, int m, int k, size_t stride, uint32_t* packed, Work work) {
    const int steps = k / TILE_K;
    int begin, end;
    work.share((m + TILE - 1) / TILE * steps, begin, end);
    for (int unit = begin; unit < end; unit++) {
        const int first = unit / steps * TILE, at = unit % steps * TILE_K;
        const bf16* rows[TILE];
        for (int i = 0; i < TILE; i++)
            rows[i] = first + i < m ? x + (first + i) * stride + at : nullptr;
        pack_b(rows, packed + size_t(unit) * 256);
    }
}

// Of a chunk's tokens, so many steps of k are summed for PAIRS pairs of token groups before the next
// steps: the rows of W then stay in the first cache (both operands of all of k would not fit).
constexpr int DEPTH = 9, PAIRS = 16;

using Sums = float[2][2][TILE][TILE];  // [rows of W][token group][row][token]

// Sum over steps [from, to) of k for two tiles of W's rows and `columns` (1 or 2) token groups, on
// top of `sums` where from > 0, and prefetch two tiles of the rows that come next.
inline void multiply(const bf16* w0, const bf16* w1, int k, int from, int to,
                     const uint32_t* packed, int columns, const bf16* next0, const bf16* next1,
                     Sums sums) {
    const size_t stride = size_t(k) * sizeof(bf16);
    const uint32_t* other = packed + (columns == 2 ? size_t(k / TILE_K) * 256 : 0);
    if (from) {
        _tile_loadd(0, sums[0][0], 64);
        _tile_loadd(1, sums[1][0], 64);
        if (columns == 2) _tile_loadd(2, sums[0][1], 64);
        if (columns == 2) _tile_loadd(3, sums[1][1], 64);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int s = from; s < to; s++) {
        _tile_loadd(4, w0 + s * TILE_K, stride);
        _tile_loadd(5, w1 + s * TILE_K, stride);
        _tile_loadd(6, packed + s * 256, 64);
        if (next0)  // 16 lines of each for 16 lines of each consumed
            for (int i = 0; i < TILE; i++) {
                _mm_prefetch((const char*)(next0 + (s * TILE + i) * TILE_K), _MM_HINT_T1);
                _mm_prefetch((const char*)(next1 + (s * TILE + i) * TILE_K), _MM_HINT_T1);
            }
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
        if (columns == 2) {
            _tile_loadd(7, other + s * 256, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums[0][0], 64);
    _tile_stored(1, sums[1][0], 64);
    if (columns == 2) {
        _tile_stored(2, sums[0][1], 64);
        _tile_stored(3, sums[1][1], 64);
    }
}

// Of n_rows ≥ 16 rows, the first of 16 that are there: `row`, but for the last ones.
inline int whole_tile(int row, int n_rows) { return std::min(row, n_rows - TILE); }

// Walk this thread's share of W's rows and all token groups; call
// finish(n, token group, tile at row n, tile at row n of `second`) with [row][token] sums.
//   second: the matrix whose row n belongs to row n of w (gate and up); n goes by 16.
//   null:   the 16 rows that follow; n goes by 32. A tile past the end is the last whole one.
template <class Finish>
inline void linear(const bf16* w, const bf16* second, int n_rows, int k, const uint32_t* packed,
                   int m, Work work, Finish finish) {
    const int unit = second ? TILE : 2 * TILE, groups = (m + TILE - 1) / TILE, steps = k / TILE_K;
    int begin, end;
    work.share((n_rows + unit - 1) / unit, begin, end);
    alignas(64) Sums sums[PAIRS];
    for (int u = begin; u < end; u++) {
        const bf16* w0 = w + size_t(whole_tile(u * unit, n_rows)) * k;
        const bf16* w1 = second ? second + size_t(u) * unit * k
                                : w + size_t(whole_tile(u * unit + TILE, n_rows)) * k;
        const bf16* next0 = u + 1 < end ? w0 + unit * k : nullptr;
        for (int first = 0; first < groups; first += 2 * PAIRS) {
            const int last = std::min(groups, first + 2 * PAIRS);
            const int depth = last - first > 2 ? DEPTH : steps;  // one pair comes once: all at once
            for (int from = 0; from < steps; from += depth)
                for (int g = first; g < last; g += 2) {
                    const int columns = std::min(2, groups - g), to = std::min(from + depth, steps);
                    Sums& sum = sums[(g - first) / 2];
                    multiply(w0, w1, k, from, to, packed + size_t(g) * steps * 256, columns,
                             g ? nullptr : next0, w1 + unit * k, sum);
                    for (int c = 0; to == steps && c < columns; c++)
                        finish(u * unit, g + c, sum[0][c], sum[1][c]);
                }
        }
    }
}

// The same, with store(token, n, 16 outputs of the token from row n) for every token below m. Where
// n_rows is no multiple of 16, some of the last 16 rows are stored twice.
template <class Store>
inline void linear_by_token(const bf16* w, int n_rows, int k, const uint32_t* packed, int m,
                            Work work, Store store) {
    linear(w, nullptr, n_rows, k, packed, m, work,
           [&](int n, int group, float (*low)[TILE], float (*high)[TILE]) {
               for (float(*tile)[TILE] : {low, high}) {
                   const int row = n + (tile == high ? TILE : 0);
                   if (row >= n_rows) return;
                   const int first = whole_tile(row, n_rows);
                   __m512i r[TILE];
                   for (int i = 0; i < TILE; i++) r[i] = _mm512_load_si512(tile[i]);
                   transpose(r);
                   for (int t = 0; t < TILE && group * TILE + t < m; t++)
                       store(group * TILE + t, first, _mm512_castsi512_ps(r[t]));
               }
           });
}

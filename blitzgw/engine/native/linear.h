// y = x · Wᵀ for bf16 x [M, K] and W [N, K], rows of W as they arrive in the blob.
//
// x is packed once (16 tokens × 32 values a tile), then each thread walks its own rows of W: two
// tiles of W against two tiles of x. W is read once and streams from memory while the next rows are
// prefetched; packed x stays in the cache.
#pragma once

#include <algorithm>

#include "unit.h"

inline size_t packed_bytes(int m, int k) {
    return size_t((m + TILE - 1) / TILE) * (k / TILE_K) * 1024;
}

// A chunk's tokens are summed in parts of so many pairs of token groups.
constexpr int PAIRS = 16;

// Of n_rows ≥ 16 rows, the first of 16 that are there: `row`, but for the last ones.
inline int whole_tile(int row, int n_rows) { return std::min(row, n_rows - TILE); }

// Walk this thread's share of W's rows and all token groups; call
// finish(n, token group, tile at row n, tile at row n of `second`) with [row][token] sums.
//   second: the matrix whose row n belongs to row n of w (gate and up); n goes by 16.
//   null:   the 16 rows that follow; n goes by 32. A tile past the end is the last whole one.
template <class Finish>
inline void linear(const bf16* w, const bf16* second, int n_rows, int k, const uint32_t* packed,
                   int m, Work work, NextKv& kv, Finish finish) {
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
                    const int to = std::min(from + depth, steps);
                    Sums& sum = sums[(g - first) / 2];
                    multiply(w0, w1, k, from, to, packed + size_t(g) * steps * 256,
                             std::min(2 * TILE, m - g * TILE), g ? nullptr : next0, w1 + unit * k,
                             sum, kv);
                    for (int c = 0; to == steps && c < std::min(2, groups - g); c++)
                        finish(u * unit, g + c, sum[0][c], sum[1][c]);
                }
        }
    }
}

// The same, with store(token, n, 16 outputs of the token from row n) for every token below m. Where
// n_rows is no multiple of 16, some of the last 16 rows are stored twice.
template <class Store>
inline void linear_by_token(const bf16* w, int n_rows, int k, const uint32_t* packed, int m,
                            Work work, NextKv& kv, Store store) {
    linear(w, nullptr, n_rows, k, packed, m, work, kv,
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

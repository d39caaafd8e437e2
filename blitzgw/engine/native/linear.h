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

using Sums = float[2][2][TILE][TILE];  // [rows of W][token group][row][token]

// Sum over k for two tiles of W's rows and `columns` (1 or 2) token groups, and prefetch two tiles
// of the rows that come next.
inline void multiply(const bf16* w0, const bf16* w1, int k, const uint32_t* packed, int columns,
                     const bf16* next0, const bf16* next1, Sums sums) {
    const int steps = k / TILE_K;
    const size_t stride = size_t(k) * sizeof(bf16);
    const uint32_t* other = packed + (columns == 2 ? size_t(steps) * 256 : 0);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int s = 0; s < steps; s++) {
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

// Walk this thread's share of W's rows and all token groups; call
// finish(n, token group, tile at row n, tile at row n of `second`) with [row][token] sums.
//   second: the matrix whose row n belongs to row n of w (gate and up); n goes by 16.
//   null:   the 16 rows that follow; n goes by 32, and past the end the first tile is repeated.
template <class Finish>
inline void linear(const bf16* w, const bf16* second, int n_rows, int k, const uint32_t* packed,
                   int m, Work work, Finish finish) {
    const int unit = second ? TILE : 2 * TILE, groups = (m + TILE - 1) / TILE;
    const size_t tile = size_t(TILE) * k;
    int begin, end;
    work.share((n_rows + unit - 1) / unit, begin, end);
    alignas(64) Sums sums;
    for (int u = begin; u < end; u++) {
        const bf16* w0 = w + size_t(u) * unit * k;
        const bf16* w1 = second ? second + size_t(u) * unit * k
                                : (u * unit + TILE < n_rows ? w0 + tile : w0);
        const bool more = u + 1 < end;
        for (int g = 0; g < groups; g += 2) {
            const int columns = std::min(2, groups - g);
            multiply(w0, w1, k, packed + size_t(g) * (k / TILE_K) * 256, columns,
                     more && g == 0 ? w0 + unit * k : nullptr, w1 + unit * k, sums);
            for (int c = 0; c < columns; c++) finish(u * unit, g + c, sums[0][c], sums[1][c]);
        }
    }
}

// The same, with store(token, n, 16 outputs of the token from row n) for every token below m.
template <class Store>
inline void linear_by_token(const bf16* w, int n_rows, int k, const uint32_t* packed, int m,
                            Work work, Store store) {
    linear(w, nullptr, n_rows, k, packed, m, work,
           [&](int n, int group, float (*low)[TILE], float (*high)[TILE]) {
               for (float(*tile)[TILE] : {low, high}) {
                   const int row = n + (tile == high ? TILE : 0);
                   if (row >= n_rows) return;
                   __m512i r[TILE];
                   for (int i = 0; i < TILE; i++) r[i] = _mm512_load_si512(tile[i]);
                   transpose(r);
                   for (int t = 0; t < TILE && group * TILE + t < m; t++)
                       store(group * TILE + t, row, _mm512_castsi512_ps(r[t]));
               }
           });
}

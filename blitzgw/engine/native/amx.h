// The unit of CPUs with AMX (unit.h): tiles of 16 rows of 64 bytes.
//
// TDPBF16PS adds A · B to a 16 × 16 fp32 tile C, where A is 16 rows × 32 values of k, and B holds 16
// *pairs* of k as rows: (b[2i][n], b[2i+1][n]) for 16 n. Weights and keys are used as A straight
// from their rows in memory; what is small (activations, queries) is packed in B's order.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include "scratch.h"

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t columns_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Ask the kernel for the use of tiles; 0 where they may be used.
inline int init_unit() {
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return int(syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA));
}

// All eight tiles are whole.
inline void begin_unit() {
    static const TileConfig config;
    _tile_loadconfig(&config);
}

inline void end_unit() { _tile_release(); }

inline void pack_tile(const bf16* const rows[16], uint32_t* group, int step, int) {
    uint32_t* out = group + size_t(step) * 256;
    __m512i r[16];
    for (int i = 0; i < 16; i++)
        r[i] = rows[i] ? _mm512_loadu_si512(rows[i]) : _mm512_setzero_si512();
    transpose(r);
    for (int i = 0; i < 16; i++) _mm512_store_si512(out + 16 * i, r[i]);
}

// A row's pairs are a column.
inline void store_row(__m512i values, uint32_t* group, int row, int step, int) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    _mm512_i32scatter_epi32(group + size_t(step) * 256 + row, _mm512_slli_epi32(lanes, 4), values, 4);
}

// Two rows of sums are one row of pairs.
inline void store_packed(const __m512 y[TILE], uint32_t* group, int step, int, int half) {
    uint32_t* tile = group + size_t(step) * 256;
    for (int i = 0; i < TILE; i += 2) {
        const __m512i low = _mm512_cvtepu16_epi32(round_bf16(y[i]));
        const __m512i high = _mm512_cvtepu16_epi32(round_bf16(y[i + 1]));
        _mm512_store_si512(tile + (half * TILE + i) / 2 * TILE,
                           _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

// Of a chunk's tokens, so many steps of k are summed before the next: the rows of W then stay in the
// first cache (both operands of all of k would not fit).
constexpr int DEPTH = 9;

// Weights take all that memory gives, so that nothing is left for KV.
inline void multiply(const bf16* w0, const bf16* w1, int k, int from, int to,
                     const uint32_t* packed, int tokens, const bf16* next0, const bf16* next1,
                     Sums sums, NextKv&) {
    const int columns = (tokens + TILE - 1) / TILE;
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

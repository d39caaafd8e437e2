// Small parts for AMX tiles of bf16: layout, transposes, conversions, exp.
//
// A tile holds 16 rows of 64 bytes. TDPBF16PS adds A · B to a 16 × 16 fp32 tile C, where A is
// 16 rows × 32 values of k, and B holds 16 *pairs* of k as rows: (b[2i][n], b[2i+1][n]) for 16 n.
// Weights and keys are used as A straight from their rows in memory; what is small (activations,
// queries) is brought into B's order.
//
// Every sum runs over k in the same order whatever else is in the batch, so results do not depend
// on batch composition, bit for bit.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>

using bf16 = uint16_t;

constexpr int TILE = 16;     // rows of a tile, and columns of an fp32 tile
constexpr int TILE_K = 32;   // values of k in a bf16 tile

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t columns_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// All eight tiles are whole; to be called by each thread before it uses one.
inline void configure_tiles() {
    static const TileConfig config;
    _tile_loadconfig(&config);
}

inline float to_float(bf16 value) {
    uint32_t bits = uint32_t(value) << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

inline __m512 load_bf16(const bf16* p) {
    __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline __m256i round_bf16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

inline void store_bf16(bf16* p, __m512 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_bf16(x));
}

// Transpose 16 × 16 values of 32 bits.
inline void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// Bring up to 16 rows of 32 values (null: a row of zeros) into B's order at `out` (1 KiB).
inline void pack_b(const bf16* const rows[16], uint32_t* out) {
    __m512i r[16];
    for (int i = 0; i < 16; i++)
        r[i] = rows[i] ? _mm512_loadu_si512(rows[i]) : _mm512_setzero_si512();
    transpose(r);
    for (int i = 0; i < 16; i++) _mm512_store_si512(out + 16 * i, r[i]);
}

// e^x for x ≤ 0, exactly 0 below −80 (so that a masked score contributes nothing at all).
// x = n ln 2 + f, |f| ≤ ln 2 / 2; Taylor to the fifth power: relative error below 3e-6, a
// thousandth of bf16's.
inline __m512 exp_negative(__m512 x) {
    const __mmask16 alive = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-80.0f), _CMP_GE_OQ);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    const __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693147181f), x);
    __m512 y = _mm512_set1_ps(1.0f / 120);
    for (float c : {1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(c));
    return _mm512_maskz_scalef_ps(alive, y, n);
}

// 1 / x by one Newton step on the 14-bit estimate: relative error below 1e-8.
inline __m512 reciprocal(__m512 x) {
    const __m512 r = _mm512_rcp14_ps(x);
    return _mm512_mul_ps(r, _mm512_fnmadd_ps(x, r, _mm512_set1_ps(2.0f)));
}

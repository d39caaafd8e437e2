// What one thread keeps while it attends.
#pragma once

#include "stream.h"

constexpr int MAX_DIM = 256;   // head dimension
constexpr int OUT_TILES = 4;   // tiles of O that stay in registers

struct alignas(64) AttentionScratch {
    uint32_t queries[TILE * MAX_DIM / TILE_K][256];  // packed, of each kv head
    float scores[BLOCK][TILE] = {};
    bf16 probabilities[BLOCK / TILE_K][TILE][TILE_K];
    uint32_t values[2][OUT_TILES][256];  // one is packed while the other is used
    float out[TILE * MAX_DIM / TILE][TILE][TILE];
    int rows[TILE + 1];  // of kv head h: queries [rows[h], rows[h + 1])
};

// Interleave 32 rows of V in pairs, dimensions [d, d + 32), into two tiles in B's order. Rows from
// `stop` on are zeros (memory there may hold anything). Within each 32 the first tile gets
// dimensions 0–3, 8–11, 16–19, 24–27 and the second the others: `write_out` puts them right.
inline void pack_values(const bf16* v, int first, int stop, int dim, int d, uint32_t (*tiles)[256]) {
    for (int pair = 0; pair < TILE; pair++) {
        const int pos = first + 2 * pair;
        const bf16* row = v + size_t(pos) * dim + d;
        const __m512i a = pos < stop ? _mm512_loadu_si512(row) : _mm512_setzero_si512();
        const __m512i b = pos + 1 < stop ? _mm512_loadu_si512(row + dim) : _mm512_setzero_si512();
        _mm512_store_si512(tiles[0] + pair * TILE, _mm512_unpacklo_epi16(a, b));
        _mm512_store_si512(tiles[1] + pair * TILE, _mm512_unpackhi_epi16(a, b));
    }
}

template <int tiles>
inline void pack_value_tiles(const bf16* v, int pos, int stop, int dim, int d, Stream& ahead,
                             uint32_t (*values)[256]) {
    for (int t = 0; t < tiles; t += 2) {
        pack_values(v, pos, stop, dim, d + t * TILE, values + t);
        ahead.pull(2 * TILE_K * TILE_K / LINE);
    }
}

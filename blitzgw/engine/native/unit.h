// The part of the CPU that multiplies bf16 matrices, in fp32: AMX tiles, or lanes of AVX-512 BF16.
//
// Every sum runs over k in the same order whatever else is in the batch, so results do not depend
// on batch composition, bit for bit; the two units' orders differ. What each has:
//
//   init_unit()                     0 where the process may use it
//   begin_unit(), end_unit()        in each thread, around what it computes
//   pack_tile(rows, group, step, steps)
//                                   up to 16 rows of 32 values (null: of zeros) into a group's
//                                   packed tiles (1 KiB each), in the unit's own order
//   store_row(values, group, row, step, steps)
//                                   one row of 32 values likewise
//   store_packed(y, group, step, steps, half)
//                                   16 values of k (the first or second half of a step) of 16
//                                   tokens, y[value][token], rounded into packed tiles
//   DEPTH                           so many steps of 32 values of k for all of a chunk's tokens,
//                                   before the next steps
//   multiply(w0, w1, k, from, to, packed, tokens, next0, next1, sums)
//                                   steps [from, to) of k for 2 × 16 rows of W and up to 32 tokens,
//                                   on top of `sums` where from > 0; prefetches the rows of W that
//                                   come next (null: none)
//   pack_queries(queries, heads, dim, s)
//                                   each kv head's queries as `score` needs them
//   score(heads, first, stop, dim, ahead, s)
//                                   s.scores = Q · Kᵀ for positions [first, stop) of a block, a query
//                                   with its own head's K
//   softmax_block(n, first, stop, state, lines_a_row, ahead, s)
//                                   n queries' probabilities from their scores; returns the factor
//                                   for what was summed before
//   accumulate<tiles>(v, first, stop, dim, d, from, to, out, ahead, s)
//                                   O += P · V of one kv head's queries [from, to), dimensions
//                                   [d, d + 16 tiles), in the order of `interleave`
#pragma once

#include "simd.h"

using Sums = float[2][2][TILE][TILE];  // [rows of W][token group][row][token]

#ifdef __AMX_BF16__
#include "amx_attention.h"
#else
#include "avx512_attention.h"
#endif

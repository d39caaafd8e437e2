// Decoder layers of the Llama family in bf16, for CPUs that multiply it: called once a span and step.
//
// Threads enter one parallel region and meet at a barrier between phases:
//   norm, pack → q k v → rotate, write KV → attend (packs) → out + x → norm, pack
//   → gate, up, SwiGLU (packs) → down + x
// Sums are fp32 and rounded where a value is stored. Nothing depends on the rest of the batch.

#include <omp.h>

#include <vector>

#include "deal.h"

namespace {

float inverse_rms(const bf16* x, int n, float eps) {
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < n; i += 16) {
        const __m512 v = load_bf16(x + i);
        sum = _mm512_fmadd_ps(v, v, sum);
    }
    return 1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / n + eps);
}

void norm(const bf16* x, const bf16* weight, int n, float eps, bf16* out) {
    const __m512 scale = _mm512_set1_ps(inverse_rms(x, n, eps));
    for (int i = 0; i < n; i += 16)
        store_bf16(out + i, _mm512_mul_ps(_mm512_mul_ps(load_bf16(x + i), scale),
                                          load_bf16(weight + i)));
}

// RMSNorm of this thread's token groups, straight into packed order.
void norm_and_pack(const bf16* x, const bf16* weight, int m, int k, float eps, uint32_t* packed,
                   Work work) {
    int begin, end;
    work.share((m + TILE - 1) / TILE, begin, end);
    bf16 rows[TILE][TILE_K];
    for (int g = begin; g < end; g++) {
        const int count = std::min(TILE, m - g * TILE);
        float scale[TILE];
        for (int i = 0; i < count; i++)
            scale[i] = inverse_rms(x + size_t(g * TILE + i) * k, k, eps);
        for (int at = 0; at < k; at += TILE_K) {
            const bf16* pointers[TILE] = {};
            for (int i = 0; i < count; i++) {
                const bf16* row = x + size_t(g * TILE + i) * k + at;
                for (int j = 0; j < TILE_K; j += 16)
                    store_bf16(rows[i] + j,
                               _mm512_mul_ps(_mm512_mul_ps(load_bf16(row + j),
                                                           _mm512_set1_ps(scale[i])),
                                             load_bf16(weight + at + j)));
                pointers[i] = rows[i];
            }
            pack_tile(pointers, packed + size_t(g) * (k / TILE_K) * 256, at / TILE_K, k / TILE_K);
        }
    }
}

// Rotate one head in place: pairs are (i, i + dim / 2).
void rotate(bf16* head, const float* cos, const float* sin, int dim) {
    const int half = dim / 2;
    for (int i = 0; i < half; i += 16) {
        const __m512 a = load_bf16(head + i), b = load_bf16(head + half + i);
        const __m512 c = _mm512_loadu_ps(cos + i), s = _mm512_loadu_ps(sin + i);
        store_bf16(head + i, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
        store_bf16(head + half + i, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
    }
}

// Norm (Qwen3) and rotate q and k, and put k and v where they belong in the slot.
void place_token(const Shape& s, const Weights& w, const Batch& batch, const Cache& cache,
                 bf16* qkv, int extent, int token) {
    const int dim = s.head_dim, half = dim / 2;
    const int position = batch.starts[extent] + token - batch.offsets[extent];
    const float *cos = batch.cos + size_t(token) * half, *sin = batch.sin + size_t(token) * half;
    for (int h = 0; h < s.heads + s.kv_heads; h++) {
        bf16* head = qkv + size_t(h) * dim;
        const bf16* weight = h < s.heads ? w.q_norm : w.k_norm;
        if (weight) norm(head, weight, dim, s.eps, head);
        rotate(head, cos, sin, dim);
    }
    for (int h = 0; h < s.kv_heads; h++) {
        const size_t at = batch.slots[extent] * cache.slot_stride + h * cache.head_stride +
                          position / BLOCK * cache.block_gap + size_t(position) * dim;
        memcpy(cache.keys + at, qkv + size_t(s.heads + h) * dim, dim * sizeof(bf16));
        memcpy(cache.values + at, qkv + size_t(s.heads + s.kv_heads + h) * dim,
               dim * sizeof(bf16));
    }
}

void place(const Shape& s, const Weights& w, const Batch& batch, const Cache& cache, bf16* qkv,
           Work work) {
    const size_t width = size_t(s.heads + 2 * s.kv_heads) * s.head_dim;
    int begin, end;
    work.share(batch.tokens, begin, end);
    for (int e = 0; e < batch.extents; e++) {
        const int first = batch.offsets[e], last = first + batch.stops[e] - batch.starts[e];
        for (int t = std::max(begin, first); t < std::min(end, last); t++)
            place_token(s, w, batch, cache, qkv + t * width, e, t);
    }
}

void attend_all(const Shape& s, Deal deal) {
    AttentionScratch own;
    Stream ahead(s.head_dim);
    QueryTile now, next;
    bool more = deal.take(now);
    if (more && now.alone) ahead.start(now.range);
    while (more) {
        more = deal.take(next);
        if (more && next.alone) ahead.append(next.range);
        attend(now.queries, now.n, now.range, s.head_dim, s.window, s.heads * s.head_dim / TILE_K,
               ahead, own);
        now = next;
    }
}

// x += W · packed (+ bias), rounded once.
void add_linear(const bf16* w, const bf16* bias, int n_rows, int k, const uint32_t* packed, int m,
                bf16* x, Work work, NextKv& kv) {
    linear_by_token(w, n_rows, k, packed, m, work, kv, [&](int t, int n, __m512 y) {
        bf16* at = x + size_t(t) * n_rows + n;
        if (bias) y = _mm512_add_ps(y, load_bf16(bias + n));
        store_bf16(at, _mm512_add_ps(load_bf16(at), y));
    });
}

// silu(gate) · up, left in packed order.
void swiglu(const Shape& s, const Weights& w, const uint32_t* packed, int m, uint32_t* out,
            Work work, NextKv& kv) {
    const int rows = s.intermediate, steps = rows / TILE_K;
    const bf16* up_bias = w.gate_up_bias ? w.gate_up_bias + rows : nullptr;
    linear(w.gate_up, w.gate_up + size_t(rows) * s.hidden, rows, s.hidden, packed, m, work, kv,
           [&](int n, int group, float (*gate)[TILE], float (*up)[TILE]) {
               __m512 y[TILE];
               for (int i = 0; i < TILE; i++) {
                   __m512 g = _mm512_load_ps(gate[i]), u = _mm512_load_ps(up[i]);
                   if (w.gate_up_bias) {
                       g = _mm512_add_ps(g, _mm512_set1_ps(to_float(w.gate_up_bias[n + i])));
                       u = _mm512_add_ps(u, _mm512_set1_ps(to_float(up_bias[n + i])));
                   }
                   // silu(g) = g / (1 + e^−g), by e^−|g| so that nothing overflows
                   const __m512 e = exp_negative(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(g)));
                   const __mmask16 negative = _mm512_cmp_ps_mask(g, _mm512_setzero_ps(), _CMP_LT_OQ);
                   const __m512 top = _mm512_mask_mul_ps(g, negative, g, e);
                   const __m512 silu = _mm512_mul_ps(top, reciprocal(_mm512_add_ps(e, _mm512_set1_ps(1.0f))));
                   y[i] = _mm512_mul_ps(silu, u);
               }
               store_packed(y, out + size_t(group) * steps * 256, n / TILE_K, steps, n / TILE % 2);
           });
}

// Bring q, k, v and x of the wanted tokens to the front.
void narrow(const Shape& s, const Batch& batch, bf16* qkv, bf16* x) {
    const size_t width = size_t(s.heads + 2 * s.kv_heads) * s.head_dim, hidden = s.hidden;
    for (int i = 0; i < batch.wanted->tokens; i++) {
        const size_t at = batch.wanted_at[i];
        if (at == size_t(i)) continue;
        memcpy(qkv + i * width, qkv + at * width, width * sizeof(bf16));
        memcpy(x + i * hidden, x + at * hidden, hidden * sizeof(bf16));
    }
}

// Bring x of the wanted tokens back to where it was; other tokens' has no meaning.
void widen(const Shape& s, const Batch& batch, bf16* x) {
    const size_t hidden = s.hidden;
    for (int i = batch.wanted->tokens - 1; i >= 0; i--)
        if (batch.wanted_at[i] != i)
            memcpy(x + batch.wanted_at[i] * hidden, x + i * hidden, hidden * sizeof(bf16));
}

// `kv` has this layer's own KV to ask for, and then that of `next`, which follows. Null: none does;
// then only the KV is needed of tokens that are not wanted.
void run_layer(const Shape& s, const Weights& w, const Batch& batch, const Cache& cache,
               const Cache* next, bf16* x, const Scratch& scratch, Taken* taken, NextKv& kv,
               Work work) {
    const int q_width = s.heads * s.head_dim;
    const int qkv_width = q_width + 2 * s.kv_heads * s.head_dim;
    norm_and_pack(x, w.attn_norm, batch.tokens, s.hidden, s.eps, scratch.packed, work);
#pragma omp barrier
    linear_by_token(w.qkv, qkv_width, s.hidden, scratch.packed, batch.tokens, work, kv,
                    [&](int t, int n, __m512 y) {
                        if (w.qkv_bias) y = _mm512_add_ps(y, load_bf16(w.qkv_bias + n));
                        store_bf16(scratch.qkv + size_t(t) * qkv_width + n, y);
                    });
#pragma omp barrier
    place(s, w, batch, cache, scratch.qkv, work);
#pragma omp barrier
    const bool narrows = !next && batch.wanted;
    if (narrows) {
        if (work.thread == 0) narrow(s, batch, scratch.qkv, x);
#pragma omp barrier
    }
    const Batch& rest = narrows ? *batch.wanted : batch;
    const int m = rest.tokens;
    kv = next ? NextKv(s, batch, *next, work) : NextKv();
    attend_all(s, Deal(s, rest, cache, scratch, work, taken));
#pragma omp barrier
    add_linear(w.out, w.out_bias, s.hidden, q_width, scratch.packed, m, x, work, kv);
#pragma omp barrier
    norm_and_pack(x, w.mlp_norm, m, s.hidden, s.eps, scratch.packed, work);
#pragma omp barrier
    swiglu(s, w, scratch.packed, m, scratch.packed_mlp, work, kv);
#pragma omp barrier
    add_linear(w.down, w.down_bias, s.hidden, s.intermediate, scratch.packed_mlp, m, x, work, kv);
#pragma omp barrier
}

template <class Phases>
void in_parallel(int threads, Phases phases) {
#pragma omp parallel num_threads(threads)
    {
        begin_unit();
        phases(Work{omp_get_thread_num(), omp_get_num_threads()});
        end_unit();
    }
}

}  // namespace

extern "C" {

// 0 where the process may use the kernels.
int blitzgw_init() { return init_unit(); }

size_t blitzgw_scratch_bytes(const Shape* shape, int tokens) {
    return Scratch().lay_out(nullptr, *shape, tokens);
}

// Run `layers` layers, each with its weights and cache: x [tokens, hidden] is replaced by the last
// one's output, where that is wanted.
void blitzgw_layers(const Shape* shape, int layers, const Weights* const* weights, const Batch* batch,
                    const Cache* const* caches, bf16* x, char* scratch_base, int threads) {
    Scratch scratch;
    scratch.lay_out(scratch_base, *shape, batch->tokens);
    std::vector<Taken> taken(size_t(layers) * threads);
    in_parallel(threads, [&](Work work) {
        NextKv kv(*shape, *batch, *caches[0], work);
        for (int i = 0; i < layers; i++)
            run_layer(*shape, *weights[i], *batch, *caches[i], i + 1 < layers ? caches[i + 1] : nullptr,
                      x, scratch, &taken[size_t(i) * threads], kv, work);
    });
    if (batch->wanted) widen(*shape, *batch, x);
}

// logits [tokens, vocab] (fp32) of x [tokens, hidden] after the final norm.
void blitzgw_head(const bf16* x, const bf16* norm_weight, const bf16* matrix, int tokens,
                  int hidden, int vocab, float eps, float* logits, char* scratch, int threads) {
    uint32_t* packed = reinterpret_cast<uint32_t*>(scratch);
    in_parallel(threads, [&](Work work) {
        NextKv none;
        norm_and_pack(x, norm_weight, tokens, hidden, eps, packed, work);
#pragma omp barrier
        linear_by_token(matrix, vocab, hidden, packed, tokens, work, none,
                        [&](int t, int n, __m512 y) {
                            _mm512_storeu_ps(logits + size_t(t) * vocab + n, y);
                        });
    });
}
}

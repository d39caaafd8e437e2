// What a call is about. Mirrored field by field in layer.py.
#pragma once

#include "simd.h"

struct Shape {
    int32_t hidden, heads, kv_heads, head_dim, intermediate, window;
    float eps;
};

struct Weights {  // rows as core/layout.py lays them; null: the model has none
    const bf16 *attn_norm, *qkv, *qkv_bias, *q_norm, *k_norm, *out, *out_bias;
    const bf16 *mlp_norm, *gate_up, *gate_up_bias, *down, *down_bias;
};

struct Batch {
    int32_t tokens, extents;
    const int32_t *slots, *starts, *stops, *offsets;  // [extents]
    const float *cos, *sin;                           // [tokens][head_dim / 2]
    const Batch* wanted;       // tokens whose output is asked for, an extent each; null: all
    const int32_t* wanted_at;  // which of this batch they are, in order
};

constexpr int BLOCK = 128;  // positions between two rescalings of O, which lie together

struct Cache {  // a layer's K and V; strides in elements
    bf16 *keys, *values;
    int64_t slot_stride, head_stride;
    int64_t block_gap;  // between a block's end and the next one's beginning
};

struct Work {
    int thread, threads;

    // This thread's part [begin, end) of n units.
    void share(int n, int& begin, int& end) const {
        begin = int(int64_t(n) * thread / threads);
        end = int(int64_t(n) * (thread + 1) / threads);
    }
};

"""What FlashInfer documents of the functions that are used here, in torch on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def rmsnorm(x, weight, eps=1e-6):
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def silu_and_mul(x):
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def apply_rope_with_cos_sin_cache_inplace(
    positions, query, key, head_size, cos_sin_cache, is_neox=True
):
    assert cos_sin_cache.dtype is torch.float32
    assert is_neox
    cos, sin = cos_sin_cache[positions.long()][:, None].chunk(2, dim=-1)
    for flat in (query, key):
        heads = flat.view(len(flat), -1, head_size)  # a view: the result must arrive there
        first, second = heads.float().chunk(2, dim=-1)
        heads.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))


class BatchDecodeWithPagedKVCacheWrapper:
    """With `use_cuda_graph`, `run` reads the given buffers only, and does the same operations."""

    def __init__(
        self,
        float_workspace_buffer,
        kv_layout="NHD",
        use_cuda_graph=False,
        use_tensor_cores=False,
        paged_kv_indptr_buffer=None,
        paged_kv_indices_buffer=None,
        paged_kv_last_page_len_buffer=None,
    ):
        assert kv_layout == "HND"
        assert not float_workspace_buffer.any()
        self._graph = use_cuda_graph
        self._indptr, self._indices = paged_kv_indptr_buffer, paged_kv_indices_buffer
        self._last = paged_kv_last_page_len_buffer

    def plan(
        self,
        indptr,
        indices,
        last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim,
        page_size,
        *,
        window_left=-1,
        q_data_type,
        kv_data_type,
        non_blocking=True,
    ):
        for each in (indptr, indices, last_page_len):
            assert each.dtype is torch.int32
        assert len(indices) == indptr[-1]
        assert q_data_type is kv_data_type
        self._page, self._window = page_size, window_left
        self._heads = num_qo_heads, num_kv_heads, head_dim
        if not self._graph:
            self._indptr, self._indices, self._last = indptr, indices, last_page_len
            self._most = int(indptr.diff().max())
            return
        assert len(indptr) == len(self._indptr), "the batch size is fixed"
        self._indptr.copy_(indptr)
        self._indices[: len(indices)].copy_(indices)
        self._last.copy_(last_page_len)
        self._most = len(self._indices) // len(self._last)

    def run(self, q, paged_kv_cache):
        n_heads, n_kv, dim = self._heads
        assert q.shape[1:] == (n_heads, dim)
        firsts = self._indptr[:-1].long()
        lengths = (self._indptr.diff() - 1) * self._page + self._last
        at = (firsts[:, None] + torch.arange(self._most)).clamp(max=len(self._indices) - 1)
        positions = torch.arange(self._most * self._page)
        seen = positions < lengths[:, None]
        if self._window >= 0:
            seen = seen & (positions >= lengths[:, None] - 1 - self._window)
        held = []
        for cache in paged_kv_cache:
            assert cache.shape[1:] == (n_kv, self._page, dim)
            pages = cache[torch.where(at < self._indptr[1:, None], self._indices[at], 0).long()]
            held.append(pages.transpose(1, 2).reshape(len(q), n_kv, -1, dim))
        q_BKGD = q.reshape(len(q), n_kv, -1, dim)
        return F.scaled_dot_product_attention(q_BKGD, *held, seen[:, None, None]).reshape(q.shape)

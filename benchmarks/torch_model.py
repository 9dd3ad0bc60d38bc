"""The architecture of `models.CausalTransformer`, as one writes it by hand in PyTorch."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__()
        self.num_heads = num_heads
        self.norm_1, self.norm_2 = (nn.RMSNorm(d_model, eps=1e-6) for _ in range(2))
        self.query, self.key, self.value, self.output = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )
        self.gate, self.up = (nn.Linear(d_model, d_ff, bias=False) for _ in range(2))
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x, cos, sin):
        batch, length, width = x.shape
        h = self.norm_1(x)
        q, k, v = (
            m(h).view(batch, length, self.num_heads, -1).transpose(1, 2)
            for m in (self.query, self.key, self.value)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(h.transpose(1, 2).reshape(batch, length, width))
        h = self.norm_2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Transformer(nn.Module):
    def __init__(self, vocab_size, d_model, num_layers, num_heads, max_length):
        super().__init__()
        d_ff = 64 * math.ceil(d_model * 8 / 3 / 64)
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.blocks = nn.ModuleList(Block(d_model, num_heads, d_ff) for _ in range(num_layers))
        self.norm = nn.RMSNorm(d_model, eps=1e-6)
        nn.init.normal_(self.embedding.weight, std=0.02)
        half = d_model // num_heads // 2
        angles = torch.arange(max_length)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos().repeat(1, 2))
        self.register_buffer("sin", angles.sin().repeat(1, 2))

    def forward(self, ids):
        return self.hidden(ids) @ self.embedding.weight.T

    def hidden(self, ids):
        length = ids.shape[1]
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        return self.norm(x)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin

"""A GPT of any size, in plain torch modules."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each behind a LayerNorm (GPT-2).

    Args:
        width: Features of a position.
        heads: Attention heads; divides ``width``.
        causal: Whether a position sees only those before it.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = True) -> None:
        super().__init__()
        self._causal = causal
        self._heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``[N, T, width]`` to the same shape."""
        mixed = inputs + self.attention_out(self._attend(self.norm1(inputs)))
        outputs: Tensor = mixed + self.out(functional.gelu(self.hidden(self.norm2(mixed))))
        return outputs

    def _attend(self, inputs: Tensor) -> Tensor:
        count, positions, width = inputs.shape
        joined = self.attention_in(inputs).view(count, positions, 3, self._heads, -1)
        query, key, value = joined.permute(2, 0, 3, 1, 4)  # each [N, heads, T, width / heads]
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self._causal)
        return mixed.transpose(1, 2).reshape(count, positions, width)


class GPT(nn.Module):
    """Predicts, at each position, the next symbol.

    Weights are GPT-2's: normal with 0.02, on the way out of a block ÷ √(2 · blocks); no bias but 0.

    Args:
        symbols: Size of the alphabet.
        context: Largest number of positions.
        width: Features of a position.
        blocks: Blocks of attention and feed-forward layers.
        heads: Attention heads; divides ``width``.
    """

    def __init__(self, *, symbols: int, context: int, width: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.symbols = nn.Embedding(symbols, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue  # norms and biases are as they should be, once biases are 0
            outward = name.endswith(("attention_out.weight", "out.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * blocks) if outward else 0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps symbols ``[N, T]`` to logits ``[N, T, symbols]``."""
        places = torch.arange(inputs.shape[1], device=inputs.device)
        hidden = self.blocks(self.symbols(inputs) + self.positions(places))
        logits: Tensor = self.head(self.norm(hidden))
        return logits

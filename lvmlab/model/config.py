"""The shape of a LLaMA over visual tokens, and the shapes that have names.

DeLVM (arXiv 2402.04841) trains models of 80M to 1B parameters; its 80M is not released, so ours keeps the
family's depth, head width and feed-forward ratio.
"""

from dataclasses import dataclass

from transformers import LlamaConfig

from lvmlab.utils.checks import check_fields


@dataclass(frozen=True)
class LVMConfig:
    """The shape of an `lvmlab.model.lvm.LVM`.

    Args:
        dim: Width of the residual stream.
        n_layers: Number of transformer blocks.
        n_heads: Attention heads of each block; each is ``dim / n_heads`` wide, an even number.
        ffn_dim: Hidden width of the SwiGLU.
        max_seq_len: The longest sentence, in tokens.
        vocab_size: Number of ids, at least the size of the tokenizer's codebook.
        attention_bias: Whether q, k, v and o have biases, as in DeLVM.

    Raises:
        ValueError: A field is out of range; the message names it.
    """

    dim: int
    n_layers: int
    n_heads: int
    ffn_dim: int
    max_seq_len: int = 1024  # 16 pictures of 64 tokens
    vocab_size: int = 1024
    attention_bias: bool = False

    def to_llama(self, **extra) -> LlamaConfig:
        """The configuration that `transformers` knows; ``extra`` are fields that only we read."""
        return LlamaConfig(
            hidden_size=self.dim,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            num_key_value_heads=self.n_heads,
            intermediate_size=self.ffn_dim,
            max_position_embeddings=self.max_seq_len,
            vocab_size=self.vocab_size,
            attention_bias=self.attention_bias,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            attn_implementation="sdpa",
            **extra,
        )

    def __post_init__(self):
        counts = ("dim", "n_layers", "n_heads", "ffn_dim", "max_seq_len", "vocab_size")
        values = {name: getattr(self, name) for name in counts}
        positive = {k: (isinstance(v, int) and v >= 1, "a positive integer") for k, v in values.items()}
        check_fields(self, **positive)
        fits = self.dim % (2 * self.n_heads) == 0
        check_fields(self, n_heads=(fits, f"a divisor of dim={self.dim} that leaves an even width a head"))


_LARGE = {"max_seq_len": 2048, "vocab_size": 8192, "attention_bias": True}  # 8 pictures of 256 tokens
LVM_PRESETS = {
    "tiny": LVMConfig(32, 2, 2, 64, max_seq_len=256),  # for tests: 16 pictures of 16 tokens
    "mini-student": LVMConfig(192, 5, 3, 512, attention_bias=True),
    "mini-teacher": LVMConfig(256, 9, 4, 704, attention_bias=True),
    "80m": LVMConfig(512, 22, 4, 1536, **_LARGE),
    "300m": LVMConfig(1024, 22, 8, 2816, **_LARGE),
    "1b": LVMConfig(2048, 22, 16, 5632, **_LARGE),
}

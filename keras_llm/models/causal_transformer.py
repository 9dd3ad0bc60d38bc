"""A decoder-only language model: every token is predicted from those before it."""

import keras
import numpy as np

from keras_llm.backend.ids import check_ids
from keras_llm.backend.inference import inference_mode
from keras_llm.generation.generate import generate
from keras_llm.generation.host_logits import host_logits
from keras_llm.generation.prompts import fill_up, from_rows, to_rows
from keras_llm.generation.samplers import Sampler
from keras_llm.layers.vocabulary_head import VocabularyHead
from keras_llm.models.causal_backbone import CausalBackbone
from keras_llm.models.language_model import LanguageModel


@keras.saving.register_keras_serializable(package="keras_llm")
class CausalTransformer(LanguageModel):
    """A decoder-only transformer with the architecture of Llama (Touvron et al. 2023,
    https://arxiv.org/abs/2302.13971): RMSNorm before each part, rotary positions, a gated
    feed-forward part, grouped-query attention, no biases.

        p(id_t | id_0 .. id_t-1) = softmax(head(backbone(id_0 .. id_t-1)))

    Matrices start from N(0, 0.02); those that write to the residual sum from
    N(0, 0.02 / sqrt(2 num_layers)), as in GPT-2.

    Args:
        vocab_size: Number of ids.
        d_model: Width of the model.
        num_layers: Number of blocks.
        num_heads: Heads of the queries; `d_model / num_heads` must be even.
        max_length: The most tokens that a sequence may have.
        num_key_value_heads: Heads of the keys and values, a divisor of `num_heads`; None for as
            many.
        d_ff: Width inside the feed-forward part; None for 8/3 d_model, rounded up to 64s.
        dropout: Share of the activations that training drops: of the embedding and of what each
            part adds. Attention weights are not dropped.
        rope_theta: Base of the rotary wavelengths.
        epsilon: Added to the mean square in RMSNorm.
        tie_embeddings: Whether the head's matrix is the embedding's.
        pad_id: The id of padding that may stand before or between tokens: no token sees it, and it
            sees none. None, the faster, is enough for padding at the end: no token sees what comes
            after it.
        document_end_id: The id that ends a document, where a row holds several, as
            `data.causal_lm` packs them: no token sees the documents before its own, so each gets
            what it would get in a row by itself. On a CPU with PyTorch that costs less than the
            whole row; elsewhere it takes a mask of all pairs. None: every token sees the whole row
            before it.
        dtype: A dtype or policy, such as `"mixed_bfloat16"`; None for Keras's global policy.

    Call arguments:
        inputs: Integer ids, `[batch, length]`.

    Returns:
        Logits of the next token, `[batch, length, vocab_size]`.

    Raises:
        ValueError: sizes that do not fit, ids outside the vocabulary, or more than `max_length`
            of them.
        TypeError: ids that are not integers.

    Example:
    >>> import numpy as np
    >>> model = CausalTransformer(vocab_size=11, d_model=8, num_layers=1, num_heads=2)
    >>> tuple(model(np.array([[1, 2, 3]])).shape)
    (1, 3, 11)
    >>> len(model.generate([1, 2, 3], max_new_tokens=4))
    7
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 512,
        num_layers: int = 6,
        num_heads: int = 8,
        max_length: int = 1024,
        num_key_value_heads: int | None = None,
        d_ff: int | None = None,
        dropout: float = 0.0,
        rope_theta: float = 10_000.0,
        epsilon: float = 1e-6,
        tie_embeddings: bool = True,
        pad_id: int | None = None,
        document_end_id: int | None = None,
        dtype=None,
        **kwargs,
    ):
        backbone = CausalBackbone(
            vocab_size,
            d_model,
            num_layers,
            num_heads,
            max_length,
            num_key_value_heads=num_key_value_heads,
            d_ff=d_ff,
            dropout=dropout,
            rope_theta=rope_theta,
            epsilon=epsilon,
            pad_id=pad_id,
            document_end_id=document_end_id,
            dtype=dtype,
            name="backbone",
        )
        tied_to = backbone.token_embedding if tie_embeddings else None
        head = VocabularyHead(vocab_size, d_model, tied_to=tied_to, dtype=dtype, name="head")
        head.build()
        super().__init__(backbone, head, dtype=dtype, **kwargs)
        self.tie_embeddings = tie_embeddings
        self.built = True

    def generate(
        self,
        ids,
        max_new_tokens: int = 60,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        end_id: int | None = None,
        seed: int | None = None,
    ):
        """Continues each prompt, one token after another.

        Greedy unless `temperature`, `top_k` or `top_p` is given. Each token costs one step of one
        token: the keys and values of those before it are kept.

        Args:
            ids: A prompt (a list or 1-D array of ids), a batch `[batch, length]`, or a list of
                prompts of any lengths. Each row continues as it would alone.
            max_new_tokens: The most tokens that are added.
            temperature: As in `keras_llm.generation.Sampler`, like the next two.
            top_k: Draw from the k most probable tokens.
            top_p: Draw from the fewest most probable tokens that hold this share.
            end_id: The id at which a row ends.
            seed: Makes draws repeatable: a row's depend on it and on the row's number.

        Returns:
            The prompts with their new tokens, `end_id` included, in the form of `ids`: a 1-D
            array, a batch filled up on the right with `pad_id` (`end_id` if the model has none), or
            a list of arrays. `pad_id` is never generated, unless it is `end_id`.

        Raises:
            ValueError: an empty prompt, an id outside the vocabulary, a prompt that leaves less
                than `max_new_tokens` of `max_length`, an option out of its range.
        """
        pad_id = self.backbone.pad_id
        prompts = to_rows(ids, self.backbone.vocab_size, pad_id)
        longest = max(len(row) for row in prompts)
        if not 1 <= max_new_tokens <= self.backbone.max_length - longest:
            raise ValueError(
                "max_new_tokens must be at least 1, and at most what the longest prompt leaves of "
                f"max_length={self.backbone.max_length}. Received: "
                f"max_new_tokens={max_new_tokens}, a prompt of {longest} tokens"
            )
        if end_id is not None:
            check_ids(np.array([end_id]), self.backbone.vocab_size, "end_id")
        sampler = Sampler(temperature, top_k, top_p, seed)

        def step(ids, state):
            hidden, state = self.backbone.extend(ids, state)
            return host_logits(self.head(hidden[:, -1]), pad_id, end_id), state

        with inference_mode():
            # Prompts end together, so that the next token has one slot in every row.
            first = np.array([longest - len(row) for row in prompts])
            state = self.backbone.start(first, room=longest + max_new_tokens)
            logits, state = step(fill_up(prompts, fill=0, side="left"), state)
            new = generate(logits, state, step, sampler, max_new_tokens, end_id)
        rows = [np.concatenate(pair) for pair in zip(prompts, new, strict=True)]
        return from_rows(rows, like=ids, fill=end_id if pad_id is None else pad_id)

    def flops_per_token(self, length: int) -> float:
        """Operations that training spends on a token, forward and backward:

            6 * parameters + 12 * num_layers * d_model * length

        Two for each weight forward and four backward, and the products of queries with keys and of
        scores with values, causal or not (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311,
        appendix B). An embedding that is only looked up is no product.

        Args:
            length: Of the sequences.
        """
        parameters = self.count_params()
        if not self.tie_embeddings:
            parameters -= self.backbone.token_embedding.count_params()
        backbone = self.backbone
        return 6.0 * parameters + 12.0 * backbone.num_layers * backbone.d_model * length

    def get_config(self):
        """The constructor's arguments."""
        own = super(LanguageModel, self).get_config()  # not the backbone and head, made from these
        return {**self.backbone.get_config(), **own, "tie_embeddings": self.tie_embeddings}

"""An encoder-decoder: a target is predicted token by token, from a source and from itself."""

import keras
import numpy as np
from keras import ops

from keras_llm.backend.ids import check_ids
from keras_llm.backend.inference import inference_mode
from keras_llm.generation.beam_search import beam_search
from keras_llm.generation.generate import generate
from keras_llm.generation.host_logits import host_logits
from keras_llm.generation.prompts import fill_up, from_rows, to_rows
from keras_llm.generation.samplers import Sampler
from keras_llm.layers.vocabulary_head import VocabularyHead
from keras_llm.models.language_model import LanguageModel
from keras_llm.models.seq2seq_backbone import Seq2SeqBackbone


@keras.saving.register_keras_serializable(package="keras_llm")
class Seq2SeqTransformer(LanguageModel):
    """An encoder-decoder transformer (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762) of
    the same blocks as `CausalTransformer`; the decoder's also attend to the encoded source.

        p(id_t | source, id_0 .. id_t-1) = softmax(head(backbone(source, id_0 .. id_t-1)))

    Args:
        vocab_size: Number of ids of the source; of the target too, with one embedding for both,
            unless `target_vocab_size` is given.
        d_model: Width of the model.
        num_layers: Number of blocks in the encoder, and in the decoder.
        num_heads: Heads of the queries; `d_model / num_heads` must be even.
        max_length: The most tokens that a source, and a target, may have.
        target_vocab_size: Number of ids of a target vocabulary of its own.
        num_key_value_heads: Heads of the keys and values, a divisor of `num_heads`; None for as
            many.
        d_ff: Width inside the feed-forward part; None for 8/3 d_model, rounded up to 64s.
        dropout: Share of the activations that training drops: of the embeddings and of what each
            part adds. Attention weights are not dropped.
        rope_theta: Base of the rotary wavelengths.
        epsilon: Added to the mean square in RMSNorm.
        tie_embeddings: Whether the head's matrix is the target embedding's.
        pad_id: The id of padding, which is masked in the source wherever it stands; None for
            sources without any. A target's padding stands at its end, where no token sees it.
        dtype: A dtype or policy, such as `"mixed_bfloat16"`; None for Keras's global policy.

    Call arguments:
        inputs: `{"encoder_ids": [batch, source_length], "decoder_ids": [batch, length]}`, integers.
            In training, `decoder_ids` is the target shifted right: `data.teacher_forcing`.

    Returns:
        Logits of the next target token, `[batch, length, vocab]`.

    Raises:
        ValueError: sizes that do not fit, ids outside the vocabulary, or more than `max_length`
            of them.
        TypeError: ids that are not integers.

    Example:
    >>> import numpy as np
    >>> model = Seq2SeqTransformer(vocab_size=11, d_model=8, num_layers=1, num_heads=2)
    >>> ids = {"encoder_ids": np.array([[1, 2, 3, 0]]), "decoder_ids": np.array([[4, 5, 6]])}
    >>> tuple(model(ids).shape)
    (1, 3, 11)
    >>> len(model.generate([1, 2, 3], start_id=4, end_id=5, max_new_tokens=6)) <= 6
    True
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 512,
        num_layers: int = 6,
        num_heads: int = 8,
        max_length: int = 1024,
        target_vocab_size: int | None = None,
        num_key_value_heads: int | None = None,
        d_ff: int | None = None,
        dropout: float = 0.1,
        rope_theta: float = 10_000.0,
        epsilon: float = 1e-6,
        tie_embeddings: bool = True,
        pad_id: int | None = 0,
        dtype=None,
        **kwargs,
    ):
        backbone = Seq2SeqBackbone(
            vocab_size,
            d_model,
            num_layers,
            num_heads,
            max_length,
            target_vocab_size=target_vocab_size,
            num_key_value_heads=num_key_value_heads,
            d_ff=d_ff,
            dropout=dropout,
            rope_theta=rope_theta,
            epsilon=epsilon,
            pad_id=pad_id,
            dtype=dtype,
            name="backbone",
        )
        embedding = backbone.target_embedding
        head = VocabularyHead(
            embedding.vocab_size,
            d_model,
            tied_to=embedding if tie_embeddings else None,
            dtype=dtype,
            name="head",
        )
        head.build()
        super().__init__(backbone, head, dtype=dtype, **kwargs)
        self.tie_embeddings = tie_embeddings
        self.built = True

    def generate(
        self,
        encoder_ids,
        start_id: int,
        end_id: int,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ):
        """The target of each source, one token after another.

        Greedy, unless `num_beams` asks for beam search or `temperature`, `top_k` or `top_p` for
        sampling. The encoder runs once; each token costs one step of one token.

        Args:
            encoder_ids: A source (a list or 1-D array of ids), a batch `[batch, length]`, a list of
                sources of any lengths, or `{"encoder_ids": ...}` with one of these.
            start_id: The id that the decoder begins with.
            end_id: The id at which a target ends.
            max_new_tokens: The most tokens of a target; None for the model's `max_length`.
            num_beams: Beginnings that `keras_llm.generation.beam_search` keeps.
            length_penalty: Beams only: 0 favours short targets, 1 the best mean per token.
            temperature: As in `keras_llm.generation.Sampler`, like the next two.
            top_k: Draw from the k most probable tokens.
            top_p: Draw from the fewest most probable tokens that hold this share.
            seed: Makes draws repeatable: a row's depend on it and on the row's number.

        Returns:
            The targets as training's labels have them, without `start_id` and with `end_id`, in
            the form of `encoder_ids`: a 1-D array, a batch filled up on the right with `pad_id`
            (`end_id` if the model has none), or a list of arrays. `pad_id` is never generated,
            unless it is `end_id`.

        Raises:
            ValueError: an empty source, an id outside its vocabulary, more tokens than
                `max_length`, beams together with sampling, an option out of its range.
        """
        if isinstance(encoder_ids, dict):
            encoder_ids = encoder_ids["encoder_ids"]
        backbone = self.backbone
        sources = to_rows(encoder_ids, backbone.vocab_size, what="encoder_ids")
        target_vocab_size = backbone.target_embedding.vocab_size
        check_ids(np.array([start_id]), target_vocab_size, "start_id")
        check_ids(np.array([end_id]), target_vocab_size, "end_id")
        if max_new_tokens is None:
            max_new_tokens = backbone.max_length
        if not 1 <= max_new_tokens <= backbone.max_length:
            raise ValueError(
                f"max_new_tokens must be in [1, {backbone.max_length}], the model's max_length. "
                f"Received: max_new_tokens={max_new_tokens}"
            )
        if num_beams < 1:
            raise ValueError(f"num_beams must be at least 1. Received: num_beams={num_beams}")
        sampler = Sampler(temperature, top_k, top_p, seed)
        if num_beams > 1 and not sampler.greedy:
            raise ValueError(
                "Beam search does not sample: give num_beams, or temperature, top_k and top_p. "
                f"Received: num_beams={num_beams}, temperature={temperature}, top_k={top_k}, "
                f"top_p={top_p}"
            )
        pad_id = backbone.pad_id
        if pad_id is None and len({len(row) for row in sources}) > 1:
            raise ValueError(
                "Sources of different lengths need a model with a pad_id. "
                f"Received lengths: {[len(row) for row in sources]}"
            )

        def step(ids, state, parents=None):
            if parents is not None:
                state = state.reordered(parents)
            hidden, state = backbone.extend(ids, state)
            return host_logits(self.head(hidden[:, -1]), pad_id, end_id), state

        with inference_mode():
            source = backbone.encode(ops.convert_to_tensor(fill_up(sources, pad_id)))
            state = backbone.start(source.repeated(num_beams), room=max_new_tokens)
            logits, state = step(np.full((len(sources) * num_beams, 1), start_id), state)
            if num_beams == 1:
                rows = generate(logits, state, step, sampler, max_new_tokens, end_id)
            else:
                rows = beam_search(
                    logits, state, step, num_beams, max_new_tokens, end_id, length_penalty
                )
        return from_rows(rows, like=encoder_ids, fill=end_id if pad_id is None else pad_id)

    def get_config(self):
        """The constructor's arguments."""
        own = super(LanguageModel, self).get_config()  # not the backbone and head, made from these
        return {**self.backbone.get_config(), **own, "tie_embeddings": self.tie_embeddings}

"""An encoder-decoder: the target is predicted token by token, from the source and its own past."""

from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_llm.arguments import check_number, check_positive_int
from keras_llm.backend.sizes import rounded_up
from keras_llm.generation.beam_search import Beams, beam_search
from keras_llm.generation.choice import Choice, chooser
from keras_llm.generation.decoder import Decoding
from keras_llm.generation.prompts import from_rows, pad_rows, to_rows
from keras_llm.generation.samplers import Sampler, check_top_k
from keras_llm.models.checks import check_ids_shape, check_special_id
from keras_llm.models.seq2seq_backbone import Seq2SeqBackbone, Seq2SeqConfig
from keras_llm.models.transformer import GENERATE_NAMES, IDS, Transformer
from keras_llm.names_elsewhere import names_elsewhere
from keras_llm.tensor import Tensor
from keras_llm.training import with_whole_weights


@keras.saving.register_keras_serializable(package="keras_llm")
class Seq2SeqTransformer(Transformer):
    """An encoder-decoder transformer (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), made
    of the blocks of `CausalTransformer`; those of the decoder also attend to the encoded source.

        p(id_t | source, id_0 .. id_t-1) = softmax(head(backbone(source, id_0 .. id_t-1)))

    Args:
        vocab_size: Number of ids of the source. Without `target_vocab_size` the target has the same
            ids and the same embedding.
        d_model: Width of the model, the size of a hidden vector.
        num_layers: Number of blocks in the encoder, and of blocks in the decoder.
        num_heads: Number of query heads; `d_model / num_heads` must be even.
        max_length: The most tokens that a source, and a target, may have.
        target_vocab_size: Number of ids of the target, if it has a vocabulary of its own.
        num_key_value_heads: Number of key-value heads, a divisor of `num_heads`; None for
            `num_heads`.
        d_ff: Width of the feed-forward part's hidden layer; None for 8/3 d_model, rounded up to a
            multiple of 64.
        dropout: Probability of dropping an activation in training, in the embeddings and in the
            output of each part. Attention weights are not dropped.
        rope_theta: Base of the rotary wavelengths.
        epsilon: Added to the mean square in RMSNorm.
        tie_embeddings: Whether the head's kernel is the target's embedding table.
        pad_id: The id of padding, which is masked in the source; None for sources without padding.
            Padding of a target must be at its end, where causal attention hides it.
        dtype: A dtype or policy, such as `"mixed_bfloat16"`; None for Keras's global policy.
        **kwargs: Keras's own: `name`, `trainable`.

    Call arguments:
        inputs: `{"encoder_ids": [batch, source_length], "decoder_ids": [batch, length]}`, integers.
            In training, `decoder_ids` is the target shifted right: `data.teacher_forcing`.

    Returns:
        Logits of the next target token, `[batch, length, vocab]`.

    Raises:
        ValueError: sizes that do not fit together, ids outside the vocabulary, or a row longer than
            `max_length`.
        TypeError: ids that are not integers, or an argument by another library's name.

    Example:
    >>> import numpy as np
    >>> model = Seq2SeqTransformer(vocab_size=11, d_model=8, num_layers=1, num_heads=2)
    >>> ids = {"encoder_ids": np.array([[1, 2, 3, 0]]), "decoder_ids": np.array([[4, 5, 6]])}
    >>> tuple(model(ids).shape)
    (1, 3, 11)
    >>> len(model.generate([1, 2, 3], start_id=4, end_id=5, max_new_tokens=6)) <= 6
    True
    """

    exported_inputs: ClassVar[Any] = {"encoder_ids": IDS, "decoder_ids": IDS}

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
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        config = Seq2SeqConfig(
            vocab_size=vocab_size,
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            max_length=max_length,
            target_vocab_size=target_vocab_size,
            num_key_value_heads=num_key_value_heads,
            d_ff=d_ff,
            dropout=dropout,
            rope_theta=rope_theta,
            epsilon=epsilon,
            pad_id=pad_id,
        )
        backbone = Seq2SeqBackbone(config, dtype=dtype, name="backbone")
        super().__init__(backbone, backbone.target_embedding, tie_embeddings, dtype, **kwargs)

    @names_elsewhere(
        {
            **GENERATE_NAMES,
            "input_ids": "encoder_ids",
            "inputs": "encoder_ids",
            "decoder_start_token_id": "start_id",
            "bos_token_id": "start_id",
        }
    )
    @with_whole_weights
    def generate(
        self,
        encoder_ids: Tensor,
        start_id: int,
        end_id: int,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """The target of each source, one token after another.

        Takes the most probable token, unless `num_beams` is above 1 (beam search) or `temperature`,
        `top_k` or `top_p` is given (sampling). The encoder runs once; the decoder computes one
        token per step.

        Args:
            encoder_ids: A source (a list or 1-D array of ids), a batch `[batch, length]`, a list of
                sources of any lengths, or `{"encoder_ids": ...}` with one of these.
            start_id: The id that the decoder begins with.
            end_id: The id at which a target ends.
            max_new_tokens: The most tokens of a target; None for the model's `max_length`.
            num_beams: Number of sequences that `keras_llm.generation.beam_search` keeps per row.
            length_penalty: Of beam search: 0 favours short targets, 1 compares means per token.
            temperature: As in `keras_llm.generation.Sampler`, like the next two.
            top_k: Draw from the k most probable tokens.
            top_p: Draw from the smallest set of most probable tokens whose probability is at least
                `top_p`.
            seed: Makes the draws of a row repeatable: they depend on it and on the row's number.

        Returns:
            The targets as training's labels have them, without `start_id` and with `end_id`, in
            the form of `encoder_ids`: a 1-D array, a batch padded on the right with `pad_id` (with
            `end_id` if the model has no `pad_id`), or a list of arrays. `pad_id` is never
            generated, unless it is `end_id`.

        Raises:
            ValueError: an empty source, an id outside its vocabulary, more tokens than
                `max_length`, beam search together with sampling, an option out of its range.
            TypeError: ids that are not integers.
        """
        if isinstance(encoder_ids, dict):
            if "encoder_ids" not in encoder_ids:
                raise ValueError(
                    'encoder_ids must be ids, or a dictionary with "encoder_ids". '
                    f"Received: a dictionary with {sorted(encoder_ids)}"
                )
            encoder_ids = encoder_ids["encoder_ids"]
        config, pad_id = self.backbone.config, self.backbone.config.pad_id
        sources = to_rows(encoder_ids, config.vocab_size, what="encoder_ids")
        check_ids_shape(pad_rows(sources, pad_id), config.max_length, "encoder_ids")
        target_vocab_size = self.backbone.target_embedding.vocab_size
        check_special_id(start_id, target_vocab_size, "start_id")
        check_special_id(end_id, target_vocab_size, "end_id")
        if max_new_tokens is None:
            max_new_tokens = config.max_length
        if check_positive_int(max_new_tokens, "max_new_tokens") > config.max_length:
            raise ValueError(
                f"max_new_tokens must be at most {config.max_length}, the model's max_length. "
                f"Received: max_new_tokens={max_new_tokens}"
            )
        check_positive_int(num_beams, "num_beams")
        check_number(length_penalty, "length_penalty", "(-inf, inf)")
        sampler = Sampler(temperature, top_k, top_p, seed)
        check_top_k(top_k, target_vocab_size)
        if num_beams > 1 and not sampler.greedy:
            raise ValueError(
                "Beam search does not sample: give num_beams, or temperature, top_k and top_p. "
                f"Received: num_beams={num_beams}, temperature={temperature}, top_k={top_k}, "
                f"top_p={top_p}"
            )
        if pad_id is None and len({len(row) for row in sources}) > 1:
            raise ValueError(
                "Sources of different lengths need a model with a pad_id. "
                f"Received lengths: {[len(row) for row in sources]}"
            )
        ruled_out = pad_id if pad_id != end_id else None
        searches = num_beams > 1

        def make():
            def begin(ids, state):
                source = self.backbone.encode(ids["encoder_ids"]).repeated(num_beams)
                return extend(ids["decoder_ids"], state._replace(context=source))

            def extend(ids, state):
                hidden, state = self.backbone.extend(ids, state)
                return self.head(hidden[:, -1]), state

            def example(batch, room, source_length):
                source = self.backbone.empty_source(batch * num_beams, source_length)
                state = self.backbone.start(batch * num_beams, room, source)
                if searches:
                    return Decoding(state, Beams.example(batch, num_beams, room))
                return Decoding(state, Choice.example(batch, room, not sampler.greedy))

            choose = beam_search(num_beams, ruled_out) if searches else chooser(sampler, ruled_out)
            return begin, extend, choose, example

        decoder = self.decoders.get((sampler.kind, num_beams, ruled_out), make)
        longest = max(map(len, sources))
        width = longest if pad_id is None else rounded_up(longest)
        batch, room = len(sources), rounded_up(max_new_tokens)
        if searches:
            choice = Beams.start(batch, num_beams, room, max_new_tokens, end_id, length_penalty)
        else:
            choice = Choice.start(sampler, batch, room, max_new_tokens, end_id)
        ids = {
            "encoder_ids": ops.convert_to_tensor(pad_rows(sources, pad_id, width=width), "int32"),
            "decoder_ids": ops.full((batch * num_beams, 1), start_id, "int32"),
        }
        state = self.backbone.start(batch * num_beams, room)
        rows = decoder(ids, Decoding(state, choice))
        return from_rows(rows, encoder_ids, end_id if pad_id is None else pad_id)

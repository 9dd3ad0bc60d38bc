"""Generation in NumPy, by whole passes over the tokens so far: without a cache, row by row.

The numbers are drawn as `generate` promises: one generator a row, made from the seed and the row's
number, one draw a token, compared with the cumulative probabilities in the order of the ids.
"""

import numpy as np


def causal_logits(model, rows, length):
    """`rows of ids -> logits of their next tokens`, `[rows, vocab]`, for at most `rows` rows.

    All passes have one shape, which compiles once: what stands after a token, and in other rows,
    does not matter to it.
    """

    def logits(prefixes):
        ids = np.zeros((rows, length), int)
        for row, prefix in zip(ids, prefixes, strict=False):
            row[: len(prefix)] = prefix
        last = [len(prefix) - 1 for prefix in prefixes]
        return model.predict_on_batch(ids)[np.arange(len(last)), last].astype("float32")

    return logits


def seq2seq_logits(model, source, start_id, rows, length):
    """The same of targets of one source, which begin after `start_id`."""
    encoder_ids = np.tile(source, (rows, 1))
    predict = model.predict_on_batch

    class Decoder:
        def predict_on_batch(self, ids):
            return predict({"encoder_ids": encoder_ids, "decoder_ids": ids})

    logits = causal_logits(Decoder(), rows, length)
    return lambda prefixes: logits([[start_id, *prefix] for prefix in prefixes])


def without(logits, pad_id):
    """`logits` with -inf for padding."""

    def allowed(prefixes):
        rows = logits(prefixes)
        rows[:, pad_id] = -np.inf
        return rows

    return allowed


def generators(seed, rows):
    """One generator a row."""
    return [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(rows)]


def probabilities(logits, temperature=None, top_k=None, top_p=None):
    """Softmax in float64; what is cut is 0; of equally probable tokens the lower ids are kept."""
    scaled = logits.astype("float64") / (1.0 if temperature is None else temperature)
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    ranked = p[order]
    if top_k is not None:
        ranked[top_k:] = 0.0
        ranked /= ranked.sum()
    if top_p is not None:
        before = np.cumsum(ranked) - ranked
        ranked[before >= top_p] = 0.0
    p[order] = ranked
    return p


def continuations(logits, prompts, max_new_tokens, end_id=None, seed=None, **options):
    """The new ids of each prompt: the most probable ones, or with a seed drawn ones."""
    draws = None if seed is None else generators(seed, len(prompts))
    rows = [list(prompt) for prompt in prompts]
    running = [True] * len(rows)
    for _ in range(max_new_tokens):
        for i, row in enumerate(logits(rows)):
            if not running[i]:
                continue
            if draws is None:
                chosen = int(np.argmax(row))
            else:
                cumulative = np.cumsum(probabilities(row, **options))
                draw = draws[i].random() * cumulative[-1]
                chosen = int(np.searchsorted(cumulative, draw, side="right"))
            rows[i].append(chosen)
            running[i] = chosen != end_id
        if not any(running):
            break
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def beam_search(logits, num_beams, max_new_tokens, end_id, length_penalty=1.0):
    """The best target of one row; see `keras_llm.generation.beam_search` for the rules."""

    def score(log_p, length):
        return log_p / length**length_penalty

    beams, finished = [(0.0, [])], []  # (log P, ids), (score, ids)
    for length in range(1, max_new_tokens + 1):
        candidates = []
        for (log_p, ids), row in zip(beams, logits([ids for _, ids in beams]), strict=True):
            row = row.astype("float64")
            row -= row.max()
            row -= np.log(np.exp(row).sum())
            candidates += [(log_p + p, [*ids, i]) for i, p in enumerate(row) if p > -np.inf]
        candidates.sort(key=lambda candidate: -candidate[0])  # stable: of equal ones the first
        candidates = candidates[: 2 * num_beams]
        finished += [
            (score(log_p, length), ids)
            for log_p, ids in candidates[:num_beams]
            if ids[-1] == end_id
        ]
        beams = [candidate for candidate in candidates if candidate[1][-1] != end_id][:num_beams]
        best = max((s for s, _ in finished), default=-np.inf)
        if not beams:
            break
        if length == max_new_tokens:
            finished.append((score(beams[0][0], length), beams[0][1]))
            break
        if len(finished) >= num_beams and best >= score(beams[0][0], length):
            break
        if best >= max(score(beams[0][0], n) for n in (length + 1, max_new_tokens)):
            break
    best = max(s for s, _ in finished)
    return next(ids for s, ids in finished if s == best)

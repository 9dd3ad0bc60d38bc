"""Models of transformers by compile and fit, beside their own loss and a loop by hand."""

import contextlib
import warnings

import keras
import pytest
import torch
import transformers

from keras_llm import losses, metrics, models

from . import transformers_zoo as zoo

pytestmark = pytest.mark.torch_only
QUICK = ["gpt2", "llama", "gemma2", "granite", "mixtral with its routers' loss", "t5", "bart"]
EVERY = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in zoo.EVERY
]


def compiled(hf, optimizer=None, loss=None, **kwargs):
    model = models.from_transformers(hf)
    model.compile(
        optimizer=optimizer or keras.optimizers.SGD(1.0),
        loss=loss or losses.MaskedSparseCategoricalCrossentropy(),
        metrics=[metrics.Perplexity(), metrics.MaskedTokenAccuracy()],
        **kwargs,
    )
    return model


@contextlib.contextmanager
def floatx(name):
    before = keras.config.floatx()
    keras.config.set_floatx(name)
    try:
        yield
    finally:
        keras.config.set_floatx(before)


def parameters(hf):
    return {name: parameter.detach().clone() for name, parameter in hf.named_parameters()}


def assert_gradients(hf, before, reference, scale=1.0):
    """One step of SGD at rate 1 subtracts the gradient."""
    for name, parameter in reference.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        change = before[name] - dict(hf.named_parameters())[name].detach()
        torch.testing.assert_close(change, gradient, rtol=1e-5, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("name", EVERY)
def test_loss_and_every_gradient_are_the_models_own(name):
    hf, batch = zoo.make(name), zoo.batch(name)
    reference, before = zoo.twin(hf), parameters(hf)
    # MBart's own forward fails at a row of which nothing counts.
    own = reference(**{k: v[:-1] if name == "mbart" else v for k, v in batch.items()})
    own.loss.backward()

    history = compiled(hf).fit(batch, batch_size=4, verbose=0).history

    assert history["loss"][0] == pytest.approx(own.loss.item(), rel=1e-6, abs=2e-6)
    assert_gradients(hf, before, reference)
    assert not hf.training


# A router's loss is of the rows that are there at once.
@pytest.mark.parametrize("name", [name for name in EVERY if "routers" not in str(name)])
def test_micro_batches_and_accumulation_are_one_batch(name):
    batch, ways = zoo.batch(name), []
    for size, micro, accumulation in [(4, None, None), (4, 1, None), (1, None, 4)]:
        hf = zoo.make(name)
        optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=accumulation)
        model = compiled(hf, optimizer, micro_batch_size=micro)
        history = model.fit(batch, batch_size=size, shuffle=False, verbose=0).history
        ways.append((history["loss"][0], parameters(hf)))
    for loss, weights in ways[1:]:
        assert loss == pytest.approx(ways[0][0], rel=1e-6)
        for name, value in ways[0][1].items():
            torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-5, msg=name)


# In place


def loop(hf, batches, rate, shifts=True):
    """Steps by hand. In float64: the models' own loss casts its logits to float32."""
    hf.train()
    optimizer = torch.optim.SGD(hf.parameters(), rate)
    for batch in batches:
        optimizer.zero_grad()
        logits, labels = hf(**batch).logits, batch["labels"]
        if shifts:
            logits, labels = logits[:, :-1], labels[:, 1:]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
    return hf.eval()


@pytest.mark.parametrize("name", ["llama tied", "bart"])
@pytest.mark.quick(2)
def test_ten_steps_of_fit_are_ten_of_a_loop(name):
    hf = zoo.make(name, torch.float64)
    by_hand = zoo.twin(hf)
    batch = {k: v[:1].repeat(20, 1) for k, v in zoo.batch(name).items()}
    for key in ("input_ids", "labels"):
        counts = batch[key] >= 3
        batch[key] = torch.where(counts, torch.randint(3, zoo.VOCAB, counts.shape), batch[key])

    with floatx("float64"):
        model = compiled(hf, keras.optimizers.SGD(0.5))
        model.fit(batch, batch_size=2, shuffle=False, verbose=0)
    each = [{k: v[2 * i : 2 * i + 2] for k, v in batch.items()} for i in range(10)]
    loop(by_hand, each, 0.5, shifts=name != "bart")

    trained = parameters(hf)
    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(trained[name], parameter.data, rtol=1e-6, atol=1e-9, msg=name)


def test_generate_and_the_saved_folder_have_what_fit_has_learnt(tmp_path):
    hf = zoo.make("llama")
    model, ids = compiled(hf), torch.randint(3, zoo.VOCAB, (8, 12))
    before = hf.generate(ids[:2], max_new_tokens=6, do_sample=False)
    model.fit({"input_ids": ids, "labels": ids}, batch_size=2, epochs=3, verbose=0)
    after = hf.generate(ids[:2], max_new_tokens=6, do_sample=False)
    assert not torch.equal(before, after)

    hf.save_pretrained(tmp_path)
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(read.generate(ids[:2], max_new_tokens=6, do_sample=False), after)
    assert model.trainable_variables[0].value is next(hf.parameters())


def test_requires_grad_decides_also_when_it_is_set_later():
    hf = zoo.make("llama")
    frozen = hf.model.layers[0]
    model, batch = compiled(hf), zoo.batch("llama")
    frozen.requires_grad_(False)
    before = parameters(hf)
    model.fit(batch, verbose=0)
    kept = {n for n, p in hf.named_parameters() if torch.equal(p, before[n])}
    assert kept == {f"model.layers.0.{n}" for n, _ in frozen.named_parameters()}

    frozen.requires_grad_(True)
    with pytest.raises(ValueError, match="call compile again, with a new optimizer"):
        model.fit(batch, verbose=0)
    model.compile(keras.optimizers.SGD(1.0), losses.MaskedSparseCategoricalCrossentropy())
    model.fit(batch, verbose=0)
    assert not torch.equal(frozen.mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"])


def test_freezing_a_layer_as_keras_has_it_freezes_what_is_trained_now():
    hf = zoo.make("llama")
    hf.model.requires_grad_(False)
    model, batch = compiled(hf), zoo.batch("llama")
    hf.model.layers[1].requires_grad_(True)
    model.backbone.trainable = False
    assert not any(p.requires_grad for p in hf.model.parameters())
    model.compile(keras.optimizers.SGD(1.0), losses.MaskedSparseCategoricalCrossentropy())
    before = parameters(hf)
    model.fit(batch, verbose=0)
    changed = {n for n, p in hf.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"lm_head.weight"}

    model.trainable = False
    assert not model.trainable_variables
    model.trainable = True
    trained = {n for n, p in hf.named_parameters() if p.requires_grad}
    layer = {f"model.layers.1.{n}" for n, _ in hf.model.layers[1].named_parameters()}
    assert trained == layer | {"lm_head.weight"}


def replaced_by(kind, hf):
    if kind == "resized":
        hf.resize_token_embeddings(zoo.VOCAB + 7)
    elif kind == "assigned":
        hf.load_state_dict(zoo.make("llama").state_dict(), assign=True)
    else:
        peft = pytest.importorskip("peft")
        peft.get_peft_model(hf, peft.LoraConfig(target_modules=["q_proj"]))


# peft asks transformers by a name of before.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["resized", "assigned", "adapted"])
def test_parameters_that_are_replaced_after_wrapping_are_noticed(kind):
    hf = zoo.make("llama")
    model = compiled(hf)
    replaced_by(kind, hf)
    for call in (model.fit, model.evaluate, model.train_on_batch):
        with pytest.raises(RuntimeError, match=r"were replaced after.*Wrap the model again"):
            call(zoo.batch("llama"))


@pytest.mark.parametrize("reaches", ["nothing", "another tensor"])
def test_a_loss_that_reaches_no_trained_parameter_is_an_error_as_of_keras(reaches):
    hf = zoo.make("llama")
    hf.requires_grad_(False)
    hf.unused = torch.nn.Linear(2, 2)
    if reaches == "another tensor":
        other = torch.ones((), requires_grad=True)
        hf.model.norm.register_forward_hook(lambda part, inputs, output: output * other)
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        compiled(hf).fit(zoo.batch("llama"), verbose=0)


@pytest.mark.parametrize("sizes", [(zoo.VOCAB, zoo.VOCAB + 20), (zoo.VOCAB + 20, zoo.VOCAB)])
def test_source_and_target_of_different_vocabularies(sizes):
    torch.manual_seed(0)
    config = transformers.MarianConfig(
        **{**zoo.BART, "vocab_size": sizes[0], "decoder_vocab_size": sizes[1]},
        share_encoder_decoder_embeddings=False,
        tie_word_embeddings=False,
    )
    hf = zoo.without_dropout(transformers.MarianMTModel(config)).eval()
    batch = zoo.batch("marian")
    batch["input_ids"][0, 0], batch["labels"][0, :2] = sizes[0] - 1, sizes[1] - 1
    reference, before = zoo.twin(hf), parameters(hf)
    own = reference(**batch)
    own.loss.backward()
    history = compiled(hf).fit(batch, verbose=0).history
    assert history["loss"][0] == pytest.approx(own.loss.item(), rel=1e-6)
    assert_gradients(hf, before, reference)


def test_a_loss_that_adds_what_is_not_known_is_told():
    config = transformers.NllbMoeConfig(
        **zoo.BART, num_experts=4, encoder_sparse_step=2, decoder_sparse_step=2
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models.from_transformers(transformers.NllbMoeForConditionalGeneration(config))
    config.output_router_logits = True
    with pytest.warns(UserWarning, match=r"NllbMoe\w+ computes.*loss of a router.*not trained"):
        models.from_transformers(transformers.NllbMoeForConditionalGeneration(config))


def test_modes_are_given_back_and_dropout_works():
    hf = transformers.AutoModelForCausalLM.from_config(
        transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.5)
    )
    hf.train()
    hf.lm_head.eval()
    modes = [part.training for part in hf.modules()]
    model, ids = compiled(hf, keras.optimizers.SGD(0.0)), torch.randint(3, 50, (4, 8))
    batch = {"input_ids": ids, "labels": ids}
    noisy = [model.fit(batch, verbose=0).history["loss"][0] for _ in range(2)]
    quiet = [model.evaluate(batch, verbose=0, return_dict=True)["loss"] for _ in range(2)]
    assert noisy[0] != noisy[1] and quiet[0] == quiet[1]
    assert torch.equal(model(ids), model(ids))
    model.predict(ids, verbose=0)
    model.train_on_batch(batch)
    model.test_on_batch(batch)
    assert [part.training for part in hf.modules()] == modes


def test_names_are_those_of_transformers():
    hf = zoo.make("llama")
    paths = {variable.path.replace("/", ".") for variable in models.from_transformers(hf).variables}
    assert {name for name, _ in hf.named_parameters()} <= paths


def test_a_teacher_and_a_student_of_transformers():
    batch = zoo.batch("llama")
    teacher, student = zoo.make("gpt2"), zoo.make("llama")
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with torch.no_grad():
        counts = batch["labels"][:, 1:] != -100
        p, q = (m(**inputs).logits[:, :-1][counts].log_softmax(-1) for m in (student, teacher))
        wanted = 0.5 * student(**batch).loss + 0.5 * (q.exp() * (q - p)).sum(-1).mean()
    parts = models.from_transformers(teacher), models.from_transformers(student)
    model = models.Distillation(*parts, alpha=0.5, temperature=1.0)
    model.compile(keras.optimizers.SGD(1.0), losses.MaskedSparseCategoricalCrossentropy())
    before = parameters(teacher)
    teacher.train()
    found = model.fit(batch, batch_size=2, verbose=0).history["loss"][0]
    assert found == pytest.approx(wanted.item(), rel=0.05)
    assert model.evaluate(batch, verbose=0) < found
    assert all(torch.equal(before[n], p) for n, p in teacher.named_parameters())
    assert teacher.training and not student.training


def test_a_routers_loss_counts_where_logits_are_made():
    name = "mixtral with its routers' loss"
    batch, losses_of = zoo.batch(name), []
    for metric in (metrics.Perplexity(), keras.metrics.SparseCategoricalAccuracy()):
        model = models.from_transformers(zoo.make(name))
        loss = losses.MaskedSparseCategoricalCrossentropy()
        model.compile(keras.optimizers.SGD(0.0), loss, metrics=[metric])
        losses_of.append(model.evaluate(batch, batch_size=4, verbose=0, return_dict=True)["loss"])
    with torch.no_grad():
        own = zoo.make(name)(**batch).loss.item()
    assert losses_of == pytest.approx([own, own], rel=1e-5)

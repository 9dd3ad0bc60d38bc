"""A student of transformers takes Hugging Face's batches, also where a teacher is beside it."""

import functools

import keras
import pytest
import torch

from keras_llm import losses, metrics, models

from . import transformers_zoo as zoo

pytestmark = pytest.mark.torch_only
ALPHA, TEMPERATURE = 0.7, 3.0
FORMS = ["dictionary", "list of dictionaries", "datasets", "loader", "generator"]


def teacher_and_student():
    """Two models of transformers that differ."""
    teacher, student = zoo.make("llama"), zoo.make("llama")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return teacher, student


def data(form):
    """The four rows of the batch, their labels inside."""
    batch = zoo.batch("llama")
    rows = [{name: column[i] for name, column in batch.items()} for i in range(4)]
    halves = [{name: column[i : i + 2] for name, column in batch.items()} for i in (0, 2)]
    if form == "dictionary":
        return batch
    if form == "loader":
        return torch.utils.data.DataLoader(rows, batch_size=2)
    if form == "generator":
        return (half for half in halves)
    rows = [{name: column.tolist() for name, column in row.items()} for row in rows]
    if form == "datasets":
        return pytest.importorskip("datasets").Dataset.from_list(rows)
    return rows


def plain_losses(teacher, student):
    """Distillation's loss and that of the labels alone, by whole logits in float64."""
    batch = zoo.batch("llama")
    labels = batch.pop("labels")[:, 1:]
    counts = labels != -100
    with torch.no_grad():
        z, t = (hf(**batch).logits.double()[:, :-1][counts] for hf in (student, teacher))
    nll = torch.nn.functional.cross_entropy(z, labels[counts])
    log_p, log_q = ((logits / TEMPERATURE).log_softmax(-1) for logits in (z, t))
    divergence = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
    return ((1 - ALPHA) * nll + ALPHA * TEMPERATURE**2 * divergence).item(), nll.item()


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
# With 0, in place of the -100 of the data.
@pytest.mark.parametrize(
    ("form", "ignore_index"), [*((form, -100) for form in FORMS), ("dictionary", 0), ("loader", 0)]
)
@pytest.mark.quick(3)
def test_each_form_of_a_batch(form, ignore_index):
    teacher, student = teacher_and_student()
    wanted, nll = plain_losses(teacher, student)
    model = models.Distillation(
        models.from_transformers(teacher), models.from_transformers(student), ALPHA, TEMPERATURE
    )
    model.compile(
        keras.optimizers.SGD(0.0),
        losses.MaskedSparseCategoricalCrossentropy(ignore_index=ignore_index),
        metrics=[metrics.Perplexity(ignore_index=ignore_index)],
    )
    logs = model.fit(data(form), batch_size=2, verbose=0, validation_data=data(form)).history
    for name in ("loss", "val_loss"):
        assert logs[name][0] == pytest.approx(wanted, rel=1e-5)
    assert logs["perplexity"][0] == pytest.approx(torch.tensor(nll).exp().item(), rel=1e-5)
    assert model.evaluate(data(form), verbose=0)[0] == pytest.approx(wanted, rel=1e-5)


def ours():
    model = models.CausalTransformer(zoo.VOCAB, d_model=16, num_layers=1, num_heads=2)
    model(zoo.batch("llama")["input_ids"])
    return model


def kerashub():
    keras_hub = pytest.importorskip("keras_hub")
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=zoo.VOCAB,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=24,
        dropout=0.0,
    )
    return models.from_keras_hub(backbone)


KINDS = {
    "transformers": lambda: models.from_transformers(zoo.make("llama")),
    "ours": ours,
    "KerasHub": kerashub,
}


def logits(model, kind, ids, mask):
    """Of a model that is called as its users call it."""
    if kind == "ours":
        z = model(ids)
    elif kind == "KerasHub":
        z = model({"token_ids": ids, "padding_mask": mask})
    else:
        z = model.hf(ids, attention_mask=mask).logits
    return z.detach().double()


@pytest.mark.slow
def test_a_student_is_compiled_if_that_is_asked_for(monkeypatch):
    traced = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", traced)
    teacher, student = teacher_and_student()
    wanted, _ = plain_losses(teacher, student)
    model = models.Distillation(
        models.from_transformers(teacher), models.from_transformers(student), ALPHA, TEMPERATURE
    )
    loss = losses.MaskedSparseCategoricalCrossentropy()
    model.compile(keras.optimizers.SGD(0.0), loss, jit_compile=True)
    assert model.train_on_batch(zoo.batch("llama")) == pytest.approx(wanted, rel=1e-5)
    assert model.student.backbone.compiled
    assert "torch.compile runs the model" in model.step.describe().why_layers


@pytest.mark.parametrize(
    ("teacher", "student"),
    [(t, s) for t in KINDS for s in KINDS if t != s],
)
@pytest.mark.quick(4)
def test_a_teacher_of_another_kind(teacher, student):
    kinds = teacher, student
    keras.utils.set_random_seed(0)
    batch, (teacher, student) = zoo.batch("llama"), (KINDS[kind]() for kind in kinds)
    ids, mask, labels = batch.values()
    y = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)
    t, z = (
        logits(m, k, ids, mask)[y != -100] for m, k in zip((teacher, student), kinds, strict=True)
    )
    nll = torch.nn.functional.cross_entropy(z, y[y != -100])
    log_p, log_q = ((each / TEMPERATURE).log_softmax(-1) for each in (z, t))
    divergence = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
    wanted = (1 - ALPHA) * nll + ALPHA * TEMPERATURE**2 * divergence

    model = models.Distillation(teacher, student, ALPHA, TEMPERATURE)
    model.compile(keras.optimizers.SGD(0.1), losses.MaskedSparseCategoricalCrossentropy())
    x = {
        "transformers": {"input_ids": ids, "attention_mask": mask},
        "ours": ids,
        "KerasHub": {"token_ids": ids, "padding_mask": mask},
    }[kinds[1]]
    x = keras.tree.map_structure(lambda tensor: tensor.numpy(), x)
    assert model.evaluate(x, y.numpy(), verbose=0) == pytest.approx(wanted.item(), rel=1e-5)
    assert model.fit(x, y.numpy(), verbose=0).history["loss"][0] == pytest.approx(
        wanted.item(), rel=1e-5
    )


def test_what_a_teacher_of_ours_cannot_read_is_refused():
    model = models.Distillation(ours(), KINDS["transformers"]())
    model.compile(keras.optimizers.SGD(0.1), losses.MaskedSparseCategoricalCrossentropy())
    batch = zoo.batch("llama")
    batch["attention_mask"] = batch["attention_mask"].flip(1)
    with pytest.raises(ValueError, match="padded on the right: the teacher, a CausalTransformer"):
        model.fit(batch, verbose=0)
    batch = {**zoo.batch("llama"), "position_ids": torch.arange(12).expand(4, 12)}
    with pytest.raises(ValueError, match=r"CausalTransformer, has no input for \['position_ids'\]"):
        model.fit(batch, verbose=0)

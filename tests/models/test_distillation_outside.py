"""A student of transformers takes Hugging Face's batches, also where a teacher is beside it."""

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

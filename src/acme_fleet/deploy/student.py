"""A student of ``acme distill run`` as an artifact for llama.cpp or ONNX Runtime."""

from __future__ import annotations

from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.deploy.export import Origin
from acme_fleet.deploy.samples import Evidence, Judged
from acme_fleet.inspection.predict import DeviceModel
from acme_fleet.models.backbone.checkpoints import load_language_model
from acme_fleet.models.backbone.precision import use_precision
from acme_fleet.models.features import CustomizedModel
from acme_fleet.models.header.module import NoHeader
from acme_fleet.stratos.lessons import lessons_of, read_texts
from acme_fleet.stratos.questions import read_questions
from acme_fleet.stratos.run_directory import DistillDirectory, DistillSummary
from acme_fleet_runtime.manifest import Reference


def origin_of_student(run: DistillDirectory) -> Origin:
    """The student of a finished run, verified on the texts that chose it.

    Its weights have the values of its precision already; at int8 inputs of layers are rounded too,
    as runtimes do, which the run's marks are without.

    Raises:
        RunError: if the run is not finished.
        FleetError: if the data that it learned from are not there any more.
    """
    summary = DistillSummary.read(run.finished())
    request = run.read(run.path / run.document)
    backbone = load_language_model(run.student)
    config = backbone.config
    config.precision = summary.precision
    use_precision(backbone, summary.precision, groups=True)
    context = config.max_position_embeddings
    rule = LanguagePreprocessing.of_checkpoint(str(run.student), context)
    assert isinstance(rule, LanguagePreprocessing)
    texts = read_texts(request, read_questions(request.data).test)
    held = lessons_of(request, texts, rule, context, logits=False).validation
    inputs = {name: held.inputs[name].numpy() for name in ("input_ids", "attention_mask")}
    model = CustomizedModel(backbone, NoHeader()).eval()
    return Origin(
        DeviceModel(run.student, model, [], rule),
        summary.name,
        Evidence("validation", Judged(inputs, held.labels.numpy())),
        "generation",
        reference=Reference(summary.chosen.pair, None),
        student=True,
    )

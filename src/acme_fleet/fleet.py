"""The fleet file: which model, which data, which clusters and devices. YAML in, checked.

Every class is frozen and refuses unknown keys, so a fleet that exists is a fleet that can run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from acme_fleet.errors import FleetError
from acme_fleet.fleet_file import written_out
from acme_fleet.hardware import Cluster, Device
from acme_fleet.hardware import Energy as Energy  # an alias of the same name: to be imported
from acme_fleet.hardware import Name as Name
from acme_fleet.outside import one_line, reading
from acme_fleet.settings import Settings, mistakes, read_settings

Fraction = Annotated[float, Field(gt=0, lt=1)]
Width = Annotated[float, Field(gt=0, le=1)]
ClassName = Annotated[str, Field(coerce_numbers_to_str=True)]  # YAML reads class 3 as a number
ClassNames = Annotated[list[ClassName], Field(min_length=1)]
Rule = Literal["nearest", "literal"]
"""How Eq. 13 measures the distance to the ideal point, see ``cloud.pareto.distances``."""


# --- data -------------------------------------------------------------------------------------


class IID(Settings):
    """Every device draws from the same distribution."""

    scheme: Literal["iid"] = "iid"


class Pathological(Settings):
    """Every device sees a few classes only (McMahan et al., 2017).

    Either ``classes_per_device``, drawn so that every class is held by someone where possible, or
    ``classes``: lists of class names that the devices take in turn, starting again after the
    last list. The same list twice is two devices of one distribution (the paper's Fig. 10).
    """

    scheme: Literal["pathological"]
    classes_per_device: PositiveInt | None = None
    classes: Annotated[list[ClassNames], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Pathological:
        if (self.classes_per_device is None) == (self.classes is None):
            raise ValueError("give either `classes_per_device` or `classes`")
        return self


class Dirichlet(Settings):
    """Every device's class shares are drawn from Dirichlet(alpha) (Hsu et al., 2019)."""

    scheme: Literal["dirichlet"]
    alpha: PositiveFloat


class Natural(Settings):
    """A column of the data set says whose sample it is.

    The devices without data of their own take the column's values in sorted order (numbers as
    numbers), one each; the samples of values that are left over belong to no device. A value is
    text or a whole number, and no sample lacks one.
    """

    scheme: Literal["natural"]
    column: str


Partition = Annotated[IID | Pathological | Dirichlet | Natural, Field(discriminator="scheme")]


class Data(Settings):
    """Where the samples come from and how they are shared out.

    ``public`` of the samples are the cloud's. The others are partitioned over the devices; of
    what would fall to a cluster, ``edge_share`` (relative to its devices' data) is the edge
    server's own and never on a device. Devices with a ``data`` path of their own keep theirs.

    ``train`` and ``test`` are paths: ``arrays`` .npz files, ``images`` folders of class folders,
    ``parquet`` files, ``text`` JSON Lines files with ``text_column`` and ``label_column``, whose
    texts are cut or padded to ``max_tokens`` of the checkpoint's tokenizer. For ``huggingface``,
    ``train`` is a data set's name, or its folder if it starts with ``.`` or ``/``, and ``test``
    the name of its test split. Without ``test``, ``test_share`` of the samples is held out.
    ``classes`` keeps the first n, or those named.
    """

    source: Literal["digits", "arrays", "images", "parquet", "huggingface", "text"] = "digits"
    train: Path | list[Path] | str | None = None
    test: Path | list[Path] | str | None = None
    image_column: str = "image"
    text_column: str = "text"
    max_tokens: Annotated[int, Field(ge=2, le=4096)] = 64
    label_column: str = "label"
    classes: ClassNames | PositiveInt | None = None
    image_size: PositiveInt | None = None
    public: Fraction = 0.4
    edge_share: Annotated[float, Field(ge=0.05, le=0.5)] = 0.15
    validation: Fraction = 0.2
    test_share: Fraction = 0.25
    partition: Partition = IID()

    @field_validator("train", "test")
    @classmethod
    def _as_path(cls, value: Any, info: ValidationInfo) -> Any:
        """Text is a path, and then relative to the fleet file, unless it names a hub's data set."""
        named = info.data.get("source") == "huggingface" and str(value)[:1] not in (".", "/")
        return Path(value) if isinstance(value, str) and not named else value

    @model_validator(mode="after")
    def _has_path(self) -> Data:
        if self.source != "digits" and self.train is None:
            raise ValueError(f"source {self.source!r} needs a path in `train`")
        if self.source == "digits" and not (self.train is None and self.test is None):
            raise ValueError("source 'digits' has its own samples; remove `train` and `test`")
        if self.source == "huggingface" and isinstance(self.train, list):
            raise ValueError("source 'huggingface' takes one name or folder in `train`")
        return self


# --- models and phases ------------------------------------------------------------------------


class Training(Settings):
    """Optimisation of one stage: AdamW, linear warm-up, cosine decay."""

    epochs: PositiveInt
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.05


class ViT(Settings):
    """Shape of a Vision Transformer that the run trains itself."""

    hidden_size: PositiveInt = 64
    layers: PositiveInt = 6
    heads: PositiveInt = 4
    neurons: PositiveInt = 256
    patch_size: PositiveInt = 2

    @model_validator(mode="after")
    def _heads_divide(self) -> ViT:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}"
            )
        return self


Pooling = Literal["first", "mean", "last", "first_mean"]
"""One vector for an input: its first token, its tokens' mean, its last one, or first and mean."""


class Reference(Settings):
    """The reference model θ0: a checkpoint, or a ViT that is trained on the public data.

    ``checkpoint`` is a folder, found from the fleet file, or where there is none of this name a
    Hugging Face hub name; what starts with ``.`` or ``/`` is a folder always. ``revision`` is the
    commit, branch or tag on the hub. ``pooling`` makes one vector of tokens: ``first``, ``mean``,
    ``last`` or ``first_mean``. With ``auto`` a sentence encoder's own file says how, or else public
    validation data choose. A checkpoint is used untouched, unless training it on the public data
    wins on validation data; each layer then learns ``layer_decay`` times as fast as the one after.
    """

    checkpoint: Path | str | None = None
    revision: Annotated[str, Field(pattern=r"^[\w.][\w./-]{0,199}$")] | None = None
    pooling: Literal["auto", "first", "mean", "last", "first_mean"] = "auto"
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    model: ViT = ViT()
    training: Training = Training(epochs=30)
    crop_padding: Annotated[int, Field(ge=0)] = 0
    flip: bool = False

    @field_validator("checkpoint")
    @classmethod
    def _as_path(cls, value: Any) -> Any:
        return Path(value) if str(value)[:1] in (".", "/") else value

    @model_validator(mode="after")
    def _revision_is_of_the_hub(self) -> Reference:
        if self.revision is not None and not isinstance(self.checkpoint, str):
            raise ValueError("revision is for a `checkpoint` on the hub; a folder has only one")
        return self


class Distillation(Settings):
    """Eq. 9, one entry for each of the two steps: width, then width and depth.

    ``logits_loss`` is Eq. 9's mean squared error, or the cross-entropy of the student's class
    probabilities under the teacher's. With ``recovery`` a backbone that was chosen learns on,
    alone, from the whole one: it need not share its weights with others any longer. ``match`` says
    what is learned: ``states`` and logits as in Eq. 9, or ``features``, hidden states and pooled
    vectors relative to their variance, without labels; logits join where the reference's classifier
    was trained. ``auto``: ``features`` of a checkpoint, ``states`` of what the run trains itself.
    """

    training: Training = Training(epochs=8, learning_rate=5e-4)
    recovery: Training | None = None
    random_subnetworks: Annotated[int, Field(ge=0)] = 1
    match: Literal["auto", "states", "features"] = "auto"
    logits_loss: Literal["mse", "soft_cross_entropy"] = "mse"
    logits_weight: tuple[float, float] = (1.0, 1.0)
    embeddings_weight: tuple[float, float] = (0.1, 1.0)

    @property
    def epochs_in_all(self) -> int:
        """Passes over the public data that a chosen backbone has behind it."""
        return 2 * self.training.epochs + (self.recovery.epochs if self.recovery else 0)


class Backbone(Settings):
    """The candidates δ(θ0, w, d) and how they are made elastic.

    ``allocation`` says how a width is spread over the layers: ``uniform``, the same in each, or
    ``global``, as much in all by one ranking of importance per parameter. ``importance`` is what a
    head or neuron changes: the loss on the public labels, or the pooled features, without labels.
    """

    widths: Annotated[list[Width], Field(min_length=1)] = [0.25, 0.5, 0.75, 1.0]
    depths: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 2, 3, 4, 5, 6]
    allocation: Literal["uniform", "global"] = "uniform"
    importance: Literal["labels", "features"] = "labels"
    importance_samples: PositiveInt = 256
    distillation: Distillation = Distillation()


class Selection(Settings):
    """Eq. 10-13. ``performance_window`` (γ_p) is the loss that may be given up for the rest.

    ``rule`` says what is nearest to the ideal point: in the objectives themselves, or, literally
    as in the paper, in grid coordinates. ``matching`` says for whom: one backbone for each
    cluster (the paper), or one for each device by its own limits; those of a cluster that get
    the same one share a header search and personalise together.
    """

    matching: Literal["cluster", "device"] = "cluster"
    performance_window: PositiveFloat = 0.1
    rule: Rule = "nearest"


class Header(Settings):
    """The header's space: B blocks to a cell, U cells, and the channels of every operation."""

    blocks: Annotated[int, Field(ge=1, le=8)] = 2
    cells: Annotated[int, Field(ge=1, le=4)] = 1
    channels: PositiveInt = 24


StrategyName = Literal["random", "evolution", "controller"]


class Search(Settings):
    """The edge's search (Eq. 15) and the fine-tuning of what it chose.

    ``strategy`` says who proposes headers; with ``rivals`` the other strategies, on the same
    budget, and hand-made headers of the same size are trained too and reported. ``population``
    and ``tournament`` belong to evolution, the controller's rate and the entropy's weight to the
    controller. A backbone with a learning rate trains along. The chosen header is fine-tuned from
    the ``shared`` weights that it was searched with, or from a ``fresh`` start. After
    ``time_limit_s`` the best so far is taken: then the machine's speed decides too, and not the
    seed alone.
    """

    strategy: StrategyName = "random"
    rivals: bool = True
    steps: PositiveInt = 60
    time_limit_s: PositiveFloat | None = None
    fine_tune_from: Literal["shared", "fresh"] = "fresh"
    children_per_step: PositiveInt = 4
    weight_updates_per_step: PositiveInt = 4
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 3e-3
    backbone_learning_rate: NonNegativeFloat = 0.0
    controller_learning_rate: PositiveFloat = 5e-3
    entropy_weight: NonNegativeFloat = 1e-2
    population: Annotated[int, Field(ge=2)] = 32
    tournament: PositiveInt = 8
    final_samples: PositiveInt = 24
    fine_tuning: Training = Training(epochs=30, batch_size=32, learning_rate=2e-3)


class Privacy(Settings):
    """What a device does to its messages before they leave it; all off by default.

    Feature samples are projected to ``sketch_dim`` numbers, sent with ``sketch_bits`` each.
    ``feature_noise`` and ``importance_noise`` are noise multipliers of Gaussian mechanisms,
    standard deviation ÷ sensitivity; the report states their ε at ``delta``. ``feature_clip`` is
    the longest that a feature may then be, in √hidden. With ``masking`` importance sets are sent
    as masked shares: the edge server adds them up and reads none of them.
    """

    sketch_dim: PositiveInt | None = None
    sketch_bits: Literal[8, 16] = 16
    feature_noise: PositiveFloat | None = None
    feature_clip: PositiveFloat = 1.0
    importance_noise: PositiveFloat | None = None
    delta: Fraction = 1e-5
    masking: bool = False


Mix = Literal["importance", "weights", "both"]


class Personalization(Settings):
    """Algorithm 2: rounds between an edge server and its devices.

    Devices train as ``local`` says in each round, and once more after the last, then for
    ``last_epochs`` where they are given.
    ``mix`` says what similar devices share: the importance of neurons (the paper), the header's
    weights, or both. With ``classifier: holders`` the classifier's rows of a device's own classes
    are mixed over the devices that train on them: these tell the edge server which classes they
    hold. With ``similarity: none`` all devices of a cluster listen to each other alike, and no
    feature leaves a device. Of a device that misses a round its last set counts for the others,
    ``stale_decay`` times as much for each round since; with 0 it does not.
    """

    rounds: PositiveInt = 3
    local: Training = Training(epochs=10, batch_size=32, learning_rate=2e-3)
    last_epochs: PositiveInt | None = None
    prune_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    feature_samples: PositiveInt = 32
    mix: Mix = "importance"
    classifier: Literal["everyone", "holders"] = "everyone"
    similarity: Literal["debiased", "literal", "none"] = "debiased"
    temperature: PositiveFloat = 0.1
    timeout_s: PositiveFloat = 3600.0
    quorum: Annotated[float, Field(gt=0, le=1)] = 0.5
    stale_decay: Annotated[float, Field(ge=0, le=1)] = 0.5
    privacy: Privacy = Privacy()

    @property
    def rows_sent(self) -> int:
        """How many rows of features a device sends at most."""
        return 0 if self.similarity == "none" else self.feature_samples

    def training(self, number: int) -> Training:
        """Of round ``number``; that after the last round is the final one."""
        last = self.last_epochs if number == self.rounds else None
        return self.local.model_copy(update={"epochs": last}) if last else self.local

    @property
    def training_in_all(self) -> Training:
        """With all epochs that a header is trained for on a device."""
        epochs = sum(self.training(number).epochs for number in range(self.rounds + 1))
        return self.local.model_copy(update={"epochs": epochs})

    def mixes_after(self, number: int) -> bool:
        """Whether headers' weights are mixed after training ``number``; never after the last."""
        return self.mix != "importance" and number < self.rounds

    @model_validator(mode="after")
    def _consistent(self) -> Personalization:
        if self.privacy.masking and self.mix != "importance":
            raise ValueError(
                f"privacy.masking hides importance sets alone, and mix: {self.mix} would send the "
                f"header's weights unmasked; set mix: importance, without classifier: holders"
            )
        for name in ("sketch_dim", "feature_noise"):
            if self.similarity == "none" and getattr(self.privacy, name) is not None:
                raise ValueError(
                    f"privacy.{name} protects feature samples, and similarity: none sends none; "
                    f"leave privacy.{name} out"
                )
        if self.classifier == "holders" and self.mix == "importance":
            raise ValueError(
                "classifier: holders says how the header's weights are mixed, and mix: importance "
                "mixes none; set mix: both or mix: weights"
            )
        return self


# --- who takes part ---------------------------------------------------------------------------


class Fleet(Settings):
    """Everything that decides a run. See ``acme init`` for a commented example.

    ``threads`` of each operation: it decides how sums are rounded, and so belongs to the seed.
    ``accelerator`` is where the cloud server trains (on a GPU in bfloat16) and measures the
    backbone; edge servers and devices compute on the CPU. A run goes on where it was begun.
    ``devices_at_once`` is how many devices of a cluster train their headers together where one
    machine plays them all: much faster for many, the same numbers up to rounding.
    ``edge_quorum`` is the share of the clusters that must finish for a run to end with a report;
    the others can be finished with ``--resume``.
    """

    name: Name = "fleet"
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    accelerator: Literal["cpu", "cuda"] = "cpu"
    devices_at_once: Annotated[int, Field(ge=1, le=10_000)] = 1
    edge_quorum: Annotated[float, Field(gt=0, le=1)] = 0.5
    data: Data = Data()
    reference: Reference = Reference()
    backbone: Backbone = Backbone()
    selection: Selection = Selection()
    header: Header = Header()
    search: Search = Search()
    personalization: Personalization = Personalization()
    clusters: Annotated[list[Cluster], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Fleet:
        names = [c.name for c in self.clusters] + [d.name for d in self.devices]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated or "cloud" in names:
            raise ValueError(
                f"cluster and device names must differ from each other and from 'cloud'; "
                f"used more than once: {', '.join(repeated or ['cloud'])}"
            )
        if self.data.source == "text" and self.reference.checkpoint is None:
            raise ValueError(
                "data.source text needs a text model and its tokenizer in reference.checkpoint"
            )
        if self.data.source == "text" and (self.reference.crop_padding or self.reference.flip):
            raise ValueError("reference.crop_padding and reference.flip are for images, not texts")
        return self

    @property
    def devices(self) -> list[Device]:
        """All devices, cluster by cluster."""
        return [device for cluster in self.clusters for device in cluster.devices]

    @staticmethod
    def from_yaml(path: str | Path) -> Fleet:
        """Read and check a fleet file. Relative paths in it are relative to the file.

        Raises:
            FleetError: naming the key, its value and what would be right.
        """
        path = Path(path)
        content = read_settings(path, "fleet file", f"`acme init {path}` writes an example")
        return Fleet.parse(content, str(path), path.parent).with_paths_from(path.parent)

    @staticmethod
    def parse(content: dict[str, Any], where: str = "fleet", folder: Path = Path()) -> Fleet:
        """Check settings that are already in memory.

        ``device_types``, and ``devices`` with or without ``grouping`` in place of ``clusters``,
        are written out: the fleet has neither. Profiles of device types are taken from ``folder``.

        Raises:
            FleetError: naming the key, its value and what would be right.
        """
        try:
            return Fleet.model_validate(written_out(content, where, folder))
        except ValidationError as error:
            raise FleetError(mistakes(error, where, Fleet)) from error

    def with_paths_from(self, folder: Path) -> Fleet:
        """The same fleet with relative paths made absolute, taken from ``folder``."""

        def resolve(value: Any) -> Any:
            if isinstance(value, Path):
                with reading(f"cannot use the path {one_line(str(value))}"):
                    return (folder / value).resolve()
            return [resolve(item) for item in value] if isinstance(value, list) else value

        def in_place(settings: Any, *names: str) -> Any:
            changes = {name: resolve(getattr(settings, name)) for name in names}
            return settings.model_copy(update=changes)

        clusters = [
            in_place(cluster, "data").model_copy(
                update={"devices": [in_place(device, "data") for device in cluster.devices]}
            )
            for cluster in self.clusters
        ]
        data = in_place(self.data, "train", "test")
        named = self.reference.checkpoint
        if isinstance(named, str) and os.path.lexists(folder / named):
            # Path and all, so that it is said, and means the same from everywhere.
            named = Path(named)
            if self.reference.revision is not None:
                raise FleetError(
                    f"reference.revision: is for a checkpoint on the hub, and {named} is a folder "
                    f"in {folder}; leave revision out"
                )
        reference = self.reference.model_copy(update={"checkpoint": resolve(named)})
        return self.model_copy(update={"clusters": clusters, "data": data, "reference": reference})

    def to_yaml(self) -> str:
        """The fleet with every default written out; reading it back gives an equal fleet."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

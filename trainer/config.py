"""The whole configuration: one typed, frozen tree. A preset or a file gives it, `key=value` changes it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from data_pipeline import WrongCall
from trainer.sources import float_of, leaves, read_tree

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
FourWeights = tuple[
    Annotated[float, Field(ge=0)],
    Annotated[float, Field(ge=0)],
    Annotated[float, Field(ge=0)],
    Annotated[float, Field(ge=0)],
]


def _height_and_width(value: object) -> object:
    """512x480 as [512, 480]."""
    if isinstance(value, str) and value.count("x") == 1:
        return value.split("x")
    return value


Size = Annotated[tuple[Positive, Positive], BeforeValidator(_height_and_width)]


class Branch(BaseModel):
    """A branch of the tree: nothing changes after it is built, and no unknown key passes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, field: ValidationInfo) -> object:
        """Keep yes, on and true from counting as 1, for which Python takes them."""
        wanted = cls.model_fields[str(field.field_name)].annotation
        items = value if isinstance(value, list | tuple) else [value]
        if wanted is not bool and any(isinstance(item, bool) for item in items):
            raise PydanticCustomError("truth", "input should not be a truth value")
        return value


B = TypeVar("B", bound=Branch)


class Data(Branch):
    """Which scans, and how they reach the network."""

    uri: str | tuple[str, ...] = ""
    """Where the dataset is: a path or s3://bucket/prefix, as `sonotrain data ingest` wrote it; or a list of several."""
    weights: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """How often an epoch sees the scans of each dataset of a list: 2 twice, 0.5 every other epoch; if empty, once."""
    fold: Positive = 1
    """The fold held out for validation, counted from 1; all others but those of unseen are trained on."""
    unseen: tuple[Positive, ...] = ()
    """Folds that are neither learnt from nor judged by: kept for a comparison that is to be honest."""
    size: Size = (512, 480)
    """Height and width in pixels to which scans are resized for the network; multiples of 16."""
    readers: Positive = 4
    """Threads of each process that fetch and decode samples ahead of the training."""
    resident_gb: Annotated[float, Field(ge=0)] = 4.0
    """Gigabytes of a node's shared memory (/dev/shm) in which decoded scans stay for later epochs; 0 for none."""
    cache: str = "~/.cache/sonotrain"
    """Folder on each node's own disk in which shards from S3 stay, for all processes and later runs."""
    cache_gb: Annotated[float, Field(ge=0)] = 20.0
    """Gigabytes of shards that it holds at most; 0 reads each sample from S3 anew."""

    @property
    def uris(self) -> tuple[str, ...]:
        """The datasets' places, none where none is set."""
        return self.uri if isinstance(self.uri, tuple) else (self.uri,) if self.uri else ()


class Augmentation(Branch):
    """How training scans are varied, each time anew. Zero leaves a scan as it is.

    Amounts are drawn evenly from their ranges. Elastic, blur, shadow, speckle and gamma are off unless asked for: 0.05,
    1, 0.25, 0.06 and 0.3, in this order, look like other patients and other scanners.
    """

    flip: Fraction = 0.5
    """Probability of a left-right flip."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Largest rotation either way, degrees."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest change of scale either way, as a fraction of the size."""
    shift: Fraction = 0.05
    """Largest shift either way, as a fraction of the side."""
    elastic: Annotated[float, Field(ge=0, le=0.1)] = 0.0
    """Largest displacement by a smooth deformation, as a fraction of the side; up to 0.1 it never folds."""
    blur: Annotated[float, Field(ge=0, le=5)] = 0.0
    """Largest standard deviation of a Gaussian blur, pixels at training size."""
    shadow: Fraction = 0.0
    """Probability of an acoustic shadow somewhere in the scan."""
    speckle: Fraction = 0.0
    """Largest standard deviation of further speckle, as a fraction of the full range."""
    gamma: Fraction = 0.0
    """Largest change of the gamma curve: an exponent from 1 / (1 + gamma) to 1 + gamma, evenly in its logarithm."""
    brightness: Fraction = 0.1
    """Largest change of brightness either way, as a fraction of the full range."""
    contrast: Fraction = 0.2
    """Largest change of contrast either way, as a fraction."""


class Network(Branch):
    """The generator: the network that outlines lesions."""

    name: Literal["unet", "deepres", "msunet", "unetpp", "segnet", "attunet", "u2net", "unet3p"] = "unet"
    """Which network, by its name in the paper's Table 1; unet is the paper's own."""
    in_channels: Positive = 1
    """Channels that the network reads; a scan's gray values are repeated in each."""
    widths: Annotated[tuple[Positive, ...], Field(min_length=2)] = (64, 128, 256, 512, 1024)
    """Channels of each level of unet, finest first; their number is its depth."""
    norm: Literal["batch", "sync_batch", "instance", "group"] = "batch"
    """Norm of unet: over the scans of a process, of all processes, over each scan, or over groups of its channels."""


class Discriminators(Branch):
    """The critics, one for each supervised decoder stage, without shared weights."""

    widths: Annotated[tuple[Positive, ...], Field(min_length=4, max_length=4)] = (64, 128, 256, 512)
    """Channels of the first four convolutions; the fifth gives one logit map."""
    strides: Annotated[tuple[Positive, ...], Field(min_length=5, max_length=5)] = (2, 2, 2, 2, 2)
    """Strides of the five convolutions; smaller ones let smaller scans be trained on."""
    norm: Literal["batch", "sync_batch", "instance", "group"] = "batch"
    """Their norm, as that of the network."""
    input: Literal["mask", "image_x_mask"] = "mask"
    """What they judge: the mask alone, as Eq. 2 has it, or the scan's gray values inside it."""


class Objective(Branch):
    """Eq. 1 and Eq. 2: weights, finest stage first, and what the paper leaves open."""

    stages: Annotated[int, Field(ge=1, le=4)] = 4
    """How many decoder stages, counted from the finest, are supervised: the paper's Stage I to IV."""
    alpha: FourWeights = (1.0, 0.1, 0.1, 0.1)
    """Weight of each stage's Dice loss."""
    beta: FourWeights = (0.05, 0.05, 0.05, 0.05)
    """Weight of each stage's adversarial loss; zero at every supervised stage trains without discriminators."""
    beta_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which beta rises from zero, so that the generator can outline something before it is judged."""
    truth: Literal["stage", "full"] = "stage"
    """Compare each stage at its own resolution (the mask is resampled) or at full (the map is enlarged)."""
    adversarial: Literal["minimax", "non_saturating"] = "minimax"
    """The generator's part: log(1 - D), as Eq. 1 has it, or -log D, whose gradient does not fade while D wins."""
    smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """What the discriminators' target for a true mask lacks of 1 (one-sided label smoothing)."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of noise on all that the discriminators see, equal for truth and map."""


class Optimizer(Branch):
    """Adam for both sides."""

    generator_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate of the generator."""
    discriminator_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate of the discriminators."""
    rate_scaling: Literal["none", "linear", "square_root"] = "none"
    """How both rates grow with the global batch: not, with training.batch / rates_for_batch, or with its root."""
    rates_for_batch: Positive = 4
    """Global batch at which the rates are meant, where they are scaled."""
    schedule: Literal["constant", "cosine", "polynomial"] = "constant"
    """How both rates go on over the run: as they are, or down to zero along a cosine or a power of what is left."""
    power: Annotated[float, Field(gt=0)] = 0.9
    """Exponent of the polynomial schedule."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which both rates rise from zero."""
    clip: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of each side's gradient, to which a larger one is shortened; 0 for any."""


class Training(Branch):
    """How long, in what pieces, in which precision."""

    epochs: Positive = 100
    """Times that every training scan is seen."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Validations without a better DSC after which the run ends early; 0 for never."""
    batch: Positive = 4
    """Scans of one iteration over all processes together (the global batch)."""
    accumulation: Positive = 1
    """Pieces in which a process works through its share of the global batch."""
    generator_zero: Literal[0, 1, 2, 3] = 0
    """ZeRO stage of the generator's engine: what its processes share out (nothing, moments, gradients, weights too)."""
    discriminator_zero: Literal[0, 1, 2] = 0
    """ZeRO stage of the discriminators' engine."""
    precision: Literal["fp32", "tf32", "bf16", "auto"] = "fp32"
    """Arithmetic of the networks: fp32, on GPUs TF32 inside it, bf16 autocast, or bf16 where the hardware has it."""
    channels_last: bool = False
    """Keep activations with channels innermost, which GPUs and CPUs with AVX-512 compute faster."""
    compile: bool = False
    """Compile both networks with torch.compile, which takes minutes at the start."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay a step of a running average of the generator, which is then what is judged and kept; 0 for none."""
    skips: Positive = 10
    """Steps in a row with a loss or gradient that is not finite, all skipped, after which the run ends."""
    timeout_minutes: Annotated[float, Field(gt=0)] = 10.0
    """Minutes after which a process that waits for the others in vain ends the run: at its start, its end and wherever
    one process works alone."""
    stall_minutes: Annotated[float, Field(gt=0)] = 3.0
    """Minutes after the first step after which a process that waits for the others in vain ends the run."""


class Checkpoints(Branch):
    """What is kept of a run to go on from."""

    every_steps: Annotated[int, Field(ge=0)] = 500
    """Steps between checkpoints inside an epoch, 0 for none; one is written at each epoch's end in any case."""
    keep: Positive = 2
    """How many of the newest are kept, beside the best."""
    mirror: str = ""
    """A path or s3://bucket/prefix to which each checkpoint is copied, and from which a new machine goes on."""


class Validation(Branch):
    """How the held-out fold is judged, and the network used from then on."""

    every_epochs: Positive = 1
    """Epochs between validations; the last epoch is always followed by one."""
    batch: Positive = 8
    """Scans that the network sees at once."""
    flips: bool = False
    """Average the probabilities of each scan and of its left-right mirror image."""
    largest_component: bool = False
    """Keep only the largest connected part of what is marked."""
    threshold: Literal["half", "chosen"] = "half"
    """Probability from which a pixel is lesion: 0.5, or the one with the best mean DSC on the held-out fold."""


class Tracking(Branch):
    """Where a run is written down, beside its own folder. The server is MLflow's own MLFLOW_TRACKING_URI."""

    experiment: str = "sonotrain"
    """Name of the MLflow experiment; an empty one, and nothing is tracked or registered."""
    model: str = "breast-ultrasound-segmenter"
    """Name under which `crossval` registers a network."""
    registers: Literal["best_fold", "ensemble"] = "best_fold"
    """Which one: that of the best fold, or all folds' networks as one model."""


class Config(Branch):
    """Everything that a run depends on."""

    output: str = "runs/latest"
    """Folder of the run: checkpoints, logs, results. A run started again with the same folder goes on."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Everything random follows from it."""
    folds: tuple[Positive, ...] = ()
    """Folds that `crossval` holds out in turn; none named means all that the dataset has but data.unseen."""
    data: Data = Data()
    augmentation: Augmentation = Augmentation()
    network: Network = Network()
    discriminators: Discriminators = Discriminators()
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    training: Training = Training()
    checkpoints: Checkpoints = Checkpoints()
    validation: Validation = Validation()
    tracking: Tracking = Tracking()

    def replace(self, **changes: Any) -> Config:
        """A copy with other values, named with two underscores for a dot: replace(data__fold=2)."""
        tree = self.model_dump()
        for key, value in changes.items():
            set_key(tree, key.replace("__", "."), value)
        return Config.model_validate(tree)

    def flat(self) -> dict[str, Any]:
        """Each value by its dotted key, as `key=value` takes it."""
        return dict(leaves(self.model_dump(mode="json")))


def load_config(source: str, changes: Sequence[str] = ()) -> Config:
    """The configuration of a preset's name or a YAML file, with `key=value` changes applied in order.

    Raises WrongCall for a name that is neither, an unknown key (with the nearest valid one), a value of the wrong
    type or out of its range, and a study or a search, which are several configurations.
    """
    tree = read_tree(source)
    if "variants" in tree:
        raise WrongCall(f"{source} is a study of several variants; carry it out with sonotrain crossval {source}")
    if "tune" in changed(tree, changes):
        raise WrongCall(f"{source}: has tune, which is for a search; carry it out with sonotrain tune {source}")
    return config_of(tree, source)


def changed(tree: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The tree after `key=value` changes in order. Raises WrongCall for a change that cannot be read."""
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise WrongCall(f"{change!r} is no key=value; write for example training.epochs=20")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as broken:
            raise WrongCall(f"{key}: {text!r} cannot be read as a value") from broken
        set_key(tree, key, float_of(value))
    return tree


def config_of(tree: dict[str, Any], source: str) -> Config:
    """A tree as a configuration. Raises WrongCall, beginning with the source, for the first thing wrong with it."""
    return branch_of(Config, tree, source)


def branch_of(kind: type[B], tree: dict[str, Any], source: str, name: str = "") -> B:
    """A tree as a branch of this kind, whose keys begin with its dotted name if it has one. Raises likewise."""
    try:
        return kind.model_validate(tree)
    except ValidationError as invalid:
        raise WrongCall(_first_problem(invalid, source, kind, name and f"{name}.")) from invalid


def keys(kind: type[Branch] = Config) -> list[str]:
    """Every dotted key of the configuration, or of a branch."""
    return [key for key, _ in leaves(kind().model_dump(mode="json"))]


def set_key(tree: dict[str, Any], key: str, value: object) -> None:
    """Give a dotted key of the tree another value. Raises WrongCall where the key leads below a value."""
    *branches, leaf = key.split(".")
    for name in branches:
        if tree.get(name) is None:  # not there, or there with nothing below it
            tree[name] = {}
        if not isinstance(tree[name], dict):
            raise WrongCall(_unknown(key))
        tree = tree[name]
    tree[leaf] = value


def _first_problem(invalid: ValidationError, source: str, kind: type[Branch], prefix: str) -> str:
    problem = invalid.errors()[0]
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        whole = next(leaves({key: problem["input"]}), (key, None))[0]  # of an unknown branch, a key below it
        return f"{source}: {_unknown(prefix + whole, kind, prefix)}"
    named = ".".join(_field_path(path, kind))
    return f"{source}: {prefix}{named}={problem['input']!r}: {_lower_first(problem['msg'])}{_purpose(named, kind)}"


def _field_path(path: Sequence[str], kind: type[Branch]) -> Iterator[str]:
    """The names of fields that a path begins with; behind them come places in a list and kinds of value."""
    branch: Any = kind
    for name in path:
        if not (isinstance(branch, type) and issubclass(branch, Branch) and name in branch.model_fields):
            return
        yield name
        branch = branch.model_fields[name].annotation


def _unknown(key: str, kind: type[Branch] = Config, prefix: str = "") -> str:
    nearest = difflib.get_close_matches(key, [prefix + known for known in keys(kind)], n=1, cutoff=0.0)
    return f"there is no key {key}; the nearest is {nearest[0]}"


def _purpose(key: str, kind: type[Branch]) -> str:
    """What the field is for, from its own description."""
    branch: Any = kind
    for name in key.split("."):
        field = branch.model_fields.get(name)
        if field is None:
            return ""
        branch = field.annotation
        if not (isinstance(branch, type) and issubclass(branch, Branch)):
            return f" ({' '.join(field.description.split())})" if field.description else ""
    return ""


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]

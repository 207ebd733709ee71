"""What a recipe may say: every part's arguments, typed, frozen and closed, and the combinations that make no sense.

One class a part. A part that comes in kinds is a union told apart by `name`. A check that spans parts is one function of
`_CHECKS`: it returns (path of the culprit, message) pairs, so that all of them are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from advcli.recipe.number import Number

Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
CountOrZero = Annotated[int, Field(ge=0, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
# Told apart by value, so that a wrong one gets a single message; a number is no truth value, though Python has 1 == True.
AutoOrFlag = Annotated[Literal["auto", True, False], BeforeValidator(lambda given: given if isinstance(given, bool | str) else str(given))]
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]

Path = tuple[str | int, ...]
DataName = Literal["digits", "cifar10", "cifar100", "svhn", "tiny-imagenet", "folder"]
ArchName = Literal["small-cnn", "resnet18", "preact-resnet18", "wrn-28-10", "wrn-34-10", "vgg16-bn"]
DATA_SETS: tuple[str, ...] = get_args(DataName)
ARCHITECTURES: tuple[str, ...] = get_args(ArchName)


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Part):
    """The data set and the parts of it that are used; limit and validation are stratified and fixed by the recipe's seed."""

    name: DataName
    root: str | None = Field(None, description="where it lies; ~/.cache/advcli/data where left out; needed for folder")
    size: Count | None = Field(None, description="folder only: side in pixels that images are resized to; left out: as they are")
    limit: Count | None = Field(None, description="use this many training images, stratified")
    validation: CountOrZero = Field(1000, description="training images held out for model selection, stratified, taken after limit")
    augment: tuple[Literal["crop", "flip"], ...] = ()
    download: Flag = True


class Threat(Part):
    """What the adversary may do: a ball of radius eps around the image, inside [0, 1]."""

    norm: Literal["linf", "l2"] = "linf"
    eps: Positive = Number(8 / 255, "8/255")


Sites = Annotated[tuple[str, ...], Field(min_length=1)]
Share = Annotated[Number, Field(ge=0, le=1)]


class GatePart(Part):
    """What all gates have."""

    at: Sites = Field(("features",), description="blocks (layer4.0), stages (layer4: its last block) or features, the input of pooling")
    open: Flag = Field(False, description="an auxiliary head alone, whose gate never closes: the control of what the gate itself does")


class ReverseAttention(GatePart):
    """Channels times the classifier's own row of the selected class (ANCRA); no parameters."""

    name: Literal["reverse-attention"]


class ChannelSuppression(GatePart):
    """CAS: channels times the row of a probe of the gate's own."""

    name: Literal["channel-suppression"]


class AttributionSpan(GatePart):
    """AGAIN: in training alpha of the label's row and 1 - alpha of a shuffled label's."""

    name: Literal["attribution-span"]
    alpha: Annotated[Number, Field(ge=0.5, le=1)] = Number(0.6, "0.6")
    distinct: Flag = Field(False, description="shuffled labels never equal the true ones, unlike the authors'")


class ChannelPrompt(GatePart):
    """StayFocused: channels times class prototypes, chosen by cosine; in training the label's and the top classes' of the clean twin."""

    name: Literal["channel-prompt"]
    alpha: Share = Number(0.5, "0.5")
    top_k: Count = 2
    prototypes: Literal["mean", "classifier"] = Field("mean", description="moving class means of clean features, or the classifier's rows")
    momentum: Annotated[Number, Field(ge=0, lt=1)] = Field(Number(0.99, "0.99"), description="of the moving means")
    temperature: Positive = Field(Number(0.1, "0.1"), description="turns cosines into auxiliary logits")


Gate = Annotated[ReverseAttention | ChannelSuppression | AttributionSpan | ChannelPrompt, Field(discriminator="name")]


class HybridStatistics(Part):
    """Hybrid feature fusion (AGAIN): a map's channel statistics mixed with another image's, in training only."""

    name: Literal["hybrid-statistics"]
    at: Sites = ("features",)


class Model(Part):
    arch: ArchName
    width: Positive = Field(Number(1.0, "1.0"), description="multiplies the channels of every stage")
    init: str | None = Field(None, description="checkpoint whose weights training starts from")
    mean: tuple[Number, ...] | None = Field(None, description="normalisation inside the model, a value a channel; left out: none")
    std: tuple[Positive, ...] | None = None
    cells: Literal[1, 2, 4] = Field(1, description="side of the grid of cells that the head pools to; 2 in ANCRA's Tiny-ImageNet network")
    gates: tuple[Gate, ...] = ()
    fusion: HybridStatistics | None = None


class NegativeContrast(Part):
    """ANC (ANCRA): pushes an image and one of another class apart where both are predicted alike."""

    name: Literal["negative-contrast"]
    weight: NonNegative = Number(3.0, "3.0")
    alpha: Share = Field(Number(1.0, "1.0"), description="share of the push that moves the negative; 1 freezes the image's side")
    negatives: Literal["random", "soft", "hard", "targeted"] = Field("targeted", description="how negatives are found, ANCRA's table I")
    warmup: CountOrZero = Field(10, description="epochs in which soft and hard sample at random")


class HypersphereContrast(Part):
    """SHC (StayFocused): adversarial features near their clean twin's on the sphere, by an angular margin, and far from others'."""

    name: Literal["hypersphere-contrast"]
    weight: NonNegative = Number(1.0, "1.0")
    similarity: Literal["angular", "infonce", "cosine"] = Field(
        "angular", description="angular: a margin on the positive; infonce: none; cosine: 1 - cos, no negatives"
    )
    margin: Literal[1, 2, 3, 4] = Field(2, description="multiplies the angle to the clean twin; the paper names none")
    temperature: Positive = Field(Number(0.1, "0.1"), description="the paper names none")
    negatives: Literal["other-class", "all"] = Field("other-class", description="all: the paper's eq. 10, same-class images too")
    natural_gradient: Flag = Field(False, description="whether the clean side moves too")


class MaskedView(Part):
    """StayFocused's clean branch: a second encoder that predicts the same for an image and for masked views of it."""

    name: Literal["masked-view"]
    weight: NonNegative = Number(1.0, "1.0")
    ratios: Annotated[tuple[Fraction, ...], Field(min_length=1, max_length=3)] = Field(
        (Number(0.5, "0.5"),), description="share of patches masked in each view; 1 to 3 views, for 2 to 4 heads"
    )
    patch: Count = Field(4, description="side of a patch in pixels")
    clean_weight: NonNegative = Field(
        Number(1.0, "1.0"), description="of the clean cross-entropy, without which the branch collapses (ours)"
    )


Term = Annotated[NegativeContrast | HypersphereContrast | MaskedView, Field(discriminator="name")]
Terms = tuple[Term, ...]


class Ramp(Part):
    """Steps with gates and fusion, the others without: their share grows from 0 in epoch 1 to 1 in epoch `epochs` (AGAIN 4.3)."""

    epochs: Annotated[int, Field(ge=2, strict=True)]


class Awp(Part):
    """Adversarial weight perturbation (Wu, Xia, Wang 2020)."""

    name: Literal["awp"]
    gamma: NonNegative = Field(Number(0.005, "0.005"), description="size of the perturbation relative to each weight's norm")
    warmup: CountOrZero = Field(0, description="epochs before it starts")


class Standard(Part):
    name: Literal["standard"]
    aux_weight: NonNegative = Number(1.0, "1.0")
    wrapper: Awp | None = None


class PgdAt(Part):
    """Cross-entropy on adversarial examples (Madry et al. 2018)."""

    name: Literal["pgd-at"]
    aux_weight: NonNegative = Field(Number(1.0, "1.0"), description="weight of the mean loss of auxiliary heads, where a network has some")
    clean_pass: Flag = Field(False, description="a clean forward that only moves batch-norm statistics, as in Rice et al. 2020's code")
    terms: Terms = ()
    ramp: Ramp | None = None
    wrapper: Awp | None = None


class Trades(Part):
    """Clean cross-entropy + beta KL(clean || adversarial) (Zhang et al. 2019)."""

    name: Literal["trades"]
    beta: NonNegative = Number(6.0, "6.0")
    aux_weight: NonNegative = Number(1.0, "1.0")
    batch_norm: Literal["separate", "joint"] = Field(
        "separate", description="statistics of clean and adversarial images: two passes or one batch"
    )
    terms: Terms = ()
    ramp: Ramp | None = None
    wrapper: Awp | None = None


class Mart(Part):
    """Boosted cross-entropy + beta KL weighted by 1 - p_y (Wang et al. 2020)."""

    name: Literal["mart"]
    beta: NonNegative = Number(5.0, "5.0")
    aux_weight: NonNegative = Number(1.0, "1.0")
    batch_norm: Literal["separate", "joint"] = "separate"
    terms: Terms = ()
    ramp: Ramp | None = None
    wrapper: Awp | None = None


class Distillation(Part):
    """weight * the distance between what the student says of adversarial and the teacher of clean images (ARREST, eq. 3 and 4)."""

    name: Literal["angular", "squared", "attention-map", "logit"] = Field(description="angular is the paper's; the others are its rivals")
    weight: NonNegative = Field(Number(50.0, "50"), description="lambda; 50 is the paper's for angular")


class Replay(Part):
    """Images whose features have left the teacher's are shown with noise in place of an attack (ARREST, eq. 5)."""

    angle: Annotated[Number, Field(gt=0, le=90)] = Field(Number(30.0, "30"), description="degrees; larger is more robust and less accurate")
    until: Count = Field(10, description="epochs of replay, from the first")
    input: Literal["noise", "clean"] = Field("noise", description="clean is the variant that the paper found not to work")


class Arrest(Part):
    """Adversarial finetuning, with what holds the features near the pretrained network's (Suzuki et al. 2023). Both left out: AFT alone."""

    name: Literal["arrest"]
    distillation: Distillation | None = None
    replay: Replay | None = None
    aux_weight: NonNegative = Number(1.0, "1.0")
    wrapper: Awp | None = None


Objective = Annotated[Standard | PgdAt | Trades | Mart | Arrest, Field(discriminator="name")]


class Craft(Part):
    """How adversarial examples are made in training. loss and start left out: what the objective's paper does."""

    attack: Literal["pgd"] = "pgd"
    loss: Literal["ce", "kl", "margin"] = "ce"
    heads: Literal["joint", "final"] = Field("joint", description="decision + aux_weight * mean of auxiliary heads, or the decision alone")
    steps: Count = 10
    step_size: Positive | None = Field(None, description="eps / 4 where left out")
    start: Literal["uniform", "normal", "none"] = Field("uniform", description="normal: 0.001 * N(0, 1), as TRADES and MART start")
    batch_norm: Literal["eval", "train"] = Field(
        "eval", description="train: crafting uses and moves batch statistics, as some papers' code does"
    )
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "auto", description="of the frozen copy that crafting attacks; auto: the quicker one that agrees on a probe; written down"
    )


class Optim(Part):
    """Stochastic gradient descent."""

    lr: Positive
    momentum: Annotated[Number, Field(ge=0, lt=1)] = Number(0.9, "0.9")
    weight_decay: NonNegative = Number(5e-4, "5e-4")
    nesterov: Flag = False


class Points(Part):
    """Learning rate factors, each from the start of its epoch, counted from 1."""

    name: Literal["points"] = "points"
    epochs: Count
    points: dict[Count, NonNegative] = Field(default_factory=lambda: {1: Number(1.0, "1.0")})


class Cosine(Part):
    """Linear warm-up over `warmup` epochs, then half a cosine down to zero; moves with every step."""

    name: Literal["cosine"]
    epochs: Count
    warmup: NonNegative = Number(0.0, "0")


class OneCycle(Part):
    """Linear up to the full rate at `peak` (share of all steps), linear down to zero; moves with every step."""

    name: Literal["one-cycle"]
    epochs: Count
    peak: Fraction = Number(0.4, "0.4")


def _schedule_kind(value: Any) -> str:
    name = value.get("name", "points") if isinstance(value, dict) else getattr(value, "name", "points")
    return name if isinstance(name, str) else "?"


Schedule = Annotated[
    Annotated[Points, Tag("points")] | Annotated[Cosine, Tag("cosine")] | Annotated[OneCycle, Tag("one-cycle")],
    Discriminator(_schedule_kind),
]


class Train(Part):
    batch_size: Count = 128
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "auto", description="of scoring; auto: bf16 where a probe finds it quicker and in agreement, else tf32 or fp32; written down"
    )
    compile: AutoOrFlag = Field(
        "auto", description="blocks by torch.compile; auto: on CUDA devices where a probe finds it quicker; written down"
    )
    ema: Fraction | None = Field(None, description="decay of a moving average of the weights, which is then what is selected and kept")
    save_every: NonNegative = Field(Number(60.0, "60"), description="seconds between saved states inside an epoch; 0 saves after each step")


class Select(Part):
    """Which epoch's weights are kept, and what is measured after each epoch."""

    metric: Annotated[str, Field(pattern=r"^(clean|last|pgd-[1-9]\d{0,3})$")] = "pgd-10"
    split: Literal["validation"] = "validation"
    every: Count = Field(1, description="epochs between measurements; the last epoch is always measured")
    train_images: CountOrZero = Field(500, description="training images, always the same, on which the same is measured")


def _fill_defaults(value: Any) -> Any:
    """What a recipe leaves out and its objective decides: the crafting loss and start of its paper, and how epochs are selected.

    Under standard training the first epochs are the most robust ones, so a robust metric would select an untrained network.
    """
    if not isinstance(value, dict):
        return value
    objective = value.get("objective")
    name = str(objective.get("name")) if isinstance(objective, dict) else ""
    select, craft = value.get("select", {}), {} if value.get("craft") is None else value["craft"]
    if name == "standard":
        return {**value, "select": {"metric": "clean", **select}} if isinstance(select, dict) else value
    own = {"trades": {"loss": "kl", "start": "normal"}, "mart": {"loss": "ce", "start": "normal"}}.get(name, {})
    return {**value, "craft": {**own, **craft}} if isinstance(craft, dict) else value


class Recipe(Part):
    name: RunName
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    data: Data
    threat: Threat = Threat()
    model: Model
    objective: Objective
    craft: Craft | None = None
    optim: Optim
    schedule: Schedule
    train: Train = Train()
    select: Select = Select()

    _fill = model_validator(mode="before")(_fill_defaults)


def step_size(recipe: Recipe) -> float:
    """The crafting step: as given, else eps / 4 (2/255 at 8/255)."""
    given = recipe.craft.step_size if recipe.craft else None
    return float(given) if given is not None else float(recipe.threat.eps) / 4


def crafting_precision(recipe: Recipe) -> str:
    """What crafting computes in: train mode runs on the network itself, and so in its precision."""
    return recipe.craft.precision if recipe.craft and recipe.craft.batch_norm == "eval" else recipe.train.precision


Problem = tuple[Path, str]


def _check_threat(r: Recipe) -> Iterator[Problem]:
    if r.threat.norm == "linf" and r.threat.eps >= 1:
        yield (
            ("threat", "eps"),
            f"images are in [0, 1], so an linf eps of {r.threat.eps.text} allows anything (did you mean {r.threat.eps.text}/255?)",
        )
    size = r.craft.step_size if r.craft else None
    if r.craft and size is not None and size > 2 * r.threat.eps:
        yield ("craft", "step_size"), f"a step of {size.text} jumps across the whole ball of eps {r.threat.eps.text}"


def _check_data(r: Recipe) -> Iterator[Problem]:
    if r.data.name == "folder" and r.data.root is None:
        yield ("data", "name"), "folder needs data.root, a directory with train/CLASS/* and test/CLASS/*"
    if r.data.size is not None and r.data.name != "folder":
        yield ("data", "size"), f"only folder is resized; {r.data.name} has its own size"
    if r.data.limit is not None and r.data.validation >= r.data.limit:
        yield (
            ("data", "validation"),
            f"validation takes {r.data.validation} of the {r.data.limit} images that data.limit leaves: nothing to train on",
        )
    if len(set(r.data.augment)) != len(r.data.augment):
        yield ("data", "augment"), "an augmentation is named twice"
    if r.data.name == "digits" and "flip" in r.data.augment:
        yield ("data", "augment"), "a mirrored digit is another sign: flip makes no sense on digits"


def _check_model(r: Recipe) -> Iterator[Problem]:
    if (r.model.mean is None) != (r.model.std is None):
        yield ("model", "mean" if r.model.std is None else "std"), "mean and std go together"
    elif r.model.mean is not None and r.model.std is not None and len(r.model.mean) != len(r.model.std):
        yield ("model", "std"), f"{len(r.model.std)} values, but mean has {len(r.model.mean)}"


def _check_gates(r: Recipe) -> Iterator[Problem]:
    sites = [(number, site) for number, gate in enumerate(r.model.gates) for site in gate.at]
    for position, (number, site) in enumerate(sites):
        if site in [other for _, other in sites[:position]]:
            yield ("model", "gates", number, "at"), f"two gates at {site}: the second would read what the first has gated"
    for number, gate in enumerate(r.model.gates):
        if isinstance(gate, ChannelPrompt) and gate.prototypes == "classifier" and r.model.cells > 1:
            yield ("model", "gates", number, "prototypes"), "rows of a classifier over cells are no class prototypes: use mean, or cells 1"
    if r.model.fusion and len(set(r.model.fusion.at)) != len(r.model.fusion.at):
        yield ("model", "fusion", "at"), "a site is named twice"
    if r.model.fusion and isinstance(r.objective, Standard | Arrest):
        yield ("model", "fusion"), f"objective {r.objective.name} reads an image's own features: use pgd-at, trades or mart"


def _check_terms(r: Recipe) -> Iterator[Problem]:
    if not isinstance(r.objective, PgdAt | Trades | Mart):
        return
    names = [term.name for term in r.objective.terms]
    for number, term in enumerate(r.objective.terms):
        if term.name in names[:number]:
            yield ("objective", "terms", number, "name"), f"{term.name} is named twice"
        if isinstance(term, NegativeContrast) and term.negatives == "targeted" and r.craft and r.craft.batch_norm == "train":
            what = "targeted negatives are crafted in one batch with the adversarial examples, whose statistics they would change: use eval"
            yield ("craft", "batch_norm"), what
        if isinstance(term, NegativeContrast) and any(gate.name == "channel-prompt" for gate in r.model.gates):
            what = "a channel-prompt gate is opened by the clean twin's features, and a crafted negative has none"
            yield ("objective", "terms", number, "name"), what
        if isinstance(term, HypersphereContrast) and r.model.fusion:
            yield ("objective", "terms", number, "name"), "features that were fused with another image's are no twin of the clean ones"
        if isinstance(term, HypersphereContrast) and term.similarity != "angular" and "margin" in term.model_fields_set:
            yield ("objective", "terms", number, "margin"), f"similarity {term.similarity} has no margin"
    if r.objective.ramp:
        if all(gate.open for gate in r.model.gates) and not r.model.fusion:
            yield ("objective", "ramp"), "there is nothing to ramp up: the model has neither gates that close nor a fusion"
        elif r.objective.ramp.epochs > r.schedule.epochs:
            yield ("objective", "ramp", "epochs"), f"the gates would not be on by the last epoch, {r.schedule.epochs}"


def _check_craft(r: Recipe) -> Iterator[Problem]:
    if r.objective.name == "standard" and r.craft is not None:
        yield ("craft",), "objective standard trains on clean images and crafts nothing: remove this part"
    if r.craft and r.craft.loss == "kl" and r.craft.start == "none":
        yield ("craft", "start"), "the KL loss has no gradient at the clean image: use start normal or uniform"
    if r.craft and r.craft.batch_norm == "train" and r.craft.precision != "auto":
        yield ("craft", "precision"), "crafting in train mode runs on the network itself, in train.precision: leave this out"
    if r.objective.name == "standard" and r.objective.wrapper is not None:
        yield ("objective", "wrapper"), "awp perturbs the weights of an adversarial objective: use pgd-at, trades, mart or arrest"


def _check_replay(r: Recipe) -> Iterator[Problem]:
    replay = r.objective.replay if isinstance(r.objective, Arrest) else None
    if replay and replay.until > r.schedule.epochs:
        yield ("objective", "replay", "until"), f"{replay.until} epochs of replay, but training has {r.schedule.epochs}"
    if replay and r.craft and r.craft.batch_norm == "train":
        yield (
            ("craft", "batch_norm"),
            "replay leaves a part of each batch to craft, down to one image, too few for batch statistics: use eval",
        )


def _check_schedule(r: Recipe) -> Iterator[Problem]:
    if isinstance(r.schedule, Points):
        for epoch in r.schedule.points:
            if epoch > r.schedule.epochs:
                yield ("schedule", "points", epoch), f"epoch {epoch} is after the last, {r.schedule.epochs}"
        if 1 not in r.schedule.points:
            yield ("schedule", "points"), "the factor from epoch 1 on is missing"
    if isinstance(r.schedule, Cosine) and r.schedule.warmup >= r.schedule.epochs:
        yield ("schedule", "warmup"), f"the warm-up lasts as long as the training, {r.schedule.epochs} epochs"
    wrapper = r.objective.wrapper
    if wrapper and wrapper.warmup >= r.schedule.epochs:
        yield ("objective", "wrapper", "warmup"), f"awp would never start: training has {r.schedule.epochs} epochs"


def _check_select(r: Recipe) -> Iterator[Problem]:
    if r.select.metric != "last" and r.data.validation == 0:
        yield (
            ("data", "validation"),
            f"select.metric {r.select.metric} needs a validation split: hold some images out, or use select.metric last",
        )
    if r.optim.nesterov and not r.optim.momentum:
        yield ("optim", "nesterov"), "nesterov needs momentum"


_CHECKS: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    _check_threat,
    _check_data,
    _check_model,
    _check_gates,
    _check_terms,
    _check_craft,
    _check_replay,
    _check_schedule,
    _check_select,
)


def combination_problems(recipe: Recipe) -> list[Problem]:
    """Every combination in a recipe, each of whose parts is well formed, that makes no sense."""
    return [problem for check in _CHECKS for problem in check(recipe)]


def selection_steps(metric: str) -> int:
    """PGD steps of a selection metric: 20 for pgd-20, 10 for clean and last (measured all the same)."""
    match = re.fullmatch(r"pgd-(\d+)", metric)
    return int(match[1]) if match else 10

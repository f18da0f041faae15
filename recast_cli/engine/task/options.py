"""How a task is trained; plain values, so that the command line and recast.yaml can know them without torch."""

import typing
from dataclasses import dataclass, replace

from recast_cli.engine.errors import OptionError, check_seed, option
from recast_cli.engine.layout.layout import Layout


@dataclass(frozen=True)
class Recipe:
    """How coefficients and head are learned.

    Attributes:
        epochs: As of `AdaptOptions`, like the next four.
        weight_decay: Of AdamW, for coefficients and head.
        schedule: `cosine` to zero over all epochs, or `step`: a tenth every 33 epochs.
        head: What the head starts as: the linear `probe`, half of the final head as well, or `random`.
    """

    epochs: int
    lr: float
    head_lr: float
    batch_size: int
    patience: int
    weight_decay: float
    schedule: str
    head: str


RECIPES = {
    # no weight decay: it would pull the coefficients to zero, and their source value is 1
    "default": Recipe(6, 0.05, 1e-3, 32, patience=5, weight_decay=0.0, schedule="cosine", head="probe"),
    # RECAST, ICLR 2025: AdamW, StepLR(33, 0.1), 100 epochs
    "paper": Recipe(100, 2e-3, 2e-3, 128, patience=0, weight_decay=1e-6, schedule="step", head="random"),
}

CUT_KERNEL_LR = 0.006
"""The default recipe's rate for kernels that are cut in two, as a sweep on validation chose it
(docs/evidence/which-layout.md): here no norm takes back what changes of several layers make of one another."""


CHOSEN_LR = 0.04
"""Learning rate of chosen entries, in the units of `choose_places` (docs/evidence/chosen-coefficients.md)."""
BESIDE = 0.5
"""That of the layout's coefficients beside them, in parts of it."""
CHOOSER = 5
"""Goes up when tasks choose coefficients, or train chosen ones, in another way; see `Plan.key`."""


@dataclass(frozen=True)
class AdapterDefaults:
    """`adapter_lr`, `rank` and `density` of an adapter where nothing is said, see `AdaptOptions`; None: it has none."""

    lr: float
    rank: int | None = None
    density: float | None = None


ADAPTERS = {
    "melo": AdapterDefaults(1e-3, rank=1),
    "adaptformer": AdapterDefaults(1e-3, rank=1),
    "dora": AdapterDefaults(1e-3, rank=1),
    "rosa": AdapterDefaults(1e-3, rank=1, density=0.017),
    "rosa-mlp": AdapterDefaults(1e-3, density=1e-5),
    "piggyback": AdapterDefaults(1e-4),
    "clr": AdapterDefaults(1e-3),
}
CHOICES = {
    "recipe": tuple(RECIPES),
    "split": ("auto", "pooled"),
    "class_weights": ("none", "balanced"),
    "on_bad_image": ("skip", "fail"),
    "precision": ("auto", "float32", "bfloat16"),
    "adapter": tuple(ADAPTERS),
    "statistic": ("damped", "natural", "size"),
    "dictionary": ("all", "entries", "gains", "biases"),
}
"""Option of adapt -> the words that it may be."""


@dataclass(frozen=True)
class AdaptOptions:
    """The recipe, and how images become training data. All of it is recorded in task.yaml.

    Attributes:
        recipe: One of RECIPES; what is not given of the next five is the recipe's.
        epochs: Passes over the training images, at most.
        lr: Learning rate of the coefficients at the start; None: what `settled` says.
        head_lr: The same for the head.
        batch_size: Images a step, or `auto`: as many as the graphics card holds.
        patience: Epochs without a better validation accuracy after which training stops; 0: never.
        seed: Of order, flips and crops, and of a random head.
        image_size: Height and width in pixels; None: the network's own.
        split: `auto` keeps the folder's own parts; `pooled` cuts all images together.
        split_seed: Of the split; the training seed never changes it.
        class_weights: `none`, or `balanced` by inverse frequency in train.
        on_bad_image: `skip` or `fail`.
        precision: Of products while training: `float32`, `bfloat16`, or `auto`: bfloat16 where that is faster.
        adapter: One of ADAPTERS, or None. What is not given of the next three is the adapter's.
        rank: Of its low-rank update, or width of its bottleneck.
        density: Share of a weight's entries that it changes.
        adapter_lr: Learning rate of its own parameters at the start.
        coefficients: Whether the coefficients are trained; if not, an adapter works on the source's weights.
        choose: So many numbers a task may move and choose, places counted: see `spend`; 0: the layout's coefficients;
            None: what `settled` says.
        statistic: What an entry promises, see `promises`: `damped`, `natural` or `size`.
        dictionary: What moves: `all`, the layout's coefficients and entries of all vectors; or `entries` alone, or
            those of `gains` or `biases`.
        cross_fit: Whether heads that do not know an image say what it changes, see `Judges`; chosen coefficients are
            always learned so.
    """

    recipe: str = "default"
    epochs: int = None  # type: ignore[assignment]  # this one and the next four: None until the recipe is known
    lr: float | None = None  # and the layout
    head_lr: float = None  # type: ignore[assignment]
    batch_size: int | str = None  # type: ignore[assignment]
    patience: int = None  # type: ignore[assignment]
    seed: int = 0
    image_size: int | None = None
    split: str = "auto"
    split_seed: int = 0
    class_weights: str = "none"
    on_bad_image: str = "skip"
    precision: str = "auto"
    adapter: str | None = None
    rank: int | None = None
    density: float | None = None
    adapter_lr: float | None = None
    coefficients: bool = True
    choose: int | None = None
    statistic: str = "damped"
    dictionary: str = "all"
    cross_fit: bool = False

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            word = getattr(self, name)
            if word not in known and (name, word) != ("adapter", None):
                raise OptionError(name, f"{word} is unknown", f"Use {' or '.join(known)}.")
        self.complete_adapter()
        for name in ("epochs", "head_lr", "batch_size", "patience"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(RECIPES[self.recipe], name))
        for name in ("epochs", "lr", "head_lr", "batch_size", "image_size", "rank", "density", "adapter_lr"):
            value = getattr(self, name)
            if value is None or (name, value) == ("batch_size", "auto"):
                continue
            if not (isinstance(value, (int, float)) and 0 < value < float("inf")):
                more = ", or auto" if name == "batch_size" else ""
                raise OptionError(name, f"{value} is not a positive number", f"Give a number above 0{more}.")
        check_seed("seed", self.seed)
        check_seed("split_seed", self.split_seed)
        if self.patience < 0:
            raise OptionError("patience", f"{self.patience} is below 0", "Give 0 to train all epochs, or more.")
        if self.choose is not None and (self.choose < 0 or self.choose == 1):
            raise OptionError("choose", f"{self.choose} is too few", "Give 2 or more: an entry and its place.")
        for name, usual in (("statistic", "damped"), ("dictionary", "all")):
            if not self.choose and getattr(self, name) != usual:
                hint = f"Give {option('choose', 'N')}, too, or leave it out."
                raise OptionError(name, "belongs to coefficients that the task chooses", hint)
        if self.choose and not self.coefficients:
            raise OptionError("choose", "says which coefficients are trained", "Choose none, or let them be trained.")
        if self.density is not None and self.density > 1:
            raise OptionError("density", f"{self.density} is above 1", "Give the share of entries, like 0.01.")

    @property
    def judged(self) -> bool:
        """Whether what is trained is judged by heads that do not know the image."""
        return self.cross_fit or bool(self.choose)

    def complete_adapter(self) -> None:
        """Fill in what the adapter is where nothing was said; an option that it does not have is an error."""
        for name in ("rank", "density", "adapter_lr"):
            default = getattr(ADAPTERS[self.adapter], name.removeprefix("adapter_")) if self.adapter else None
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
            elif default is None:
                hint = f"Leave {option(name)} out, or choose another {option('adapter')}."
                if self.adapter:
                    raise OptionError("adapter", f"{self.adapter} has no {name}", hint)
                raise OptionError(name, "belongs to an adapter", hint)


def settled(options: AdaptOptions, layout: Layout, own_size: int | None) -> AdaptOptions:
    """The options with what depends on the base where nothing was given: `choose` and `lr`.

    A task may choose as many numbers as the layout has coefficients, where every module has one, as in a transformer,
    and its images are as large as the network's own. At another size all layers want to move a little, and networks of
    cut kernels were not measured (docs/evidence/chosen-coefficients.md).
    """
    if options.choose is None:
        plain = options.recipe == "default" and options.coefficients and not options.adapter
        fits = layout.alike and options.image_size in (None, own_size)
        options = replace(options, choose=layout.coefficients if plain and fits else 0)
    if options.lr is not None:
        return options
    if options.choose:
        return replace(options, lr=CHOSEN_LR)
    cut = options.recipe == "default" and layout.means
    return replace(options, lr=CUT_KERNEL_LR if cut else RECIPES[options.recipe].lr)


def option_types(options: type = AdaptOptions) -> dict[str, tuple[type, ...]]:
    """The types that each option of adapt, or of another dataclass, may have, e.g. `epochs` -> (int,)."""
    hints = typing.get_type_hints(options)
    return {
        name: tuple(kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None))
        for name, hint in hints.items()
    }

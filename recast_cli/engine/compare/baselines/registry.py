"""The baselines by name; options are checked here, once for all of them.

A baseline is a function from a frozen timm network to its trainable parameters: it gets a network in eval mode whose
parameters are all frozen, changes it in place, and returns the parameters that it trains; nothing else requires a
gradient. The classifier is not among them: it is trained apart, on features. Options are plain keywords. `modules` is a
regular expression for whole names of linear modules, `rank` the r of a method's paper, and `seed` decides what is drawn
at random; torch's own generator is left as it was. All but Uni-LoRA start as the network they were given. Wrong
options, modules that a method cannot change, and a PEFT that is not there are RecastErrors.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from recast_cli.engine.compare.baselines.lora_xs import lora_xs
from recast_cli.engine.compare.baselines.low_rank import dora, lora, tinylora, unilora
from recast_cli.engine.compare.baselines.shared_lora import shared_lora
from recast_cli.engine.compare.baselines.spectral import fourierft, waveft
from recast_cli.engine.compare.baselines.subsets import bias, full, norm
from recast_cli.engine.errors import RecastError, suggest

Method = Callable[..., list[nn.Parameter]]


def options_of(method: Method) -> dict[str, Any]:
    """The options of a method, and what they are where they are not given."""
    return {key: each.default for key, each in list(inspect.signature(method).parameters.items())[1:]}


def checked(name: str, function: Method) -> Method:
    """The method itself, with a RecastError for an option that it does not have, or one of another type."""
    defaults = options_of(function)

    @functools.wraps(function)
    def method(model: nn.Module, **options: Any) -> list[nn.Parameter]:
        for key, value in options.items():
            if key not in defaults:
                raise RecastError(f"{name} has no option '{key}'", suggest(key, defaults, "It has no options."))
            kinds = (int, float) if isinstance(defaults[key], float) else (type(defaults[key]),)
            if not isinstance(value, kinds) or isinstance(value, bool):
                wanted = {int: "a whole number", float: "a number", str: "a text"}[kinds[-1]]
                raise RecastError(f"{name}: {key} is {value!r}, and {wanted} is wanted", "Correct it.")
        return function(model, **options)

    return method


ALL = (bias, norm, full, lora, dora, lora_xs, tinylora, unilora, fourierft, waveft, shared_lora)
NAMED: dict[str, Method] = {each.__name__.replace("_", "-"): each for each in ALL}
METHODS = {name: checked(name, function) for name, function in NAMED.items()}
"""Name -> method: (model, **options) -> trainable parameters."""

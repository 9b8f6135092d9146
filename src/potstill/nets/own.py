"""Networks of your own, from Python: a name that says by a hash what stands behind it.

Everything else here knows networks by their names: flags, recipes, jobs, caches. So a module gets
one too, ``module:NAME/KEY`` for a frozen backbone and ``own:NAME/KEY`` for students, pools and
whatever else begins with random weights. KEY covers the weights, the layers with their settings and
the source of their classes, so that results of two networks never mix, whatever they are called.
What a class calls outside itself is not seen: give another NAME where that changed.

A name is known to the Python session that made it. Another one makes the same name from the same
module, and then goes on with the same jobs and caches.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from potstill.data.transform import Normalize
from potstill.nets.frozen import Backbone, content_key, frozen
from potstill.nets.layers import Network, initialise
from potstill.run import InputError, logger

__all__ = [
    "BACKBONE", "STUDENT", "backbone_of", "build", "known", "named", "network_of", "opened"
]  # fmt: skip

BACKBONE, STUDENT = "module:", "own:"
_backbones: dict[str, Backbone] = {}
_constructors: dict[str, Callable[[], nn.Module]] = {}
Constants = Any  # one number per channel


def backbone_of(
    module: nn.Module, *, size: int | tuple[int, int], mean: Constants, std: Constants,
    name: str = "mine",
) -> str:  # fmt: skip
    """Return the name under which a module is a frozen backbone in this session.

    Args:
        module: normalised images (b, c, h, w) to features, which are flattened. A copy is kept, in
            evaluation mode.
        size: of its input, pixels of a side or (h, w).
        mean: of each channel, of RGB 0-1; there are as many channels as numbers. std: likewise.
        name: for people; part of what identifies it.

    Raises:
        InputError: it cannot see such images, or cannot be copied.

    Example:
        >>> body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
        >>> name = potstill.backbone_of(body, size=8, mean=[0.5] * 3, std=[0.25] * 3, name="tiny")
        >>> name.partition("/")[0]
        'module:tiny'
    """
    constants = Normalize(torch.as_tensor(mean).float(), torch.as_tensor(std).float())
    sides = (size, size) if isinstance(size, int) else tuple(int(side) for side in size)
    if len(sides) != 2 or not all(1 <= side <= 4096 for side in sides):
        raise InputError(f"size is {size}; give pixels of a side or (height, width), up to 4096")
    _check_name(name)
    body = _copied(module)
    computes = f"module:{name}:{_digest(_computed(body))}"
    found = frozen(name, body.cpu().float(), sides, len(constants.mean), constants, computes)
    full = f"{BACKBONE}{name}/{found.key}"
    _backbones[full] = found
    return full


def network_of(constructor: Callable[[], nn.Module], *, name: str = "mine") -> str:
    """Return the name under which networks of a constructor can be trained in this session.

    The module may end in a linear layer with an output for each class, which then is the
    classifier; the outputs of any other are features, on which a classifier is put. It is called
    for every network anew, with torch's global generator set from the run's seed meanwhile.

    Args:
        constructor: returns a new module for images (b, c, h, w). name: for people.

    Raises:
        InputError: it makes no module.

    Example:
        >>> name = potstill.network_of(lambda: torch.nn.Flatten(), name="pixels")
        >>> name.partition("/")[0]
        'own:pixels'
    """
    _check_name(name)
    module = _made(name, constructor, torch.Generator().manual_seed(0))
    if _draws(module):
        logger.warning(
            "network %r draws in training (dropout), which no seed of ours decides", name
        )
    plain = Normalize(torch.zeros(1), torch.ones(1))
    try:
        key = content_key(module, plain, {"name": name, "computes": _computed(module)})
    except (RuntimeError, ValueError) as error:  # lazy layers have no shape yet
        raise InputError(f"network {name!r} has weights without a shape ({error})") from error
    full = f"{STUDENT}{name}/{key}"
    _constructors[full] = constructor
    return full


def known(name: str) -> bool:
    """Whether a ``module:`` or ``own:`` name was made in this session.

    Raises:
        InputError: it is such a name, but was not.
    """
    if not name.startswith((BACKBONE, STUDENT)):
        return False
    if name not in _backbones and name not in _constructors:
        call = "backbone_of(module, ...)" if name.startswith(BACKBONE) else "network_of(...)"
        raise InputError(
            f"network is {name!r}, made by another Python session; give the same one again by "
            f"potstill.{call}"
        )
    return True


def opened(name: str) -> Backbone:
    """Return a copy of the backbone of a ``module:`` name, on the CPU."""
    known(name)
    if name not in _backbones:
        raise InputError(f"backbone is {name!r}, a network to be trained; use potstill.backbone_of")
    return replace(_backbones[name], body=deepcopy(_backbones[name].body))


def named(network: Any) -> Any:
    """Return the name of a module that says what it sees, or of a constructor; others as they are.

    Raises:
        InputError: a module without ``size``, ``mean`` and ``std``.
    """
    if isinstance(network, nn.Module):
        missing = [word for word in ("size", "mean", "std") if not hasattr(network, word)]
        if missing:
            raise InputError(
                f"network is a {type(network).__name__} without {missing[0]}; use "
                "potstill.backbone_of(module, size=..., mean=..., std=...) for a frozen backbone, "
                "and a constructor for one that is to be trained"
            )
        seen: dict[str, Any] = {word: getattr(network, word) for word in ("size", "mean", "std")}
        return backbone_of(network, **seen, name=type(network).__name__.lower())
    if callable(network):
        called = str(getattr(network, "__name__", type(network).__name__)).strip("<>").lower()
        return network_of(network, name=called)
    return network


def build(
    name: str, channels: int, size: tuple[int, int], classes: int, generator: torch.Generator
) -> Network:
    """Build a network of an ``own:`` name; its weights come from ``generator``.

    Raises:
        InputError: it cannot see such images.
    """
    known(name)
    if name not in _constructors:
        raise InputError(f"network is {name!r}, which is frozen; use potstill.network_of")
    module = _made(name, _constructors[name], generator)
    last: list[tuple[nn.Linear, Tensor]] = []
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    hooks = [
        layer.register_forward_hook(lambda layer, _, out: last.append((layer, out)))
        for layer in layers
    ]
    training = module.training
    try:
        with torch.no_grad():
            found = module.eval()(torch.full((2, channels, *size), 0.5))
        features = found.flatten(1).shape[1]
    except (RuntimeError, AssertionError, TypeError, ValueError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"network is {name!r}, which cannot see images of {size[0]}x{size[1]} with {channels} "
            f"channel(s) ({reason}); choose another size or network"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        module.train(training)
    ends = last and last[-1][1] is found and found.shape == (2, classes)
    with torch.device("meta"):  # torch's global generator is left alone
        network = Network(module, last[-1][0].in_features if ends else features, classes)
    network.classifier.to_empty(device="cpu")
    initialise(network.classifier, generator)
    if ends:
        _take_over(network, last[-1][0])
    return network.train()


def _take_over(network: Network, own: nn.Linear) -> None:
    """Make a module's own last layer the classifier of the network around it."""
    place = next(name for name, layer in network.body.named_modules() if layer is own)
    if place:
        parent, _, leaf = place.rpartition(".")
        setattr(network.body.get_submodule(parent), leaf, nn.Identity())
    else:
        network.body = nn.Identity()
    if own.bias is None:  # a classifier has one
        own.bias = nn.Parameter(own.weight.new_zeros(own.out_features))
    network.classifier = own


def _made(name: str, constructor: Callable[[], Any], generator: torch.Generator) -> nn.Module:
    """Call a constructor; torch's global generator is ``generator``'s meanwhile, then as it was."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        try:
            module = constructor()
        except TypeError as error:
            raise InputError(f"network {name!r} is called without arguments ({error})") from error
    if not isinstance(module, nn.Module):
        raise InputError(
            f"network {name!r} makes a {type(module).__name__}; return a torch.nn.Module"
        )
    return module.cpu().float()


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,39}", str(name)):
        raise InputError(f"name is {name!r}; use up to 40 small letters, digits, '-', '_' and '.'")


def _copied(module: Any) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise InputError(f"backbone is a {type(module).__name__}; give a torch.nn.Module")
    try:
        return deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"backbone cannot be copied ({str(error)[:200]})") from error


def _draws(module: nn.Module) -> bool:
    return any(
        "drop" in type(layer).__name__.lower() and (getattr(layer, "p", 1) or 0) > 0
        for layer in module.modules()
    )


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _computed(module: nn.Module) -> list[Any]:
    """What a module does with its weights: layers, their settings, the source of their classes."""
    facts: list[Any] = [re.sub(r" at 0x[0-9a-f]+", "", repr(module))]
    classes: dict[str, Any] = {}
    for place, layer in module.named_modules():
        settings = {}
        for field, value in vars(layer).items():
            if field == "training" or isinstance(value, Mapping):
                continue
            if callable(value) and not isinstance(value, nn.Module):
                settings[field] = _source(value)
            elif isinstance(value, bool | int | float | str | tuple | list | None):
                settings[field] = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
        facts.append([place, settings])
        for kind in type(layer).__mro__:
            if kind is not object and kind.__module__.partition(".")[0] != "torch":
                classes[f"{kind.__module__}.{kind.__qualname__}"] = _source(kind)
    return [facts, classes]


def _source(thing: Any) -> Any:
    """The text of a class or function; compiled code where nobody kept the text."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        pass
    if isinstance(thing, type):
        return {name: list(_codes(value)) for name, value in sorted(vars(thing).items())}
    return list(_codes(thing)) or str(getattr(thing, "__qualname__", type(thing).__qualname__))


def _codes(value: Any) -> Iterator[Any]:
    code = value if isinstance(value, CodeType) else getattr(value, "__code__", None)
    if isinstance(code, CodeType):
        inner = [list(_codes(c)) or repr(c) for c in code.co_consts]
        yield [code.co_code.hex(), list(code.co_names), inner]

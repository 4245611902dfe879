"""Resolves `lora_target_modules` to the layers of a model."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from sft.confinement import step
from sft.data.rows import shorten
from sft.errors import InvalidConfig
from sft.models.layers import name_end

ALL = ("all", "all-linear")
NAMED = re.compile(r"[\w.-]+")  # a layer's name or the end of one, as opposed to a pattern


class NamedTargets(NamedTuple):
    """Names of linear layers and of stacked parameters; `aside` are named layers that no row of text reaches."""

    modules: set[str]
    parameters: set[str]
    aside: set[str]


def find_named(
    items: Iterable[str],
    layers: dict[str, nn.Module],
    experts: Iterable[str],
    reached: set[str],
    default: set[str],
) -> NamedTargets:
    """Resolve names, ends of names, regular expressions of whole names, `all-linear`, and stacked parameters.

    Args:
        reached: layers that a row of text passes through.
        default: what `all-linear` means.

    Raises:
        InvalidConfig: an item names nothing that can be trained.
    """
    found = NamedTargets(set(), set(), set())
    for item in items:
        if item in ALL:
            found.modules.update(default)
            continue
        with step(f"lora_target_modules {shorten(item)}"):  # a pattern with repetitions in repetitions may never end
            named = {name for name in layers if _matches(name, item)}
            parameters = {name for name in experts if _matches(name, item) or _matches(name.rpartition(".")[0], item)}
        if not named and not parameters:
            raise InvalidConfig(_explain_missing(item, layers, experts))
        if named and not named & reached and not parameters:
            raise InvalidConfig(
                f"lora_target_modules {item!r} names layers that rows of text do not pass through, {min(named)} for "
                "one; name others, or leave lora_target_modules unset"
            )
        found.modules.update(named & reached)
        found.aside.update(named - reached)
        found.parameters.update(parameters)
    return found


def _matches(name: str, item: str) -> bool:
    if NAMED.fullmatch(item):
        return name == item or name.endswith(f".{item}")
    try:
        return re.fullmatch(item, name) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidConfig(
            f"lora_target_modules has no layer {item!r} to adapt, and it is not a pattern either: {error}"
        ) from error


def _explain_missing(item: str, layers: dict[str, nn.Module], experts: Iterable[str]) -> str:
    known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
    stacked = sorted({name_end(name) for name in experts})
    more = f"; its experts are stacked parameters, {', '.join(stacked)}" if stacked else ""
    return f"lora_target_modules has no layer {item!r} to adapt; there are {known}{more}"

"""The typed fields of a job, which need no pydantic, are those of the models that check them."""

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from api.request_fields import wire_fields
from api.sft_request import TrainBody
from api.training_request import TrainingRequest
from jobs.spec import JobOptions
from sft.config import SFTConfig
from sft.explanations import SAME
from sft.sources import DatasetSource
from tuneyard_cli.job_options import flagged_fields
from tuneyard_wire.fields import TRAINING_NAMES, OptionFields, SftOptions, TrainingFields, WeightedDataset

LISTS, MAPPINGS = (list, tuple, Sequence), (dict, Mapping)


def kinds(annotation: Any) -> frozenset[Any]:
    """What a value may be, however that is written: a list and a tuple are both lists to JSON."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kinds(parts[0])
    if origin in (Union, UnionType):
        return frozenset().union(*map(kinds, parts))
    if origin is Literal:
        return frozenset(parts)
    if origin in LISTS:
        return frozenset({("list", kinds(parts[0]))})
    if origin in MAPPINGS:
        return frozenset({("mapping", *map(kinds, parts))})
    return frozenset({annotation})


@pytest.mark.parametrize(
    ("typed", "model"), [(TrainingFields, TrainingRequest), (SftOptions, TrainBody)], ids=["training", "sft"]
)
def test_the_typed_fields_are_those_of_the_request_and_of_its_types(typed, model):
    fields = {name: field for name, field in wire_fields(model).items() if name != "config"}
    assert set(get_type_hints(typed)) == set(fields)
    also_text = {"learning_rate": str}  # read by a validator
    entries = {("list", frozenset({DatasetSource})): ("list", frozenset({str, WeightedDataset}))}  # and so are these
    for name, hint in get_type_hints(typed).items():
        expected = kinds(fields[name].annotation) | {*filter(None, [also_text.get(name)])}
        assert kinds(hint) == frozenset(entries.get(kind, kind) for kind in expected), name


def test_a_dataset_in_a_list_has_the_fields_of_the_model():
    hints = get_type_hints(WeightedDataset)
    assert {name: field.annotation for name, field in DatasetSource.model_fields.items()} == hints
    assert WeightedDataset.__required_keys__ == {"name"}


def test_a_type_of_another_kind_is_seen():
    assert kinds(Sequence[int] | None) == kinds(tuple[int, ...] | None) != kinds(list[str] | None)
    assert kinds(Mapping[str, str]) != kinds(dict[str, int])
    assert NoneType in kinds(int | None)


def test_every_option_of_a_job_has_a_flag_on_the_command_line():
    assert {*OptionFields.__annotations__} < {one.field for one in flagged_fields()}


def test_the_names_of_the_training_api_stand_for_fields_of_ours():
    ours = {*SFTConfig.model_fields, *JobOptions.model_fields}
    assert set(TRAINING_NAMES) <= ours
    assert set(TRAINING_NAMES.values()) <= set(wire_fields(TrainingRequest)) - set(wire_fields(TrainBody))
    for names in TRAINING_NAMES.items():
        assert any(words.issuperset(names) for words in SAME), "who uses the other's name is told of this one"


def test_both_requests_have_every_option_of_a_job():
    for model in (TrainingRequest, TrainBody):
        assert issubclass(model, JobOptions)
        for name, field in JobOptions.model_fields.items():
            own = model.model_fields[name]
            assert (own.annotation, own.default, own.description) == (
                field.annotation,
                field.default,
                field.description,
            )

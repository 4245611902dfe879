"""Prefect's server, as the stack runs it, checks as before, but a schema only once."""

import pytest
from prefect.server.api import validation as of_jobs
from prefect.utilities.schema_tools import validation

from jobs.stack.pages import check_schemas_once

SCHEMA = {"type": "object", "properties": {"command": {"type": "string", "title": "Command"}}}


@pytest.fixture
def checked(monkeypatch):
    """The schemas that were checked against the metaschema, since the stack's server was set up here."""
    checked = []
    original = validation._VALIDATOR.check_schema

    def check(schema, *arguments, **options):
        checked.append(schema)
        original(schema, *arguments, **options)

    monkeypatch.setattr(validation._VALIDATOR, "check_schema", check)
    check_schemas_once()
    return checked


def test_a_valid_schema_is_checked_once(checked):
    for _ in range(3):
        validation.is_valid_schema(SCHEMA, preprocess=False)
        validation.is_valid_schema(dict(SCHEMA), preprocess=False)
        of_jobs.is_valid_schema(SCHEMA, preprocess=False)
    assert checked == [SCHEMA]


def test_an_invalid_schema_is_refused_each_time(checked):
    for _ in range(3):
        with pytest.raises(ValueError, match="Invalid schema: 5 is not valid"):
            validation.is_valid_schema({"type": 5}, preprocess=False)
    assert len(checked) == 3


def test_values_are_checked_against_their_schema_each_time(checked):
    for value in ("ls", 5, "ls", 5):
        errors = validation.validate({"command": value}, SCHEMA)
        assert len(errors) == (value == 5)
        if value == 5:
            with pytest.raises(validation.ValidationError, match="'command'"):
                validation.validate({"command": value}, SCHEMA, raise_on_error=True)
    assert len(checked) == 1


def test_what_is_no_json_is_checked_as_before(checked):
    for _ in range(2):
        with pytest.raises(ValueError, match="Invalid schema"):
            validation.is_valid_schema({"type": {1, 2}}, preprocess=False)
    assert len(checked) == 2

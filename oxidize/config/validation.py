"""Validation of one table of a configuration file by its pydantic model, with a report of every mistake in it.

The rule: a table with a mistake still gives the values of its fields that are right, so that these can be compared with
other tables and one run reports everything.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Generic, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic.fields import FieldInfo

from oxidize.config.report import Report, show
from oxidize.config.source_file import SourceFile
from oxidize.config.values import InvalidValueError

SUGGESTION_CUTOFF = 0.6  # how alike a mistyped key must be to be taken for the known one

TableT = TypeVar("TableT", bound="Table")


@dataclass(slots=True)
class Checked(Generic[TableT]):
    """A table during and after validation.

    prefix: its name in reports. table: None if anything in it is wrong. valid: the fields that are right, by their
    names in the model; keys are among them, so it is not printed. given: what the file has.
    """

    prefix: str
    source: SourceFile
    given: Mapping[str, object]
    valid: dict[str, Any] = field(default_factory=dict, repr=False)
    table: TableT | None = None


class Table(BaseModel):
    """What all tables have in common: nothing is converted, and unknown keys are refused."""

    # The validator of a table is built at its first use: a server needs none for [client].
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True, defer_build=True)


class _Keeping(Table):
    """A table that also keeps the fields that are right where another one is wrong."""

    @field_validator("*", mode="wrap")
    @classmethod
    def _keep(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        parsed = handler(value)
        table_of(info).valid[str(info.field_name)] = parsed
        return parsed


@cache
def _keeping(model: type[Table]) -> type[Table]:
    """Return a table that is validated as `model` and keeps what is right; made only where there is a mistake."""
    return type(model.__name__, (_Keeping, model), {"__module__": __name__})


def table_of(info: ValidationInfo) -> Checked[Table]:
    """Return the table that a validator is called for."""
    return cast("Checked[Table]", info.context)


def fields_by_key(model: type[Table]) -> dict[str, FieldInfo]:
    """Return the fields of a table by the keys that they have in the file."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def check_table(model: type[TableT], given: Mapping[str, object], prefix: str, source: SourceFile) -> Checked[TableT]:
    """Validate one table and report every mistake in it under names that begin with `prefix`."""
    checked: Checked[TableT] = Checked(prefix, source, given)
    reported = source.report.count()
    try:
        checked.table = model.model_validate(given, context=checked)
    except ValidationError:
        source.report.forget_from(reported)
        _report_mistakes(model, checked)
    else:
        checked.valid = checked.table.__dict__
    return checked


def _report_mistakes(model: type[TableT], checked: Checked[TableT]) -> None:
    """Validate a table with mistakes once more, to report them all and keep what is right."""
    try:
        _keeping(model).model_validate(checked.given, context=checked)
    except ValidationError as error:
        fields = fields_by_key(model)
        for detail in error.errors(include_url=False):
            cause = detail.get("ctx", {}).get("error")
            _report_detail(fields, checked, detail["type"], str(detail["loc"][0]), detail["input"], cause)


def _report_detail(
    fields: Mapping[str, FieldInfo], checked: Checked[TableT], kind: str, name: str, value: object, cause: object
) -> None:
    report, key = checked.source.report, f"{checked.prefix}.{name}"
    if kind == "extra_forbidden":
        unknown_key(checked.prefix, name, value, list(fields), report)
        return
    info = fields[name]
    if kind == "missing":
        report.missing(key, str(info.description), f"add {_example(name, info.examples)}")
        return
    expected = cause.expected if isinstance(cause, InvalidValueError) else str(info.description)
    if isinstance(cause, InvalidValueError) and cause.remedy is not None:
        remedy = cause.remedy
    elif info.is_required():
        remedy = f"write for example {_example(name, info.examples)}"
    elif info.default is None:
        remedy = "correct it, or remove the line"
    else:
        remedy = f"remove the line for the default {show(name, info.default)}"
    report.wrong(key, value, expected, remedy)


def unknown_key(table: str, name: str, value: object, known: list[str], report: Report) -> None:
    """Report a key that does not exist in `table` ("": the file itself), with the one that was probably meant."""
    if not report.has_room():
        return
    spelled = {candidate.replace("_", ""): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower().replace("_", "").replace("-", ""), spelled, 1, SUGGESTION_CUTOFF)
    place = f"a key of {table}" if table else "a table of this file"
    remedy = f"did you mean {spelled[close[0]]}?" if close else "remove it"
    key = f"{table}.{name}" if table else name
    report.wrong(key, value, f"{place} ({', '.join(sorted(known))})", remedy, name=name)


def _example(name: str, examples: list[Any] | None) -> str:
    example = examples[0] if examples else "..."
    return f"{name} = {show(name, example)}"

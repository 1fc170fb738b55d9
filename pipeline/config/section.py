"""What every section of the settings is: frozen, and strict about names."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A frozen group of settings that refuses unknown names."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )
    # Fields that cannot change a stage's result: another value is no reason to run it again.
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """Refuse `epochs: yes`, which YAML reads as true and pydantic as 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (
            int,
            float,
        ):
            raise ValueError("should be a number, not true or false")
        return value


def section_type(kind: type[Section], name: str) -> type[Section] | None:
    """Return the type of a section's field that is a sub-section, None for any other field."""
    field = kind.model_fields.get(name)
    if field is None or not isinstance(field.annotation, type):
        return None
    return field.annotation if issubclass(field.annotation, Section) else None

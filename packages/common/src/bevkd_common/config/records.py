"""JSON files that this project wrote, read with their types checked."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from bevkd_common.config.wording import shorten
from bevkd_common.errors import UserError


class Record(BaseModel):
    """The content of a file; nothing is converted, and keys of later versions are dropped."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


T = TypeVar("T")


def read_record(path: Path, kind: type[T], repair: str) -> T:
    """Read a JSON file, and check it against its type.

    Args:
        path: The file.
        kind: A `Record`, or another type of pydantic's.
        repair: What the user can do about a damaged file.

    Raises:
        UserError: If the file is missing or cannot be read, or its content is not of the type.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run the experiment again, finished stages are reused") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): correct that, and try it again") from None
    except ValidationError as error:
        raise UserError(f"{path} is damaged ({first_problem(error)}): {repair}") from None


def first_problem(error: ValidationError) -> str:
    """The first of the problems that pydantic found: where, and what."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = shorten(".".join(map(str, first["loc"])))
    message = shorten(first["msg"], 160)
    return f"{place}: {message}" if place else message

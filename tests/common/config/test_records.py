"""Files that were damaged are one sentence, whatever the damage."""

from pathlib import Path

import pytest
from bevkd_common.config.records import Record, read_record
from bevkd_common.errors import UserError
from bevkd_common.files import parse_json
from pydantic import Field


class _Kept(Record):
    steps: int
    scores: dict[str, float] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept.json"


def test_what_was_written_is_read_and_later_keys_are_dropped(path: Path) -> None:
    path.write_text('{"steps": 3, "scores": {"a": 1}, "notes": ["b"], "later": null}')
    assert read_record(path, _Kept, "repair it") == _Kept(steps=3, scores={"a": 1.0}, notes=("b",))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "Invalid JSON: EOF"),
        (b"\xff\xfe\x00", "Invalid JSON"),
        (b"[" * 100_000, "Invalid JSON: recursion limit exceeded"),
        (b'{"steps": ' + b"1" * 5000 + b"}", "Invalid JSON: number out of range"),
        (b"{}", "steps: Field required"),
        (b'{"steps": "3"}', "steps: Input should be a valid integer"),
        (b'{"steps": true}', "steps: Input should be a valid integer"),
        (b'{"steps": 1, "scores": {"a": NaN}}', "scores.a: Input should be a finite number"),
        (b'{"steps": 1, "notes": ["\\ud800"]}', "Invalid JSON"),
        (b'{"steps": 1, "scores": {"' + b"k" * 10**6 + b'": []}}', "scores.kkkkkkkkk"),
    ],
)
def test_damage_is_one_short_sentence(path: Path, content: bytes, problem: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_record(path, _Kept, "repair it")
    message = str(caught.value)
    assert message.startswith(f"{path} is damaged ({problem}")
    assert message.endswith("): repair it")
    assert len(message) < len(str(path)) + 300
    assert "\n" not in message


def test_a_file_that_cannot_be_read(path: Path) -> None:
    with pytest.raises(UserError, match=r"kept\.json does not exist: run the experiment again"):
        read_record(path, _Kept, "repair it")
    path.mkdir()
    with pytest.raises(UserError, match=r"kept\.json cannot be read \(Is a directory\)"):
        read_record(path, _Kept, "repair it")


@pytest.mark.parametrize(
    "content", [b"", b"\xff", "[" * 100_000, b"[" * 100_000, '"\\ud800"', b'{"\\uDFFF": 1}', "1" * 5000]
)
def test_foreign_json_that_cannot_be_used_is_a_value_error(content: bytes | str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_json(content)


def test_foreign_json_is_parsed() -> None:
    assert parse_json(b'{"a": [1, "\\ud83d\\ude00"]}') == {"a": [1, "\U0001f600"]}

import pytest
import torch
from bevkd_common.engine.checkpoint import (
    Checkpoint,
    latest,
    load_weights,
    read_json,
    save_checkpoint,
    save_weights,
    write_atomically,
)
from bevkd_common.errors import UserError
from torch import nn


@pytest.fixture
def saved(tmp_path):
    model = nn.Linear(3, 2)
    path = tmp_path / "raw.safetensors"
    save_weights(path, model.state_dict(), kind="raw", architecture="abc", step=5)
    return model, path


def test_weights_round_trip_with_what_they_are(saved):
    model, path = saved
    other = nn.Linear(3, 2)
    metadata = load_weights(path, other, architecture="abc")
    assert metadata == {"kind": "raw", "architecture": "abc", "step": "5"}
    assert torch.equal(other.weight, model.weight)


def test_weights_of_another_architecture_are_refused(saved):
    with pytest.raises(UserError, match="another architecture"):
        load_weights(saved[1], nn.Linear(3, 2), architecture="other")


def test_weights_that_do_not_fit_are_listed_key_by_key(saved):
    with pytest.raises(UserError) as error:
        load_weights(saved[1], nn.Sequential(nn.Linear(3, 2)))
    assert "missing 0.weight (2, 3)" in str(error.value)
    assert "unexpected weight (2, 3)" in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_damaged_weights_are_one_sentence(saved, damage):
    model, path = saved
    match damage:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-8])
        case "empty":
            path.write_bytes(b"")
        case "missing":
            path.unlink()
    with pytest.raises(UserError, match=r"raw\.safetensors") as error:
        load_weights(path, model)
    assert "\n" not in str(error.value)


def test_the_newest_complete_checkpoint_counts_and_older_ones_go(tmp_path):
    model = nn.Linear(1, 1)
    about = {"raw": "abc"}
    assert latest(tmp_path) is None
    save_checkpoint(tmp_path, 10, {"raw": model.state_dict()}, about, {"optimizer": {}})
    found = save_checkpoint(tmp_path, 200, {"raw": model.state_dict()}, about, {"rng": torch.arange(3)})
    (tmp_path / ".partial-000300").mkdir()
    assert latest(tmp_path) == found == Checkpoint(tmp_path / "step-000200")
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-000200"]
    assert found.step == 200
    assert torch.equal(found.state()["rng"], torch.arange(3))


def test_a_finished_checkpoint_keeps_weights_alone(tmp_path):
    found = save_checkpoint(tmp_path, 1, {"raw": nn.Linear(1, 1).state_dict()}, {"raw": "abc"}, None)
    assert [path.name for path in found.folder.iterdir()] == ["raw.safetensors"]


def test_json_is_replaced_whole_and_damage_is_one_sentence(tmp_path):
    path = tmp_path / "deep" / "run.json"
    write_atomically(path, '{"a": 1}')
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["run.json"]
    path.write_text("{")
    with pytest.raises(UserError, match=r"run\.json is not readable as JSON"):
        read_json(path)
    path.unlink()
    with pytest.raises(UserError, match=r"run\.json does not exist"):
        read_json(path)

import json
import resource

import pytest
import torch
from bevkd_common.engine.checkpoint import (
    Checkpoint,
    checkpoints,
    latest,
    load_weights,
    newest_sound,
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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4665", "is a Git-LFS pointer"),
        (b"<!DOCTYPE html><html>", "is an HTML page"),
        (b"PK\x03\x04archive/data.pkl", "is a checkpoint of PyTorch, not of safetensors: convert it with"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "is a checkpoint of PyTorch"),
    ],
)
def test_weights_of_something_else_are_named_and_not_to_be_deleted(tmp_path, content, said):
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        load_weights(path, nn.Linear(3, 2))
    assert f"{path} {said}" in str(refusal.value)
    assert "delete" not in str(refusal.value)


@pytest.fixture
def save(tmp_path):
    """Saves a model with a state, or as finished."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)

    def call(step, state=None, progress=None):
        return save_checkpoint(tmp_path, step, {"raw": model.state_dict()}, {"raw": "abc"}, state, progress)

    return call


STATE = {"optimizer": {}, "rng": torch.arange(3)}


def test_the_newest_checkpoint_counts_and_the_one_before_is_kept(tmp_path, save):
    assert latest(tmp_path) is None
    for step in (10, 20, 200):
        found = save(step, STATE, {"seconds": 1.5 * step})
    (tmp_path / ".partial-000300").mkdir()
    assert latest(tmp_path) == found == Checkpoint(tmp_path / "step-000200")
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-000020", "step-000200"]
    assert (found.step, found.finished, found.progress) == (200, False, {"seconds": 300.0})
    assert torch.equal(found.state()["rng"], torch.arange(3))


def test_steps_are_compared_as_numbers(tmp_path, save):
    for step in (999_980, 999_990, 1_000_000):
        save(step, STATE)
    (tmp_path / "step-of-somebody").mkdir()
    assert latest(tmp_path).step == 1_000_000
    assert [found.step for found in checkpoints(tmp_path)] == [1_000_000, 999_990]
    save(1_000_010)
    assert [found.step for found in checkpoints(tmp_path)] == [1_000_010]


def test_a_finished_checkpoint_keeps_weights_alone(tmp_path, save):
    save(1, STATE)
    found = save(2)
    assert found.finished
    assert sorted(path.name for path in found.folder.iterdir()) == ["manifest.json", "raw.safetensors"]
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000002"]


def _cut(path):
    path.write_bytes(path.read_bytes()[:-4])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_cut, _flip, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["raw.safetensors", "state.pt", "manifest.json"])
def test_the_last_good_checkpoint_is_used_when_the_newest_is_damaged(tmp_path, save, damage, name):
    good = save(10, STATE)
    damage(save(20, STATE).folder / name)
    said = []
    assert newest_sound(tmp_path, said.append) == good
    assert len(said) == 1
    assert "step-000020 is damaged and not used" in said[0]
    damage(good.folder / name)
    assert newest_sound(tmp_path, said.append) is None
    assert len(said) == 3


def test_sound_checkpoints_are_taken_in_silence(tmp_path, save):
    said = []
    assert newest_sound(tmp_path, said.append) is None
    found = save(10, STATE)
    assert newest_sound(tmp_path, said.append) == found
    assert said == []


def test_a_disk_without_room_leaves_what_was_there(tmp_path, save):
    """The largest file that a process may write stands in for the disk."""
    good = save(10, STATE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(UserError, match=r"of step 20 cannot be written .* free disk space") as caught:
            save(20, STATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert newest_sound(tmp_path, pytest.fail) == good
    assert [path.name for path in tmp_path.iterdir()] == ["step-000010"]


def test_text_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "run.json"
    write_atomically(path, '{"a": "é"}')
    assert path.read_bytes() == '{"a": "é"}'.encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda manifest: manifest["progress"].update(seconds=2.0), "manifest.json has changed"),
        (lambda manifest: manifest["files"].clear(), "files: Dictionary should have at least 1 item"),
        (lambda manifest: manifest["files"].pop("state.pt"), "manifest.json has changed"),
        (lambda manifest: manifest.update(files=["raw.safetensors"]), "files: Input should be an object"),
        (lambda manifest: manifest.pop("progress"), "progress: Field required"),
    ],
)
def test_a_manifest_that_was_changed_is_damage(tmp_path, save, change, why):
    path = save(20, STATE, {"seconds": 1.0}).folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    said = []
    assert newest_sound(tmp_path, said.append) is None
    assert why in said[0]


def test_a_checkpoint_of_an_earlier_version_has_no_checksum(tmp_path, save):
    found = save(20, STATE, {"seconds": 1.0})
    path = found.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "checksum": None}))
    assert newest_sound(tmp_path, pytest.fail) == found
    (found.folder / "ema.safetensors").touch()
    said = []
    assert newest_sound(tmp_path, said.append) is None
    assert "ema.safetensors is not in its manifest" in said[0]


class _Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_state_that_holds_code_is_refused_and_not_executed(tmp_path, save):
    found = save(20, STATE)
    for content in ({"optimizer": _Canary(tmp_path / "canary"), "rng": 0}, {"rng": 0}, [1]):
        torch.save(content, found.folder / "state.pt")
        with pytest.raises(UserError, match=r"state\.pt is no state of a training.*: remove the folder"):
            found.state()
    assert not (tmp_path / "canary").exists()

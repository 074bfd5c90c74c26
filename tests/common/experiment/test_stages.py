import errno

import pytest
from bevkd_common.errors import UserError
from bevkd_common.experiment.stages import Stage, alone_in, fingerprint, stage_weights


def test_the_fingerprint_ignores_order_and_sees_every_value():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert len({fingerprint({"a": value}) for value in (1, 2, None, "1", [1])}) == 5


def test_a_stage_is_found_again_by_its_inputs(tmp_path):
    stage = Stage("baseline", {"seed": 1}, tmp_path)
    assert stage.trained is None
    stage.open()
    record = {"steps": 3, "seconds": 1.5, "step_s": 0.5, "parameters": 10}
    stage.finish_training(record)
    again = Stage("baseline", {"seed": 1}, tmp_path)
    assert again.trained == record
    assert again.folder.parent == tmp_path / ".stages"
    assert again.folder.name.startswith("baseline-")
    assert Stage("baseline", {"seed": 2}, tmp_path).trained is None
    assert Stage("teacher", {"seed": 1}, tmp_path).trained is None


def test_a_stage_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        stage_weights(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / ".stages").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        Stage("baseline", {}, tmp_path).open()


def test_a_folder_that_another_process_works_in_is_one_sentence_where_nobody_waits(tmp_path, reporter):
    with (
        alone_in(tmp_path / "stage", wait=True, say=reporter.say),
        pytest.raises(UserError, match=r"another process works in .*stage: start this again"),
        alone_in(tmp_path / "stage", wait=False, say=reporter.say),
    ):
        pass
    with alone_in(tmp_path / "stage", wait=False, say=reporter.say):
        assert reporter.said == []


def test_a_stage_whose_lock_cannot_be_written_is_one_sentence(tmp_path, reporter):
    (tmp_path / "stage").write_text("in the way")
    with (
        pytest.raises(UserError, match=r"stage cannot be written \(.+\): choose another --out"),
        alone_in(tmp_path / "stage", wait=True, say=reporter.say),
    ):
        pass


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_disk_without_locks_keeps_others_out_all_the_same(tmp_path, reporter, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with (
        alone_in(tmp_path, wait=True, say=reporter.say),
        pytest.raises(UserError, match="another process works in"),
        alone_in(tmp_path, wait=False, say=reporter.say),
    ):
        pass
    with alone_in(tmp_path, wait=False, say=reporter.say):
        assert reporter.said == []

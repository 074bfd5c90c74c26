"""Files that well-known code bases write are read, and nothing that a file holds is ever run."""

import argparse
import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from bevkd_common.errors import UserError
from bevkd_common.models.foreign_files import (
    BESIDE_WEIGHTS,
    SECTIONS_BESIDE_WEIGHTS,
    Inert,
    read_checkpoint,
    read_content,
)

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(7)}


class Runs:
    """Unpickling it the ordinary way calls a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def foreign(monkeypatch):
    """A class as if a package that is not installed had it."""

    def make(path, *bases):
        module, _, name = path.rpartition(".")
        made = type(name, bases or (object,), {"__module__": module})
        stand_in = sys.modules.get(module) or types.ModuleType(module)
        setattr(stand_in, name, made)
        parts = module.split(".")
        for depth in range(1, len(parts)):
            above = ".".join(parts[:depth])
            monkeypatch.setitem(sys.modules, above, sys.modules.get(above) or types.ModuleType(above))
        monkeypatch.setitem(sys.modules, module, stand_in)
        return made

    return make


def test_metadata_of_the_field_are_read_and_never_imported(tmp_path, foreign, monkeypatch):
    def filled(made, **content):
        made.__dict__.update(content)
        return made

    history = foreign("mmengine.logging.history_buffer.HistoryBuffer")
    section = foreign("mmcv.utils.config.ConfigDict", dict)
    settings = foreign("mmcv.utils.config.Config")
    model_checkpoint = foreign("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    content = {
        "meta": {"mmdet3d_version": "0.17.2", "CLASSES": ("car",), "iter": np.int64(4), "seen": np.arange(3)},
        "state_dict": OrderedDict(WEIGHTS),
        "message_hub": {"loss": filled(history(), values=np.float64(0.5))},
        "config": [section({"a": section({"b": 1})}), filled(settings(), text="model = 1")],
        "hyper_parameters": argparse.Namespace(gpus=8),
        "callbacks": {model_checkpoint: filled(model_checkpoint(), best=torch.tensor(1.0))},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}],
        "folder": Path("somewhere"),
    }
    torch.save(content, tmp_path / "model.pth")
    monkeypatch.undo()
    assert not any(name.startswith("mmcv") for name in sys.modules)
    read = read_content(tmp_path / "model.pth")
    assert read["meta"]["mmdet3d_version"] == "0.17.2"
    assert isinstance(read["meta"]["iter"], Inert)
    assert isinstance(read["message_hub"]["loss"], Inert)
    assert vars(read["message_hub"]["loss"]) == {}
    assert read["config"][0] == {"a": {"b": 1}}
    assert read["optimizer_states"][0]["state"][0]["step"] == 1
    weights = read_checkpoint(tmp_path / "model.pth")
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[key], value) for key, value in WEIGHTS.items())
    assert not any(name.partition(".")[0] in ("mmcv", "mmengine", "pytorch_lightning") for name in sys.modules)


def test_what_is_replaced_can_neither_run_nor_build_anything():
    names = (*BESIDE_WEIGHTS, *SECTIONS_BESIDE_WEIGHTS)
    assert len(set(names)) == len(names) == 27
    dangerous = ("os", "posix", "sys", "subprocess", "builtins", "importlib", "torch", "operator", "functools")
    assert [name for name in names if name.partition(".")[0] in dangerous] == ["builtins.getattr"]
    thing = Inert(os, "system")
    thing.__setstate__({"a": os.system})
    assert vars(thing) == {}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {}",), "system"),
        (eval, ("open('{}', 'w')",), "eval"),
        (exec, ("open('{}', 'w')",), "exec"),
        (open, ("{}", "w"), "open"),
        (pickle.loads, (b"cbuiltins\neval\n(V1\ntR.",), "loads"),
        (torch.load, ("{}",), "torch"),
    ],
)  # fmt: skip
def test_hostile_files_are_refused_and_run_nothing(tmp_path, function, arguments, named, zipped):
    target = tmp_path / "ran"
    hostile = Runs(function, *(it.format(target) if isinstance(it, str) else it for it in arguments))
    refusal = rf"cannot be read safely \(.*{named}.*save its `state_dict` alone"
    for content in ({"state_dict": WEIGHTS, "meta": hostile}, {"state_dict": {"a": hostile}}, hostile):
        path = tmp_path / "model.pth"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=refusal) as said:
            read_content(path)
        assert "\n" not in str(said.value)
        assert "weights_only" not in str(said.value)
    assert not target.exists()


def test_a_stand_in_among_the_weights_is_no_weight(tmp_path):
    torch.save({"state_dict": WEIGHTS | {"b": np.float64(2)}}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="holds no weights: expected tensors by name"):
        read_checkpoint(tmp_path / "model.pth")


def test_an_inert_call_hands_nothing_on(tmp_path):
    chained = Runs(getattr, Runs(getattr, argparse.Namespace(), "__class__"), "__init__")
    torch.save({"state_dict": WEIGHTS, "meta": {"method": chained}}, tmp_path / "model.pth")
    assert isinstance(read_content(tmp_path / "model.pth")["meta"]["method"], Inert)
    torch.save({"state_dict": WEIGHTS, "meta": Runs(Runs, 1)}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="cannot be read safely"):
        read_content(tmp_path / "model.pth")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Virus scan warning</title></head></html>"
NO_CHECKPOINTS = {
    "page": (PAGE, "is an HTML page, which a server sent in place of the file"),
    "upper-case page": (b"\n <HTML><BODY>404", "is an HTML page"),
    "refused": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is an XML message"),
    "pointer": (LFS, "is a Git-LFS pointer, the file itself was not fetched: run `git lfs pull`"),
    "nothing": (b"", "is empty: the download did not finish"),
    "results": (b'{"meta": {}}', "is text in JSON, it holds no weights"),
    "compressed": (b"\x1f\x8b\x08\x00", "is compressed with gzip: decompress it first"),
    "infos": (
        pickle.dumps({"infos": [{"lidar_path": "a.bin"}], "metadata": {}}),
        "is an info file of mmdetection3d with the annotations of a data set",
    ),
    "pickle": (pickle.dumps([{"a": 1}]), "is a pickle that `torch.save` did not write, it holds no weights"),
}


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_files_of_something_else_are_named(tmp_path, name, ending):
    content, said = NO_CHECKPOINTS[name]
    path = tmp_path / f"model{ending}"
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        read_checkpoint(path)
    message = str(refusal.value)
    if not (ending == ".safetensors" and name in ("infos", "pickle")):
        assert said in message
    assert "weights_only" not in message
    assert "delete" not in message


def test_switching_the_protection_off_is_never_the_advice(tmp_path):
    (tmp_path / "noise.pth").write_bytes(bytes(range(7, 107)))
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "old.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    for name in ("noise", "cut"):
        with pytest.raises(UserError, match="cannot be read safely") as refusal:
            read_content(tmp_path / f"{name}.pth")
        assert "weights_only" not in str(refusal.value)
        assert "likely succeed" not in str(refusal.value)
    # Files of old and new PyTorch are read.
    assert read_checkpoint(tmp_path / "old.pth")["a"].tolist() == [1.0, 1.0]


def test_an_info_file_is_named_without_being_unpickled(tmp_path):
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps({"lidar_path": Runs(os.system, f"touch {tmp_path / 'ran'}")}))
    with pytest.raises(UserError, match="is an info file of mmdetection3d"):
        read_content(path)
    assert not (tmp_path / "ran").exists()

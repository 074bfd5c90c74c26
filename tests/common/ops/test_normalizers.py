import torch
from bevkd_common.ops.normalizers import mean_over_ranks


def test_counts_are_unchanged_in_a_single_process():
    counts = torch.tensor([3.0, 0.0])
    assert mean_over_ranks(counts) is counts


def test_counts_are_averaged_over_processes(monkeypatch):
    def add_the_other_rank(tensor):
        tensor += torch.tensor([5.0, 1.0])

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", add_the_other_rank)
    counts = torch.tensor([3.0, 0.0])
    assert mean_over_ranks(counts).tolist() == [4.0, 0.5]
    assert counts.tolist() == [3.0, 0.0]

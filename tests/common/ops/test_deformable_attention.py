"""Hand-computed samples, and a naive reference in float64; for the compiled pass and for `grid_sample`."""

from __future__ import annotations

import gc
import itertools
import math
import weakref

import pytest
import torch
from bevkd_common.ops import deformable_attention as module
from bevkd_common.ops import deformable_kernels
from bevkd_common.ops.deformable_attention import deformable_attention
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@pytest.fixture(params=["compiled", "grid_sample", "as Python"])
def way(request, monkeypatch):
    if request.param == "grid_sample":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    if request.param == "as Python":
        for kernel in ("attend", "attend_backward"):
            monkeypatch.setattr(deformable_kernels, kernel, getattr(deformable_kernels, kernel).py_func)
        monkeypatch.setattr(deformable_kernels, "_corners", deformable_kernels._corners.py_func)


@pytest.fixture
def grid_sample(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


every_way = pytest.mark.usefixtures("way")
with_grid_sample = pytest.mark.usefixtures("grid_sample")

SQUARE = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
OBLONG = torch.tensor([1.0, 2, 3, 4, 5, 6]).view(1, 6, 1, 1)


def sample(value: Tensor, shape: tuple[int, int], x: float, y: float) -> float:
    return float(
        deformable_attention(value, [shape], torch.tensor([x, y]).view(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1))
    )


@every_way
@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0.5, 0.5, 2.5), (0.25, 0.25, 1), (0.75, 0.25, 2), (0.25, 0.75, 3), (0.75, 0.5, 3), (0.6, 0.3, 1.9),
        (0, 0, 0.25), (1, 0.5, 1.5), (1, 1, 1), (-0.25, 0.5, 0), (1.25, 0.5, 0),
    ],
)  # fmt: skip
def test_samples_of_a_square(x, y, expected):
    assert sample(SQUARE, (2, 2), x, y) == pytest.approx(expected, abs=1e-6)


@every_way
@pytest.mark.parametrize(
    ("x", "y", "expected"), [(0.5, 0.25, 2), (1 / 6, 0.75, 4), (5 / 6, 0.25, 3), (1 / 3, 0.5, 3), (0.5, 0.5, 3.5)]
)
def test_width_is_not_height(x, y, expected):
    assert sample(OBLONG, (2, 3), x, y) == pytest.approx(expected, abs=1e-6)


@every_way
def test_points_levels_and_heads():
    two = torch.tensor([[0.25, 0.25], [0.75, 0.75]])
    points = deformable_attention(
        SQUARE, [(2, 2)], two.view(1, 1, 1, 1, 2, 2), torch.tensor([0.25, 0.75]).view(1, 1, 1, 1, 2)
    )
    assert float(points) == pytest.approx(3.25)
    both = torch.cat([SQUARE, torch.full((1, 1, 1, 1), 10.0)], dim=1)
    middle = torch.full((1, 1, 1, 2, 1, 2), 0.5)
    levels = deformable_attention(both, [(2, 2), (1, 1)], middle, torch.tensor([0.6, 0.4]).view(1, 1, 1, 2, 1))
    assert float(levels) == pytest.approx(5.5)
    heads = torch.cat([SQUARE, 10 * SQUARE], dim=2)
    found = deformable_attention(heads, [(2, 2)], two.view(1, 1, 2, 1, 1, 2), torch.ones(1, 1, 2, 1, 1))
    assert found.flatten().tolist() == pytest.approx([1, 40])


@every_way
def test_gradients_by_hand():
    value = SQUARE.clone().requires_grad_()
    where = torch.full((1, 1, 1, 1, 1, 2), 0.5, requires_grad=True)
    weight = torch.ones(1, 1, 1, 1, 1, requires_grad=True)
    deformable_attention(value, [(2, 2)], where, weight).sum().backward()
    assert where.grad.flatten().tolist() == pytest.approx([2, 4])
    assert value.grad.flatten().tolist() == pytest.approx([0.25] * 4)
    assert float(weight.grad) == pytest.approx(2.5)


SHAPES = [(3, 5), (2, 2)]


def random_case(batch=2, queries=7, heads=3, channels=4, points=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    positions = sum(height * width for height, width in SHAPES)

    def draw(*size):
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    value = draw(batch, positions, heads, channels) - 0.5
    # Some places lie outside.
    locations = 1.6 * draw(batch, queries, heads, 2, points, 2) - 0.3
    weights = draw(batch, queries, heads, 2, points)
    return value, locations, weights


def naive(value, locations, weights):
    """One sample after the other, as the equation reads."""
    batch, queries, heads, _, points, _ = locations.shape
    out = value.new_zeros(batch, queries, heads, value.shape[3])
    first = [0, SHAPES[0][0] * SHAPES[0][1]]
    indices = itertools.product(range(batch), range(queries), range(heads), range(2), range(points))
    for b, q, h, level, p in indices:
        height, width = SHAPES[level]
        x, y = locations[b, q, h, level, p] * locations.new_tensor([width, height]) - 0.5
        left, top = math.floor(x), math.floor(y)
        for column, row in itertools.product((left, left + 1), (top, top + 1)):
            if 0 <= column < width and 0 <= row < height:
                near = (1 - (x - column).abs()) * (1 - (y - row).abs())
                pixel = value[b, first[level] + row * width + column, h]
                out[b, q, h] = out[b, q, h] + weights[b, q, h, level, p] * near * pixel
    return out.flatten(2)


@every_way
def test_outputs_and_gradients_equal_the_naive_reference():
    inputs = [part.requires_grad_() for part in random_case()]
    ours, theirs = deformable_attention(inputs[0], SHAPES, *inputs[1:]), naive(*inputs)
    assert ours.shape == (2, 7, 12)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    weight = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for mine, reference in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((theirs * weight).sum(), inputs),
        strict=True,
    ):
        assert float(reference.abs().max()) > 0.1
        torch.testing.assert_close(mine, reference, atol=1e-10, rtol=0)


@with_grid_sample
def test_queries_in_turn_change_nothing(monkeypatch):
    value, locations, weights = random_case()
    whole = deformable_attention(value, SHAPES, locations, weights)
    monkeypatch.setattr(module, "MOST_SAMPLES", 2 * 3 * 4 * 3 * 2)
    assert torch.equal(deformable_attention(value, SHAPES, locations, weights), whole)


@with_grid_sample
def test_queries_in_turn_have_the_same_gradients_and_keep_no_samples(monkeypatch):
    inputs = [part.requires_grad_() for part in random_case(queries=40)]

    def gradients():
        kept: dict[int, int] = {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = deformable_attention(inputs[0], SHAPES, *inputs[1:])
        return torch.autograd.grad(out.square().sum(), inputs), sum(kept.values())

    whole, all_kept = gradients()
    monkeypatch.setattr(module, "MOST_SAMPLES", 2 * 3 * 4 * 3 * 2)
    in_turn, kept = gradients()
    for one, other in zip(in_turn, whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    samples = 2 * 40 * 3 * 2 * 3 * 4 * 8
    assert kept < samples < all_kept


@with_grid_sample
def test_a_layer_that_is_computed_again_keeps_no_maps(monkeypatch):
    inputs = [part.requires_grad_() for part in random_case()]
    maps: list[weakref.ref[Tensor]] = []
    original = module._maps

    def watched(value, shapes):
        made = original(value, shapes)
        maps.extend(map(weakref.ref, made))
        return made

    monkeypatch.setattr(module, "_maps", watched)
    monkeypatch.setattr(module, "MOST_SAMPLES", 2 * 3 * 4 * 3 * 2)
    out = checkpoint(
        lambda *parts: deformable_attention(parts[0], SHAPES, *parts[1:]), *inputs, use_reentrant=False
    )
    gc.collect()
    assert len(maps) == len(SHAPES)
    assert [one() for one in maps] == [None, None]
    theirs = torch.autograd.grad(naive(*inputs).sum(), inputs)
    for one, other in zip(torch.autograd.grad(out.sum(), inputs), theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


@every_way
def test_a_batch_is_its_samples_and_no_query_is_no_output():
    value, locations, weights = random_case()
    whole = deformable_attention(value, SHAPES, locations, weights)
    for row in range(2):
        part = slice(row, row + 1)
        alone = deformable_attention(value[part], SHAPES, locations[part], weights[part])
        torch.testing.assert_close(alone, whole[part], atol=1e-12, rtol=0)
    assert deformable_attention(value, SHAPES, locations[:, :0], weights[:, :0]).shape == (2, 0, 12)


@every_way
def test_a_constant_map_gives_the_constant():
    value, locations, weights = random_case()
    inside = 0.25 + 0.5 * torch.rand(locations.shape, dtype=torch.float64)
    shares = weights / weights.sum(dim=(3, 4), keepdim=True)
    found = deformable_attention(torch.full_like(value, 3.0), SHAPES, inside, shares)
    torch.testing.assert_close(found, torch.full_like(found, 3.0))


@every_way
def test_sums_are_float32_under_autocast():
    value, locations, weights = (part.to(torch.bfloat16) for part in random_case())
    with torch.autocast("cpu", torch.bfloat16):
        assert deformable_attention(value, SHAPES, locations, weights).dtype == torch.float32


def test_levels_that_do_not_add_up():
    value, locations, weights = random_case()
    with pytest.raises(ValueError, match="do not add up to 19 positions"):
        deformable_attention(value, [(3, 5)], locations, weights)


def test_the_number_of_threads_changes_nothing():
    inputs = [part.requires_grad_() for part in random_case(batch=5)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            out = deformable_attention(inputs[0], SHAPES, *inputs[1:])
            found.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@every_way
def test_a_place_that_is_not_a_number_is_seen_in_the_sums():
    value, locations, weights = (part.requires_grad_() for part in random_case())
    broken = locations.detach().clone()
    broken[1, 2, 0, 0, 0, 0] = math.nan
    out = deformable_attention(value, SHAPES, broken, weights).unflatten(2, (3, 4))
    assert out[1, 2, 0].isnan().all()
    assert int(out.isnan().sum()) == 4


def test_nothing_of_the_samples_is_kept_for_the_backward_pass():
    inputs = [part.requires_grad_() for part in random_case(queries=40)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda kept: kept):
        deformable_attention(inputs[0], SHAPES, *inputs[1:])
    assert sum(tensor.numel() for tensor in kept) == sum(part.numel() for part in inputs)

import math
from dataclasses import replace

import pytest
import torch
import yaml
from bevkd_common.config.detectors.bevformer import BevFormerConfig
from bevkd_common.config.plugins import load
from bevkd_common.data.needs import DataNeeds, KeyframeQueue
from bevkd_common.data.samples import Batch, Cameras, EgoMotion, History
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.geometry.transforms import inverse, rigid, rotation_z
from bevkd_common.models.bevformer.encoder import EncoderLayer
from bevkd_common.models.bevformer.memory import BevMemory
from bevkd_common.models.detectors.bevformer import BevFormer, build
from bevkd_common.models.specs import BEVFORMER
from bevkd_common.models.taps import Attention, BevMap
from pydantic import ValidationError
from torch import Tensor, nn

CLASSES = (
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle", "pedestrian",
    "traffic_cone",
)  # fmt: skip
TAPS = ["tsa0", "sca0", "tsa1", "sca1", "bev_neck", "head"]
HEAD, NECK = frozenset({"head"}), frozenset({"bev_neck"})
# Longer along x than along y, so that no transposed map passes; images that need padding.
TINY = """
kind: bevformer
image_size: [30, 70]
image_backbone: {kind: small_resnet, stem_channels: 8, channels: [8, 16, 24], blocks: [1, 1, 1], strides: [8, 16]}
image_levels: 3
channels: 16
grid: {x0: -9.6, y0: -6.4, cell: 1.6, nx: 12, ny: 8}
cameras: 4
encoder_layers: 2
attention_heads: 2
hidden_channels: 24
frames: 3
head: {queries: 10, layers: 2, attention_heads: 2, hidden_channels: 24}
"""


def tiny(seed: int = 0, **changes) -> BevFormer:
    torch.manual_seed(seed)
    return build(BevFormerConfig.model_validate(yaml.safe_load(TINY) | changes), CLASSES)


def poses(samples: int, count: int) -> Tensor:
    """`global_T_lidar` [B, T, 4, 4] on a curve, another one for each sample."""
    step = torch.arange(count, dtype=torch.float64)
    turn = torch.stack([rotation_z((0.3 + sample) * step / 2) for sample in range(samples)])
    place = torch.stack([torch.stack([step * 0.9, step * (1 - sample), step * 0], -1) for sample in range(samples)])
    return rigid(turn, place + 100)


def cameras_of(images: Tensor) -> Cameras:
    """Four level cameras at a height of 1.5 m that see images [B, 4, 3, H, W]."""
    yaw = torch.tensor([0.0, 0.5, 1.0, 1.5]) * math.pi + 0.1
    ahead = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    lead = images.shape[:2]
    return Cameras(
        images=images,
        intrinsics=torch.tensor([[40.0, 0, 35], [0, 40, 14], [0, 0, 1]]).expand(*lead, 3, 3),
        lidar_T_cam=rigid(rotation_z(yaw) @ ahead, torch.tensor([0.0, 0.0, -0.3])).expand(*lead, 4, 4),
        image_aug=torch.eye(3).expand(*lead, 3, 3),
    )


def scenes_of(samples: int = 2, count: int = 3, seed: int = 0) -> list[Batch]:
    """Key frames of as many drives, in order, without history."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.tensor([-9.0, -6, -1, 1, 1, 1, -3, -2, -2])
    spread = torch.tensor([18.0, 12, 1, 3, 1, 1, 6, 4, 4])
    global_T_lidar = poses(samples, count)
    batches = []
    for place in range(count):
        motion = torch.randn(3, samples, 1, 3, generator=generator)
        batches.append(
            Batch(
                tokens=tuple(f"token{place}-{sample}" for sample in range(samples)),
                scenes=tuple(f"scene{sample}" for sample in range(samples)),
                boxes=Boxes(torch.rand(samples, 3, 9, generator=generator) * spread + low),
                labels=torch.randint(0, 10, (samples, 3), generator=generator),
                cameras=cameras_of(
                    torch.randint(0, 256, (samples, 4, 3, 30, 70), generator=generator, dtype=torch.uint8)
                ),
                clouds={},
                aug_T_lidar=torch.eye(4).expand(samples, 4, 4),
                global_T_lidar=global_T_lidar[:, place],
                ego=EgoMotion(global_T_lidar[:, place, None], *motion),
            )
        )
    return batches


def queued(frames: list[Batch], present: list[list[bool]] | None = None) -> Batch:
    """The last key frame with those before it as its history, as the reader makes it."""
    *earlier, last = frames
    past = torch.stack([inverse(last.global_T_lidar) @ frame.global_T_lidar for frame in earlier], dim=1)
    cameras = Cameras.stack([frame.cameras for frame in earlier])
    moved = Cameras(**{name: value.transpose(0, 1) for name, value in vars(cameras).items()})
    cameras = replace(moved, lidar_T_cam=(past[:, :, None] @ moved.lidar_T_cam.double()).float())
    known = [[True] * len(earlier)] * len(last) if present is None else present
    ego = {name: torch.cat([getattr(frame.ego, name) for frame in frames], dim=1) for name in vars(last.ego)}
    seconds = torch.arange(len(earlier), 0, -1).expand(len(last), -1) / 2
    return replace(last, history=History(cameras, past.float(), seconds, torch.tensor(known)), ego=EgoMotion(**ego))


def single(batch: Batch, sample: int) -> Batch:
    """One sample of a batch."""
    row = slice(sample, sample + 1)

    def cut(group):
        if group is None:
            return None
        fields = {n: v[row] if isinstance(v, Tensor) else cut(v) for n, v in vars(group).items()}
        return type(group)(**fields)

    return replace(
        batch,
        tokens=batch.tokens[row],
        scenes=batch.scenes[row],
        boxes=Boxes(batch.boxes.tensor[row]),
        labels=batch.labels[row],
        aug_T_lidar=batch.aug_T_lidar[row],
        global_T_lidar=batch.global_T_lidar[row],
        cameras=cut(batch.cameras),
        history=cut(batch.history),
        ego=cut(batch.ego),
    )


def awake(model: BevFormer) -> BevFormer:
    """Evaluation mode, with attention that depends on what is seen, as after training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if "sampling_offsets" in name or "attention_weights" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def neck(model: BevFormer, batch: Batch, state: object | None = None) -> Tensor:
    with torch.no_grad():
        return model(batch, NECK, state).taps["bev_neck"]


def loss_of(model: BevFormer, batch: Batch) -> Tensor:
    outputs = model(batch, HEAD)
    terms = model.losses(outputs, model.targets(outputs, batch), batch).terms
    return sum(term.value * term.weight for term in terms.values())


# --- Paper sizes --------------------------------------------------------------------------------------------------


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_paper(**changes) -> BevFormer:
    with torch.device("meta"):
        return build(BevFormerConfig.model_validate(changes), CLASSES)


def cells(count: int) -> dict[str, float]:
    return {"x0": -51.2, "y0": -51.2, "cell": 102.4 / count, "nx": count, "ny": count}


TINY_PAPER = {
    "image_size": [450, 800], "image_backbone": {"kind": "timm", "strides": [32]}, "image_levels": 1, "frames": 3,
    "grid": cells(50), "encoder_layers": 3,
}  # fmt: skip
SMALL_R50 = TINY_PAPER | {"image_size": [720, 1280], "grid": cells(150), "head": {"layers": 3}}


@pytest.mark.parametrize(("levels", "count"), [(1, 675_456), (4, 823_488)])
def test_a_layer_has_the_parameters_of_the_released_one(levels, count):
    layer = EncoderLayer(
        256, heads=8, temporal_points=4, spatial_points=8, levels=levels, hidden_channels=512, dropout=0.1,
        shifted="history",
    )  # fmt: skip
    assert (len(list(layer.parameters())), parameters(layer)) == (26, count)


@pytest.mark.parametrize(
    ("changes", "millions", "inherited"),
    [(TINY_PAPER, 33.52, 652_800), (SMALL_R50, 35.81, 5_798_400), ({}, 48.24, 10_291_200)],
    ids=["tiny", "small with R50", "base with R50"],
)
def test_paper_sizes_have_the_parameters_of_the_released_models(changes, millions, inherited):
    model = on_paper(**changes)
    constants = 10  # code weights are stored as parameters there
    assert (parameters(model) + constants) / 1e6 == pytest.approx(millions, abs=0.005)
    assert model.encoder.queries.numel() + parameters(model.encoder.positions) == inherited


def test_image_features_have_the_released_sizes():
    found = {}
    for name, changes in {"tiny": TINY_PAPER, "small": SMALL_R50, "base": {}}.items():
        model = on_paper(**changes).eval()
        with torch.device("meta"):
            maps = model.image_neck(model.image_backbone(model._prepared(torch.zeros(1, 3, *model.image_size))))
        found[name] = [tuple(level.shape[2:]) for level in maps]
    assert found == {
        "tiny": [(15, 25)],
        "small": [(23, 40)],
        "base": [(116, 200), (58, 100), (29, 50), (15, 25)],
    }


def test_the_specification_builds_the_detector():
    assert load(BEVFORMER.build) is build
    assert BEVFORMER.config.model_fields["kind"].default == BEVFORMER.kind == "bevformer"
    assert BEVFORMER.describe(BevFormerConfig()) == (
        "timm resnet50 from random weights, images of 900 x 1600, queues of 4 key frames, 200 x 200 queries "
        "0.512 m apart, encoder depth 6"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"channels": 20}, "`channels` 20 must be even and a multiple of 8 `attention_heads`"),
        ({"spatial_points": 6}, "`spatial_points` 6 is not a multiple of 4 `anchors`"),
        ({"image_levels": 2}, "`image_levels` is 2, but the image backbone has 3 `strides`"),
        ({"normalization": "caffe_bgr"}, "want the `normalization` `imagenet_rgb` or"),
        ({"z_range": [0.0, 1.0]}, "`z_range` must be higher than a metre"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, reason):
    with pytest.raises(ValidationError, match=reason):
        BevFormerConfig.model_validate(changes)


# --- Taps ---------------------------------------------------------------------------------------------------------


def test_maps_are_what_the_taps_say():
    model = tiny().eval()
    assert list(model.taps) == [*TAPS[:4], "image_neck", *TAPS[4:]]
    assert model.needs == DataNeeds(cameras=True, can_bus=True, history=KeyframeQueue(3, recurrent=True))
    outputs = model(scenes_of()[0], frozenset(TAPS))
    assert set(outputs.taps) == set(TAPS) - {"head"}
    grid = Grid(-9.6, -6.4, 1.6, 12, 8)
    assert model.taps["bev_neck"] == BevMap(16, grid)
    assert outputs.taps["bev_neck"].shape == (2, 16, 8, 12)
    seen = 0
    for name, value in outputs.taps.items():
        spec = model.taps[name]
        if isinstance(spec, Attention):
            assert value.shape == (2, 96, spec.heads, spec.groups, spec.points)
            total = value.sum(dim=-1 if spec.competing == "points" else (-1, -2))
            torch.testing.assert_close(total, torch.ones_like(total))
            assert (spec.grid, spec.layer) == (grid, int(name[-1]))
            seen += 1
    assert seen == 4
    assert (model.taps["tsa1"].groups, model.taps["sca1"].groups) == (2, 3)
    assert outputs.head[-1]["class_logits"].shape == (2, 10, 10)
    assert outputs.head[-1]["box_code"].shape == (2, 10, 10)


@pytest.mark.parametrize("level", range(6))
def test_nothing_above_the_wanted_tap_is_computed(level):
    model = tiny().eval()
    ran = []
    for position, module in enumerate([*model.encoder.layers, model.head]):
        module.register_forward_hook(lambda *_, position=position: ran.append(position))
    outputs = model(scenes_of()[0], frozenset({TAPS[level]}))
    assert ran == [[0], [0], [0, 1], [0, 1], [0, 1], [0, 1, 2]][level]
    assert list(outputs.taps) == [TAPS[level]][: level < 5]
    assert bool(outputs.head) == (level == 5)
    assert (outputs.state is None) == (level < 4)


def test_what_is_missing_is_refused():
    model, batch = tiny(), scenes_of()[0]
    assert (dict(model(batch, frozenset()).taps), model(batch, frozenset()).state) == ({}, None)
    with pytest.raises(ValueError, match=r"no tap \['bev_in'\].*'bev_neck'"):
        model(batch, frozenset({"bev_in"}))
    for lacking in ("cameras", "ego"):
        with pytest.raises(ValueError, match="needs images and ego-motion"):
            model(replace(batch, **{lacking: None}), HEAD)
    narrow = replace(batch, cameras=replace(batch.cameras, images=batch.cameras.images[..., :64]))
    with pytest.raises(ValueError, match=r"images of 30 x 70, the batch has 30 x 64"):
        model(narrow, HEAD)
    state = model.eval()(batch, HEAD).state
    with pytest.raises(ValueError, match="for as many samples"):
        model(single(batch, 0), HEAD, state)


def test_image_reaches_the_ground_where_its_camera_looks():
    model, batch = awake(tiny()), single(scenes_of()[0], 0)
    images = batch.cameras.images.clone()
    # Camera 1 looks along -x.
    images[0, 1] = 255 - images[0, 1]
    changed = replace(batch, cameras=replace(batch.cameras, images=images))
    difference = [model(b, frozenset({"sca1"})).taps["sca1"] for b in (batch, changed)]
    moved = (difference[0] - difference[1]).abs().sum(dim=(0, 2, 3, 4)).view(8, 12)
    # Temporal attention carries what layer 0 saw a few cells further.
    assert moved[:, :5].sum() > 10 * moved[:, 9:].sum()
    assert moved[4, 2] > 0


# --- History ------------------------------------------------------------------------------------------------------


def test_samples_of_a_batch_do_not_mix():
    model, batch = awake(tiny()), queued(scenes_of())
    both = neck(model, batch)
    for sample in range(2):
        torch.testing.assert_close(
            both[sample : sample + 1], neck(model, single(batch, sample)), rtol=1e-3, atol=1e-4
        )
    assert (both[0] - both[1]).abs().max() > 0.1


def test_a_scene_that_begins_in_the_queue_has_the_history_it_has():
    model, frames = awake(tiny()), scenes_of()
    whole = queued(frames)
    # The first sample has one earlier key frame, the second none; others stand in.
    mixed = neck(model, queued(frames, present=[[False, True], [False, False]]))
    torch.testing.assert_close(mixed[:1], neck(model, queued(frames[1:]))[:1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mixed[1:], neck(model, frames[2])[1:], rtol=1e-3, atol=1e-4)
    assert (mixed - neck(model, whole)).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_looking_back_through_a_queue_is_going_through_the_scene():
    model, frames = awake(tiny()), scenes_of()
    state = None
    for batch in frames:
        outputs = model(batch, HEAD, state)
        state = outputs.state
    fresh = model(queued(frames), HEAD)
    for name in ("class_logits", "box_code"):
        torch.testing.assert_close(outputs.head[-1][name], fresh.head[-1][name], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(state.bev, fresh.state.bev, rtol=1e-3, atol=1e-4)
    assert (neck(model, frames[2]) - state.bev).abs().max() > 1e-2


def test_another_scene_begins_without_history():
    model, frames = awake(tiny()), scenes_of()
    state = model(frames[0], HEAD).state
    assert isinstance(state, BevMemory)
    elsewhere = replace(frames[1], scenes=("scene0", "another"))
    found, alone, known = (
        neck(model, elsewhere, state), neck(model, frames[1]), neck(model, frames[1], state)
    )  # fmt: skip
    torch.testing.assert_close(found[0], known[0])
    torch.testing.assert_close(found[1], alone[1])
    assert (known - alone).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    # The state is left as it was.
    assert state.known.all()


def test_order_of_the_history_matters_and_repetition_does_not():
    model, frames = awake(tiny()), scenes_of(count=4)
    batch = queued(frames[1:])
    found = neck(model, batch)
    assert torch.equal(neck(model, batch), found)
    swapped = [replace(frames[i], cameras=frames[j].cameras) for i, j in ((1, 2), (2, 1))]
    assert (neck(model, queued([*swapped, frames[3]])) - found).abs().max() > 1e-3
    # Of a longer history the nearest are taken.
    torch.testing.assert_close(neck(model, queued(frames)), found)


def test_one_key_frame_has_no_history():
    model, frames = awake(tiny(frames=1)), scenes_of()
    assert model.needs == DataNeeds(cameras=True, can_bus=True)
    assert not model.needs.in_order
    assert torch.equal(neck(model, queued(frames)), neck(model, frames[2]))
    assert model(frames[0], HEAD).state is None


def test_layers_share_the_first_queries_where_something_is_remembered():
    model, frames = awake(tiny()), scenes_of()
    state = model(frames[0], NECK).state
    seen = []
    for layer in model.encoder.layers:
        layer.temporal.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0], inputs[2])))
    # The first sample remembers, the second does not.
    model(replace(frames[1], scenes=("scene0", "another")), NECK, state)
    (first, maps0), (second, maps1) = seen
    assert (first != second).any()
    assert torch.equal(maps0[:, 1], first)
    assert torch.equal(maps1[0], maps0[0])
    assert torch.equal(maps1[1], torch.stack([second[1], second[1]]))
    assert not torch.equal(maps0[0, 0], first[0])


def test_history_is_seen_in_evaluation_mode_without_gradients():
    model, frames = tiny(grid_mask=0.0, dropout=0.0), scenes_of()
    # As where the image backbone is frozen.
    model.image_backbone.network.stem.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    seen = []
    model.image_backbone.register_forward_hook(
        lambda module, _, output: seen.append((module.training, output[0].requires_grad))
    )
    present = scenes_of()[2]
    outputs = model(queued(frames), HEAD)
    assert seen == [(False, False), (False, False), (True, True)]
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert outputs.state is None
    norm = model.image_backbone.network.stages[0][0].bn1
    assert int(norm.num_batches_tracked) == 1
    other = tiny(grid_mask=0.0, dropout=0.0)
    other(present, HEAD)
    # Batch norm has seen the present frame alone.
    torch.testing.assert_close(
        norm.running_mean, other.image_backbone.network.stages[0][0].bn1.running_mean, rtol=0.2, atol=0.2
    )


# --- Training -----------------------------------------------------------------------------------------------------


def test_gradients_reach_every_parameter():
    model = awake(tiny()).train()
    loss_of(model, queued(scenes_of())).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_layers_that_are_computed_again_have_the_same_gradients():
    batch, found = queued(scenes_of()), []
    for recompute in (False, True):
        model = tiny(recompute=recompute, grid_mask=0.0)
        layers = []
        model.encoder.layers[0].register_forward_pre_hook(lambda *_, layers=layers: layers.append(1))
        torch.manual_seed(1)  # of dropout
        loss_of(model, batch).backward()
        found.append(({name: p.grad for name, p in model.named_parameters()}, len(layers)))
    (plain, once), (again, twice) = found
    assert (once, twice) == (3, 4)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, msg=name)


def test_a_few_samples_are_learned_by_heart():
    model = tiny(grid_mask=0.0, dropout=0.0)
    batch = queued(scenes_of())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = None
    for _ in range(110):
        loss = loss_of(model, batch)
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 35.0)
        optimizer.step()
    assert loss.item() < 0.25 * first
    with torch.no_grad():
        found = model.decode(model(batch, HEAD), batch)
    for sample, detections in enumerate(found):
        best = detections.boxes.centers[:3, :2]
        distance = torch.cdist(batch.boxes.centers[sample, :, :2], best).amin(dim=1)
        assert distance.max() < 1.0
        assert set(detections.labels[:3].tolist()) == set(batch.labels[sample].tolist())


# --- Parts --------------------------------------------------------------------------------------------------------


def test_padding_is_zero_after_the_normalisation():
    model = tiny().eval()
    prepared = model._prepared(torch.full((1, 3, 30, 70), 200, dtype=torch.uint8))
    assert prepared.shape == (1, 3, 32, 80)
    assert not prepared[:, :, 30:].any()
    assert not prepared[:, :, :, 70:].any()
    assert (prepared[:, :, :30, :70] != 0).all()


def test_positions_tell_columns_from_rows():
    positions = tiny().encoder.positions
    code = positions().view(8, 12, 16)
    assert torch.equal(code[:, :, :8], positions.columns.expand(8, 12, 8))
    assert torch.equal(code[:, :, 8:], positions.rows[:, None].expand(8, 12, 8))
    assert 0 <= positions.rows.min() < positions.rows.max() < 1

from dataclasses import replace

import numpy as np
import pytest
import torch
from bevkd_common.report import figures
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgba

BOX_LINES = 12  # edges of a box in an image
FOOTPRINT_LINES = 2  # outline and heading
ROLES = ("teacher", "baseline", "distilled")


def segments(axes, role):
    """The strokes of one colour."""
    color = to_rgba(figures.COLORS[role])
    drawn = [part for part in axes.collections if isinstance(part, LineCollection)]
    return [
        stroke for part in drawn if part.get_colors().tolist() == [list(color)] for stroke in part.get_segments()
    ]


def test_curves_have_an_axes_a_group_of_terms_and_a_line_an_arm(make_report, make_arm):
    control = make_arm("control", {0: [0.5] * 4}, name="twice")
    drawn = figures.curves(make_report(seeds=(0, 1), controls=(control,)).arms)
    detection, distillation = drawn.axes
    assert detection.get_title() == "detection loss"
    assert len(detection.lines) == 3 * 2  # three arms, two seeds, no control
    assert len(distillation.lines) == 2
    assert distillation.lines[0].get_xdata().tolist() == [1, 10, 20]
    assert distillation.lines[0].get_ydata() == pytest.approx([6.0] * 3)  # value 3 times weight 2
    assert [text.get_text() for text in distillation.get_legend().get_texts()] == ["student distilled"]
    colors = {line.get_color() for line in detection.lines}
    assert colors == {figures.COLORS[role] for role in ("teacher", "baseline", "distilled")}


def test_curves_are_a_running_mean():
    # A window of five at the middle, shorter at the ends.
    assert figures._smooth([0.0, 0.0, 5.0, 0.0, 0.0]) == pytest.approx([5 / 3, 5 / 4, 1.0, 5 / 4, 5 / 3])
    assert figures._smooth([2.0]) == pytest.approx([2.0])


def test_curves_of_a_loaded_teacher_alone_are_empty(make_arm):
    teacher = make_arm("teacher", {0: [0.5]})
    loaded = replace(teacher, runs={0: replace(teacher.runs[0], curve=[])})
    assert figures.curves([loaded]).axes == []


def test_the_birds_eye_view_has_an_axes_a_model_with_its_boxes(make_report, scene):
    drawn = figures.birds_eye(scene, make_report().arms)
    assert [axes.get_title() for axes in drawn.axes] == ["the teacher", "student alone", "student distilled"]
    # One true box each, and of the detected ones those above the threshold: 1, 1 of 2, 2.
    assert [len(segments(axes, "truth")) for axes in drawn.axes] == [FOOTPRINT_LINES] * 3
    found = [len(segments(axes, role)) for axes, role in zip(drawn.axes, ROLES, strict=True)]
    assert found == [count * FOOTPRINT_LINES for count in (1, 1, 2)]
    assert drawn.axes[0].get_xlim() == (-20.0, 20.0)
    assert drawn.axes[0].get_ylim() == (-15.0, 15.0)
    outline, heading = segments(drawn.axes[0], "truth")
    assert sorted(set(outline[:, 0].round(3).tolist())) == [8.0, 12.0]
    assert heading.tolist() == [[10.0, 0.0], [12.0, 0.0]]


def test_a_key_frame_without_points_is_drawn_without_points(make_report, scene):
    def clouds(scene):
        parts = figures.birds_eye(scene, make_report().arms).axes[0].collections
        return sum(isinstance(part, PathCollection) for part in parts)

    assert clouds(scene) == 1
    assert clouds(replace(scene, points=None)) == 0


def test_a_box_behind_a_camera_is_not_drawn_in_its_image(make_report, scene):
    drawn = figures.cameras(scene, make_report().arms[2])
    front, back = drawn.axes
    assert (front.get_title(), back.get_title()) == ("FRONT", "BACK")
    assert len(segments(front, "truth")) == len(segments(front, "distilled")) == BOX_LINES
    assert segments(back, "truth") == []
    assert len(segments(back, "distilled")) == BOX_LINES
    # Seen from 8 m, the near face of the box ahead reaches 1 m to either side: 20 -+ 20 / 8.
    pixels = np.concatenate(segments(front, "truth"))[:, 0]
    assert (pixels.min(), pixels.max()) == pytest.approx((17.5, 22.5))


def test_one_camera_takes_one_row(make_report, scene):
    one = replace(scene, images=scene.images[:1], camera_names=("FRONT",), img_T_lidar=scene.img_T_lidar[:1])
    (axes,) = figures.cameras(one, make_report().arms[1]).axes
    assert axes.get_gridspec().get_geometry() == (1, 1)


def test_without_cameras_there_is_no_picture(make_report, scene):
    assert figures.cameras(replace(scene, images=None), make_report().arms[1]) is None
    assert figures.cameras(replace(scene, img_T_lidar=None), make_report().arms[1]) is None


def test_a_panel_of_regions_names_them(regions):
    (axes,) = figures.panel(regions).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b", "c"]
    (image,) = axes.images
    assert image.get_array().tolist() == [[0, 1], [2, 1]]
    assert image.get_extent() == [-1.0, 1.0, -1.0, 1.0]
    assert image.origin == "lower"
    # Each value has a colour of its own, the one of its legend.
    shown = [image.cmap(image.norm(value)) for value in range(3)]
    assert shown == [patch.get_facecolor() for patch in axes.get_legend().get_patches()]


def test_a_panel_of_a_map_has_a_scale(strength):
    axes, scale = figures.panel(strength).axes
    assert axes.get_legend() is None
    assert axes.get_title() == "Strength"
    assert len(scale.collections) > 0


def test_a_panel_of_a_matrix_has_its_first_row_at_the_top(matrix):
    axes, _scale = figures.panel(matrix).axes
    (image,) = axes.images
    assert image.get_array().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert image.origin == "upper"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("student", "teacher")


def _drawn(axes):
    (scatter,) = (part for part in axes.collections if isinstance(part, PathCollection))
    return scatter


def test_points_on_the_ground_lie_over_their_map(points):
    axes, _scale = figures.panel(points).axes
    scatter = _drawn(axes)
    assert scatter.get_offsets().tolist() == points.points.tolist()
    assert scatter.get_array().tolist() == pytest.approx([0.1, 0.9, 0.4])
    # Areas are proportional to the sizes.
    assert scatter.get_sizes().tolist() == pytest.approx([figures.LARGEST_AREA * part for part in (0.5, 1.0, 0.25)])
    (image,) = axes.images
    assert (image.origin, image.get_extent()) == ("lower", [-1.0, 1.0, -1.0, 1.0])
    assert (axes.get_xlim(), axes.get_ylim()) == ((-1.0, 1.0), (-1.0, 1.0))


def test_points_in_an_image_have_v_down_and_labels_a_legend(points):
    image = torch.zeros(20, 40, 3, dtype=torch.uint8)
    labelled = replace(
        points, unit="pixels", values=torch.tensor([0, 1, 1]), legend=("teacher", "student"), extent=None
    )
    for shown in (replace(labelled, background=image), replace(labelled, background=None)):
        (axes,) = figures.panel(shown).axes
        bottom, top = axes.get_ylim()
        assert bottom > top
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["teacher", "student"]
        colors = [to_rgba(figures.POINTS[value]) for value in (0, 1, 1)]
        assert _drawn(axes).get_facecolors().tolist() == [list(color) for color in colors]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(2)}, "do not fit"),
        ({"sizes": torch.zeros(2)}, "3 points have sizes of shape"),
        ({"extent": None}, "needs an extent"),
    ],
)
def test_a_panel_of_points_whose_parts_do_not_fit_is_refused(points, change, message):
    with pytest.raises(ValueError, match=message):
        replace(points, **change)


def test_figures_are_saved_as_png(strength, tmp_path):
    path = figures.save(figures.panel(strength), tmp_path / "deep" / "panel.png")
    assert path.read_bytes().startswith(b"\x89PNG")

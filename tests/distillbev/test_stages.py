"""Which stages an edited source file invalidates, for the recipe that comes with the method."""

from pathlib import Path
from types import SimpleNamespace

import distillbev.losses
import pytest
from bevkd_common.config.recipes import load_named
from bevkd_common.engine import train
from bevkd_common.experiment import sources
from bevkd_common.experiment.arms import baseline_arm, distilled_arm, teacher_arm
from bevkd_common.experiment.identity import arm_stage, pretraining_stage
from bevkd_common.experiment.laboratory import Laboratory
from bevkd_common.models import image_pretraining, second
from bevkd_common.models.detectors import bevdet
from bevkd_common.report import tables


@pytest.fixture
def stages(tmp_path):
    """Fingerprints of the stages by arm."""
    recipe = load_named("distillbev/centerpoint-bevdet.synthetic")
    dataset = SimpleNamespace(fingerprint=lambda needs: "data", classes=("car",))
    lab = Laboratory(recipe, dataset, seed=0, root=tmp_path, reporter=None, accelerator=None)

    def call():
        teacher, baseline = arm_stage(lab, teacher_arm(recipe), None), baseline_arm(recipe)
        found = {
            "teacher": teacher,
            "pretraining": pretraining_stage(lab, baseline.detector, baseline.pretraining),
            "baseline": arm_stage(lab, baseline, None),
            "distilled": arm_stage(lab, distilled_arm(recipe), teacher),
        }
        return {name: stage.fingerprint for name, stage in found.items()}

    return call


@pytest.mark.parametrize(
    ("module", "invalidated"),
    [
        (distillbev.losses, {"distilled"}),
        # What a stage is built on invalidates it too.
        (second, {"teacher", "distilled"}),
        (bevdet, {"pretraining", "baseline", "distilled"}),
        (image_pretraining, {"pretraining", "baseline", "distilled"}),
        (train, {"teacher", "pretraining", "baseline", "distilled"}),
        (tables, set()),
    ],
)
def test_an_edited_file_invalidates_the_stages_that_use_it(stages, monkeypatch, module, invalidated):
    before = stages()
    edited, original = Path(module.__file__), Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: original(path) + (b"\nEDITED = 1" if path == edited else b"")
    )
    sources._source.cache_clear()  # as another process would
    after = stages()
    sources._source.cache_clear()
    assert {name for name in before if before[name] != after[name]} == invalidated
    assert len(before) == 4

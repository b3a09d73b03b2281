import pytest

from cvt.config import VARIANTS
from cvt.studies.ablate.tables import STUDIES, TABLES

CVT_13 = VARIANTS["cvt_13"]


def row(study, label):
    return next(row for row in STUDIES[study].rows if row.label == label)


def changed(study, label, config=CVT_13):
    return row(study, label).change(config)


# Tables 5 to 8 of the paper, as they stand there.
@pytest.mark.parametrize(("study", "top1"), [
    ("position", [79.8, 78.0, 81.5, 81.4, 81.4, 81.6]), ("embedding", [80.7, 81.1, 81.4, 81.6]),
    ("stride", [82.3, 81.6]), ("projection", [80.6, 80.8, 81.0, 81.6])])
def test_the_rows_have_the_papers_figures(study, top1):
    assert [row.paper_top1 for row in STUDIES[study].rows] == top1


def test_every_table_has_the_published_network_as_a_row_with_its_figure():
    for name in TABLES:
        rows = [r for r in STUDIES[name].rows if r.network == "cvt" and r.change(CVT_13) == CVT_13]
        assert [r.paper_top1 for r in rows] == [81.6]


@pytest.mark.parametrize(("label", "where"), [
    ("CvT, in every stage", [True] * 3), ("CvT, in the first stage", [True, False, False]),
    ("CvT, in the last stage", [False, False, True]), ("CvT, in none", [False] * 3)])
def test_positions_are_embedded_where_the_label_says(label, where):
    assert [s.pos_embed for s in changed("position", label).stages] == where


@pytest.mark.parametrize("variant", ["cvt_13", "cvt_nano"])
def test_patches_do_not_overlap_and_keep_the_strides(variant):
    config = changed("embedding", "patches", VARIANTS[variant])
    assert config.strides == VARIANTS[variant].strides
    assert all(s.embed == "patch" and s.embed_kernel == s.embed_stride for s in config.stages)
    with_position = changed("embedding", "patches, with position embedding")
    assert [s.pos_embed for s in with_position.stages] == [True, False, False]


@pytest.mark.parametrize(("label", "projections"), [
    ("in no stage", ["linear"] * 3), ("in stage 1", ["conv", "linear", "linear"]),
    ("in stages 1 and 2", ["conv", "conv", "linear"]), ("in all stages", ["conv"] * 3)])
def test_stages_are_convolved_as_the_label_says(label, projections):
    assert [s.projection for s in changed("projection", label).stages] == projections


def test_stride_1_is_that_of_keys_and_values_in_every_stage():
    assert [s.stride_kv for s in changed("stride", "stride 1").stages] == [1, 1, 1]


def test_claims_are_about_rows_of_their_study():
    for study in STUDIES.values():
        labels = [r.label for r in study.rows]
        assert len(set(labels)) == len(labels)
        for claim in study.claims:
            assert {claim.one, claim.other} <= set(labels)

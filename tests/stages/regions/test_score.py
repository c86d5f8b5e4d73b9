import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.regions.score import SCORES, Evidence, rounded_score

EVIDENCE = Evidence(energy=0.5, area=0.1, mean_inside=0.6, mean_outside=0.1, peak=0.9, threshold=0.4, similarity=0.2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("energy", 0.5),
        ("contrast", 0.5),
        ("product", 0.25),
        ("mean_heat", 0.6),
        ("peak", 0.9),
        ("similarity", 0.6),
    ],
)
def test_formulas(name, expected):
    assert rounded_score(name, EVIDENCE) == pytest.approx(expected)


def test_formulas_are_complete():
    assert set(SCORES) == {"energy", "contrast", "product", "mean_heat", "peak", "similarity"}


def test_contrast_of_a_part_colder_than_the_rest_is_zero():
    assert rounded_score("contrast", replace(EVIDENCE, mean_outside=0.7)) == 0.0


shares = st.floats(0, 1)
evidences = st.builds(
    Evidence,
    energy=shares,
    area=shares,
    mean_inside=shares,
    mean_outside=shares,
    peak=shares,
    threshold=shares,
    similarity=st.floats(-1.01, 1.01),
)


@pytest.mark.parametrize("name", sorted(SCORES))
@given(evidence=evidences)
def test_scores_are_shares(name, evidence):
    score = rounded_score(name, evidence)
    assert math.isfinite(score)
    assert 0.0 <= score <= 1.0
    assert score == round(score, 6)

"""What the figures say in sentences: a good run, and each thing that may be wrong with one."""

from __future__ import annotations

import copy

import pytest

from evaluation.findings import findings, of_a_curve

GOOD = {
    "bits_per_dim": {"rate_counts": 1.0, "rate_prior": 0.75},
    "codebook": {"usage": 0.9},
    "classifier": {"real_accuracy": 0.98, "reconstruction_agreement": 0.96, "sample_agreement": 0.92},
}


def said(section: str = "codebook", **figures: float) -> str:
    """The sentences about a good run with some figures replaced."""
    metrics = copy.deepcopy(GOOD)
    metrics[section] |= figures
    return "\n".join(map(str, findings(metrics, expected_usage=1.0)))


def test_a_good_run_is_told_its_savings_and_its_agreement_and_nothing_else():
    prior, classifier = said().splitlines()
    assert "25% fewer bits" in prior
    assert "98% of the test images, 96% of their reconstructions, and 92% of the samples" in classifier


@pytest.mark.parametrize(
    ("section", "figures", "expected"),
    [
        ("bits_per_dim", {"rate_prior": 0.99}, "about as many bits"),
        ("bits_per_dim", {"rate_prior": 1.5}, "50% more bits"),
        ("codebook", {"usage": 0.3}, "Only 30% of the codes"),
        ("classifier", {"reconstruction_agreement": 0.6}, "Mend stage 1"),
        ("classifier", {"sample_agreement": 0.4}, "look little like their classes"),
    ],
)
def test_what_is_wrong_is_named(section, figures, expected):
    assert expected in said(section, **figures)
    assert expected not in said()


def test_few_test_images_do_not_make_codes_look_dead():
    assert not any(finding.advice for finding in findings(GOOD | {"codebook": {"usage": 0.3}}, expected_usage=0.4))


def test_without_a_classifier_only_the_prior_is_spoken_of():
    assert len(findings({name: GOOD[name] for name in ("bits_per_dim", "codebook")}, 1.0)) == 1


def test_distances_are_told_with_their_judge_and_copies_are_named():
    kids = {name: {"kid": kid} for name, kid in (("reconstructions", 0.01), ("default", 0.2), ("floor", 0.001))}
    measured = GOOD | {"distribution": {"features": "vgg16"} | kids, "memorisation": {"nearer_than_test": 0.5}}
    (sentence,) = findings(measured, 1.0)[2:]
    assert "features of vgg16" in sentence.text and all(
        text in sentence.text for text in ("0.0100", "0.2000", "0.0010")
    )
    copied = measured | {"memorisation": {"nearer_than_test": 0.9}}
    assert "may be copies" in findings(copied, 1.0)[3].text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 2.0, 1.9, 1.9, 2.2, 2.5], "overfitted: its validation nats was best at step 200 (1.9) and rose to 2.5"),
        ([3.0, 2.5, 2.2, 2.0, 1.8, 1.6], "still learning: its validation nats fell by 11.1% from"),
        ([3.0, 2.0, 1.91, 1.9, 1.9, 1.91], None),
        ([3.0, 2.0], None),
    ],
)
def test_a_validation_curve_tells_of_overfitting_and_of_too_few_steps(values, expected):
    found = of_a_curve("The prior", "nats", [100 * i for i in range(len(values))], values)
    assert [expected in finding.text and bool(finding.advice) for finding in found] == ([True] if expected else [])

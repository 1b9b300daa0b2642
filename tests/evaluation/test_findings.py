"""What the figures say in sentences: a good run, and each thing that may be wrong with one; and the figures' table."""

from __future__ import annotations

import copy

import pytest

from evaluation.evaluate import table
from evaluation.findings import findings, of_a_curve
from evaluation.usage import Usage

GOOD = {
    "bits_per_dim": {"rate_counts": 1.0, "rate_prior": 0.75},
    "codebook": {"usage": 0.9},
    "classifier": {"real_accuracy": 0.98, "reconstruction_agreement": 0.96, "sample_agreement": 0.92},
    "reconstruction": {"nmse": 0.03},
}


GOOD_USAGE = Usage(0.9, 1.0)


@pytest.fixture
def said(params):
    """`said(section, usage, changes, **figures)`: the sentences about a good run with some figures replaced."""

    def say(
        section: str = "codebook",
        usage: Usage = GOOD_USAGE,
        changes: dict[str, object] | None = None,
        **figures: object,
    ) -> str:
        metrics = copy.deepcopy(GOOD)
        metrics[section] |= figures
        return "\n".join(map(str, findings(metrics, usage, params(changes or {}))))

    return say


def test_a_space_is_between_each_name_and_its_value():
    left_out = {"distribution.reconstructions": "it takes two images"}
    assert table({"codebook": {"usage": 0.9}, "unavailable": left_out}) == (
        "codebook\n"
        "  usage                           0.9000\n"
        "unavailable\n"
        "  distribution.reconstructions it takes two images"
    )


def test_a_good_run_is_told_its_savings_and_its_agreement_and_nothing_else(said):
    prior, classifier = said().splitlines()
    assert "25% fewer bits" in prior
    assert "98% of the test images, 96% of their reconstructions, and 92% of the samples" in classifier


@pytest.mark.parametrize(
    ("section", "figures", "expected"),
    [
        ("bits_per_dim", {"rate_prior": 0.99}, "about as many bits"),
        ("bits_per_dim", {"rate_prior": 1.5}, "50% more bits"),
        ("codebook", {"usage": Usage(0.3, 1.0)}, "Only 30% of the codes occur"),
        ("codebook", {"usage": Usage(0.3, 1.0, " of the finest scale")}, "Only 30% of the codes of the finest scale"),
        ("classifier", {"reconstruction_agreement": 0.6}, "Mend stage 1"),
        ("classifier", {"sample_agreement": 0.4}, "look little like their classes"),
        ("classifier", {"majority_accuracy": 0.98}, "The classifier is hardly better"),
    ],
)
def test_what_is_wrong_is_named(said, section, figures, expected):
    assert expected in said(section, **figures)
    assert expected not in said()


def test_agreement_with_a_classifier_that_has_learned_nothing_is_not_held_against_the_samples(said):
    constant = {"real_accuracy": 0.65, "majority_accuracy": 0.65, "reconstruction_agreement": 0.65}
    advice = said("classifier", **constant, sample_agreement=0.11)
    assert "Train it longer (classifier.training.steps)" in advice
    assert "look little like their classes" not in advice


def test_a_classifier_is_not_blamed_for_classes_of_very_different_sizes(said):
    assert "learned little" not in said("classifier", real_accuracy=0.98, majority_accuracy=0.9)
    assert "learned little" not in said("classifier", real_accuracy=1.0, majority_accuracy=1.0)
    assert "learned little" not in said("classifier", real_accuracy=0.99, majority_accuracy=1.0)  # one class
    assert "learned little" not in said("classifier", real_accuracy=0.09, majority_accuracy=0.005)  # 200 classes
    assert "learned little" not in said("classifier", real_accuracy=0.05)  # an older evaluation, without the figure


def test_a_classifier_that_is_a_little_better_than_the_most_frequent_class_is_named(said):
    assert "learned little" in said("classifier", real_accuracy=0.41, majority_accuracy=0.31)
    assert "learned little" not in said("classifier", real_accuracy=0.46, majority_accuracy=0.31)


def test_a_classifier_that_is_never_right_is_named_too(said):
    assert "learned little" in said("classifier", real_accuracy=0.0, majority_accuracy=0.2)


def test_few_test_images_do_not_make_codes_look_dead(params):
    assert not any(finding.advice for finding in findings(GOOD, Usage(0.3, expected=0.4), params()))


def test_without_a_classifier_only_the_prior_is_spoken_of(params):
    assert len(findings({name: GOOD[name] for name in ("bits_per_dim", "codebook")}, GOOD_USAGE, params())) == 1


@pytest.mark.parametrize("name", ["transformer", "counts", "uniform"])
@pytest.mark.parametrize(
    ("section", "figures"), [("bits_per_dim", {"rate_prior": 1.0}), ("classifier", {"sample_agreement": 0.1})]
)
def test_a_prior_that_is_not_trained_is_not_to_be_trained_longer(said, name, section, figures):
    text = said(section, changes={"stage2_prior.name": name}, **figures)
    assert ("Train the prior longer" in text) is (name == "transformer")
    assert ("Choose a prior that is trained" in text) is (name != "transformer")


def test_codes_that_need_no_bits_are_no_fault_of_the_prior(said):
    assert "docs/" not in said("bits_per_dim", rate_counts=0.0, rate_prior=0.0)


def test_advice_about_unused_codes_names_nothing_that_is_refused(said):
    learned = {"codebook_update": "gradient", "codebook_cost": 0.0, "gradient_estimator": "diveq"}
    changes = {f"stage1_vqvae.quantizer.vq.{name}": value for name, value in learned.items()}
    changes |= {"stage1_vqvae.quantizer.revival_threshold": 0.0, "stage1_vqvae.training.weight_ema_decay": 0.9}
    assert "revival_threshold" not in said(usage=Usage(0.1, 1.0), changes=changes)
    changes |= {"stage1_vqvae.quantizer.name": "gumbel", "extract_codes.draws": 2}
    assert "fsq" not in said(usage=Usage(0.1, 1.0), changes=changes)


@pytest.mark.parametrize(
    ("changes", "there", "missing"),
    [
        ({}, ("revival_threshold` above 0.02", "codebook_size", "fsq"), ("start",)),
        ({"start": "normal", "revival_threshold": 0.0}, ("start: kmeans", "revival_threshold` above 0)"), ()),
        ({"name": "residual"}, ("revival_threshold", "fsq"), ("start",)),
        ({"name": "gumbel"}, ("codebook_size", "fsq"), ("start", "revival_threshold")),
        ({"name": "fsq"}, ("fewer or smaller `levels`",), ("start", "revival_threshold", "codebook_size", "fsq")),
        ({"name": "lfq"}, ("entropy_cost", "fewer `bits`"), ("start", "revival_threshold", "codebook_size", "fsq")),
        ({"name": "bsq"}, ("entropy_cost", "fewer `bits`"), ("start", "revival_threshold", "codebook_size", "fsq")),
    ],
)
def test_advice_about_unused_codes_names_only_what_the_quantizer_has(said, changes, there, missing):
    given = {f"stage1_vqvae.quantizer.{name}": value for name, value in changes.items()}
    text = said(usage=Usage(0.1, 1.0), changes=given).splitlines()[-1]
    assert all(word in text for word in there) and not any(word in text for word in missing), text


def test_distances_are_told_with_their_judge_and_copies_are_named(params):
    kids = {name: {"kid": kid} for name, kid in (("reconstructions", 0.01), ("default", 0.2), ("floor", 0.001))}
    measured = GOOD | {"distribution": {"features": "vgg16"} | kids, "memorisation": {"nearer_than_test": 0.5}}
    (sentence,) = findings(measured, GOOD_USAGE, params())[2:]
    assert "features of vgg16" in sentence.text and all(
        text in sentence.text for text in ("0.0100", "0.2000", "0.0010")
    )
    copied = measured | {"memorisation": {"nearer_than_test": 0.9}}
    assert "may be copies" in findings(copied, GOOD_USAGE, params())[3].text


def test_features_of_a_classifier_that_has_learned_nothing_do_not_tell_copies(params):
    kids = {name: {"kid": 0.1} for name in ("reconstructions", "default", "floor")}
    measured = GOOD | {"distribution": {"features": "classifier"} | kids, "memorisation": {"nearer_than_test": 0.9}}
    constant = measured | {"classifier": GOOD["classifier"] | {"real_accuracy": 0.65, "majority_accuracy": 0.65}}
    assert "may be copies" in "\n".join(map(str, findings(measured, GOOD_USAGE, params())))
    assert "may be copies" not in "\n".join(map(str, findings(constant, GOOD_USAGE, params())))


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


@pytest.mark.parametrize("patient", [True, False])
def test_a_patience_is_advised_only_where_there_is_none(patient):
    (found,) = of_a_curve("The prior", "nats", [0, 100, 200], [3.0, 2.0, 2.5], patient)
    assert ("patience" in found.advice) is not patient


def test_reconstructions_that_lose_details_are_named_with_what_mends_stage_1(said):
    assert "miss 6.7% of the variance" in (text := said("reconstruction", nmse=0.067)) and "finer grid" in text
    assert "details are lost" not in said("reconstruction", nmse=0.04)


def test_stage_1_is_to_be_mended_once_where_both_the_error_and_the_classifier_say_so(params):
    metrics = copy.deepcopy(GOOD) | {"reconstruction": {"nmse": 0.2}}
    metrics["classifier"]["reconstruction_agreement"] = 0.6
    assert "\n".join(map(str, findings(metrics, GOOD_USAGE, params()))).count("Mend stage 1") == 1


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"cat": 0.9, "dog": 0.5}, None),  # half of the 98% of test images is 49%
        ({"cat": 0.4, "dog": 0.9, "a fox": 0.1}, "seldom recognised: a fox (10%), cat (40%)."),
        ({"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}, "seldom recognised: d (10%), c (20%), b (30%) and 1 more."),
    ],
)
def test_the_classes_whose_samples_are_seldom_recognised_are_named_the_worst_first(said, shares, expected):
    per_class = [{"class": name, "sample_agreement": share, "samples": 10} for name, share in shares.items()]
    text = said("classifier", per_class=per_class)
    assert (expected in text) if expected else ("seldom recognised" not in text)


def test_few_samples_of_a_class_say_nothing_of_it(said):
    assert "seldom" not in said("classifier", per_class=[{"class": "cat", "sample_agreement": 0.0, "samples": 9}])

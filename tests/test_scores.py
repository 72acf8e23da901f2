"""Scores, calibration and confusion of logits, agreement of a student with its teacher: against literal numbers."""

import numpy as np
import pytest

from kerakd.errors import BadInput
from kerakd.scores import agreement, calibration_error, confusion, labels_of, summary, worst


def test_a_student_that_says_the_same_agrees():
    logits = np.random.default_rng(0).normal(size=(20, 7))
    found = agreement(logits, logits)
    assert found == {"kl": pytest.approx(0, abs=1e-12), "top1": 1, "top5": 1, "distance": 0}


def test_literal_numbers():
    student, teacher = np.array([[2.0, 1.0, -1.0]]), np.array([[3.0, 0.5, -2.0]])
    found = agreement(student, teacher)
    assert found["kl"] == pytest.approx(0.138455, abs=1e-6) and found["distance"] == pytest.approx(1.5)
    assert found["top1"] == found["top5"] == 1


def test_the_teachers_class_is_looked_for_among_the_students_five():
    teacher = np.eye(7)[[0, 1, 6]]
    student = np.tile(np.arange(7.0, 0, -1), (3, 1))  # 0 first, 6 last
    found = agreement(student, teacher)
    assert found["top1"] == pytest.approx(1 / 3) and found["top5"] == pytest.approx(2 / 3)


def test_logits_of_ten_thousand_stay_finite():
    found = agreement(np.array([[1e4, 0.0]]), np.array([[0.0, 1e4]]))
    assert all(np.isfinite(value) for value in found.values()) and found["kl"] == pytest.approx(1e4)


def test_scores_against_literal_numbers():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.5, 0.3, 0.2]]))
    found = summary(logits, np.array([0, 1, 0, 1]))
    assert found["accuracy"] == 0.5 and found["top5"] == 1
    assert found["nll"] == pytest.approx(-np.log([0.7, 0.8, 0.2, 0.3]).mean())
    # each in a bin of its own: 1 - 0.7, 1 - 0.8, 0.6, 0.5
    assert found["calibration_error"] == pytest.approx((0.3 + 0.2 + 0.6 + 0.5) / 4)


def test_calibration_error_of_bins_is_of_their_means():
    logits = np.log(np.array([[0.9, 0.1]] * 10))
    assert calibration_error(logits, np.array([0] * 9 + [1])) == pytest.approx(0, abs=1e-9)
    assert calibration_error(logits, np.array([0] * 5 + [1] * 5)) == pytest.approx(0.4)
    assert calibration_error(np.array([[1e4, 0.0]]), np.array([0])) == pytest.approx(0)  # confidence 1 has a bin


def test_the_label_is_looked_for_among_the_five_largest_logits():
    logits = np.tile(np.arange(7.0, 0, -1), (3, 1))
    assert summary(logits, np.array([0, 4, 5]))["top5"] == pytest.approx(2 / 3)


def test_confusion_counts_and_names_the_worst_pairs():
    logits = np.eye(3)[[0, 0, 1, 2, 2, 2]]
    counts = confusion(logits, np.array([0, 1, 1, 2, 0, 0]), 3)
    assert counts.tolist() == [[1, 0, 2], [1, 1, 0], [0, 0, 1]]
    assert worst(counts, "abc") == [(2, "a", "c"), (1, "b", "a")]


def test_labels_that_a_dataset_keeps_to_itself_are_no_errors_of_the_network():
    with pytest.raises(BadInput, match="expected labels of 0 and more, received -1"):
        labels_of([(None, np.array([1, 2])), (None, np.array([-1]))])

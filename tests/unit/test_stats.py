"""Histograms and percentiles against numpy's own on the same samples."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import histogram
from hypothesis import given
from hypothesis import strategies as st

from nettop.core import histogram as hist
from nettop.core.histogram import SLOTS, STEPS, Histogram, packed
from nettop.render import draw

LARGEST = int(hist.bucket_lowers()[-1])
delays = st.integers(0, LARGEST - 1)
samples = st.lists(delays, min_size=1, max_size=200)


def test_the_buckets_reach_from_zero_beyond_ten_seconds():
    assert hist.bucket_lowers()[0] == 0
    assert LARGEST > 10 * 10**9


@given(delays | st.integers(0, SLOTS - 1).map(lambda slot: int(hist.bucket_lowers()[slot])))
def test_a_value_lies_in_its_bucket_which_is_at_most_a_sixteenth_wide(value):
    slot = hist.bucket_of(value)
    low, high = hist.bucket_lowers()[slot : slot + 2]
    assert low <= value < high
    assert (high - low) * STEPS <= low or value < STEPS


def test_what_is_too_large_is_in_the_last_bucket_and_what_is_negative_in_the_first():
    assert hist.bucket_of(2**63) == SLOTS - 1
    assert hist.bucket_of(-5) == 0


@given(samples, st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_is_in_the_bucket_of_the_true_one(values, fraction):
    found = hist.percentile(histogram(*values), fraction)
    true = int(np.quantile(np.array(values), fraction, method="inverted_cdf"))
    slot = hist.bucket_of(true)
    # The interpolation may end on the upper edge of the bucket.
    assert hist.bucket_lowers()[slot] <= found <= hist.bucket_lowers()[slot + 1]


def test_an_empty_histogram_has_no_percentile_no_mean_and_no_ends():
    empty = Histogram.empty()
    for value in (hist.percentile(empty, 0.5), hist.mean(empty), hist.smallest(empty), hist.largest(empty)):
        assert value is None


@given(samples)
def test_mean_is_exact_and_the_ends_enclose(values):
    h = histogram(*values)
    assert hist.mean(h) == pytest.approx(sum(values) / len(values))
    assert hist.smallest(h) <= min(values)
    assert hist.largest(h) > max(values)


@given(samples)
def test_json_holds_all_of_a_histogram(values):
    h = histogram(*values)
    back = hist.histogram_from_json(hist.histogram_json(h))
    assert (back.counts == h.counts).all()
    assert back.sum_ns == h.sum_ns


@given(samples, samples)
def test_sums(a, b):
    total = Histogram.total([histogram(*a), histogram(*b)])
    assert (total.counts == histogram(*a, *b).counts).all()
    assert total.sum_ns == sum(a) + sum(b)
    assert ((histogram(*a) + histogram(*b)).counts == total.counts).all()


def test_none_is_empty():
    assert Histogram.total([]).count == hist.histogram_from_json(None).count == 0


def test_counters_that_go_back_started_anew():
    now, before = np.array([5, 3], np.uint64), np.array([2, 9], np.uint64)
    assert hist.difference(now, before).tolist() == [3, 3]
    assert hist.difference(now, None).tolist() == [5, 3]


@given(samples)
def test_rebinning_loses_nothing(values):
    edges = np.array([0, 1000, 10**6, 10**9], np.int64)
    assert int(draw.binned([histogram(*values)], edges).sum()) == len(values)


def test_rebinning_puts_values_between_their_edges():
    edges = np.array([0, 1000, 10**6, 10**9], np.int64)
    assert draw.binned([histogram(500, 5000, 5000, 5 * 10**7, 5 * 10**9)], edges).tolist() == [[1, 2, 2]]


@given(
    st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(1, 2**40)), max_size=20), st.integers(0, 2**50)
)
def test_a_packed_histogram_is_the_same_histogram(entries, total):
    counts = np.zeros(SLOTS, np.uint64)
    for slot, count in entries:
        counts[slot] += np.uint64(count)
    whole = Histogram(counts, total)
    small = packed((1, (whole, "x")))[1][0]
    assert small.counts.tolist() == counts.tolist()
    assert (small.count, small.sum_ns) == (whole.count, whole.sum_ns)
    assert hist.percentile(small, 0.5) == hist.percentile(whole, 0.5)
    assert (small + whole).counts.tolist() == (whole + whole).counts.tolist()


def test_what_holds_no_histogram_is_not_copied():
    value = (1, "x", ("y",))
    assert packed(value) is value

"""Claims on crafted curves, their judgement on crafted images, and on all published rows."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from nbsupport.experiments.artifacts import Experiment
from nbsupport.results import claims
from nbsupport.results.claims import (
    CLAIMS,
    OVER_STEPS,
    Above,
    Curves,
    check,
    judge,
    per_image,
    published_claims,
)
from nbsupport.results.tables import PAPER, WORST_CASE, published
from nbsupport.study import EPS, STRONG_EPS, Study

S, M, L = EPS[:3], EPS[3:7], EPS[7:12]  # the paper's regions, as its text names them
FOUR = [f"{kind}({loss})" for kind in ("Add", "Filt") for loss in ("L_sem", "L_img")]
QUALITY = [(metric, method) for metric in ("psnr", "ssim") for method in FOUR]
SL, M_PART, FUSED = "PA-Filt(L_img)_sl", "PA-Filt(L_img)_m", "PA-Filt(L_img)"


def within(strengths):
    return np.isin(EPS, list(strengths))


REGIONS = {"S": within(S), "M": within(M), "L": within(L)}


def curve(level=0.5, **changes):
    """A flat curve, but .1 higher at the strengths ``up`` and .1 lower at those ``down``."""
    values = np.full(len(EPS), level)
    for name, strengths in changes.items():
        values = values + within(strengths) * {"up": 0.1, "down": -0.1}[name]
    return values


def curves(given, regions=REGIONS, eps=EPS):
    """Curves from a method (both its accuracies) or a (metric, method) to numbers."""
    numbers = {key: np.asarray(values, float) for key, values in given.items()}
    accuracies = WORST_CASE, "accuracy"
    return Curves(lambda key: numbers[key[1] if key[0] in accuracies else key], regions, eps)


def flat(*names, level=0.5):
    return {name: curve(level) for name in names}


# Curves for which each claim just holds.
HOLDS = {
    "C1": flat("attacked", *FOUR)
    | {"Filt(L_img)": curve(up=EPS[:8]), "Filt(L_sem)": curve(up=EPS[5:])},
    "C2": {"attacked": curve(), "Filt(L_img)": curve(up=EPS[:1], down=EPS[1:])},
    "C3": {"Filt(L_sem)": curve(), "Filt(L_img)": curve(up=S + L, down=M)},
    "C4": flat("attacked")
    | {which: curve(up=EPS if "Filt" in which[1] else ()) for which in QUALITY},
    "C5": flat("attacked")
    | {which: curve(up=EPS if which[1] == "Filt(L_img)" else ()) for which in QUALITY},
    "C6": flat(*FOUR) | {"Filt(L_img*)": curve(up=M, down=S)},
    "C7": flat("head_1", "head_2") | {"head_3": curve(down=EPS[6:]), "head_4": curve(down=EPS[:6])},
    "C8": {"Filt(L_img*)": curve(0.5), "head_4": curve(0.52)},
    "C9": {"Filt(L_img)": curve(), FUSED: curve(up=M, down=S + L)},
    "C10": {SL: curve(down=L), M_PART: curve(down=S), FUSED: curve()},
    "C11": {"attacked": curve(), SL: curve(up=EPS[:1]), M_PART: curve(down=EPS[:1])},
    "C12": {("spearman", "Filt(L_img)"): [0.9]},
    "C13": {("kernel_distance", SL): np.where(within([0.1]), 5.0, 1.0)},
    "C14": {"Adv": curve(), "Filt+Adv": np.where(within(STRONG_EPS), 0.501, 0.489)},
    "C15": {
        (OVER_STEPS, "Adv"): [0.5, 0.4, 0.3, 0.2, 0.1],
        (OVER_STEPS, "Filt+Adv"): [0.51, 0.41, 0.31, 0.21, 0.11],
    },
    "C16": {"FPD": curve()}
    | dict.fromkeys(("Add+FPD", "Filt+FPD"), curve(up=EPS[10:], down=EPS[:10])),
    "C17": {"FD": curve()}
    | dict.fromkeys(("Add+FD", "Filt+FD"), curve(up=EPS[11:], down=EPS[:11])),
    "C18": {"attacked": [0.9, 0.9, 0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.0, 0.0]},
    "C19": flat("head_1", "head_2", "head_3") | {"head_4": curve(up=EPS[1:4], down=EPS[4:])},
    "C20": {"attacked": curve(), "Add(L_img)": curve(up=EPS[:1], down=EPS[1:])},
}
# One curve, put in the place of the one above, with which the claim just fails.
FAILS = {
    "C1: seven columns for the image loss": ("Filt(L_img)", curve(up=EPS[:7])),
    "C1: seven columns for the semantic loss": ("Filt(L_sem)", curve(up=EPS[6:])),
    "C2: as good as before": ("Filt(L_img)", curve(up=EPS[1:])),
    "C3: equal on S": ("Filt(L_img)", curve(up=L, down=M)),
    "C4: equal in one column": (("ssim", "Filt(L_sem)"), curve(up=EPS[:-1])),
    "C5: another is as good in one": (("ssim", "Filt(L_sem)"), curve(up=EPS[:1])),
    "C6: equal in one middle column": ("Filt(L_img*)", curve(up=M[1:], down=S)),
    "C6: equal in one column of S": ("Filt(L_img*)", curve(up=M, down=S[1:])),
    "C6: one of the four is as good": ("Add(L_sem)", curve(up=M[:1])),
    "C7: an early head is ahead in one column": ("head_2", curve(up=EPS[4:5])),
    "C8: too far below in one column": ("head_4", np.where(within([0.1]), 0.479, 0.5)),
    "C9: equal in one column of M": (FUSED, curve(up=M[:-1])),
    "C10: sl is ahead in one column": (SL, curve(up=EPS[2:3])),
    "C11: sl is no better": (SL, curve(up=EPS[1:])),
    "C12: too weak": (("spearman", "Filt(L_img)"), [0.899]),
    "C13: too near": (("kernel_distance", SL), np.where(within([0.1]), 4.99, 1.0)),
    "C14: equal at a strong ε": ("Filt+Adv", np.where(within(STRONG_EPS[1:]), 0.501, 0.5)),
    "C14: too much is lost": ("Filt+Adv", HOLDS["C14"]["Filt+Adv"] - 0.001 * within([0.003])),
    "C15: equal at one n": ((OVER_STEPS, "Filt+Adv"), [0.51, 0.41, 0.3, 0.21, 0.11]),
    "C16: equal at 0.5": ("Filt+FPD", curve(up=EPS[10:12])),
    "C17: equal at 0.5": ("Filt+FD", curve(up=EPS[11:12])),
    "C18: rises once": ("attacked", [*HOLDS["C18"]["attacked"][:9], 0.11, 0.1, 0.0, 0.0]),
    "C18: stays above 0": ("attacked", [*HOLDS["C18"]["attacked"][:11], 0.001, 0.001]),
    "C19: as good as the best at one strength": ("head_1", curve(up=[5e-4])),
    "C20: as good as before": ("Add(L_img)", curve()),
}


def verdict(claim, given, regions=REGIONS):
    return check(claim, curves(given, regions))[0] > 0


@pytest.mark.parametrize(("claim", "given"), HOLDS.items(), ids=HOLDS)
def test_a_claim_holds_where_it_just_does(claim, given):
    assert verdict(claim, given)


@pytest.mark.parametrize(("case", "change"), FAILS.items(), ids=FAILS)
def test_and_fails_where_it_just_does_not(case, change):
    claim, (which, values) = case.split(":")[0], change
    assert not verdict(claim, HOLDS[claim] | {which: values})


def test_equal_averages_in_another_order_are_equal():
    semantic, image = [0.7, 0.1, 0.3, *[0.5] * 10], [0.1, 0.3, 0.7, *[0.4] * 4, *[0.6] * 6]
    assert not verdict("C3", {"Filt(L_sem)": semantic, "Filt(L_img)": image})


def test_every_claim_has_both_cases():
    assert set(HOLDS) == {case.split(":")[0] for case in FAILS} == set(CLAIMS)


@pytest.mark.parametrize("claim", ["C3", "C6", "C9"])
def test_without_middle_strengths_a_claim_about_them_cannot_be_judged(claim):
    with pytest.raises(KeyError, match="expected 1 such strengths, got 0"):
        check(claim, curves(HOLDS[claim], REGIONS | {"M": within([])}))


@pytest.mark.parametrize(("claim", "few"), [("C14", 10), ("C16", 10), ("C17", 10), ("C1", 7)])
def test_nor_without_strong_attacks_or_enough_columns(claim, few):
    given = {method: values[:few] for method, values in HOLDS[claim].items()}
    with pytest.raises(KeyError, match="such strengths"):
        check(claim, curves(given, {}, EPS[:few]))


def test_the_margin_is_that_of_the_condition_that_is_met_least():
    methods = ("attacked", *FOUR, "Adv", "Filt+Adv")
    drawn = dict(zip(methods, np.random.default_rng(0).uniform(size=(7, 13, 50)), strict=True))
    margins = {claim: check(claim, curves(drawn))[0] for claim in ("C1", "C14", "C18")}
    for sample in range(50):
        one = {method: values[:, sample].tolist() for method, values in drawn.items()}
        gains = {
            pair: [a - b for a, b in zip(*(one[name] for name in pair), strict=True)]
            for pair in (("Filt(L_img)", "Add(L_img)"), ("Filt(L_sem)", "Add(L_sem)"))
        }
        adv = [a - b for a, b in zip(one["Filt+Adv"], one["Adv"], strict=True)]
        falls = [a - b for a, b in zip(one["attacked"], one["attacked"][1:], strict=False)]
        expected = {
            "C1": min(sorted(each)[5] for each in gains.values()),  # the eighth from above
            "C14": min(*adv[10:], *(gain + 0.011 for gain in adv[:10])),
            "C18": min(*falls, -one["attacked"][-1]),
        }
        for claim, margin in expected.items():
            assert margins[claim][sample] == pytest.approx(margin, abs=1e-8)


@pytest.mark.parametrize(("of_500", "holds"), [(0, True), (10, True), (11, False)])
def test_c8_includes_two_hundredths(of_500, holds):
    # differences of such accuracies are seldom exact in floating point
    counts = np.arange(13, 500 - 11, 35)[:13]
    assert verdict("C8", {"Filt(L_img*)": counts / 500, "head_4": (counts + of_500) / 500}) == holds


# -- judged on images ----------------------------------------------------------------------------


@pytest.fixture
def craft(monkeypatch):
    """An experiment of given results: which images each method gets right, (strengths, images)."""

    def make(
        correct=None,
        *,
        failures=None,
        over_steps=None,
        seed=0,
        eps=EPS,
        unseen_eps=(),
        groups=None,
        **measured,
    ):
        given = {name: np.asarray(values, dtype=float) for name, values in measured.items()}
        number = np.shape([*(correct or {}).values(), *given.values()][0])[1]

        def measure(experiment, method):
            right = (correct or {}).get(method, np.ones((len(eps) + len(unseen_eps), number)))
            return {"accuracy": np.array(right, dtype=bool), **given}

        monkeypatch.setattr(claims, "measure", measure)
        alike = np.arange(number) if groups is None else groups
        monkeypatch.setattr(claims, "groups", lambda _: alike)
        monkeypatch.setattr(claims, "failure", lambda _, method: (failures or {}).get(method))
        monkeypatch.setattr(claims, "curve_over_steps", lambda _, method, eps: over_steps[method])
        experiment = object.__new__(Experiment)
        sizes = {"test_images": number, "seed": seed, "eps": eps, "unseen_eps": unseen_eps}
        experiment.study = Study.named(scale="smoke", **sizes)
        return experiment

    published_claims()  # kept before a test replaces a claim
    return make


def right(number, of=40):
    """The first `number` images are right, at every strength."""
    return np.tile(np.arange(of) < number, (13, 1))


def judged(experiment, claim, **options):
    return judge(experiment, claim, **options).iloc[0]


@pytest.mark.parametrize(
    ("times", "outcome"),
    [(195, "holds"), (194, "inconclusive"), (6, "inconclusive"), (5, "fails")],
)
def test_the_outcome_follows_from_the_share_of_resamples(times, outcome, craft, monkeypatch):
    experiment = craft({"attacked": right(20)})
    met = np.where(np.arange(200)[None] < times, 1.0, -1.0)
    crafted = lambda c: [Above("", met if c["attacked"].ndim == 2 else met.mean(axis=1))]  # noqa: E731
    monkeypatch.setitem(CLAIMS, "C2", ("", crafted))
    row = judged(experiment, "C2", resamples=200)
    assert (row["support"], row["outcome"]) == (times / 200, outcome)
    assert (row["low"] > 0, row["high"] <= 0) == (outcome == "holds", outcome == "fails")


@pytest.mark.parametrize("more", [-10, 0, 1, 10])
def test_support_and_interval_are_over_test_sets_of_the_same_images(more, craft):
    # two more images are drawn from, one won and one lost; what a resample wins is multinomial
    experiment = craft({"attacked": right(20), "Filt(L_img)": right(20 + more)})
    row = judged(experiment, "C2", resamples=20_000)
    shares = np.array([max(more, 0) + 1, max(-more, 0) + 1, 40 - abs(more)]) / 42
    won, lost = np.random.default_rng(9).multinomial(42, shares, 20_000).T[:2]
    low, high = np.quantile((won - lost) / 42, (0.025, 0.975))
    interval = [row["low"], row["margin"], row["high"]]
    assert interval == pytest.approx([low, more / 40, high], abs=0.03)
    assert row["support"] == pytest.approx((won > lost).mean(), abs=0.03)


@pytest.mark.parametrize(("size", "outcome"), [(1, "holds"), (10, "inconclusive")])
def test_a_gain_on_patches_of_one_photograph_is_no_gain_on_others(size, outcome, craft):
    groups = np.arange(40) // size
    experiment = craft({"attacked": right(20), "Filt(L_img)": right(30)}, groups=groups)
    assert judged(experiment, "C2")["outcome"] == outcome


def test_a_claim_about_all_columns_is_not_lost_to_the_luck_of_one(craft):
    """It is ahead by .05 in every column, and the 95 % interval contains the least gain."""
    random, found = np.random.default_rng(2), []
    attacked = np.vstack([right(180, 200)[:1], right(70, 200)[1:]])  # all others are of middle size
    for _ in range(40):
        bare = random.random((13, 200)) < 0.5
        won = bare | (random.random((13, 200)) < 0.1)
        experiment = craft({"Filt(L_img)": bare, FUSED: won, "attacked": attacked})
        row = judged(experiment, "C9", resamples=400)
        found.append(row["plain_low"] <= 0.05 <= row["plain_high"])
    assert np.mean(found) > 0.5  # without a correction in none of them


CLUMSY = np.arange(13)[:, None] != np.full(40, 1)  # fools every image at 1e-4, and nowhere else
WEAK = np.arange(13)[:, None] < np.full(40, 1)  # every image is fooled from 1e-4


@pytest.mark.parametrize(
    ("filtered", "added", "worst", "plain"),
    [
        (CLUMSY, WEAK, "inconclusive", "holds"),
        (np.arange(13)[:, None] < np.full(40, 9), CLUMSY, "holds", "inconclusive"),
        (np.ones((13, 40)), CLUMSY, "holds", "inconclusive"),
        (np.ones((13, 40)), WEAK, "holds", "holds"),
    ],
)
def test_accuracies_are_read_in_the_worst_case_and_plainly(filtered, added, worst, plain, craft):
    correct = dict.fromkeys(("Filt(L_img)", "Filt(L_sem)"), filtered)
    row = judged(craft(correct | dict.fromkeys(("Add(L_img)", "Add(L_sem)"), added)), "C1")
    assert (row["outcome"], row["plain_outcome"]) == (worst, plain)


def test_ties_are_ties_and_no_rounding_decides(craft):
    correct = np.zeros((13, 30), dtype=bool)
    correct[0], correct[1:7, :10], correct[7:12, 10:20] = True, True, True
    weights = np.random.default_rng(5).multinomial(27, [1 / 30] * 30, 2000)  # 27: see `resample`
    rises = np.diff(weights @ correct.T, axis=1).max(axis=1)  # whole numbers
    margins = -rises / weights.sum(axis=1)
    assert margins.mean() < 0  # the point estimate, of ten images by ten others, is exactly 0
    expected = (margins - 2 * margins.mean() > -1e-9).mean()
    assert judged(craft({"attacked": correct}, seed=5), "C18")["support"] == expected


def test_a_failed_training_is_not_measured_and_says_why(craft):
    experiment = craft({"attacked": right(20)}, failures={FUSED: "its W is constant"})
    row = judged(experiment, "C10")
    assert (row["outcome"], row["measured"]) == ("not measured", "its W is constant")
    assert row["plain_outcome"] == "not measured" and np.isnan(row["support"])
    assert row["published"].startswith("ResNet-50 on NeurIPS-2017DEV: fails (gain on sl: -0.011")


def test_c15_is_judged_over_the_steps_of_the_study(craft):
    over_steps = {"Adv": right(20)[:2], "Filt+Adv": np.array([right(40)[0], right(21)[0]])}
    row = judged(craft({"attacked": right(20)}, over_steps=over_steps), "C15")
    assert (row["outcome"], row["measured"]) == ("inconclusive", "gain: 0.025 … 0.500")


def test_an_unknown_claim_is_refused(craft):
    with pytest.raises(KeyError, match="C99"):
        judge(craft({"attacked": right(20)}), "C99")


def test_all_claims_are_judged_where_none_is_named(experiment):
    rows = judge(experiment, resamples=20)
    assert set(rows["claim"]) == set(CLAIMS)
    assert set(rows["outcome"]) <= {"holds", "fails", "inconclusive", "not measured"}


def test_a_study_of_other_strengths_is_judged_at_its_own(craft):
    experiment = craft(kernel_distance=[[1.0] * 4, [1.0] * 4, [5.0] * 4], eps=(0.0, 1e-4, 0.1))
    row = judged(experiment, "C13")
    assert (row["outcome"], row["published"]) == ("holds", "no numbers")  # but a figure


# -- regions -------------------------------------------------------------------------------------


@pytest.fixture
def find_regions(craft, monkeypatch):
    """S, M and L as a claim sees them when `counts` of `of` attacked images are right."""

    def find(counts, of, reading=WORST_CASE):
        seen = {}
        experiment = craft({"attacked": np.arange(of) < np.array(counts)[:, None]})
        crafted = lambda c: seen.update({c.reading: c.regions}) or [Above("", np.ones(1))]  # noqa: E731
        monkeypatch.setitem(CLAIMS, "C2", ("", crafted))
        judge(experiment, "C2", resamples=1)
        return {name: np.flatnonzero(mask).tolist() for name, mask in seen[reading].items()}

    return find


def test_regions_follow_the_attacked_curve_as_it_is_read(find_regions):
    counts = [90, 73, 50, 80, 20, 3, 2, *[0] * 5, 30]  # the attack is clumsy twice
    plain = find_regions(counts, 100, "accuracy")
    assert plain == {"S": [0, 1, 3], "M": [2, 4, 5, 12], "L": [*range(6, 12)]}
    worst = find_regions(counts, 100)
    assert worst == {"S": [0, 1], "M": [2, 3, 4, 5], "L": [*range(6, 13)]}


@pytest.mark.parametrize(("clean", "of"), [(20, 24), (495, 500)])
def test_exactly_80_percent_of_clean_accuracy_is_small(clean, of, find_regions):
    kept = clean * 4 // 5
    assert find_regions([clean, kept, kept - 1, *[0] * 10], of)["S"] == [0, 1]


# -- per image -----------------------------------------------------------------------------------


def test_the_worst_case_counts_every_weaker_attack_and_no_column_is_added(craft):
    strengths = sorted([*EPS, 8 / 255])
    correct = {"attacked": [[eps not in (3e-3, 8 / 255), eps != 8 / 255] for eps in strengths]}
    experiment = craft(correct, unseen_eps=(8 / 255,))
    found = per_image(experiment, WORST_CASE, "attacked")
    assert found.tolist() == [[eps < 3e-3, eps < 8 / 255] for eps in EPS]
    plain = per_image(experiment, "accuracy", "attacked")
    assert plain.tolist() == [[eps != 3e-3, True] for eps in EPS]


def test_infinite_psnr_counts_as_200_db(craft):
    found = per_image(craft(psnr=[[np.inf, 30.0]] * 13), "psnr", "attacked")
    assert found.tolist() == [[200, 30]] * 13


def test_spearman_is_scipys_per_image_and_0_of_a_constant(craft):
    uncertainty = np.random.default_rng(0).integers(0, 9, (13, 20)).astype(float)  # with ties
    uncertainty[:, :2], uncertainty[:, -1] = np.array([EPS, EPS]).T * [1, -1], 1
    expected = [abs(spearmanr(EPS, image).statistic) for image in uncertainty.T[:-1]]
    found = per_image(craft(uncertainty=uncertainty), "spearman", "Filt(L_img)")
    np.testing.assert_allclose(found, [[*expected, 0]], atol=1e-12)


def test_a_method_without_the_metric_is_a_key_error(craft):
    with pytest.raises(KeyError, match="kernel_distance"):
        per_image(craft(uncertainty=np.ones((13, 2))), "kernel_distance", "Add(L_img)")


# -- as published --------------------------------------------------------------------------------

DEV, VGG, CIFAR, SVHN, FD = (
    "ResNet-50 on NeurIPS-2017DEV", "VGG-16 on NeurIPS-2017DEV", "ResNet-50 on CIFAR-10",
    "ResNet-50 on SVHN", "ResNeXt-101 on NeurIPS-2017DEV",
)  # fmt: skip
PUBLISHED = {
    DEV: set(CLAIMS) - {"C12", "C13", "C16", "C17"},  # figures have no numbers
    VGG: {"C1", "C2", "C3", "C18", "C20"},
    CIFAR: {"C1", "C2", "C3", "C18", "C20"},
    SVHN: {"C1", "C2", "C3", "C16", "C18", "C20"},
    FD: {"C17", "C18"},
}
BROKEN = {
    DEV: {"C4", "C5", "C10"},
    VGG: {"C1", "C2", "C3", "C20"},
    CIFAR: {"C2", "C3", "C18", "C20"},
    SVHN: {"C2", "C3", "C18", "C20"},
    FD: {"C18"},
}


@pytest.mark.parametrize("group", PUBLISHED)
def test_every_published_group_is_judged(group):
    rows = published_claims().query("group == @group").set_index("claim")
    assert set(rows.index) == PUBLISHED[group]
    assert set(rows.index[rows["plain_outcome"] == "fails"]) == BROKEN[group]
    assert set(rows["plain_outcome"]) <= {"holds", "fails"}


def test_the_worst_case_of_a_published_row_is_its_running_minimum():
    rows = published_claims().query("group == @DEV").set_index("claim")
    numbers = published(*PAPER).query("table == 1")
    numbers = numbers.pivot(index="method", columns="eps", values="value")
    lowest = {method: [row[:n].min() for n in range(1, 14)] for method, row in numbers.iterrows()}
    large = [n for n, left in enumerate(lowest["attacked"]) if left <= 0.02]
    expected = np.mean([lowest["Filt(L_img)"][n] - lowest["Filt(L_sem)"][n] for n in large])
    assert rows["margin"]["C3"] == pytest.approx(expected, abs=1e-8)
    assert (rows["outcome"]["C3"], rows["plain_outcome"]["C3"]) == ("fails", "holds")
